"""The compute type: what the processor or GPU multiplies fastest, measured once and cached.

Importing this loads no torch, so that pages and commands can ask what runs here will be computed in.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.folders import cache_folder
from peftbook.core.records import write_atomically
from peftbook.runtime.hardware import cpu_model
from peftbook.runtime.processes import call_in_child

DTYPES = ("fp32", "bf16", "fp16")
# Variables by which a processor plays a plainer one: what was measured without them says nothing of it.
INSTRUCTION_SETS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
SIZES = ((16, 64, 128), (32, 256, 256), (128, 576, 576), (512, 576, 1536))  # rows, inner, columns, ever larger
SLOW = 0.004  # seconds of one pass: larger sizes are not tried
REPEATS = 4
VERSION = 1  # of what is measured: raised when it changes


@dataclass(frozen=True)
class Products:
    """Floating-point operations a second of one thread in a linear layer, forward and backward, by type of matrix."""

    bf16: float
    fp32: float

    @property
    def native(self) -> bool:
        """Whether products of bfloat16 are faster than those of float32, so that they are worth having."""
        return self.bf16 > self.fp32


def chosen_dtype(asked: str = "auto", platform: str = "cpu") -> str:
    """The compute type of a run: the one that is asked for, or with `auto` the fastest here.

    On a CPU bf16 where its products are faster than those of float32, else fp32; on a GPU by its capability. Raises
    InputError for another type, and for a GPU that is not there.
    """
    if asked in DTYPES:
        return asked
    if asked != "auto":
        raise InputError(f"Unknown dtype {asked!r}: choose auto, {', '.join(DTYPES)}.")
    if platform == "cuda":
        return gpu_dtype(*gpu_capability())
    return "bf16" if products_here().native else "fp32"


def gpu_dtype(major: int, minor: int) -> str:
    """The type that a GPU of this compute capability multiplies fastest.

    bf16 from 8.0 on (Ampere), which has it in its tensor cores; fp16 from 7.0 on (Volta, Turing), which has only that
    there; else fp32. Source: NVIDIA, CUDA C++ Programming Guide, section "Compute Capabilities".
    """
    if (major, minor) >= (8, 0):
        return "bf16"
    return "fp16" if (major, minor) >= (7, 0) else "fp32"


@functools.cache
def products_here() -> Products:
    """This processor's rates in products, measured at the first call on a machine and then cached."""
    path = machine_file("products")
    if (known := read_cache(path)) is not None:
        return Products(**known)
    products = measure_products() if "torch" in sys.modules else Products(**call_in_child(measure_products))
    write_cache(path, asdict(products))
    return products


@functools.cache
def gpu_capability() -> tuple[int, int]:
    """Compute capability of the GPU. Raises InputError if there is none."""
    if (found := capability() if "torch" in sys.modules else call_in_child(capability)) is None:
        raise InputError("Platform 'cuda' needs a CUDA GPU and a CUDA build of torch: use platform 'cpu' here.")
    return found[0], found[1]


def capability() -> tuple[int, int] | None:
    """The GPU's compute capability by torch; None without a GPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def machine_file(what: str, *more: str) -> Path:
    """The cache file of a measurement of this processor, torch version and instruction limits."""
    name = " ".join((cpu_model(), instruction_limits(), importlib.metadata.version("torch"), str(VERSION), *more))
    return cache_folder() / what / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def read_cache(path: Path) -> Any | None:
    """A cached measurement; None if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def write_cache(path: Path, measured: Any) -> None:
    """Cache a measurement for later processes; where the cache is not writable, they measure again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured).encode())


def instruction_limits() -> str:
    """The environment variables that limit the libraries' instruction sets, as they are set."""
    return " ".join(f"{name}={os.environ[name]}" for name in INSTRUCTION_SETS if os.environ.get(name))


def measure_products() -> Products:
    """Measure products in bfloat16, as torch computes them, and in float32, in some 50 ms on any processor.

    One thread, timed in processor time, so that other work on the machine does not count.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return products_of({"bf16": torch.bfloat16, "fp32": torch.float32})
    finally:
        torch.set_num_threads(threads)


def products_of(dtypes: Mapping[str, Any]) -> Products:
    """Operations a second at the largest size that is quick in every type."""
    import torch

    rates: dict[str, float] = {}
    for rows, inner, columns in SIZES:
        operations, slowest = 4 * rows * inner * columns, 0.0
        for name, dtype in dtypes.items():
            x, w, g = (torch.ones(size, dtype=dtype) for size in ((rows, inner), (columns, inner), (rows, columns)))
            seconds = fastest(functools.partial(forward_and_backward, x, w, g))
            rates[name], slowest = operations / seconds, max(slowest, seconds)
        if slowest > SLOW:
            break
    return Products(**rates)


def forward_and_backward(x, w, g) -> None:
    """x Wᵀ as a linear layer computes it, and G W, the gradient of x. x: (t, k), w: (n, k), g: (t, n)."""
    from torch.nn.functional import linear

    linear(x, w)
    g @ w


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls; a slow one is made twice, as the first pays for preparations."""
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < REPEATS and min(seconds) < SLOW):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return min(seconds)
