"""Memory of a run by the byte model: what it needs, how many runs fit together, how many rows fit on a GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peftbook.core import specs
from peftbook.core.base_models import SMALL_FOLDERS
from peftbook.core.errors import InputError
from peftbook.memory import Configuration, DecoderShape, Setup, Step, read_shape, training_step
from peftbook.memory.fit import largest
from peftbook.memory.setup import BYTES
from peftbook.runtime.threads import cores_gained

LABELS = 1 / 8  # of the tokens; see setup_of
HOST_BYTES = 4e9  # of a process that computes on a GPU, beside the weights that pass through it
# What Python and the libraries take of a machine's memory; context and allocator of a GPU.
PROCESS_BYTES = {"cpu": 1.25e9, "cuda": 1.0 * 2**30}
# What an allocator holds of all that comes and goes in a step, over the tensors themselves. With both the peak is that
# of the book's own CPU runs, in the median of each method within a fifth, where the longest rows are known; where they
# are taken to be as long as they may be, it covers 99 of 100 runs. Tests hold it against all shipped records.
SLACK = {"cpu": 1.2, "cuda": 1.0}
WORKER_BYTES = 5e9  # what training at 135M parameters may take on a CPU
STATE = ("weights", "quantisation constants", "adapter", "moments")  # terms of the peak that are there all the time
# On a GPU: what weights, optimiser and libraries may take, and an example of 512 tokens with its activations. At 135M
# parameters the second is about 0.9 GB (fp32 weights, bf16 autocast), most of it kept for the backward pass.
CUDA_RESERVED_BYTES, CUDA_EXAMPLE_BYTES = 6e9, 1e9


def memory_bytes(spec: specs.Run | specs.Probe) -> int:
    """The memory of a run on its host in bytes, by the byte model.

    On a CPU: the peak of a process whose largest step is `setup_of`; a test holds it against the measured peak of every
    shipped record. Generation keeps no activations and takes less. On a GPU the run has the GPU to itself, and the host
    holds the weights once, in their type.
    A probe is counted as the largest of its runs, and at least as the queue counts any run.
    Raises InputError where a model's shape is unknown.
    """
    if isinstance(spec, specs.Probe):
        return max([int(WORKER_BYTES), *map(memory_bytes, spec.runs)])
    shape = shape_of(spec.model)
    if spec.platform == "cuda":
        return int(HOST_BYTES + BYTES[spec.weights] * shape.parameters)
    return int(cpu_peak(shape, setup_of(spec, shape)))


def side_by_side(runs: Sequence[specs.Run], room: float) -> int:
    """How many of the first runs to compute at once: limited by the cores that add speed, and by `room` bytes of
    memory.
    """
    most = min(len(runs), cores_gained())
    return next(many for many in range(most, 0, -1) if many == 1 or fit_together(runs[:many], room))


def fit_together(runs: Sequence[specs.Run], room: float) -> bool:
    """Whether all runs are on a CPU and fit into `room` bytes of memory together, by the byte model."""
    try:
        return all(run.platform == "cpu" for run in runs) and sum(map(memory_bytes, runs)) <= room
    except InputError:  # a model whose shape is not known
        return False


@functools.lru_cache(maxsize=1024)
def cpu_peak(shape: DecoderShape, setup: Setup) -> float:
    """Bytes at the peak of a training on a CPU."""
    return process_peak(training_step(shape, setup), "cpu")


def setup_of(run: specs.Run, shape: DecoderShape) -> Setup:
    """The largest training step of a run on a CPU: rows as long as they may be, LABELS of their tokens with a label."""
    batch, seq = (run.budget.batch_size, run.budget.max_length) if run.budget else (8, 512)
    labels = max(1, int(LABELS * batch * seq))
    setup = training_setup(run, shape)
    return replace(setup, padding=needs_mask(run), batch=batch, seq=seq, labels=labels, device="cpu")


def shape_of(model: specs.Model) -> DecoderShape:
    """The shape of a run's model: an embedded one, a folder's, or the known one of a hub id.

    Raises InputError for another hub id.
    """
    folder = SMALL_FOLDERS.get(model.name, Path(model.name).expanduser())
    return read_shape(folder if folder.is_dir() else model.name)


def training_setup(run: specs.Run, shape: DecoderShape) -> Setup:
    """How the book's own loop trains: float32 weights, with copies of frozen matrices in bfloat16 under autocast, or
    weights in bfloat16 without; logits at labels alone. `Method.setup` adds the method's own fields.
    """
    method, autocast = run.method.setup(shape), run.dtype != "fp32" and run.weights == "fp32"
    return Setup(
        **method,
        dtype=run.weights,
        autocast=autocast,
        held=autocast and method["method"] != "full",
        labels=1,
        batch=run.budget.batch_size if run.budget else 1,
        device=run.platform,
        checkpointing=run.checkpointing,
        packed=run.packed,
    )


def needs_mask(run: specs.Run) -> bool:
    """Whether the byte model counts an attention mask: there is one where a cache precedes the rows.

    Checkpointed layers of padded rows take no cache, and right padding needs no mask.
    """
    return not run.checkpointing or run.packed


def process_peak(step: Step, platform: str) -> float:
    """Bytes at the peak of a training: the process, the state of the step, and the rest with slack."""
    terms = step.peak().terms
    state = state_bytes(step)
    return PROCESS_BYTES[platform] + state + SLACK[platform] * (sum(terms.values()) - state)


def step_room(step: Step, platform: str, room: float) -> float:
    """Bytes left for a step's tensors in `room` bytes of memory: the inverse of `process_peak`."""
    state = state_bytes(step)
    return state + (room - PROCESS_BYTES[platform] - state) / SLACK[platform]


def state_bytes(step: Step) -> float:
    """Bytes of a step's peak that are allocated throughout training."""
    terms = step.peak().terms
    return sum(terms.get(name, 0.0) for name in STATE)


def cuda_micro_batch(batch_size: int, free_bytes: float, most: int | None = None) -> int:
    """Examples at a time on a GPU: the largest of batch, batch/2, batch/4, … whose bytes fit into what is free.

    It changes memory and speed, never what is computed, and is written into the record's provenance.
    most: upper bound by the byte model, which counts the weights of a large model.
    """
    fits = max(1, int((free_bytes - CUDA_RESERVED_BYTES) // CUDA_EXAMPLE_BYTES))
    if most is not None:
        fits = max(1, min(fits, most))
    while batch_size > fits:
        batch_size = (batch_size + 1) // 2
    return batch_size


def fitting_rows(run: specs.Run, free_bytes: float) -> int | None:
    """The most rows of the run's maximal length that fit by the byte model with accumulated gradients; 0 if none fits.

    None if the model's shape is unknown, or the byte model does not cover the run on a GPU.
    """
    with contextlib.suppress(InputError):
        shape = shape_of(run.model)
        setup = replace(setup_of(run, shape), device="cuda", accumulated=True)
        return largest(Configuration(shape, setup), free_bytes - PROCESS_BYTES["cuda"], "batch")
    return None


def free_micro_batch(spec: specs.Run | specs.Probe, processes: int = 1) -> int | None:
    """What `cuda_micro_batch` finds for a process's part of the batch on its GPU; None on a CPU."""
    if spec.platform != "cuda" or not isinstance(spec, specs.Run) or spec.budget is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    free_bytes = torch.cuda.mem_get_info()[0]
    most = fitting_rows(spec, free_bytes) if processes == 1 else None
    return cuda_micro_batch(-(-spec.budget.batch_size // processes), free_bytes, most)


def loss_batch(shots: int) -> int:
    """Rows of a batch whose loss is evaluated; few where solved examples stand before the question."""
    return 8 if shots else 16


def generation_batch(shots: int) -> int:
    """Number of rows in a batch that is generated; fewer with long few-shot prompts."""
    return 10 if shots else 64
