"""What rounding leaves of an update that is merged into weights of few bits."""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from peftbook.scratch.codebooks import half_steps, round_trip


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


@dataclass(frozen=True)
class Survival:
    """How large an update D of weights on a grid is against its steps, and what of D is left after rounding again: R.

    Sums over the weights of a matrix, or of several, added up; h is from `half_steps`.

    update: ‖D‖².   steps: ‖h‖².   product: ⟨R, D⟩.   missed: ‖R − D‖².
    """

    update: float
    steps: float
    product: float
    missed: float

    def __add__(self, other: Survival) -> Survival:
        return Survival(*map(operator.add, astuple(self), astuple(other)))

    @property
    def size(self) -> float:
        """‖D‖ / ‖h‖: the update over the least change that rounding does not undo, root mean squares."""
        return math.sqrt(self.update / self.steps)

    @property
    def kept(self) -> float:
        """κ = ⟨R, D⟩ / ‖D‖²: 1 if the update arrives whole, 0 if it is gone."""
        return self.product / self.update

    @property
    def error(self) -> float:
        """ρ = ‖R − D‖ / ‖D‖."""
        return math.sqrt(self.missed / self.update)


def survival(w: Tensor, update: Tensor, quant: str, double_quant: bool = False) -> Survival:
    """What quantising Q(w) + D again leaves of the update D of a matrix: R = Q(Q(w) + D) − Q(w), by the weights alone.

    w, update: one shape.  Q: to the codebook `quant` and back, block 64. D may not be zero.
    """
    grid = round_trip(w, quant, double_quant=double_quant)
    left = round_trip(grid + update, quant, double_quant=double_quant) - grid
    steps = half_steps(w, quant, double_quant=double_quant)
    sums = (update.square(), steps.square(), left * update, (left - update).square())
    return Survival(*(values.sum(dtype=torch.float64).item() for values in sums))
