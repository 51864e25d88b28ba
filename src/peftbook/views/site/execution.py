"""Which chapters must be executed again: those whose code, package modules, data or records changed.

jupyter-cache knows a notebook by its code cells alone. Beside each cached notebook this module keeps the hashes of the
files that its execution used (`tracing`); the next build drops the entries whose files changed, and only those.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.sphinx_ import NbMetadataCollector, Parser
from sphinx.util import logging

from peftbook.core.folders import PACKAGE
from peftbook.core.records import default_store
from peftbook.core.stamp import changed_since, file_hash, inputs_hash

LOGGER = logging.getLogger(__name__)
LOCK_FILES = ("constraints.txt",)
STARTUP = Path(__file__).with_name("kernel_startup.py")


def read_again(doctrees: Path, page: str) -> None:
    """Have Sphinx read a page in its next build, also if this one is stopped: it reads what it has no doctree of."""
    (doctrees / f"{page}.doctree").unlink(missing_ok=True)


class Ledger:
    """For each cached notebook, the hashes of the files that its execution used.

    entries: hash of the code cells → {"page", "environment", "files": {path: hash, None if looked for in vain}}.
    failed: pages whose last execution failed; they are read again by every build.
    seconds: page → what its last execution took.
    Paths below `root` are stored relative to it, so that a copied cache stays valid.
    """

    def __init__(self, path: Path, root: Path):
        self.path, self.root = path, root
        text = json.loads(path.read_text()) if path.is_file() else {}
        self.entries: dict[str, dict[str, Any]] = text.get("entries", {})
        self.failed: list[str] = text.get("failed", [])
        self.seconds: dict[str, float] = text.get("seconds", {})

    def environment(self) -> str:
        """Hash of the interpreter's version, whoever compiled it, the lock files, and where records are looked for."""
        folders = [self._relative(str(folder)) for folder in default_store().folders]
        locks = [self.root / name for name in LOCK_FILES]
        return inputs_hash(locks, platform.python_version(), *folders, root=self.root)

    def note(self, code_hash: str, page: str, trace: dict[str, list[str]], began: float) -> None:
        """Store what an execution used; not if a file changed since it began, for then it may have used another.

        began: by the clock that files have their times from.
        """
        if changed_since(began, trace["files"]) or not all(Path(name).exists() for name in trace["files"]):
            self.entries.pop(code_hash, None)
            return
        files = {self._relative(name): file_hash(Path(name)) for name in trace["files"]}
        files |= {self._relative(name): None for name in trace["missing"]}
        self.entries[code_hash] = {"page": page, "environment": self.environment(), "files": files}
        self.failed = [name for name in self.failed if name != page]

    def changed_files(self, code_hash: str) -> list[str]:
        """What changed since a notebook was executed; empty if it is still valid."""
        entry = self.entries.get(code_hash)
        return ["(no list of the files it used)"] if entry is None else self.changes_of(entry)

    def is_valid(self, code_hash: str) -> bool:
        """Whether there is an execution of this code, of which nothing has changed."""
        return not self.changed_files(code_hash)

    def changes_of(self, entry: dict[str, Any]) -> list[str]:
        """What changed since an execution, which may have been made elsewhere."""
        if entry["environment"] != self.environment():
            return ["(Python or the lock file)"]
        return [name for name, digest in entry["files"].items() if file_hash(self.root / name) != digest]

    def save(self) -> None:
        """Write through a temporary file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".new")
        content = {"entries": self.entries, "failed": self.failed, "seconds": self.seconds}
        draft.write_text(json.dumps(content, indent=1, sort_keys=True))
        draft.replace(self.path)

    def _relative(self, name: str) -> str:
        path = Path(name)
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else name


def cache_folder(app: Any) -> Path:
    return Path(app.config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")


def ledger_of(app: Any) -> Ledger:
    return Ledger(cache_folder(app) / "peftbook.json", Path(app.srcdir))


def drop_stale(app: Any) -> None:
    """Before reading: drop the cached notebooks whose files changed."""
    ledger, cache = ledger_of(app), get_cache(cache_folder(app))
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
            read_again(Path(app.doctreedir), app.peftbook_stale[-1])
    ledger.entries = {key: entry for key, entry in ledger.entries.items() if key in known}
    ledger.save()


def _page_of(app: Any, uri: str) -> str:
    path = Path(uri)
    return str(path.relative_to(app.srcdir).with_suffix("")) if path.is_relative_to(app.srcdir) else ""


def outdated(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Pages to read again because their cached execution was dropped."""
    return [page for page in app.peftbook_stale if page in env.all_docs]


def kernel_variables(app: Any, trace: Path) -> dict[str, str]:
    """What a kernel needs in its environment to write a trace of what it used there."""
    return {
        "PYTHONSTARTUP": str(STARTUP),
        "PEFTBOOK_TRACE": str(trace),
        "PEFTBOOK_TRACE_ROOTS": os.pathsep.join(_roots(app)),
    }


@contextmanager
def _traced(added: dict[str, str]) -> Iterator[None]:
    """Let the kernel that starts inside have these variables."""
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


class TracingParser(Parser):
    """MyST-NB's parser, which executes a chapter while it reads it unless the cache has it; traces the execution."""

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Read one page; note what its kernel used, if one was started."""
        app = document.settings.env.app
        with tempfile.TemporaryDirectory() as folder:
            target, began = Path(folder) / "trace.json", time.time()
            try:
                with _traced(kernel_variables(app, target)):
                    super().parse(inputstring, document)
            finally:
                _note(app, target, began)


def _note(app: Any, trace: Path, began: float) -> None:
    """Store what the execution that wrote a trace used, or that it failed; without a trace there was none."""
    if not trace.is_file():
        return
    page, ledger = app.env.docname, ledger_of(app)
    LOGGER.info("executed %s", page)
    outcome = NbMetadataCollector.get_exec_data(app.env, page)
    if outcome and outcome["succeeded"]:
        uri = app.env.doc2path(page)
        cached = [record for record in get_cache(cache_folder(app)).list_cache_records() if record.uri == uri]
        newest = max(cached, key=lambda record: record.pk)
        ledger.note(newest.hashkey, page, json.loads(trace.read_text()), began)
    else:
        ledger.failed = sorted({*ledger.failed, page})
    ledger.save()


def cached_outputs(app: Any, notebook: Any) -> Any:
    """A notebook with the outputs of its cached execution, if there is one."""
    with suppress(KeyError):
        return get_cache(cache_folder(app)).merge_match_into_notebook(notebook)[1]
    return notebook


def _roots(app: Any) -> list[str]:
    roots = [str(app.srcdir), str(PACKAGE)]
    if folder := os.environ.get("PEFTBOOK_RECORDS"):
        roots.append(str(Path(folder).resolve()))
    import platformdirs

    return [*roots, platformdirs.user_data_dir("peftbook")]


def setup(app: Any) -> None:
    """Read pages with the tracing parser and connect the ledger to the build."""
    app.setup_extension("myst_nb")
    app.add_source_parser(TracingParser, override=True)
    app.connect("builder-inited", drop_stale)
    app.connect("env-get-outdated", outdated)
