"""The files of the package that a module depends on: what it imports, what that imports, and the package's data."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path

from peftbook.core.folders import PACKAGE

IMPORTED = re.compile(
    r"^\s*(?:from\s+(peftbook[\w.]*)\s+import\s+(\([^)]*\)|.*)|import\s+(peftbook[\w.]*))", re.MULTILINE
)
BY_NAME = re.compile(r"\b(import_module|get_study)\(")


@lru_cache(maxsize=64)
def dependencies(module: str) -> frozenset[str]:
    """Paths of the package's files that a module's functions can use: code and data.

    A module that imports others by a computed name, or looks up a study by name, depends on its whole folder.
    `studies` does not: its callers pass the name, and each study has a cached result of its own.
    """
    waiting, seen = [module], set[str]()
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += [name.rpartition(".")[0], *imports_of(name)]
    return frozenset({*(_modules()[name] for name in seen & _modules().keys()), *_data()})


@cache
def _data() -> list[str]:
    """The package's files other than code."""
    return [str(path) for path in (*PACKAGE.glob("data/**/*"), *PACKAGE.glob("*/*.toml")) if path.is_file()]


@cache
def _modules() -> dict[str, str]:
    """Name → file of each module of the package."""
    return {_name_of(file): str(file) for file in PACKAGE.rglob("*.py")}


def _name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(maxsize=4096)
def imports_of(module: str) -> set[str]:
    """Names that a module imports from the package, or may import by a computed name; empty for an unknown module."""
    if module not in _modules():
        return set()
    file = Path(_modules()[module])
    text = file.read_text(encoding="utf-8")
    names = imported_names(text)
    if BY_NAME.search(text) and module != "peftbook.studies":
        names |= {_name_of(other) for other in (*file.parent.glob("*.py"), *file.parent.glob("*/__init__.py"))}
    return names


def imported_names(code: str) -> set[str]:
    """Names of the package's modules that code imports anywhere; for `from a import b` both a and a.b."""
    names = set[str]()
    for origin, what, whole in IMPORTED.findall(code):
        names |= {whole} if whole else {origin, *(f"{origin}.{name}" for name in re.findall(r"\w+", what))}
    return names
