"""Quantised bases held dense: every decoder linear's weight replaced by what its 4-bit codes stand for.

This computes the same function as a 4-bit base, without its memory. It serves what bitsandbytes does not: INT4, and
starts of LoRA that correct the error of the quantiser.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftbook import specs
from peftbook.errors import InputError
from peftbook.scratch.codebooks import linear_layers, round_trip
from peftbook.training.methods import causal_model

__all__ = ["init_corrected", "quantise_dense", "quantised_by_bitsandbytes", "set_lora", "top_singular"]

ALTERNATIONS = 5  # Li et al. 2023, section 4.1: T = 5
BLOCK = 64


def quantised_by_bitsandbytes(method: specs.QLoRA) -> bool:
    """Whether bitsandbytes holds the base in 4 bits; else it is dense, with dequantised values."""
    return method.quant in ("nf4", "fp4") and method.init == "kaiming"


def decoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that are quantised: all but the head."""
    return linear_layers(causal_model(model))


@torch.no_grad()
def quantise_dense(model: nn.Module, quant: str, block: int = BLOCK, double_quant: bool = True) -> nn.Module:
    """Replace every decoder linear's weight by its dequantised values, in place; embeddings, norms and head stay.

    quant: a codebook of `scratch.codebooks`.
    """
    for part in decoder_linears(model).values():
        part.weight.copy_(round_trip(part.weight, quant, block, double_quant))
    return model


@torch.no_grad()
def top_singular(w: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of w with this rank as a product B A: B = U √S, (d_out, rank), A = √S Vᵀ, (rank, d_in)."""
    U, S, Vt = torch.linalg.svd(w, full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vt[:rank]


@torch.no_grad()
def init_corrected(model: nn.Module, method: specs.QLoRA) -> dict[str, tuple[Tensor, Tensor]]:
    """Quantise the base in place and return a start (A, B) of LoRA for every target, with W ≈ Q + γ B A.

    kaiming: no starts; the base is quantised as it is.
    loftq: from B A = 0, five times Q = quantised(W − γBA) and γBA = rank-r SVD of W − Q.
        Source: Li et al. 2023, arXiv:2310.08659, Algorithm 1.
    pissa: γBA = rank-r SVD of W, then Q = quantised(W − γBA): the residual alone is quantised (QPiSSA).
        Source: Meng et al. 2024, arXiv:2404.02948, section 4.
    A is (r, d_in), B is (d_out, r), both float32; γ is the method's scaling, so √γ is taken off each factor.
    Raises InputError for an initialisation that has no form for a quantised base, or that DoRA would undo.
    """
    if method.init not in ("kaiming", "loftq", "pissa"):
        raise InputError(f"init = {method.init!r} has no form for a 4-bit base: use 'kaiming', 'loftq' or 'pissa'.")
    if method.dora and method.init != "kaiming":
        raise InputError(f"init = {method.init!r} does not set DoRA's magnitudes: use dora = False or init 'kaiming'.")
    gamma = method.alpha / (method.rank**0.5 if method.scaling == "rank_stabilized" else method.rank)
    starts = {}
    for name, part in decoder_linears(model).items():
        w = part.weight.detach().clone()
        if method.init == "kaiming" or not is_adapted(name, method):
            part.weight.copy_(round_trip(w, method.quant, BLOCK, method.double_quant))
            continue
        product = torch.zeros_like(w)
        if method.init == "pissa":
            B, A = top_singular(w, method.rank)
            product = B @ A
        for _ in range(ALTERNATIONS if method.init == "loftq" else 1):
            stored = round_trip(w - product, method.quant, BLOCK, method.double_quant)
            if method.init == "loftq":
                B, A = top_singular(w - stored, method.rank)
                product = B @ A
        part.weight.copy_(stored)
        starts[name] = (A / gamma**0.5, B / gamma**0.5)
    return starts


def is_adapted(name: str, method: specs.LoRA) -> bool:
    """Whether a linear layer of this name gets an adapter."""
    if not any(f".{name}".endswith(f".{target}") for target in method.targets):
        return False
    return not method.layers or any(part.isdigit() and int(part) in method.layers for part in name.split("."))


@torch.no_grad()
def set_lora(tuned: nn.Module, starts: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Give the adapters of a peft model their starting values, by the names their layers have in the base model."""
    layers = dict(causal_model(tuned).named_modules())
    for name, (A, B) in starts.items():
        layers[name].lora_A["default"].weight.copy_(A)
        layers[name].lora_B["default"].weight.copy_(B)
