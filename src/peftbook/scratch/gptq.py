"""GPTQ: weights are rounded column by column, and what is still free makes up for the error of what is not."""

from __future__ import annotations

import torch
from torch import Tensor

from peftbook.scratch.groups import Grouped, codes_on, in_groups, min_max_grid


def input_moment(x: Tensor) -> Tensor:
    """The second moment of a layer's inputs, half the Hessian of its squared output error: H = xᵀx / n.

    x: (…, d_in), n inputs.   Returns float32, (d_in, d_in).
    """
    flat = x.detach().flatten(0, -2).float()
    return flat.T @ flat / len(flat)


def output_error(error: Tensor, H: Tensor) -> float:
    """The mean squared change of a layer's output, summed over outputs: tr(E H Eᵀ) = mean over inputs of ‖E x‖².

    error: E = Ŵ − W, (d_out, d_in).   H: from `input_moment`.
    """
    return float(((error @ H) * error).sum(dtype=torch.float64))


def inverse_factor(H: Tensor, damping: float = 0.01) -> Tensor:
    """The upper triangular U with UᵀU = (H + damping · mean(diag H) · I)⁻¹: float32, (d_in, d_in).

    Row j of U, divided by its diagonal, is what the rounding of column j asks of the columns after it, with the columns
    before it fixed. An input that is always zero gets a diagonal of 1, so that its weight is rounded by itself.
    Source: Frantar et al. 2022, arXiv:2210.17323, section 3.3, step 3.
    """
    H = H.double().clone()
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True).float()


def gptq(W: Tensor, H: Tensor, bits: int, group: int = 64, damping: float = 0.01) -> Grouped:
    """Round column j = 0, 1, … and move the columns after it: w_k ← w_k − (w_j − ŵ_j) U_jk / U_jj for k > j.

    That is the change of the free weights that keeps the mean of ‖(W − Ŵ) x‖² least, given the weights that are rounded
    already. The grid of a group is taken from its weights as they are when its first column comes up. With H = I
    nothing moves, and the result is that of `round_to_nearest`.
    W: (d_out, d_in).   H: (d_in, d_in), from `input_moment`.   Raises ValueError if `group` does not divide d_in.
    Source: Frantar et al. 2022, arXiv:2210.17323, section 3 and algorithm 1, without its batches of columns, which
    change the speed alone, and in the order in which the columns come.
    """
    W = in_groups(W, group).flatten(1).clone()
    U = inverse_factor(H, damping)
    codes, scales, zeros = torch.empty_like(W, dtype=torch.uint8), [], []
    for j in range(W.shape[1]):
        if j % group == 0:
            scale, zero = min_max_grid(W[:, j : j + group], bits)
            scales.append(scale)
            zeros.append(zero)
        codes[:, j] = codes_on(W[:, j], scale, zero, bits)
        rounded = scale.float() * (codes[:, j].float() - zero.float())
        W[:, j + 1 :] -= torch.outer((W[:, j] - rounded) / U[j, j], U[j, j + 1 :])
    return Grouped(codes, torch.stack(scales, dim=1), torch.stack(zeros, dim=1), bits)
