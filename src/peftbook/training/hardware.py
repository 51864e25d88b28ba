"""What this machine is called, and the peak of its memory."""

from __future__ import annotations

import contextlib
import platform
import sys
from pathlib import Path

import psutil
import torch

__all__ = ["cpu_model", "machine_name", "peak_memory"]


def peak_memory(platform_name: str) -> int:
    """Peak of allocated device memory (CUDA) or of the process's resident set (CPU), in bytes.

    On Linux from VmHWM: `ru_maxrss` survives fork and exec, so a child would report its parent's peak.
    """
    if platform_name == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_name(platform_name: str = "cpu") -> str:
    """What a timing record carries in its key: processor or GPU, and cores."""
    if platform_name == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_model()}, {psutil.cpu_count(logical=True)} cores"
