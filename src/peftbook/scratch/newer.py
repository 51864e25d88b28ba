"""Three newer forms: OFT rotates a layer's input, MiSS shares one shard among its columns, HiRA scales its entries."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def cayley(Q: Tensor, order: int | None = None) -> Tensor:
    """The rotation R = (I + Q)(I − Q)⁻¹ of a skew-symmetric Q, so that R Rᵀ = I and det R = 1.

    Q: (*, s, s) with Qᵀ = −Q.   order: if given, (I − Q)⁻¹ is cut to I + Q + … + Q^order, which costs no solve and
    makes R a rotation only up to Q^(order + 1).
    Source: Qiu et al. 2023, OFT, arXiv:2306.07280, section 3.3; the series Qiu et al. 2025, OFTv2, arXiv:2506.19847.
    """
    identity = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    if order is None:
        return torch.linalg.solve(identity - Q, identity + Q, left=False)
    series = identity.expand_as(Q)
    for _ in range(order):
        series = identity + Q @ series
    return (identity + Q) @ series


class OFTLinear(nn.Module):
    """A frozen linear layer behind a trained rotation: h = W R x + b, R = diag(R_1, …) in blocks of size s.

    x: (*, d_in).   upper: (d_in / s, s (s − 1) / 2), the entries of each Q_i above its diagonal, zero at the start, so
    that R = I.   order: see `cayley`.   Raises ValueError if s does not divide d_in.
    Source: Qiu et al. 2023, OFT, arXiv:2306.07280, equations 2 and 3. It turns the rows of W, all in the same way.
    """

    def __init__(self, base: nn.Linear, block: int, order: int | None = None):
        super().__init__()
        if base.in_features % block:
            raise ValueError(f"blocks of {block} do not divide {base.in_features} inputs.")
        self.base, self.block, self.order = base.requires_grad_(False), block, order
        self.upper = nn.Parameter(torch.zeros(base.in_features // block, block * (block - 1) // 2))

    def rotations(self) -> Tensor:
        """R_1, R_2, …: (d_in / s, s, s)."""
        Q = self.upper.new_zeros(len(self.upper), self.block, self.block)
        rows, columns = torch.triu_indices(self.block, self.block, 1)
        Q[:, rows, columns] = self.upper
        return cayley(Q - Q.mT, self.order)

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.unflatten(-1, (-1, self.block))  # (*, d_in / s, s)
        return self.base(torch.einsum("nij,...nj->...ni", self.rotations(), pieces).flatten(-2))

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight W R of the plain layer that computes the same: (d_out, d_in)."""
        return self.base.weight @ torch.block_diag(*self.rotations())


class MiSSLinear(nn.Module):
    """A frozen linear layer and one trained shard for all pieces of its input: h = W x + b + D (x_1 + x_2 + …).

    x: (*, d_in), cut into pieces x_i of r numbers, the last one filled with zeros.   D: (d_out, r), zero at the start.
    In weights ΔW = D [I I …]: LoRA with γ = 1 and A frozen at identities side by side.
    Source: Kang and Yin 2024, MiSS, arXiv:2409.15371, equations 4 to 7; the pieces as in peft.
    """

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base, self.rank = base.requires_grad_(False), rank
        self.D = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        filled = nn.functional.pad(x, (0, -x.shape[-1] % self.rank))
        return self.base(x) + filled.unflatten(-1, (-1, self.rank)).sum(-2) @ self.D.T

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight W + D [I I …] of the plain layer that computes the same: (d_out, d_in)."""
        copies = -(-self.base.in_features // self.rank)
        return self.base.weight + self.D.repeat(1, copies)[:, : self.base.in_features]


class HiRALinear(nn.Module):
    """A frozen linear layer whose every weight is scaled: h = (W ⊙ (1 + B A)) x + b, entry by entry.

    x: (*, d_in).   A: (r, d_in), uniform in ±1/√d_in.   B: (d_out, r), zero at the start.
    ΔW = W ⊙ (B A) may have rank r times that of W; a weight that is zero stays zero.
    Source: Huang et al. 2025, HiRA; start and form as in peft.
    """

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.base.weight * (1 + self.B @ self.A), self.base.bias)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of the plain layer that computes the same: (d_out, d_in)."""
        return self.base.weight * (1 + self.B @ self.A)
