"""This machine: processor, cores, memory, load; every reading also works without `/proc`."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

PROC = Path("/proc")  # Linux; elsewhere there is none
BUSY = 30.0  # per cent of all cores, in use by others, from which a measurement of speed would mean little
LOOK_SECONDS = 0.1


def peak_memory(platform_name: str) -> int:
    """Peak of allocated device memory (CUDA) or of the process's resident set (CPU), in bytes.

    On Linux from VmHWM: `ru_maxrss` survives fork and exec, so a child would report its parent's peak.
    """
    if platform_name == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in (PROC / "self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory(family: Iterable[psutil.Process] = ()) -> float:
    """Bytes of memory that are free now, plus those that the processes in `family` hold."""
    memory = psutil.virtual_memory()
    free = float(memory.available)
    for process in family:
        with contextlib.suppress(psutil.Error):
            free += process.memory_info().rss
    return min(free, float(memory.total))


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in (PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":  # where platform.processor() says "arm"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_idle(seconds: float = LOOK_SECONDS) -> bool:
    """Whether others leave enough of the processor for a measurement of speed."""
    return psutil.cpu_percent(seconds) < BUSY


def waited() -> float:
    """Seconds that this thread has waited for a core since it began (Linux; elsewhere 0)."""
    try:
        return int((PROC / "thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def platform_here(platform_name: str) -> str:
    """The platform on which to load trained weights: the run's own, or the CPU if this machine has no GPU."""
    if platform_name == "cuda":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return platform_name


def machine_name(platform_name: str = "cpu") -> str:
    """The machine's name in the key of a timing record: processor and cores, or GPU."""
    if platform_name == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{cpu_model()}, {psutil.cpu_count(logical=True)} cores"
