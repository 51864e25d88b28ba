"""AWQ: before rounding, weights that meet large inputs are scaled up, and the inputs down by as much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from peftbook.scratch.gptq import output_error
from peftbook.scratch.groups import Grouped, round_to_nearest

STEPS = 20  # α = 0, 1/20, …, 19/20, as in the authors' code


class Scaling(NamedTuple):
    """The scale that was found: alpha, s, (d_in,), and the output error that rounding leaves with it."""

    alpha: float
    scale: Tensor
    error: float


def channel_scale(magnitude: Tensor, alpha: float) -> Tensor:
    """s = m^α / √(max m^α · min m^α): above 1 for inputs that are large on average. float32, (d_in,).

    magnitude: m = mean |x| of each input, (d_in,).   alpha: 0 scales nothing, 1 makes all inputs alike.
    Source: Lin et al. 2023, arXiv:2306.00978, equation 5; the normalisation is that of mit-han-lab/llm-awq.
    """
    powers = magnitude.float().pow(alpha).clamp(min=1e-4)
    return powers / (powers.max() * powers.min()).sqrt()


def awq(W: Tensor, scale: Tensor, bits: int, group: int = 64) -> Grouped:
    """Round W · diag(s) to the nearest: the layer then takes x / s, and W ≈ Q(W diag(s)) diag(s)⁻¹.

    W: (d_out, d_in).   scale: s, (d_in,). Division by s is no array of its own, as it goes into the weights before: the
    gain of the norm, or the rows of the matrix that makes the inputs.
    """
    return round_to_nearest(W * scale, bits, group)


def search_scale(weights: Sequence[Tensor], H: Tensor, magnitude: Tensor, bits: int, group: int = 64) -> Scaling:
    """The α of the grid whose scale leaves the least squared error of the outputs, Σ over matrices of tr(E H Eᵀ).

    weights: the matrices that read the same inputs, which share one scale, (d_out, d_in) each.   H: the second moment
    of the inputs, `input_moment`.   magnitude: mean |x|, (d_in,).
    Source: Lin et al. 2023, arXiv:2306.00978, section 3.2, whose code measures the output of the whole attention or
    MLP, and afterwards searches how far to clip the largest weights; neither is done here.
    """
    best = Scaling(0.0, channel_scale(magnitude, 0.0), math.inf)
    for step in range(STEPS):
        scale = channel_scale(magnitude, step / STEPS)
        error = sum(output_error(awq(W, scale, bits, group).weight / scale - W, H) for W in weights)
        if error < best.error:
            best = Scaling(step / STEPS, scale, error)
    return best
