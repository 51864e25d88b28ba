"""LoRA's variants that change the start or the form: PiSSA, OLoRA and DoRA."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Start(NamedTuple):
    """What a layer h = W x + gamma B A x begins with: frozen W (d_out, d_in), A (r, d_in) and B (d_out, r)."""

    W: Tensor
    A: Tensor
    B: Tensor


def pissa_start(W: Tensor, rank: int, scaling: float) -> Start:
    """The r leading singular directions are trained, the rest is frozen: gamma B A = U_r S_r V_rᵀ, W' = W − gamma B A.

    W: (d_out, d_in).   scaling: gamma.   A = √(S_r / gamma) V_rᵀ and B = U_r √(S_r / gamma): equal in norm.
    Source: Meng et al. 2024, PiSSA, arXiv:2404.02948, section 3; gamma as in peft.
    """
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = (S[:rank] / scaling).sqrt()
    return _rest(W, root[:, None] * Vh[:rank], U[:, :rank] * root, scaling)


def olora_start(W: Tensor, rank: int, scaling: float) -> Start:
    """B starts orthonormal: with W = Q R, B is the first r columns of Q, A the first r rows of R, W' = W − gamma B A.

    W: (d_out, d_in).   scaling: gamma.
    Source: Büyükakyüz 2024, OLoRA, arXiv:2406.01775, section 3; gamma as in peft.
    """
    Q, R = torch.linalg.qr(W)
    return _rest(W, R[:rank].clone(), Q[:, :rank].clone(), scaling)


def _rest(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Start:
    """The frozen weight that makes the layer compute what W did."""
    return Start(W - scaling * B @ A, A, B)


class DoRALinear(nn.Module):
    """Magnitude and direction learned apart: h_i = m_i / ‖V_i‖ · V_i x + b_i, with V = W + gamma B A, row by row.

    x: (*, d_in).   V: (d_out, d_in), row i is what output i listens to.   m: (d_out,), at the start ‖W_i‖, so that the
    layer first computes what the old one did.
    The norm is a constant for the gradient, which saves memory and is what peft does.
    Source: Liu et al. 2024, DoRA, arXiv:2402.09353, sections 4.1 and 4.3.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.scaling = base.requires_grad_(False), alpha / rank
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # uniform in ±1/√d_in
        self.magnitude = nn.Parameter(base.weight.norm(dim=1).clone())

    def direction(self) -> Tensor:
        """V = W + gamma B A: (d_out, d_in)."""
        return self.base.weight + self.scaling * self.B @ self.A

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            norm = self.direction().norm(dim=1)
        h = x @ self.base.weight.T + x @ self.A.T @ self.B.T * self.scaling  # (*, d_out), which is V x
        h = h * (self.magnitude / norm)
        return h if self.base.bias is None else h + self.base.bias

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of the plain layer that computes the same: (d_out, d_in)."""
        V = self.direction()
        return V * (self.magnitude / V.norm(dim=1))[:, None]
