"""Micro-batch: how many examples a GPU takes at a time, by what is free there."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.memory import Configuration
from peftbook.memory.fit import largest
from peftbook.training.peak import PROCESS_BYTES
from peftbook.training.request import setup_of, shape_of

__all__ = ["cuda_micro_batch", "fitting_rows", "free_micro_batch"]

# On a GPU: what weights, optimiser and libraries may take, and an example of 512 tokens with its activations. At 135M
# parameters the second is about 0.9 GB (fp32 weights, bf16 autocast), most of it kept for the backward pass.
CUDA_RESERVED_BYTES, CUDA_EXAMPLE_BYTES = 6e9, 1e9


def cuda_micro_batch(batch_size: int, free_bytes: float, most: int | None = None) -> int:
    """Examples at a time on a GPU: the largest of batch, batch/2, batch/4, … whose bytes fit into what is free.

    It changes memory and speed, never what is computed, and is written into the record's provenance.
    most: that fit by the byte model, which knows a large model's weights.
    """
    fits = max(1, int((free_bytes - CUDA_RESERVED_BYTES) // CUDA_EXAMPLE_BYTES))
    if most is not None:
        fits = max(1, min(fits, most))
    while batch_size > fits:
        batch_size = (batch_size + 1) // 2
    return batch_size


def fitting_rows(run: specs.Run, free_bytes: float) -> int | None:
    """The most rows of the run's longest kind that fit by the byte model, beside gradients of others; 0 if not one.

    None where the model's shape is not known, or not what a GPU takes.
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
