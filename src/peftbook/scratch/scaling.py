"""(IA)³: frozen linear layers whose outputs, or inputs, are scaled by trained vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from peftbook.scratch.lora import named_linears, replace_module


class ScaledLinear(nn.Module):
    """A frozen linear layer with a trained scale on one side: h = l ⊙ (W x + b), or h = W (l ⊙ x) + b.

    x: (*, d_in).   W: (d_out, d_in).   l: (d_out,) for the output's side, (d_in,) for the input's; ones at the start.
    The update of the weight is (diag(l) − 1) W, or W (diag(l) − 1): few numbers, but of any rank.
    Source: Liu et al. 2022, arXiv:2205.05638, section 3.3.
    """

    def __init__(self, base: nn.Linear, side: Literal["input", "output"] = "output"):
        super().__init__()
        self.base, self.side = base.requires_grad_(False), side
        width = base.out_features if side == "output" else base.in_features
        self.scale = nn.Parameter(torch.ones(width, device=base.weight.device))
        self._merged = False

    def forward(self, x: Tensor) -> Tensor:
        if self._merged:
            return self.base(x)
        return self.base(x) * self.scale if self.side == "output" else self.base(x * self.scale)

    @torch.no_grad()
    def merge(self) -> None:
        """Scale the rows of W and b, or the columns of W. Twice is once; a scale of zero could not be undone."""
        if self._merged:
            return
        self.base.weight *= self.scale[:, None] if self.side == "output" else self.scale
        if self.side == "output" and self.base.bias is not None:
            self.base.bias.mul_(self.scale)
        self._merged = True


def add_ia3(
    model: nn.Module, outputs: tuple[str, ...] = ("k_proj", "v_proj"), inputs: tuple[str, ...] = ("down_proj",)
) -> list[str]:
    """Freeze the model and scale keys, values and what enters the MLP's last layer; returns the full names.

    Raises ValueError if nothing matches.
    """
    layers = named_linears(model, (*outputs, *inputs))
    model.requires_grad_(False)
    for name, linear in layers.items():
        replace_module(model, name, ScaledLinear(linear, "output" if name.split(".")[-1] in outputs else "input"))
    return list(layers)
