"""AdamW: the step that most fine-tuning takes, and the bytes that it makes training hold."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Moments:
    """What Adam remembers of a weight: running means of its gradient and of the square, and how many steps they saw."""

    m: Tensor
    v: Tensor
    t: int = 0


class AdamW:
    """Adam with decoupled weight decay.

    m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,
    w ← (1 − η λ) w − η · m̂ / (√v̂ + ε),   m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ),
    entry by entry. w, g, m, v: same shape, same dtype.   t: steps of this weight.
    A weight without a gradient is left alone and gets no moments.
    Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 1; the decay is that of
    Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2.
    """

    def __init__(self, weights: Iterable[Tensor], rate=1e-3, betas=(0.9, 0.999), eps=1e-8, decay=1e-2):
        self.weights, self.rate, self.betas = list(weights), rate, betas
        self.eps, self.decay = eps, decay
        self.state: dict[Tensor, Moments] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        b1, b2 = self.betas
        for w in self.weights:
            if w.grad is None:
                continue
            if w not in self.state:
                self.state[w] = Moments(torch.zeros_like(w), torch.zeros_like(w))
            moments = self.state[w]
            moments.t += 1
            moments.m.mul_(b1).add_(w.grad, alpha=1 - b1)
            moments.v.mul_(b2).addcmul_(w.grad, w.grad, value=1 - b2)
            size = moments.v.sqrt() / (1 - b2**moments.t) ** 0.5 + self.eps  # √v̂ + ε
            w.mul_(1 - self.rate * self.decay)
            w.addcdiv_(moments.m, size, value=-self.rate / (1 - b1**moments.t))


def held_bytes(weights: Iterable[Tensor], optimizer: AdamW) -> dict[str, int]:
    """Bytes of weights, of the gradients that they have now, and of the optimiser's moments."""
    weights = list(weights)
    return {
        "weights": sum(w.nbytes for w in weights),
        "gradients": sum(w.grad.nbytes for w in weights if w.grad is not None),
        "moments": sum(moments.m.nbytes + moments.v.nbytes for moments in optimizer.state.values()),
    }


class Recipe(NamedTuple):
    """Bytes that a parameter takes, by what they are."""

    weight: float
    gradient: float = 0.0
    master: float = 0.0
    moments: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of a parameter in all."""
        return sum(self)


# 16 bytes with a master copy: Rajbhandari et al. 2019, arXiv:1910.02054, section 3.1. Moments in 8 bits with a float32
# constant for each 256 of them: bitsandbytes. NF4 with double quantisation: Dettmers et al. 2023, arXiv:2305.14314.
RECIPES = {
    "fp32 throughout": Recipe(4, 4, 0, 8),
    "bf16 and an fp32 master": Recipe(2, 2, 4, 8),
    "bf16, moments in fp32": Recipe(2, 2, 0, 8),
    "bf16 throughout": Recipe(2, 2, 0, 4),
    "bf16, moments in 8 bits": Recipe(2, 2, 0, 2 * (1 + 4 / 256)),
    "bf16, plain SGD": Recipe(2, 2),
    "frozen, bf16": Recipe(2),
    "frozen, NF4": Recipe(0.5 + (1 + 4 / 256) / 64),
}
