"""Whether a built site is the one that the sources would give: every build without a warning is stamped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftbook.core import stamp

FILES = ("_config.yml", "_toc.yml", "CITATION.cff", "CHANGELOG.md", "constraints.txt", "slides/outline.toml")
FOLDERS = ("book", "src/peftbook")
STAMP = ".stamp"


def sources_hash(root: Path) -> str:
    """SHA-256 over names and contents of all that the site is made from."""
    paths = [root / name for name in FILES]
    paths += [path for folder in FOLDERS for path in (root / folder).rglob("*") if "__pycache__" not in path.parts]
    return stamp.inputs_hash([path for path in paths if path.is_file()], root=root)


def is_fresh(site: Path, root: Path) -> bool:
    """Whether `site` was built from the present sources without a warning."""
    return stamp.is_fresh(site / STAMP, sources_hash(root))


def _note(app: Any) -> None:
    """At the start: a file edited while the build runs must make it stale."""
    app.peftbook_sources = sources_hash(Path(app.srcdir))


def _write(app: Any, error: Exception | None) -> None:
    path = Path(app.outdir) / STAMP
    path.unlink(missing_ok=True)
    if error is None and app.builder.name == "html" and not app._warncount:
        stamp.write_stamp(path, app.peftbook_sources)


def setup(app: Any) -> None:
    """Stamp every build."""
    app.connect("builder-inited", _note)
    app.connect("build-finished", _write)
