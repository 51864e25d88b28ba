"""Several adapters made into one: averages, task arithmetic, TIES, DARE, and what becomes of the factors A and B.

An update is D = gamma B A, (d_out, d_in), of one layer. Functions on updates take those of one layer and of all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """An adapter of one layer.   A: (r, d_in).   B: (d_out, r), gamma in it.   Its update is B A, (d_out, d_in)."""

    A: Tensor
    B: Tensor

    @property
    def update(self) -> Tensor:
        return self.B @ self.A


def task_arithmetic(updates: Sequence[Tensor], scale: float) -> Tensor:
    """scale · Σ D_i.

    Source: Ilharco et al. 2022, arXiv:2212.04089, whose task vectors are differences of all weights; an update is one.
    """
    return scale * torch.stack(list(updates)).sum(dim=0)


def average(updates: Sequence[Tensor]) -> Tensor:
    """Σ D_i / k: what averaging k merged models gives, since they share W."""
    return task_arithmetic(updates, 1 / len(updates))


def trim(update: Tensor, density: float) -> Tensor:
    """Keep the ⌊density · n⌋ entries of largest magnitude, and zero the others.

    Raises ValueError for a density outside of 0 to 1.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"a density of {density} is no share: choose one from 0 to 1.")
    kept = update.abs().flatten().topk(int(density * update.numel())).indices
    out = torch.zeros_like(update)
    out.view(-1)[kept] = update.flatten()[kept]
    return out


def elect(updates: Sequence[Tensor]) -> Tensor:
    """The sign of each entry's sum over the updates, 1 or −1; 1 where it is 0."""
    return torch.where(torch.stack(list(updates)).sum(dim=0) >= 0, 1.0, -1.0)


def ties(updates: Sequence[Tensor], density: float, scale: float = 1.0) -> Tensor:
    """Trim each update, elect a sign for each entry, and average those that have it: scale · Σ_{i ∈ S} D_i / |S|.

    S: the updates whose trimmed entry is not zero and has the elected sign; where there is none the entry is 0. The
    paper trims over all layers together, this and peft each layer by itself.
    Source: Yadav et al. 2023, TIES-Merging, arXiv:2306.01708.
    """
    trimmed = torch.stack([trim(update, density) for update in updates])
    agree = trimmed.sign() == elect(list(trimmed))
    return scale * (trimmed * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def drop_and_rescale(update: Tensor, drop: float, generator: torch.Generator | None = None) -> Tensor:
    """Zero each entry with probability p = drop and divide the others by 1 − p: on average the update itself.

    The variance that this adds is p / (1 − p) · D² for every entry.  Raises ValueError unless 0 ≤ drop < 1.
    Source: Yu et al. 2023, DARE, arXiv:2311.03099.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"dropping a share of {drop} cannot be made up for: choose one from 0 to below 1.")
    kept = torch.rand(update.shape, generator=generator, device=update.device) >= drop
    return update * kept / (1 - drop)


def dare(
    updates: Sequence[Tensor], drop: float, scale: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Task arithmetic of updates of which each has lost a share of its entries, `drop_and_rescale`."""
    return task_arithmetic([drop_and_rescale(update, drop, generator) for update in updates], scale)


def combine_factors(adapters: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """A = Σ √w_i A_i and B = Σ √w_i B_i, as peft's `linear`: Σ w_i D_i plus cross terms √(w_i w_j) B_i A_j, i ≠ j."""
    roots = [weight**0.5 for weight in weights]
    A = torch.stack([root * adapter.A for root, adapter in zip(roots, adapters, strict=True)]).sum(dim=0)
    B = torch.stack([root * adapter.B for root, adapter in zip(roots, adapters, strict=True)]).sum(dim=0)
    return Factors(A, B)


def mean_of_factors(adapters: Sequence[Factors]) -> Factors:
    """A = Σ A_i / k and B = Σ B_i / k: the average of the updates over k, plus cross terms B_i A_j / k²."""
    count = len(adapters)
    return combine_factors(adapters, [1 / count**2] * count)


def concatenate(adapters: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Σ w_i D_i exactly, as one adapter of rank Σ r_i: A's rows below each other, w_i B_i's columns side by side."""
    A = torch.cat([adapter.A for adapter in adapters])
    B = torch.cat([weight * adapter.B for weight, adapter in zip(weights, adapters, strict=True)], dim=1)
    return Factors(A, B)


def sign_conflict(updates: Sequence[Tensor]) -> float:
    """Σ |D_i| that has not the elected sign, over Σ |D_i|: 0 where all agree.

    It is (1 − 1/√k) / 2 for k unrelated normal updates, 0.15 for two and near a half for many.
    """
    stacked = torch.stack(list(updates))
    against = stacked.sign() != elect(updates)
    return float((stacked.abs() * against).sum() / stacked.abs().sum())
