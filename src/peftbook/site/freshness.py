"""Whether a built site is the one that the sources would give: a stamp beside it, written by every build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = ("_config.yml", "_toc.yml", "CITATION.cff", "CHANGELOG.md", "constraints.txt", "slides/outline.toml")
FOLDERS = ("book", "src/peftbook")
STAMP = ".stamp.json"


def _sources(root: Path) -> Iterator[Path]:
    yield from (root / name for name in FILES if (root / name).is_file())
    for folder in FOLDERS:
        yield from (path for path in (root / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def sources_hash(root: Path) -> str:
    """SHA-256 over names and contents of all that the site is made from."""
    digest = hashlib.sha256()
    for path in sorted(_sources(root)):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_fresh(site: Path, root: Path) -> bool:
    """Whether `site` was built from the present sources without a warning."""
    stamp = site / STAMP
    if not stamp.is_file():
        return False
    written = json.loads(stamp.read_text())
    return written == {"sources": sources_hash(root), "warnings": 0}


def _write(app: Any, error: Exception | None) -> None:
    stamp = Path(app.outdir) / STAMP
    stamp.unlink(missing_ok=True)
    if error is None and app.builder.name == "html":
        stamp.write_text(json.dumps({"sources": app.peftbook_sources, "warnings": app._warncount}))


def _note(app: Any) -> None:
    """At the start: a file edited while the build runs must make it stale."""
    app.peftbook_sources = sources_hash(Path(app.srcdir))


def setup(app: Any) -> None:
    """Stamp every build."""
    app.connect("builder-inited", _note)
    app.connect("build-finished", _write)
