"""What a run asks a machine for, by the byte model: the engine that places runs on many machines goes by it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftbook.core import specs
from peftbook.core.base_models import SMALL_FOLDERS
from peftbook.core.errors import InputError
from peftbook.memory import Setup, Shape, read_shape, training_step
from peftbook.memory.setup import BYTES
from peftbook.training.durations import Spec
from peftbook.training.peak import WORKER_BYTES, process_peak
from peftbook.training.step_setup import needs_mask, training_setup
from peftbook.training.threads import cores_gained

__all__ = ["Request", "request_for", "setup_of", "shape_of", "side_by_side"]

LABELS = 1 / 8  # of the tokens; see setup_of
HOST_BYTES = 4e9  # of a process that computes on a GPU, beside the weights that pass through it


@dataclass(frozen=True)
class Request:
    """What a run asks a node for: cores, GPUs, bytes of memory."""

    cpus: int
    gpus: int
    memory_bytes: int


def request_for(spec: Spec, threads: int = 1) -> Request:
    """What a run is placed by: `threads` cores, a GPU on that platform, and memory by the byte model, in bytes.

    On a CPU: the peak of a process whose largest step is `setup_of`; a test holds it against the measured peak of every
    shipped record. Generation keeps no activations and takes less. On a GPU the run has the GPU to itself, and the host
    holds the weights once, in their type.
    A probe is counted as the largest of its runs, and at least as the queue counts any run.
    Raises InputError where a model's shape is unknown.
    """
    gpus = int(spec.platform == "cuda")
    if isinstance(spec, specs.Probe):
        inner = [request_for(run, threads).memory_bytes for run in spec.runs]
        return Request(threads, gpus, max([int(WORKER_BYTES), *inner]))
    shape = shape_of(spec.model)
    if gpus:
        return Request(threads, gpus, int(HOST_BYTES + BYTES[spec.weights] * shape.parameters))
    return Request(threads, gpus, int(cpu_peak(shape, setup_of(spec, shape))))


def side_by_side(runs: Sequence[specs.Run], room: float) -> int:
    """How many runs, from the first one on, are computed at once: as many as there are cores that add speed, and as
    fit together in so many bytes of memory.
    """
    most = min(len(runs), cores_gained())
    return next(many for many in range(most, 0, -1) if many == 1 or fit_together(runs[:many], room))


def fit_together(runs: Sequence[specs.Run], room: float) -> bool:
    """Whether runs may be computed side by side: on a CPU, in so many bytes of memory, by the byte model."""
    try:
        return all(run.platform == "cpu" for run in runs) and sum(request_for(run).memory_bytes for run in runs) <= room
    except InputError:  # a model whose shape is not known
        return False


@functools.lru_cache(maxsize=1024)
def cpu_peak(shape: Shape, setup: Setup) -> float:
    """Bytes at the peak of a training on a CPU."""
    return process_peak(training_step(shape, setup), "cpu")


def setup_of(run: specs.Run, shape: Shape) -> Setup:
    """The largest training step of a run on a CPU: rows as long as they may be, LABELS of their tokens with a label."""
    batch, seq = (run.budget.batch_size, run.budget.max_length) if run.budget else (8, 512)
    labels = max(1, int(LABELS * batch * seq))
    setup = training_setup(run, shape)
    return replace(setup, padding=needs_mask(run), batch=batch, seq=seq, labels=labels, device="cpu")


def shape_of(model: specs.Model) -> Shape:
    """The shape of a run's model: an embedded one, a folder's, or the known one of a hub id.

    Raises InputError for another hub id.
    """
    folder = SMALL_FOLDERS.get(model.name, Path(model.name).expanduser())
    return read_shape(folder if folder.is_dir() else model.name)
