"""Prefetch: execute the chapters that no cache has before Sphinx reads them, as many at once as there are cores.

MyST-NB executes a chapter while it reads it, one after the other, and does not trace what it uses. Here each chapter
gets the same kernel, process and namespace of its own, and the outputs go into the cache where MyST-NB finds them. A
chapter that fails is left to MyST-NB, which executes it again and says what went wrong.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from myst_nb.core.read import create_nb_reader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from sphinx.util import logging

from peftbook.runtime.fork_server import AVAILABLE, ForkServer
from peftbook.views.site.build_progress import phases_of
from peftbook.views.site.execution import cache_folder, kernel_variables, used_files

LOGGER = logging.getLogger(__name__)
KERNEL_BYTES = 2e9  # that a chapter's process may take: torch, a model, figures
LIBRARIES = (
    "torch", "transformers.models.llama.modeling_llama", "peft", "datasets", "scipy.stats", "matplotlib.figure",
    "matplotlib.backends.backend_svg", "ipykernel.kernelapp",
)  # fmt: skip
INLINE = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # matplotlib reads it before IPython would set it


@dataclass
class PendingPage:
    """A page whose code no cache has, and what its execution left."""

    page: str
    path: Path
    notebook: NotebookNode
    used: dict[str, Any] | None = None  # as `used_files` has it; None if the execution failed


def execute_ahead(app: Any, env: Any, pages: Sequence[str]) -> None:
    """Before reading: execute what must be, the longest code first; store outputs and what they were made from."""
    if env.mystnb_config.execution_mode != "cache":
        return
    cache = get_cache(cache_folder(app))
    waiting = sorted(pending(env, cache, pages), key=size, reverse=True)
    if not waiting:
        return
    room = int(psutil.virtual_memory().available // KERNEL_BYTES)
    workers = max(1, min(len(waiting), os.cpu_count() or 1, room))
    threads, phases = max(1, (os.cpu_count() or 1) // workers), phases_of(app)
    phases("executing the chapters", 0, len(waiting), f"{waiting[0].page} first")
    shared = {"OMP_NUM_THREADS": str(threads), **os.environ}
    # One alone imports what it needs; the server's imports pay from the second on.
    kernels = kernel_managers(shared) if len(waiting) > 1 else nullcontext(AsyncKernelManager)
    with kernels as manager, ThreadPoolExecutor(workers) as pool:
        running = [
            pool.submit(execute, one, app, env.mystnb_config.execution_timeout, manager, shared) for one in waiting
        ]
        for count, done in enumerate(as_completed(running), 1):
            chapter = done.result()
            if chapter.used is not None:
                bundle = CacheBundleIn(chapter.notebook, str(chapter.path), data=chapter.used)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            LOGGER.info("executed %s", chapter.page)
            phases("executing the chapters", count, len(running), f"{chapter.page} is done")


def pending(env: Any, cache: Any, pages: Sequence[str]) -> list[PendingPage]:
    """The chapters among these pages that have code and no outputs in the cache."""
    found = []
    for page in pages:
        path = Path(env.doc2path(page))
        text = path.read_text(encoding="utf-8")
        reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, text)
        if reader is None or not size(chapter := PendingPage(page, path, reader.read(text))):
            continue
        try:
            cache.match_cache_notebook(chapter.notebook)
        except KeyError:
            found.append(chapter)
    return found


def size(chapter: PendingPage) -> int:
    """Characters of its code."""
    return sum(len(cell.source) for cell in chapter.notebook.cells if cell.cell_type == "code")


@contextmanager
def kernel_managers(variables: Mapping[str, str]) -> Iterator[type[AsyncKernelManager]]:
    """What starts a chapter's kernel: a fork server, where there can be one, in an environment with these variables."""
    if not AVAILABLE:
        yield AsyncKernelManager
        return
    with ForkServer(LIBRARIES) as server:
        server.load({**os.environ, **INLINE, **variables})

        class Manager(AsyncKernelManager):
            def __init__(self, **options: Any):
                super().__init__(**options)
                self.provisioner = ForkedKernel(server, kernel_spec=self.kernel_spec, parent=self)

        yield Manager


class ForkedKernel(LocalProvisioner):
    """Jupyter's provisioner of local processes, whose process is a fork."""

    def __init__(self, server: ForkServer, **options: Any):
        super().__init__(**options)
        self.server = server

    async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
        """Fork the kernel that the command would start. Raises DeadKernelError if that cannot be done."""
        if (server := self.server.process) is not None:
            words = [*cmd[cmd.index("-m") + 1 :], f"--IPKernelApp.parent_handle={server.pid}"]
            fork = self.server.fork(words, options["env"], None, None, options.get("cwd") or "")
        if server is None or fork is None:
            raise DeadKernelError("The process that kernels are forked from has ended.")
        fork.stdin.close()
        self.process, self.pid, self.pgid = cast(Any, fork), fork.pid, fork.pid
        return self.connection_info


def execute(
    chapter: PendingPage, app: Any, timeout: int, manager: type[AsyncKernelManager], shared: Mapping[str, str]
) -> PendingPage:
    """Execute a chapter in a kernel of its own, and note what it used."""
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "trace.json"
        variables = {**shared, **kernel_variables(app, target)}
        client = NotebookClient(
            chapter.notebook,
            timeout=timeout,
            resources={"metadata": {"path": str(chapter.path.parent)}},
            record_timing=False,
            kernel_manager_class=manager,
        )
        with suppress(CellExecutionError, CellTimeoutError, DeadKernelError, FileNotFoundError):
            client.execute(env=variables)
            trace = json.loads(target.read_text())
            chapter.used = used_files(chapter.page, trace, began, Path(app.srcdir))
    return chapter


def setup(app: Any) -> None:
    """Connect to the build."""
    app.setup_extension("peftbook.views.site.execution")
    app.setup_extension("peftbook.views.site.build_progress")
    app.connect("env-before-read-docs", execute_ahead)
