"""Processes that watch one another: identities that outlive reused pids, a lock that dies with its holder."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from peftbook.errors import InputError

__all__ = ["HOST", "die_with_parent", "end_group", "hold", "identity", "is_alive"]

HOST = platform.node()


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
    while is_alive(pid, known) and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent dies (Linux); ends at once if that has happened already.

    Elsewhere the end of standard input is what a child notices (`training.worker.end_with_input`).
    """
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def hold(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock file until the process dies of anything. Raises InputError(otherwise) if another process holds it.

    The file stays: a lock on a file that somebody deletes is no lock. It says who holds it.
    """
    try:
        import fcntl
    except ImportError:  # no flock, as on Windows: nothing is locked
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(otherwise) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": HOST}) + "\n")
        file.flush()
        yield
