"""A memory of one matrix: how many numbers a rank leaves free, and how many bits of random labels they take in."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def free_numbers(rank: int, d_out: int, d_in: int) -> int:
    """Dimensions of the set of d_out × d_in matrices of a rank: r (d_out + d_in − r).

    B and A hold r (d_out + d_in) numbers, but B M and M⁻¹ A make the same product for each of the r² entries of M.
    Raises ValueError for a rank outside 0 … min(d_out, d_in).
    """
    if not 0 <= rank <= min(d_out, d_in):
        raise ValueError(f"a {d_out} × {d_in} matrix has no rank {rank}.")
    return rank * (d_out + d_in - rank)


def stored_bits(nats: Tensor, values: int) -> float:
    """Bits about uniformly random labels that a model holds: N log₂ V − Σ NLL / ln 2.

    nats: (N,), each label's negative log-likelihood given its key.   values: V, how many labels there are.
    Zero for a uniform guess, log₂ V a label for certainty; negative for a model that is surely wrong.
    Source: Allen-Zhu and Li 2024, arXiv:2404.05405, section 3; Morris et al. 2025, arXiv:2505.24832, section 3.
    """
    return len(nats) * math.log2(values) - nats.sum().item() / math.log(2)


def fit_memory(keys: Tensor, labels: Tensor, values: int, rank: int | None = None, steps: int = 150) -> Tensor:
    """Nats of each label under the best p(v | k) = softmax(M k)_v, with M free or of a rank: (N,).

    keys: (N, d).   labels: (N,), in 0 … values − 1.   M: (values, d), or B A as in LoRA, from B = 0.
    With M free the problem is convex; with B A the result is the optimum that L-BFGS finds.
    """
    if rank is None:
        factors = [torch.zeros(values, keys.shape[1])]
    else:
        factors = [torch.zeros(values, rank), torch.randn(rank, keys.shape[1]) / keys.shape[1] ** 0.5]
    for factor in factors:
        factor.requires_grad_()

    def logits() -> Tensor:
        hidden = keys if rank is None else keys @ factors[1].T
        return hidden @ factors[0].T

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(logits(), labels)
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(
        factors, max_iter=steps, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )
    optimizer.step(closure)
    return cross_entropy(logits(), labels, reduction="none").detach()


def overloaded_bits(rank: int, d_out: int, d_in: int, draws: int = 20) -> float:
    """What a memory with far too many pairs takes in: E Σ_{i≤r} σᵢ(G)² / (2 ln 2), G of independent N(0, 1) entries.

    d_out: V − 1 for V labels, since the softmax ignores a constant.   The mean over `draws` of G.
    """
    values = torch.linalg.svdvals(torch.randn(draws, d_out, d_in))
    return values[:, :rank].square().sum().item() / draws / (2 * math.log(2))
