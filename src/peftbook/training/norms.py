"""Norms in one piece: RMSNorm of a frozen gain, computed in float32, handed on in the type that products take.

Step by step it leaves a tensor for each of its operations, forward and backward, and autocast rounds what comes out
once for every layer that sees it. The same sums are made, in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftbook.training.forward import causal_model

__all__ = ["whole_norms"]

CLOSE = 1e-5  # how far an output may be from the module's own, against the largest


class RMSNorm(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps) over the last dimension, in the given type; no gradient goes to w.

    With r the reciprocal root and g = w * dy it goes back as dx = r g - r^3 x mean(g x).
    Source: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        root = torch.rsqrt(squares.div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, root, gain)
        return (x * root).mul_(gain).to(dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, root, gain = ctx.saved_tensors
        g = dy.float().mul(gain)
        inner = torch.linalg.vecdot(g, x).unsqueeze(-1)
        dx = torch.addcmul(g.mul_(root), x, inner.mul_(root.pow(3)).div_(-x.shape[-1]))
        return dx, None, None, None


@contextlib.contextmanager
def whole_norms(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it the norms of this model's states are computed in one piece and come out in this type.

    Those of another kind, with a gain that is trained or not in float32 on the CPU stay as they are.
    """
    changed = [module for module in causal_model(model).model.modules() if can_be_whole(module)]
    for module in changed:
        module.forward = forward_of(module, dtype)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def forward_of(module: Any, dtype: torch.dtype):
    """The forward of a norm in one piece, for states in float32."""
    own = module.forward

    def forward(states: Tensor) -> Tensor:
        if states.dtype != torch.float32:
            return own(states)
        return RMSNorm.apply(states, module.weight, module.variance_epsilon, dtype)

    return forward


@torch.no_grad()
def can_be_whole(module: Any) -> bool:
    """Whether a module is such a norm, by its fields and by what it makes of a row of numbers."""
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return False
    gain = module.weight
    if gain.dtype != torch.float32 or gain.device.type != "cpu" or gain.requires_grad or "forward" in vars(module):
        return False
    row = torch.linspace(-2, 3, len(gain))[None]
    wanted = module(row)
    found = RMSNorm.apply(row, gain, module.variance_epsilon, torch.float32)
    return bool((found - wanted).abs().max() <= CLOSE * wanted.abs().max())
