"""Kernels forked from one process that has the large libraries, so that no chapter waits for their import.

Each chapter still has a process and a namespace of its own; the package itself is imported by the chapter, so that the
trace of what it used stays its own. `python -m peftbook.site.forked_kernels` is that one process: it reads a line of
JSON for each kernel and answers with the number of the kernel's process.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np
import psutil
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from nbclient.exceptions import DeadKernelError

from peftbook import later

__all__ = ["AVAILABLE", "KernelServer"]

AVAILABLE = sys.platform == "linux"  # where a process that has loaded these libraries may be forked
PRELOADED = (
    "torch", "transformers.models.llama.modeling_llama", "peft", "datasets", "scipy.stats", "matplotlib.figure",
    "matplotlib.backends.backend_svg",
)  # fmt: skip
INLINE = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # matplotlib reads what IPython would set


class KernelServer:
    """The process that kernels are forked from; at the end of the context it is told to end."""

    def __init__(self, variables: Mapping[str, str]):
        """variables: what its environment has beside this process's, before the libraries are imported."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "peftbook.site.forked_kernels"], env={**os.environ, **INLINE, **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.asking = threading.Lock()

    def fork(self, arguments: list[str], variables: Mapping[str, str], folder: str) -> int:
        """Start a kernel with these arguments and this environment there; returns the number of its process.

        Raises DeadKernelError if the server is gone.
        """
        asked = {"arguments": arguments, "variables": dict(variables), "folder": folder}
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            with self.asking:
                print(json.dumps(asked), file=self.process.stdin, flush=True)
                return int(self.process.stdout.readline())
        except (OSError, ValueError):
            raise DeadKernelError("The process that kernels are forked from has ended.") from None

    def manager(self) -> type[AsyncKernelManager]:
        """Manages a kernel as Jupyter's own does, but starts it here."""
        server = self

        class Manager(AsyncKernelManager):
            async def _async_pre_start_kernel(self, **options: Any) -> tuple[list[str], dict[str, Any]]:
                self.kernel_id = self.kernel_id or str(uuid.uuid4())
                self.provisioner = Forked(server, kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
                return await super()._async_pre_start_kernel(**options)

            pre_start_kernel = _async_pre_start_kernel

        return Manager

    def __enter__(self) -> KernelServer:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it may have died
            self.process.communicate()  # ends its input, and waits


class Forked(LocalProvisioner):
    """Jupyter's provisioner of local processes, whose process is a fork of the server's."""

    def __init__(self, server: KernelServer, **options: Any):
        super().__init__(**options)
        self.server = server

    async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
        """Fork the kernel that the command would start."""
        pid = self.server.fork(cmd[cmd.index("-f") :], options["env"], options.get("cwd") or ".")
        try:
            self.process, self.pid, self.pgid = cast(Any, Process(pid)), pid, pid
        except psutil.NoSuchProcess:
            raise DeadKernelError("The kernel died at its start.") from None
        return self.connection_info


class Process:
    """What a provisioner asks of a process, of one that is not a child of this one and leaves no status."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.known = psutil.Process(pid)

    def poll(self) -> int | None:
        """None while it runs."""
        return None if self.known.is_running() else 0

    def wait(self) -> int:
        """Wait until it has ended."""
        self.known.wait()
        return 0

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with suppress(psutil.NoSuchProcess):
            self.known.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def serve() -> None:
    """Import what is large, then fork a kernel for each line that comes."""
    later.put_off()
    del sys.modules[later.__name__]  # a chapter's trace shows what it imports itself
    with warnings.catch_warnings(), later.uncollected():
        warnings.simplefilter("ignore")  # a chapter shows those of its own
        for name in PRELOADED:
            with suppress(ImportError):
                importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels that end leave nothing behind
    while line := sys.stdin.readline():
        if pid := os.fork():
            print(pid, flush=True)
            continue
        become_kernel(**json.loads(line))
        atexit._run_exitfuncs()
        os._exit(0)  # to take a process with these libraries apart takes seconds


def become_kernel(arguments: list[str], variables: dict[str, str], folder: str) -> None:
    """In the forked process: what `python -m ipykernel_launcher` does."""
    import torch

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # the server's answers are its own
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    del sys.path[0]  # IPython puts the folder there
    np.random.seed()  # else all kernels would draw the same numbers
    torch.seed()
    IPKernelApp.launch_instance(arguments, parent_handle=os.getppid())  # it ends when that one does


if __name__ == "__main__":
    serve()
