"""Processes forked from one that has the large libraries, so that a queue imports them once and not for every run.

`python -m peftbook.preloaded` is that one process: a request names a module and brings the files that are to be its
standard input, output and error; the answer is the number of a fork that runs the module as `python -m` would. The
package itself, but for `later`, is imported by the fork, so that each run has the code that lies on the disk when it
begins.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from peftbook.later import put_off, uncollected

__all__ = ["AVAILABLE", "Forked", "Preloaded"]

AVAILABLE = sys.platform == "linux"  # where a process that has loaded these libraries may be forked
LIBRARIES = (
    "torch", "torch._dynamo", "bitsandbytes", "transformers.models.llama.modeling_llama", "peft", "peft.tuners.lora",
    "safetensors.torch", "scipy.stats", "pydantic.main", "psutil", "sqlite3", "bert_score", "rouge_score.rouge_scorer",
)  # fmt: skip
READY = b"ready\n"
PATIENCE = 60.0  # seconds for an answer
LINE = 20  # bytes that hold any number and its end of line


class Preloaded:
    """The process with the libraries: begun by `load` before the first child, or beside the second; ended with us.

    `start` stands for `subprocess.Popen`, and is that as long as nothing can be forked: at first, on other systems, in
    an environment that a library would have read otherwise, and where the process has died.
    """

    def __init__(self) -> None:
        self.server: subprocess.Popen | None = None
        self.line: socket.socket | None = None
        self.python = ""
        self.environment: dict[str, str] = {}
        self.ready = False
        self.begun = 0.0
        self.children = 0  # that were started since there has been no such process
        self.asking = threading.Lock()

    def start(self, command: Sequence[str], *, env: Mapping[str, str], **files: Any) -> subprocess.Popen | Forked:
        """A process that runs `python -m module word …` with these files, as Popen takes them, in its own session."""
        with self.asking:
            if self.server is not None and self.server.poll() is not None:  # it died; another may follow
                self.close()
            if command[:2] == [self.python, "-m"] and self.has_libraries(env):
                try:
                    if (forked := self.fork(command[2:], env, files["stdout"], files["stderr"])) is not None:
                        return forked
                except (OSError, ValueError):
                    self.close()
            child = subprocess.Popen(command, env=env, **files)
            self.children += 1
            if AVAILABLE and self.server is None and self.children > 1:
                self.begin(command[0], env)
            return child

    def load(self, env: Mapping[str, str]) -> None:
        """Begin, for who knows that several children in this environment will follow: to wait for it then costs
        nothing, since the first child would import the same libraries. Raises OSError where no process can be started.
        """
        with self.asking:
            if AVAILABLE and self.server is None:
                self.begin(sys.executable, env)

    def is_loading(self) -> bool:
        """Whether to wait for the process: it lives, imports its libraries, and that not for too long."""
        if self.server is None or self.has_said_ready() or self.server.poll() is not None:
            return False
        return time.monotonic() - self.begun < PATIENCE

    def has_said_ready(self) -> bool:
        """Whether the process has its libraries."""
        if self.line is not None and not self.ready and select.select([self.line], [], [], 0)[0]:
            self.ready = self.line.recv(len(READY)) == READY
        return self.ready

    def begin(self, python: str, env: Mapping[str, str]) -> None:
        """Start the process with the libraries in an environment; it says when it has them."""
        self.python, self.environment, self.ready, self.begun = python, dict(env), False, time.monotonic()
        line, its = socket.socketpair()
        line.settimeout(PATIENCE)
        with its:
            try:
                self.server = subprocess.Popen(
                    [python, "-m", "peftbook.preloaded"], stdin=its.fileno(), stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env=env, start_new_session=True,
                )  # fmt: skip
            except OSError:
                line.close()
                raise
        self.line = line

    def has_libraries(self, env: Mapping[str, str]) -> bool:
        """Whether the process is ready, and a fork would be what a new process in this environment is."""
        names = {name for name in {*env, *self.environment} if env.get(name) != self.environment.get(name)}
        return self.line is not None and self.has_said_ready() and all(name.startswith("PEFTBOOK_") for name in names)

    def fork(
        self, words: Sequence[str], env: Mapping[str, str], out: IO[bytes], err: IO[bytes] | None
    ) -> Forked | None:
        """Ask for a fork; None where the system has no room. Raises OSError or ValueError where no answer comes."""
        assert self.line is not None
        asked = json.dumps({"words": list(words), "variables": dict(env), "folder": str(Path.cwd())}).encode()
        (its_input, our_input), (our_status, its_status) = os.pipe(), os.pipe()
        pid = 0
        try:
            error = 2 if err is None else err.fileno()
            socket.send_fds(self.line, [b"%d\n" % len(asked)], [its_input, out.fileno(), error, its_status])
            self.line.sendall(asked)
            pid = int(self.line.recv(LINE))
        finally:
            for end in (its_input, its_status, *(() if pid else (our_input, our_status))):
                os.close(end)
        return Forked(pid, our_input, our_status) if pid else None

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; what it has forked ends with it."""
        if self.line is not None and self.server is not None:
            self.line.close()
            self.server.kill()
            self.server.wait()
        self.line = self.server = None
        self.children = 0


class Forked:
    """What `subprocess.Popen` offers of a child, of a fork of the process with the libraries."""

    def __init__(self, pid: int, told: int, status: int):
        """told: what its standard input reads.  status: where its exit status is written."""
        self.pid, self.status = pid, status
        self.stdin = os.fdopen(told, "wb")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, negative the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit status. Raises TimeoutExpired. Where the process with the libraries died, it was killed."""
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(os.read(self.status, 20) or -signal.SIGKILL)
            os.close(self.status)
        return self.returncode

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


# ---- in the process with the libraries


def serve() -> None:
    """Import the libraries, then fork a process for each request, and pass on how each has ended."""
    put_off()
    with warnings.catch_warnings(), uncollected():  # else a fork would copy what its collector walks through
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    line = socket.socket(fileno=os.dup(0))
    line.sendall(READY)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}
    while True:
        ready: list[Any] = select.select([line.fileno(), woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with contextlib.suppress(BrokenPipeError):
                        os.write(children[pid], b"%d" % os.waitstatus_to_exitcode(status))
                    os.close(children.pop(pid))
        if line.fileno() in ready:
            head, files, *_ = socket.recv_fds(line, LINE, 4)
            size, _, body = head.partition(b"\n")
            while size and len(body) < int(size):
                more = line.recv(1 << 16)
                size, body = size if more else b"", body + more
            if not size:  # whoever asked is gone
                os._exit(0)
            parent = os.getpid()
            try:
                pid = os.fork()
            except OSError:  # out of memory, or of processes
                line.sendall(b"0")
                pid = -1
            if pid > 0:
                children[pid] = files.pop()
                line.sendall(b"%d" % pid)
            if pid:
                for file in files:
                    os.close(file)
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for file in (*children.values(), files.pop(), line.detach(), woken, wake):
                os.close(file)
            become(parent, files, **json.loads(body))


def become(parent: int, files: list[int], words: list[str], variables: dict[str, str], folder: str) -> None:
    """In the fork: what `python -m` does with a module and its words. Does not return."""
    from peftbook import processes  # here, as all of the package, so that it is that of the disk

    os.setsid()
    processes.FORKED_BY = parent
    processes.die_with(parent)
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    anew()
    module, *sys.argv[1:] = words
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    processes.leave(status)


def anew() -> None:
    """Random numbers of its own, as a new process has."""
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()


if __name__ == "__main__":
    serve()
