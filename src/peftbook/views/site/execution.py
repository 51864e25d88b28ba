"""Which chapters must be executed again: those whose code, package modules, data or records changed.

jupyter-cache knows a notebook by its code cells alone. The record of each cached notebook also holds the hashes of the
files that its execution used (`tracing`); the next build drops the records whose files changed, and only those.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
from jupyter_cache import get_cache
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util import logging

from peftbook.core.folders import PACKAGE
from peftbook.core.records import default_store
from peftbook.core.stamp import changed_since, file_hash, inputs_hash

LOGGER = logging.getLogger(__name__)
LOCK_FILES = ("constraints.txt",)
STARTUP = Path(__file__).with_name("kernel_startup.py")


def environment(root: Path) -> str:
    """Hash of the interpreter's version, the lock files, and where records are looked for."""
    folders = [relative(str(folder), root) for folder in default_store().folders]
    return inputs_hash([root / name for name in LOCK_FILES], platform.python_version(), *folders, root=root)


def relative(name: str, root: Path) -> str:
    """A path as the cache has it: relative to `root` if it lies below, so that a copied cache stays valid."""
    path = Path(name)
    return str(path.relative_to(root)) if path.is_relative_to(root) else name


def used_files(page: str, trace: Mapping[str, list[str]], began: float, root: Path) -> dict[str, Any]:
    """What an execution used: {"page", "environment", "files": {path: hash, None if looked for in vain}}.

    Empty if a file changed since it began, by the clock that files have their times from: it may have used another.
    """
    if changed_since(began, trace["files"]) or not all(Path(name).exists() for name in trace["files"]):
        return {}
    files = {relative(name, root): file_hash(Path(name)) for name in trace["files"]}
    files |= {relative(name, root): None for name in trace["missing"]}
    return {"page": page, "environment": environment(root), "files": files}


def changed_files(used: Mapping[str, Any] | None, root: Path) -> list[str]:
    """What changed since an execution, which may have been made elsewhere; empty if it is still valid."""
    if not used or "files" not in used:
        return ["(no list of the files it used)"]
    if used["environment"] != environment(root):
        return ["(Python or the lock file)"]
    return [name for name, digest in used["files"].items() if file_hash(root / name) != digest]


def cache_folder(app: Any) -> Path:
    return Path(app.config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")


def drop_stale(app: Any) -> None:
    """Before reading: drop the cached notebooks whose files changed, and have their pages read again.

    Sphinx reads what it has no doctree of, in its next build too if this one is stopped.
    """
    cache, root = get_cache(cache_folder(app)), Path(app.srcdir)
    for record in cache.list_cache_records():
        if changed := changed_files(record.data, root):
            page = relative(str(Path(record.uri).with_suffix("")), root)
            LOGGER.info("execute again: %s, because %s changed", page, ", ".join(changed[:3]))
            cache.remove_cache(record.pk)
            Path(app.doctreedir, f"{page}.doctree").unlink(missing_ok=True)


def outdated(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Pages whose last execution failed."""
    outcomes = {page: NbMetadataCollector.get_exec_data(env, page) for page in env.all_docs}
    return [page for page, outcome in outcomes.items() if outcome and not outcome["succeeded"]]


def kernel_variables(app: Any, trace: Path) -> dict[str, str]:
    """What a kernel needs in its environment to write a trace of what it used there."""
    roots = [str(app.srcdir), str(PACKAGE), platformdirs.user_data_dir("peftbook")]
    if folder := os.environ.get("PEFTBOOK_RECORDS"):
        roots.append(str(Path(folder).resolve()))
    return {
        "PYTHONSTARTUP": str(STARTUP),
        "PEFTBOOK_TRACE": str(trace),
        "PEFTBOOK_TRACE_ROOTS": os.pathsep.join(roots),
    }


def cached_outputs(app: Any, notebook: Any) -> Any:
    """A notebook with the outputs of its cached execution, if there is one."""
    with suppress(KeyError):
        return get_cache(cache_folder(app)).merge_match_into_notebook(notebook)[1]
    return notebook


def setup(app: Any) -> None:
    """Drop what is stale before anything is read."""
    app.setup_extension("myst_nb")
    app.connect("builder-inited", drop_stale)
    app.connect("env-get-outdated", outdated)
