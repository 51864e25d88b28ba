"""What an update did: how many directions it uses, which it brought, and what was lost when the target was reached."""

from collections.abc import Sequence

import torch
from torch import Tensor


def energy_rank(update: Tensor, share: float = 0.9) -> int:
    """Singular directions that hold `share` of an update's energy: the least k with Σ_{i≤k} σᵢ² ≥ share · ‖Δ‖².

    update: (d_out, d_in). Source: Biderman et al. 2024, arXiv:2405.09673v2, section 4.6, with the share of 90 %.
    """
    energy = torch.linalg.svdvals(update.double()).square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1


def intruders(before: Tensor, after: Tensor, *, top: int, epsilon: float) -> int:
    """How many of the `top` leading left singular vectors uₖ of `after` are new: max_j |uₖ · u⁰_j| < epsilon.

    before, after: (d_out, d_in); u⁰_j: all left singular vectors of `before`.
    Source: Shuttleworth et al. 2024, arXiv:2410.21228, section 3.
    """
    old, new = (torch.linalg.svd(weight.double(), full_matrices=False).U for weight in (before, after))
    nearest = (new[:, :top].T @ old).abs().amax(dim=1)  # (top,)
    return int((nearest < epsilon).sum())


def at_target(path: Sequence[float], values: Sequence[float], target: float) -> float:
    """`values` where the loss `path` first falls to `target`, linear between moments.

    path: the target loss at each moment.   values: what is read off, at the same moments.
    Raises ValueError if the path never comes down to `target`: then there is nothing to compare.
    """
    for at in range(1, len(path)):
        if path[at] <= target < path[at - 1]:
            share = (path[at - 1] - target) / (path[at - 1] - path[at])
            return values[at - 1] + share * (values[at] - values[at - 1])
    raise ValueError(f"the loss never falls to {target:g}; its lowest is {min(path):g}.")
