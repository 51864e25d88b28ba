"""A run as the byte and time models see it: the set-up of one of its training steps."""

from __future__ import annotations

from peftbook.core import specs
from peftbook.memory import Setup, Shape

__all__ = ["needs_mask", "training_setup"]


def training_setup(run: specs.Run, shape: Shape) -> Setup:
    """How the book's own loop trains: float32 weights, with copies of frozen matrices in bfloat16 under autocast, or
    weights in bfloat16 without; logits at labels alone. What the method adds it says itself.
    """
    method, autocast = run.method.setup(shape), run.dtype != "fp32" and run.weights == "fp32"
    return Setup(
        **method, dtype=run.weights, autocast=autocast, held=autocast and method["method"] != "full", labels=1,
        batch=run.budget.batch_size if run.budget else 1, device=run.platform, checkpointing=run.checkpointing,
        packed=run.packed,
    )  # fmt: skip


def needs_mask(run: specs.Run) -> bool:
    """Whether attention is counted with a mask, as it has one where something cached stands before all rows.

    Padded rows of checkpointed layers take no cache, and right padding needs no mask.
    """
    return not run.checkpointing or run.packed
