"""LoRA: a frozen linear layer plus a trainable low-rank one beside it."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable update of rank r: h = W x + b + (alpha / r) B A x.

    x: (*, d_in).   W: (d_out, d_in).   A: (r, d_in).   B: (d_out, r).   h: (*, d_out).
    A starts uniform in ±1/√d_in and B starts at zero, so the new layer first computes what the old one did.
    A and B are float32: run a bfloat16 base under autocast. Any frozen layer with in_features and out_features will do.
    Raises ValueError if the rank is below 1; warns if it exceeds min(d_in, d_out), the most B A can have.
    Source: Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.1, where A is Gaussian; A as in peft.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        d_in, d_out = base.in_features, base.out_features
        if rank < 1:
            raise ValueError(f"rank {rank} leaves nothing to train: choose a rank of 1 or more.")
        if rank > min(d_in, d_out):
            warnings.warn(f"rank {rank} is stored, but B A has rank at most {min(d_in, d_out)} here.", stacklevel=2)
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        device = next(iter(base.state_dict().values())).device
        self.A = nn.Parameter(torch.empty(rank, d_in, device=device))
        self.B = nn.Parameter(torch.zeros(d_out, rank, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # uniform in ±1/√d_in
        self._merged = False

    @property
    def merged(self) -> bool:
        """Whether the update is now part of the base weight."""
        return self._merged

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)  # (*, d_out)
        if self._merged:
            return h
        return h + x @ self.A.T @ self.B.T * self.scaling  # (*, r) in between; B A itself is never formed

    def delta(self) -> Tensor:
        """The update as one matrix, (alpha / r) B A: (d_out, d_in)."""
        return self.B @ self.A * self.scaling

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base weight, so that inference costs nothing extra. Twice is once.

        Raises ValueError for a base without a dense weight, which would have to be quantised again.
        """
        if not isinstance(self.base, nn.Linear):
            raise ValueError(f"cannot merge into {type(self.base).__name__}: dequantise it to an nn.Linear first.")
        if not self._merged:
            self.base.weight += self.delta()
            self._merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract what `merge` added. W + D - D differs from W by the rounding of the two sums."""
        if self._merged:
            self.base.weight -= self.delta()
            self._merged = False


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the dotted `name` points."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def named_linears(model: nn.Module, targets: Iterable[str]) -> dict[str, Any]:
    """The linear layers whose last name part is in `targets`, by full name. Raises ValueError if nothing matches."""
    named = dict(model.named_modules())
    layers = {n: m for n, m in named.items() if n.split(".")[-1] in targets and hasattr(m, "in_features")}
    if not layers:
        raise ValueError(f"no linear layer is named any of {sorted(targets)}.")
    return layers


def add_lora(model: nn.Module, targets: set[str], rank: int, alpha: float) -> list[str]:
    """Freeze the model, wrap every linear layer whose last name part is in `targets`, return their full names.

    Raises ValueError if nothing matches or if the model already has LoRA layers.
    """
    if _lora_layers(model):
        raise ValueError("the model already has LoRA layers: add them once, with all targets.")
    layers = named_linears(model, targets)
    model.requires_grad_(False)
    for name, linear in layers.items():
        replace_module(model, name, LoRALinear(linear, rank, alpha))
    return list(layers)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every A and B by full name: all that a fine-tune has to save."""
    return {f"{n}.{p}": getattr(m, p).detach().clone() for n, m in _lora_layers(model).items() for p in "AB"}


@torch.no_grad()
def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy `state` into the LoRA layers. Raises ValueError on other names or shapes, or while a layer is merged."""
    own, new = ({(name, value.shape) for name, value in s.items()} for s in (lora_state(model), state))
    if own != new:
        raise ValueError(f"state and model disagree about {sorted({name for name, _ in own ^ new})}.")
    if merged := [n for n, m in _lora_layers(model).items() if m.merged]:
        raise ValueError(f"unmerge {merged[0]} first: its weight holds the update being replaced.")
    for name, value in state.items():
        model.get_parameter(name).copy_(value)


def trainable_fraction(model: nn.Module) -> float:
    """Trainable weights over all weights, a 4-bit one counted as one weight."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    packed = sum(2 * b.numel() for n, b in model.named_buffers() if n.endswith("packed"))  # two codes a byte
    return trainable / (sum(p.numel() for p in model.parameters()) + packed)


def _lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
