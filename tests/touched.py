"""The test files that a change touches: those that import a changed module by name, and those that changed themselves.

`python tests/touched.py` prints them for `make check`: of what is not committed yet or, where all is, of the last
commit. Of a module that half the tests import, those are taken that are called by its name, then those of whose imports
it is the largest share; the others, and what uses it through others only, are left to `make test`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from peftbook.core.imports import imported_names

ROOT = Path(__file__).resolve().parents[1]
MOST = 8  # that a minute has room for


def changed() -> list[str]:
    """Paths below the root that differ from the last commit, or that it changed."""
    asked = (
        ("status", "--porcelain", "--untracked-files=all", "--no-renames", "-z"),
        ("show", "--format=", "--name-only", "--no-renames", "-z"),
    )
    for words, skipped in zip(asked, (3, 0), strict=True):
        said = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        if found := [one[skipped:] for one in said.strip("\0\n").split("\0") if one.strip()]:
            return found
    return []


def touched(paths: Iterable[str]) -> list[str]:
    """Names of the changed test files and of the MOST that are most about the changed modules, in order."""
    modules, tests, about = set[str](), set[str](), dict[str, float]()
    for path in map(Path, paths):
        if path.parts[0] == "tests" and path.name.startswith("test_"):
            tests |= {str(path)} if (ROOT / path).is_file() else set()
        elif path.suffix == ".py":
            parts = path.with_suffix("").parts[1 if path.parts[0] in ("src", "tests") else 0 :]
            modules.add(".".join(parts).removesuffix(".__init__"))
    for test in ROOT.glob("tests/test_*.py"):
        text = test.read_text(encoding="utf-8")
        names = imported_names(text) | {name for name in modules if f"from {name} import" in text}
        if names & modules:
            called = any(name.rpartition(".")[2] in test.stem for name in modules)
            about[str(test.relative_to(ROOT))] = called + len(names & modules) / len(names)
    return sorted({*tests, *sorted(about, key=lambda test: -about[test])[:MOST]})


if __name__ == "__main__":
    print(*touched(changed()))
