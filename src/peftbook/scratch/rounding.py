"""What rounding leaves of an update that is merged into weights of few bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rounding", "merge_rounded"]


class Rounding(NamedTuple):
    """What became of an update D where W + D is stored: M is what the stored weights moved by.

    unchanged: share of the weights that stayed what they were.   kept: <M, D> / ‖D‖², the update's share along itself.
    error: ‖M − D‖ / ‖D‖.
    """

    unchanged: float
    kept: float
    error: float


def merge_rounded(W: Tensor, delta: Tensor, dtype: torch.dtype = torch.bfloat16) -> Rounding:
    """Merge `delta` into weights stored in `dtype`: the sum in float32, then one rounding.

    W, delta: any equal shape. A weight moves only if its update is at least half the spacing of the numbers there,
    which for bfloat16 with its 8 significant bits is |w| / 512 to |w| / 256.
    """
    W = W.to(dtype).float()
    moved = (W + delta).to(dtype).float() - W
    kept = (moved * delta).sum() / delta.square().sum()
    error = (moved - delta).norm() / delta.norm()
    return Rounding((moved == 0).float().mean().item(), kept.item(), error.item())
