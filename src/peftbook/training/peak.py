"""Peak: bytes of a machine's memory that the process of a run takes, by the byte model."""

from __future__ import annotations

from peftbook.memory import Step

__all__ = ["PROCESS_BYTES", "WORKER_BYTES", "process_peak", "step_room"]

# What Python and the libraries take of a machine's memory; context and allocator of a GPU.
PROCESS_BYTES = {"cpu": 1.25e9, "cuda": 1.0 * 2**30}
# What an allocator holds of all that comes and goes in a step, over the tensors themselves. With both the peak is that
# of the book's own CPU runs, in the median of each method within a fifth, where the longest rows are known; where they
# are taken to be as long as they may be, it covers 99 of 100 runs. Tests hold it against all shipped records.
SLACK = {"cpu": 1.2, "cuda": 1.0}
WORKER_BYTES = 5e9  # what training at 135M parameters may take on a CPU
STATE = ("weights", "quantisation constants", "adapter", "moments")  # terms of the peak that are there all the time


def process_peak(step: Step, platform: str) -> float:
    """Bytes at the peak of a training: of the process, of what is there all the time, and of the rest with slack."""
    terms = step.peak().terms
    state = state_bytes(step)
    return PROCESS_BYTES[platform] + state + SLACK[platform] * (sum(terms.values()) - state)


def step_room(step: Step, platform: str, room: float) -> float:
    """Bytes that are left to a step's tensors in so much memory: `process_peak` the other way round."""
    state = state_bytes(step)
    return state + (room - PROCESS_BYTES[platform] - state) / SLACK[platform]


def state_bytes(step: Step) -> float:
    """Bytes of a step's peak that are there all the time."""
    terms = step.peak().terms
    return sum(terms.get(name, 0.0) for name in STATE)
