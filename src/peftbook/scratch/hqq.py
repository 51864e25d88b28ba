"""HQQ: the zero point of each group is moved until few weights are far off, by the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from peftbook.scratch.groups import Grouped, codes_on, in_groups, min_max_grid


def shrink(x: Tensor, beta: float, p: float) -> Tensor:
    """What half-quadratic splitting takes for the large errors: sign(x) · max(|x| − |x|^(p−1) / β, 0).

    For p = 1 this is soft thresholding, argmin_e |e| + ½ β (e − x)². For p < 1 it is the generalised form: small errors
    become zero, and large ones are hardly touched.   x: any shape.
    Source: Badri and Shaji 2023, Half-Quadratic Quantization; `shrink_lp_op` of mobiusml/hqq.
    """
    return x.sign() * (x.abs() - x.abs().pow(p - 1) / beta).clamp(min=0)


def hqq(
    W: Tensor, bits: int, group: int = 64, p: float = 0.7, beta: float = 10.0, growth: float = 1.01, steps: int = 20
) -> Grouped:
    """Lower Σ |w − ŵ|^p over the zero points z, with the scales of `min_max_grid`, by turns:

        e ← shrink(W − Ŵ, β),    z ← mean over the group of (code − (W − e) / scale),    β ← growth · β.

    The second is the exact minimum of ‖W − Ŵ − e‖² over z with the codes as they are. The zero point of the least
    Σ |w − ŵ|^p is kept, so that no group ends worse than it began.
    W: (d_out, d_in).   Zero points are float16.   Raises ValueError if `group` does not divide d_in.
    Source: Badri and Shaji 2023, Half-Quadratic Quantization, with the settings of mobiusml/hqq.
    """
    groups = in_groups(W, group)
    scale, zero = (part[..., None] for part in min_max_grid(groups, bits))
    step, zero = scale.float(), zero.half()
    best, least = zero, torch.full_like(step, torch.inf)
    for turn in range(steps):
        codes = codes_on(groups, scale, zero, bits).float()
        error = groups - step * (codes - zero.float())
        objective = error.abs().pow(p).sum(dim=-1, keepdim=True)
        best, least = torch.where(objective < least, zero, best), torch.minimum(objective, least)
        large = shrink(error, beta * growth**turn, p)
        zero = (codes - (groups - large) / step).mean(dim=-1, keepdim=True).half()
    return Grouped(codes_on(groups, scale, best, bits).flatten(1), scale[..., 0], best[..., 0], bits)
