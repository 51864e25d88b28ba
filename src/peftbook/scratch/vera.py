"""VeRA: LoRA's two matrices frozen at random and shared by all layers; only scales between them are trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftbook.scratch.lora import named_linears, replace_module


class VeRALinear(nn.Module):
    """A frozen linear layer with a random update whose scales are trained: h = W x + b + β ⊙ (B (δ ⊙ (A x))).

    A: (r, at least d_in) and B: (at least d_out, r), frozen, the same for all layers, cut to this one's widths.
    δ: (r,), 0.1 at the start.   β: (d_out,), zero at the start, so that the layer starts as the old one.
    Source: Kopiczko et al. 2023, arXiv:2310.11454, sections 3.1 and 3.3; cut as in peft.
    """

    A: Tensor
    B: Tensor

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.register_buffer("A", A[:, : base.in_features], persistent=False)
        self.register_buffer("B", B[: base.out_features], persistent=False)
        self.delta_scale = nn.Parameter(torch.full((len(A),), 0.1, device=A.device))
        self.beta_scale = nn.Parameter(torch.zeros(base.out_features, device=A.device))
        self._merged = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h if self._merged else h + self.beta_scale * (self.delta_scale * (x @ self.A.T) @ self.B.T)

    @torch.no_grad()
    def merge(self) -> None:
        """Add diag(β) B diag(δ) A to the base weight. Twice is once."""
        if not self._merged:
            self.base.weight += self.beta_scale[:, None] * self.B @ (self.delta_scale[:, None] * self.A)
            self._merged = True


def add_vera(model: nn.Module, targets: set[str], rank: int, seed: int = 0) -> list[str]:
    """Freeze the model and wrap its linear layers named in `targets`, all with one A and B; returns their names.

    The seed is all that has to be stored of A and B: uniform, variance 2 / (their inputs), as wide as the widest layer.
    Raises ValueError if nothing matches.
    """
    layers = named_linears(model, targets)
    d_in, d_out = (max(getattr(layer, side) for layer in layers.values()) for side in ("in_features", "out_features"))
    generator = torch.Generator().manual_seed(seed)
    A, B = (_uniform(shape, generator) for shape in ((rank, d_in), (d_out, rank)))
    model.requires_grad_(False)
    for name, linear in layers.items():
        device = linear.weight.device
        replace_module(model, name, VeRALinear(linear, A.to(device), B.to(device)))
    return list(layers)


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Kaiming's start with a seed of its own: uniform in ±√(6 / inputs)."""
    bound = math.sqrt(6 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
