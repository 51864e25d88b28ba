"""The fork server: one process that has imported the large libraries, and whose forks run modules as `python -m` does.

`python -m peftbook.runtime.fork_server LIBRARY …` is that process. A request names a module and carries the files for
its standard input, output, error and exit status; the answer is the pid of the fork. The fork imports the package
itself, so that it runs the code that lies on the disk when it begins.

The forkserver of `multiprocessing` does not serve here: its children import the parent's main module first (for the
site that is Jupyter Book with Sphinx), it reads the environment of the parent alone, hands over no standard streams,
runs no atexit hooks (Python 3.11), and cannot be stopped to give its memory back.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from peftbook.core.quiet import filter_messages, gc_paused
from peftbook.runtime.processes import die_with, fast_exit

AVAILABLE = sys.platform == "linux"  # where a process that has loaded these libraries may be forked
LIBRARIES = (
    "torch", "bitsandbytes", "transformers.models.llama.modeling_llama", "peft", "peft.tuners.lora",
    "safetensors.torch", "scipy.stats", "pydantic.main", "psutil", "sqlite3", "bert_score", "rouge_score.rouge_scorer",
)  # fmt: skip
READY = b"ready"
TIMEOUT = 60.0  # seconds: for the import of the libraries, and for an answer
MESSAGE_BYTES = 1 << 20  # of a request, most of which is the environment


class ForkServer:
    """Starts modules as forks of a process that has the libraries, which ends with this one.

    `start` stands in for `subprocess.Popen`. It forks once the server is ready, and starts a plain process until then,
    on other systems than Linux, in another environment than the server's, and when the server has died. The server
    starts with `load`, or with the second plain process.
    """

    def __init__(self, libraries: Sequence[str] = LIBRARIES):
        self.libraries = libraries
        self.process: subprocess.Popen | None = None
        self.python = ""
        self.connection: socket.socket | None = None
        self.environment: dict[str, str] = {}
        self.ready = False
        self.deadline = 0.0  # after which nobody waits for the libraries
        self.plain = 0  # processes that were started without a server
        self.lock = threading.RLock()

    def start(self, command: Sequence[str], *, env: Mapping[str, str], **options: Any) -> subprocess.Popen | Fork:
        """Start `python -m module word …` in its own session.

        options: of Popen; a fork has its `stdout` and `stderr`, and a pipe as standard input.
        """
        with self.lock:
            if self.process is not None and self.process.poll() is not None:  # it died; another may follow
                self.close()
            if self.matches(command, env) and self.is_ready():
                fork = self.fork(command[2:], env, options["stdout"], options["stderr"])
                if fork is not None:
                    return fork
            child = subprocess.Popen(command, env=env, **options)
            self.plain += 1
            if self.plain > 1:
                with contextlib.suppress(OSError):
                    self.load(env)
            return child

    def load(self, env: Mapping[str, str]) -> None:
        """Start the server in this environment, unless there is one. Raises OSError where no process can be started."""
        with self.lock:
            if not AVAILABLE or self.process is not None:
                return
            self.python, self.environment, self.ready = sys.executable, dict(env), False
            self.deadline = time.monotonic() + TIMEOUT
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(TIMEOUT)
            with theirs:
                try:
                    self.process = subprocess.Popen(
                        [self.python, "-m", "peftbook.runtime.fork_server", *self.libraries],
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        env=env,
                        start_new_session=True,
                    )
                except OSError:
                    ours.close()
                    raise
            self.connection = ours

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Whether the libraries are loaded, at the latest after so many seconds."""
        with self.lock:
            if self.connection is not None and not self.ready and select.select([self.connection], [], [], timeout)[0]:
                self.ready = self.connection.recv(len(READY)) == READY
            return self.ready

    def is_loading(self) -> bool:
        """Whether the server lives and still imports its libraries, and not for too long."""
        if self.process is None or self.is_ready() or self.process.poll() is not None:
            return False
        return time.monotonic() < self.deadline

    def matches(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a fork would be what a new process is: the same Python, and nothing that a library may have read."""
        names = {name for name in {*env, *self.environment} if env.get(name) != self.environment.get(name)}
        return [*command[:2]] == [self.python, "-m"] and all(name.startswith("PEFTBOOK_") for name in names)

    def fork(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
        folder: str = "",
    ) -> Fork | None:
        """Have the server, once it is ready, fork a process that runs a module with its words.

        folder: where it runs, by default here. Returns None where the system has no room for a process, or the server
        does not answer, which ends it.
        """
        with self.lock:
            if self.connection is None or not self.is_ready(TIMEOUT):
                return None
            request = {"words": list(words), "environment": dict(env), "folder": folder or str(Path.cwd())}
            (its_input, our_input), (our_status, its_status) = os.pipe(), os.pipe()
            pid = 0
            try:
                out, error = (at if file is None else file.fileno() for at, file in ((1, stdout), (2, stderr)))
                files = [its_input, out, error, its_status]
                socket.send_fds(self.connection, [json.dumps(request).encode()], files)
                pid = int(self.connection.recv(20))
            except (OSError, ValueError):
                self.close()
            finally:
                for end in (its_input, its_status, *(() if pid else (our_input, our_status))):
                    os.close(end)
            return Fork(pid, our_input, our_status) if pid else None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the server and, with it, all its forks."""
        if self.connection is not None and self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.wait()
        self.process = self.connection = None
        self.plain = 0


class Fork:
    """A fork of the server, with the interface of `subprocess.Popen`."""

    stdout = stderr = None

    def __init__(self, pid: int, stdin: int, status: int):
        """stdin: writes to its standard input.  status: reads its exit status."""
        self.pid, self.status = pid, status
        self.stdin = os.fdopen(stdin, "wb")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit status; that of a killed process where the server died. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(os.read(self.status, 20) or -signal.SIGKILL)
            os.close(self.status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


# ---- in the server's process


def load_libraries(names: Sequence[str]) -> None:
    """Import what can be imported; with the collector on, each fork would copy the memory that it walks through."""
    filter_messages()
    with gc_paused():
        for name in names:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a process for each request, and pass on how each ended. Returns, in the fork, its request and files.

    Raises SystemExit when the connection ends.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}  # pid → where its exit status goes
    server = os.getpid()
    connection.sendall(READY)
    while True:
        readable = select.select([connection.fileno(), woken], [], [])[0]
        if woken in readable:
            os.read(woken, 4096)
            for pid in list(statuses):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with contextlib.suppress(BrokenPipeError):
                        os.write(statuses[pid], b"%d" % os.waitstatus_to_exitcode(status))
                    os.close(statuses.pop(pid))
        if connection.fileno() not in readable:
            continue
        request, files, *_ = socket.recv_fds(connection, MESSAGE_BYTES, 4)
        if not request:
            raise SystemExit
        try:
            pid = os.fork()
        except OSError:  # out of memory, or of processes
            pid = -1
        if pid == 0:
            die_with(server)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for file in (*statuses.values(), files.pop(), connection.detach(), woken, wake):
                os.close(file)
            return json.loads(request), files
        if pid > 0:
            statuses[pid] = files.pop()
        connection.sendall(b"%d" % max(pid, 0))
        for file in files:
            os.close(file)


def run_module(files: Sequence[int], words: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    """In the fork: run a module with its words as `python -m` does, with random numbers and the package anew."""
    os.setsid()
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()
    for name in [name for name in sys.modules if name.partition(".")[0] == "peftbook"]:
        del sys.modules[name]
    if not sys.flags.safe_path:
        sys.path[0] = folder
    module, *sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(libraries: Sequence[str]) -> None:
    """Serve; and, in each fork, run what was asked for."""
    load_libraries(libraries)
    request, files = serve(socket.socket(fileno=os.dup(0)))
    run_module(files, **request)


if __name__ == "__main__":
    with fast_exit():
        main(sys.argv[1:])
