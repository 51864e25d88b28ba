"""Micro-batch: how many examples a GPU takes at a time, by what is free there."""

from __future__ import annotations

from peftbook import specs

__all__ = ["cuda_micro_batch", "free_micro_batch"]

# On a GPU: what weights, optimiser and libraries may take, and an example of 512 tokens with its activations. At 135M
# parameters the second is about 0.9 GB (fp32 weights, bf16 autocast), most of it kept for the backward pass.
CUDA_RESERVED_BYTES, CUDA_EXAMPLE_BYTES = 6e9, 1e9


def cuda_micro_batch(batch_size: int, free_bytes: float) -> int:
    """Examples at a time on a GPU: the largest of batch, batch/2, batch/4, … whose bytes fit into what is free.

    It changes memory and speed, never what is computed, and is written into the record's provenance.
    """
    fits = max(1, int((free_bytes - CUDA_RESERVED_BYTES) // CUDA_EXAMPLE_BYTES))
    while batch_size > fits:
        batch_size = (batch_size + 1) // 2
    return batch_size


def free_micro_batch(spec: specs.Run | specs.Probe, processes: int = 1) -> int | None:
    """What `cuda_micro_batch` finds for a process's part of the batch on its GPU; None on a CPU."""
    if spec.platform != "cuda" or not isinstance(spec, specs.Run) or spec.budget is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return cuda_micro_batch(-(-spec.budget.batch_size // processes), torch.cuda.mem_get_info()[0])
