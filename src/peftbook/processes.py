"""Processes: children of this Python, identities that outlive pids, locks that die with their holders."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import psutil

from peftbook.errors import InputError

__all__ = ["HOST", "Child", "ask", "die_with_parent", "elsewhere", "end_group", "end_with_input", "environment_of",
           "hold", "identity", "is_alive", "leave"]  # fmt: skip

HOST = platform.node()
LINE_CHARS = 1000  # of what a child said that are passed on
FORKED_BY = 0  # the process that this one was forked from, with which it ends (`preloaded`)


class Child:
    """A process of this Python, leader of its own group, with what it said and complained. Used with `with`.

    Its standard input is a pipe that ends when this process does: a child that calls `end_with_input` never outlives
    us. What it was still doing when the block is left is ended.
    """

    def __init__(
        self, *words: str, threads: int = 0, variables: Mapping[str, str] | None = None, show: bool = False,
        start: Callable[..., Any] = subprocess.Popen,
    ):  # fmt: skip
        """words: after the interpreter, like ("-m", module).  threads, variables: of its environment.
        show: let its complaints through to standard error.  start: what starts it, in place of Popen and as it does.
        """
        self.streams: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 — closed with it
        said, complained = self.streams
        try:
            self.process = start(
                [sys.executable, *words], stdin=subprocess.PIPE, stdout=said, stderr=None if show else complained,
                env=environment_of(threads, variables), start_new_session=True,
            )  # fmt: skip
        except OSError:
            self.close_streams()
            raise
        self.identity = identity(self.process.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.close()

    def tell(self, text: str, *, last: bool = False) -> None:
        """Write to its standard input, and close that after the last; whether it has died its status says."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        if last:
            self.close_input()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended, at most so long; whether it has."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def status(self) -> int:
        """Its exit status, negative the signal that ended it."""
        return cast(int, self.process.returncode)

    def said(self) -> list[str]:
        """The lines of its standard output, once it has ended."""
        return text_of(self.streams[0]).splitlines()

    def why(self) -> str:
        """Why it ended badly, in words after its name: a signal, the refusal that it said, the last line of its
        complaint, or its status; empty where it ended well.
        """
        if self.status <= 0:
            return f"ended by signal {-self.status}{' (out of memory?)' * (self.status == -9)}" if self.status else ""
        lines = text_of(self.streams[0 if self.status == 2 else 1]).strip().splitlines()
        return lines[-1][:LINE_CHARS] if lines else f"ended with exit status {self.status}"

    def complaint(self) -> str:
        """The last line of its standard error, once it has ended."""
        return (text_of(self.streams[1]).strip().splitlines() or [""])[-1][:LINE_CHARS]

    def terminate(self) -> None:
        """Kill it and its group."""
        if not self.ended():
            end_group(self.process.pid, self.identity, patience=0.0)
            self.process.kill()

    def end(self) -> None:
        """Kill it and its group, and wait until it is gone."""
        self.terminate()
        self.process.wait()

    def close(self) -> None:
        """Let go of its pipe and files."""
        self.close_input()
        self.close_streams()

    def close_input(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def close_streams(self) -> None:
        for stream in self.streams:
            stream.close()


def environment_of(threads: int = 0, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child.

    threads: that it may compute with; those that are idle sleep, so that no neighbour is slowed down. 0: as we.
    variables: more of it.
    """
    environment = os.environ | dict(variables or {})
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def text_of(stream: IO[bytes]) -> str:
    """What is in a file. A child that still writes to it shares our place in it: for afterwards."""
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def ask(*words: str, told: str = "", threads: int = 0, seconds: float | None = None) -> list[str]:
    """What a process of this Python says, line by line. Raises RuntimeError where it fails or takes longer."""
    with Child(*words, threads=threads) as child:
        child.tell(told, last=True)
        if not child.wait(seconds):
            raise RuntimeError(f"python {' '.join(words)} took more than {seconds:g} seconds")
        if child.status:
            raise RuntimeError(f"python {' '.join(words)}: {child.why()}")
        return child.said()


def elsewhere(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a module answers in a process of its own, so that what it imports is not imported here.

    Its answer and its arguments are plain values, or the answer is a dataclass, which comes as a dictionary. Raises
    RuntimeError where it fails.
    """
    call = f"{function.__name__}(*{arguments!r})"
    code = f"import json; from dataclasses import asdict; from {function.__module__} import {function.__name__}; "
    return json.loads(ask("-c", f"{code}print(json.dumps({call}, default=asdict))")[-1])


def end_with_input() -> None:
    """From now on the process ends with what is its standard input now."""

    def watch(descriptor: int) -> None:
        while os.read(descriptor, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, args=(os.dup(sys.stdin.fileno()),), daemon=True).start()


def die_with_parent(parent: int) -> None:
    """End with the process that started this one: killed by the system (Linux), everywhere with its standard input.

    Ends at once if the parent is gone already.
    """
    if not FORKED_BY:
        die_with(parent)
    end_with_input()


def die_with(parent: int) -> None:
    """Be killed by the system (Linux) when the parent ends; end at once if it is gone already."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def leave(status: int = 0) -> NoReturn:
    """End as a process does, with what waits for its end, but without being taken apart: with the large libraries that
    takes a fifth of a second, and in a fork that has copied none of them seconds.
    """
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


@functools.cache
def boot() -> str:
    """What tells this start of the machine from every other one; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def identity(pid: int) -> str:
    """Which process has this pid now: boot of the machine and start time. Empty if none, or if it has ended.

    A pid is given again; a pid with a start time is not, and start times repeat only from boot to boot.
    """
    try:
        if sys.platform == "linux":
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if fields[0] in "ZX" else f"{boot()}/{fields[19]}"
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{boot()}/{process.create_time():.2f}"
    except (OSError, psutil.Error):
        return ""


def is_alive(pid: int, known: str) -> bool:
    """Whether the process that had this pid and this identity still runs."""
    return bool(known) and identity(pid) == known


def end_group(pid: int, known: str, patience: float = 10.0) -> None:
    """Kill a process that leads its group, and the group, and wait until it is gone; nothing if it already is."""
    deadline = time.monotonic() + patience
    while is_alive(pid, known):
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if sys.platform == "win32":
                psutil.Process(pid).kill()
            else:
                os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            return
        time.sleep(0.02)


@contextlib.contextmanager
def hold(path: Path, otherwise: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file until the process dies of anything. Raises InputError(otherwise) if another process holds it.

    patience: seconds to wait for a holder that may be dying.  The file goes with the lock: whoever has opened it
    meanwhile is told by filelock that it is no longer there, and tries again.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(otherwise) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
