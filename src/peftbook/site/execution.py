"""Which chapters must be executed again: those whose code, package modules, data or records changed.

jupyter-cache knows a notebook by its code cells alone. Beside each cached notebook this module keeps the hashes of the
files that its execution used (`tracing`); the next build drops the entries whose files changed, and only those.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sphinx.util import logging

__all__ = ["Ledger", "file_hash", "setup"]

LOGGER = logging.getLogger(__name__)
LOCK_FILES = ("constraints.txt",)
STARTUP = Path(__file__).with_name("kernel_startup.py")


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file, or None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


class Ledger:
    """For each cached notebook, the hashes of the files that its execution used.

    entries: hash of the code cells → {"page", "environment", "files": {path: hash, None if looked for in vain}}.
    failed: pages whose last execution failed; they are read again by every build.
    Paths below `root` are stored relative to it, so that a copied cache stays valid.
    """

    def __init__(self, path: Path, root: Path):
        self.path, self.root = path, root
        text = json.loads(path.read_text()) if path.is_file() else {}
        self.entries: dict[str, dict[str, Any]] = text.get("entries", {})
        self.failed: list[str] = text.get("failed", [])

    def environment(self) -> str:
        """Hash of the interpreter's version and the lock files."""
        digest = hashlib.sha256(sys.version.encode())
        for name in LOCK_FILES:
            digest.update((file_hash(self.root / name) or "").encode())
        return digest.hexdigest()

    def note(self, code_hash: str, page: str, trace: dict[str, list[str]]) -> None:
        """Store what an execution used."""
        files = {self._relative(name): file_hash(Path(name)) for name in trace["files"]}
        files |= {self._relative(name): None for name in trace["missing"]}
        self.entries[code_hash] = {"page": page, "environment": self.environment(), "files": files}
        self.failed = [name for name in self.failed if name != page]

    def changed_files(self, code_hash: str) -> list[str]:
        """What changed since a notebook was executed; empty if it is still valid."""
        entry = self.entries.get(code_hash)
        if entry is None:
            return ["(no list of the files it used)"]
        if entry["environment"] != self.environment():
            return ["(Python or the lock file)"]
        return [name for name, digest in entry["files"].items() if file_hash(self.root / name) != digest]

    def save(self) -> None:
        """Write through a temporary file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"entries": self.entries, "failed": self.failed}, indent=1, sort_keys=True))
        draft.replace(self.path)

    def _relative(self, name: str) -> str:
        path = Path(name)
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else name


def _cache_folder(app: Any) -> Path:
    return Path(app.config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")


def _ledger(app: Any) -> Ledger:
    return Ledger(_cache_folder(app) / "peftbook.json", Path(app.srcdir))


def drop_stale(app: Any) -> None:
    """Before reading: drop the cached notebooks whose files changed."""
    from jupyter_cache import get_cache

    ledger, cache = _ledger(app), get_cache(_cache_folder(app))
    app.peftbook_stale = list(ledger.failed)
    known = set()
    for record in cache.list_cache_records():
        known.add(record.hashkey)
        if changed := ledger.changed_files(record.hashkey):
            page = ledger.entries.pop(record.hashkey, {}).get("page", "")
            LOGGER.info("execute again: %s, because %s changed", page or record.uri, ", ".join(changed[:3]))
            cache.remove_cache(record.pk)
            known.discard(record.hashkey)
            app.peftbook_stale.append(page or _page_of(app, record.uri))
    ledger.entries = {key: entry for key, entry in ledger.entries.items() if key in known}
    ledger.save()


def _page_of(app: Any, uri: str) -> str:
    path = Path(uri)
    return str(path.relative_to(app.srcdir).with_suffix("")) if path.is_relative_to(app.srcdir) else ""


def outdated(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Pages to read again because their cached execution was dropped."""
    return [page for page in app.peftbook_stale if page in env.all_docs]


@contextmanager
def _traced(target: Path, roots: list[str]) -> Iterator[None]:
    """Let the kernel that starts inside write its trace to `target`."""
    added = {
        "PYTHONSTARTUP": str(STARTUP),
        "PEFTBOOK_TRACE": str(target),
        "PEFTBOOK_TRACE_ROOTS": os.pathsep.join(roots),
    }
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def trace_executions(app: Any) -> None:
    """Wrap MyST-NB's cache client: trace each execution and give the downloadable notebook its outputs."""
    from jupyter_cache import get_cache
    from myst_nb.core.execute import cache as myst_cache

    execute, start = myst_cache.single_nb_execution, myst_cache.NotebookClientCache.start_client
    if getattr(start, "peftbook", False):  # a second build in this process
        execute, start = execute.original, start.original

    def traced_execution(notebook: Any, **options: Any) -> Any:
        page, ledger = app.env.docname, _ledger(app)
        # As jupyter-cache counts: code cells and kernel, before execution.
        code_hash = get_cache(_cache_folder(app)).create_hashed_notebook(notebook)[1]
        LOGGER.info("executing %s", page)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "trace.json"
            with _traced(target, _roots(app)):
                result = execute(notebook, **options)
            if result.err is not None or not target.is_file():
                ledger.failed = sorted({*ledger.failed, page})
            else:
                ledger.note(code_hash, page, json.loads(target.read_text()))
        ledger.save()
        return result

    def start_client(client: Any) -> None:
        original = client.notebook
        start(client)
        for cell, executed in zip(original.cells, client.notebook.cells, strict=True):
            if cell.cell_type == "code" and cell is not executed:
                cell.outputs, cell.execution_count = executed.outputs, executed.execution_count

    traced_execution.original = execute  # type: ignore[attr-defined]
    start_client.original, start_client.peftbook = start, True  # type: ignore[attr-defined]
    myst_cache.single_nb_execution = traced_execution
    myst_cache.NotebookClientCache.start_client = start_client


def _roots(app: Any) -> list[str]:
    roots = [str(app.srcdir), str(Path(__file__).resolve().parents[1])]
    if folder := os.environ.get("PEFTBOOK_RECORDS"):
        roots.append(str(Path(folder).resolve()))
    import platformdirs

    return [*roots, platformdirs.user_data_dir("peftbook")]


def setup(app: Any) -> None:
    """Connect the ledger to the build."""
    app.connect("builder-inited", drop_stale)
    app.connect("builder-inited", trace_executions)
    app.connect("env-get-outdated", outdated)
