"""Processes: children of this Python, identities that outlive pids, locks that end with their process."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import os
import platform
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import psutil

from peftbook.core.errors import InputError

HOST = platform.node()
LINE_CHARS = 1000  # of a line of a child's that is passed on


class Child:
    """A process of this Python that leads its own group; its output and errors go to files. A context manager.

    Its standard input is a pipe that ends when this process does: a child that calls `end_with_input` never outlives
    it. Leaving the block kills the child and its group.
    """

    def __init__(
        self,
        *words: str,
        threads: int = 0,
        variables: Mapping[str, str] | None = None,
        show: bool = False,
        start: Callable[..., Any] = subprocess.Popen,
    ):
        """words: after the interpreter, like ("-m", module).  threads, variables: of its environment.
        show: pass its standard error on.  start: stands in for Popen.
        """
        self.streams: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 — closed with it
        output, errors = self.streams
        try:
            self.process = start(
                [sys.executable, *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=None if show else errors,
                env=environment_of(threads, variables),
                start_new_session=True,
            )
        except OSError:
            self.close_streams()
            raise
        self.identity = identity(self.process.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.close()

    def write(self, text: str, *, last: bool = False) -> None:
        """Write to its standard input, and close that after the last text; if it has died, nothing happens."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        if last:
            self.close_input()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended, at most so long; returns whether it has."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def status(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        return cast(int, self.process.returncode)

    def output_lines(self) -> list[str]:
        """The lines of its standard output, once it has ended."""
        return text_of(self.streams[0]).splitlines()

    def failure(self) -> str:
        """Why it failed, in words after its name; empty if it did not.

        The signal that ended it; the last line of its output for status 2, a refusal; else of its errors; else its
        status.
        """
        if self.status <= 0:
            return f"ended by signal {-self.status}{' (out of memory?)' * (self.status == -9)}" if self.status else ""
        return last_line(self.streams[0 if self.status == 2 else 1]) or f"ended with exit status {self.status}"

    def last_error_line(self) -> str:
        """The last line of its standard error, once it has ended."""
        return last_line(self.streams[1])

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
        """Close its pipe and files."""
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
    """The environment of a child: that of this process with a number of threads (0: the same) and more variables.

    Idle threads sleep, so that they slow nothing down.
    """
    environment = os.environ | dict(variables or {})
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def text_of(stream: IO[bytes]) -> str:
    """The text in a file whose writer has ended: it shares our position."""
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def last_line(stream: IO[bytes]) -> str:
    """The end of the text in a file, for a message."""
    return (text_of(stream).strip().splitlines() or [""])[-1][:LINE_CHARS]


def run_child(*words: str, text: str = "", threads: int = 0, seconds: float | None = None) -> list[str]:
    """Run a process of this Python; returns the lines of its standard output.

    text: its standard input.  seconds: after which it is killed. Raises RuntimeError if it fails or takes longer.
    """
    with Child(*words, threads=threads) as child:
        child.write(text, last=True)
        if not child.wait(seconds):
            raise RuntimeError(f"python {' '.join(words)} took more than {seconds:g} seconds")
        if child.status:
            raise RuntimeError(f"python {' '.join(words)}: {child.failure()}")
        return child.output_lines()


def call_in_child(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function of a module in a child process, so that what it imports is not imported here.

    Arguments are plain values; so is the result, or it is a dataclass, which comes as a dictionary. Raises RuntimeError
    where it fails.
    """
    call = f"{function.__name__}(*{arguments!r})"
    code = f"import json; from dataclasses import asdict; from {function.__module__} import {function.__name__}; "
    return json.loads(run_child("-c", f"{code}print(json.dumps({call}, default=asdict))")[-1])


def limit_process(cpu_seconds: int, memory_bytes: int) -> None:
    """Limit the processor time and the memory of this process, where the system can: it fails, not the machine."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def end_with_input() -> None:
    """From now on, end this process when its present standard input ends."""

    def watch(descriptor: int) -> None:
        while os.read(descriptor, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, args=(os.dup(sys.stdin.fileno()),), daemon=True).start()


def die_with_parent() -> None:
    """From now on, end with the process that started this one, and at once if that is gone.

    Its end is that of standard input; on Linux the system kills this process even if no thread of it can run.
    """
    if sys.platform == "linux":
        set_death_signal()
        if select.select([0], [], [], 0)[0] and not os.read(0, 1):
            os._exit(1)
    end_with_input()


def die_with(parent: int) -> None:
    """From now on, be killed by the system (Linux) when the parent ends; end at once if it is gone already."""
    if sys.platform == "linux":
        set_death_signal()
    if os.getppid() != parent:
        os._exit(1)


def set_death_signal() -> None:
    """Have Linux kill this process when its parent ends."""

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def fast_exit() -> Iterator[None]:
    """Run the program inside; after its atexit hooks, exit without interpreter teardown.

    Teardown takes a fifth of a second with the large libraries, and seconds in a fork, which copies their memory then.
    Enter before they are imported: hooks that were registered earlier are skipped.
    """
    status = 1

    def finish() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status & 0xFF)

    atexit.register(finish)
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


@functools.cache
def boot() -> str:
    """An id of this start of the machine; empty where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def identity(pid: int) -> str:
    """Boot of the machine and start time of the process with this pid; empty if there is none, or it has ended.

    A pid is given again; with a start time it is not, and start times repeat only from boot to boot.
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
    """Whether the process with this pid and this identity still runs."""
    return bool(known) and identity(pid) == known


def end_group(pid: int, known: str, patience: float = 10.0) -> None:
    """Kill the process with this pid and identity, with the group that it leads, and wait until it is gone."""
    deadline = time.monotonic() + patience
    while is_alive(pid, known):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            return
        time.sleep(0.02)


@contextlib.contextmanager
def lock_file(path: Path, otherwise: str, patience: float = 0.0) -> Iterator[None]:
    """Lock a file inside the block, or until the process dies. Raises InputError(otherwise) if another has locked it.

    patience: seconds to wait for a process that may be dying.  The file is deleted with the lock: filelock notices that
    the file that it has opened is gone, and tries again.
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
