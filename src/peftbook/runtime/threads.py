"""How many threads a run gets, by the measured gain: some of the system's cores may be hyperthreads or slow.

Importing this loads no torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from peftbook.runtime.hardware import cores, is_idle
from peftbook.runtime.precision import chosen_dtype, machine_file, read_cache, write_cache
from peftbook.runtime.processes import call_in_child

GAIN = 1.05  # what twice the threads must be worth
REPEATS = 7
ROWS, INNER, COLUMNS, RANK = 512, 576, 1536, 16  # of a layer, and of an adapter beside it


def best_threads(most: int | None = None) -> int:
    """The number of threads, of at most so many (default: all cores), beyond which a run gains nothing."""
    most = most or cores()
    if most == 1 or not (known := step_seconds()):
        return most
    best = 1
    for count in sorted(one for one in known if one <= most):
        if known[best] / known[count] >= GAIN:
            best = count
    return best


def cores_gained() -> int:
    """The largest speedup by threads: the number of single-threaded runs that are worth having side by side."""
    if cores() == 1 or not (known := step_seconds()):
        return cores()
    return max(1, round(known[1] / min(known.values())))


def threads_beside(jobs: int) -> int:
    """Threads for each of `jobs` concurrent jobs."""
    return best_threads(max(1, cores() // jobs))


def slower_with(threads: int) -> float:
    """How many times as long the work of a step takes with so many threads as with the best number; 1 if unknown."""
    known = step_seconds()
    return known[threads] / known[best_threads()] if threads in known else 1.0


def step_seconds() -> dict[int, float]:
    """Threads → seconds of a layer's large and small products; measured once, when the machine is idle, and cached.

    Empty until then: beside other work more threads look slow.
    """
    path = machine_file("threads", str(cores()))
    if (found := read_cache(path)) is None:
        if not is_idle():
            return {}
        measured = measure(cores()) if "torch" in sys.modules else call_in_child(measure, cores())
        found = {str(count): seconds for count, seconds in measured.items()}
        write_cache(path, found)
    return {int(count): seconds for count, seconds in found.items()}


def counts(most: int) -> list[int]:
    """Numbers of threads to try: powers of two, and all."""
    return sorted({1 << bit for bit in range(most.bit_length()) if 1 << bit <= most} | {most})


def measure(most: int) -> Mapping[int, float]:
    """Threads → seconds, in the type that runs compute in here."""
    import torch

    before = torch.get_num_threads()
    dtype = torch.bfloat16 if chosen_dtype() == "bf16" else torch.float32
    x, w, a, b = (
        torch.ones(size, dtype=dtype) for size in ((ROWS, INNER), (COLUMNS, INNER), (RANK, INNER), (COLUMNS, RANK))
    )
    try:
        return {count: seconds_with(count, x, w, a, b) for count in counts(most)}
    finally:
        torch.set_num_threads(before)


def seconds_with(count: int, x, w, a, b) -> float:
    """Seconds of x Wᵀ + x Aᵀ Bᵀ and of an activation of it with so many threads, the fastest of several."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(count)
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        y = functional.linear(x, w) + functional.linear(functional.linear(x, a), b)
        functional.silu(y).mul_(y)
        found.append(time.perf_counter() - began)
    return min(found)
