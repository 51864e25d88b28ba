"""Codebooks of at most 16 levels: published ones by their formula, and the best ones for normal weights.

All levels lie in [-1, 1] and stand for weights divided by the largest magnitude of their block. What is left of a
block of n normal weights is not normal: with M = max |w|, P(M ≤ m) = (2Φ(m) − 1)^n, the other n − 1 weights are
normal cut at ±M, and one sits at ±1. The optimal codebooks therefore depend on n.
"""

from functools import cache

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor, nn

from peftbook.scratch.double_quant import double_dequantize, double_quantize
from peftbook.scratch.nf4 import dequantize_blocks, nf4_levels, quantize_blocks

POINTS = 400  # quadrature nodes for M
PINNED = (0, 7, 15)  # places of −1, 0 and 1 among 16 levels: seven negative, zero, eight positive, as in NF4
EVEN = {"int4": np.arange(-7, 8) / 7, "int4_16": np.arange(-15, 16, 2) / 15}
FLOATS = {  # magnitudes; the sign doubles them
    "fp4": np.array([0, 0.0625, 2, 3, 4, 6, 8, 12]) / 12,
    "e2m1": np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6,
    "e3m0": np.array([0, *2.0 ** np.arange(7)]) / 64,
}
BLOCK_DEPENDENT = ("af4", "lloyd", "lloyd_pinned", "l1_pinned")
NAMES = ("nf4", "nf2", *EVEN, *FLOATS, *BLOCK_DEPENDENT)


@cache
def codebook(name: str, block: int = 64) -> Tensor:
    """The levels of a codebook, ascending, in [-1, 1]. float32, (16,) or (15,), unless it says otherwise.

    nf4: quantiles of the normal distribution; Dettmers et al. 2023, arXiv:2305.14314, section 3; see `nf4_levels`.
    nf2: the same with two bits, as LoftQ uses it; Li et al. 2023, arXiv:2310.08659, section 3.2. (4,).
    af4: AbnormalFloat; Yoshida 2023, arXiv:2306.06965. −1, 0 and 1 are given, each other level is the median of the
        scaled weights in its cell, and in the published code the two cells beside zero reach as far as zero itself:
        the zero level's own cell is not taken off them.
    int4: k / 7 for k = −7 … 7, which is symmetric round-to-nearest.   int4_16: 16 evenly spaced levels, no zero.
    fp4: ±{0, 1/16, 2, 3, 4, 6, 8, 12} / 12, the type that bitsandbytes calls FP4.
    e2m1: ±{0, ½, 1, 1½, 2, 3, 4, 6} / 6, the OCP microscaling type FP4 (version 1.0, section 5.3.3).
    e3m0: ±{0, 1, 2, 4, …, 64} / 64: a sign, three bits of exponent, none of mantissa; its lowest code is zero.
    The floating-point ones have 15 levels, since 0 and −0 are one.
    lloyd: the 16 levels of least squared error for normal weights in blocks of `block`; lloyd_pinned: the same with
        −1, 0 and 1 among them, the constraint under which NF4 stands.   l1_pinned: that with least absolute error.
    Raises ValueError for an unknown name.
    """
    if name in ("nf4", "nf2"):
        return nf4_levels(bits=int(name[-1]))
    if name in EVEN:
        return torch.from_numpy(EVEN[name]).float()
    if name in FLOATS:
        return torch.from_numpy(np.concatenate([-FLOATS[name][:0:-1], FLOATS[name]])).float()
    if name in BLOCK_DEPENDENT:
        return torch.from_numpy(optimal_levels(name, block)).float()
    raise ValueError(f"there is no codebook {name!r}: choose one of {', '.join(NAMES)}.")


@cache
def largest_magnitudes(block: int) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature for M, the largest of `block` normal magnitudes: nodes and weights that sum to 1, (POINTS,) each.

    P(M ≤ m) = (2Φ(m) − 1)^block, so M at probability u is Φ⁻¹((1 + u^(1/block)) / 2).
    """
    node, weight = np.polynomial.legendre.leggauss(POINTS)
    u = (node + 1) / 2
    return special.ndtri((1 + u ** (1 / block)) / 2), weight / 2


def density(x: np.ndarray) -> np.ndarray:
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def moments(low: np.ndarray, high: np.ndarray, block: int, power: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """∫ x^k M^power over scaled weights x in [low, high], for k = 0, 1, 2; shapes of `low`.

    The weight M^power turns an error of scaled weights into one of the weights themselves: M for absolute, M² for
    squared errors, 1 for counts. The block's largest weight, which is ±1, is not counted.
    """
    M, weight = (column[:, None] for column in largest_magnitudes(block))
    a, b = M * low, M * high
    scale = weight * M**power / (2 * special.ndtr(M) - 1) * (block - 1) / block
    mass = special.ndtr(b) - special.ndtr(a)
    first = density(a) - density(b)
    second = mass + a * density(a) - b * density(b)
    return (scale * mass).sum(0), (scale * first / M).sum(0), (scale * second / M**2).sum(0)


def atom(block: int, power: int) -> float:
    """E[M^power] / (2 block): the share of weights that sit at +1, and as many at −1."""
    M, weight = largest_magnitudes(block)
    return float((weight * M**power).sum() / (2 * block))


def edges(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edges of the cells of nearest values: the midpoints, and ±1 at the ends."""
    middles = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([[-1.0], middles]), np.concatenate([middles, [1.0]])


def imbalance(levels: np.ndarray, name: str, block: int) -> np.ndarray:
    """What is zero at the optimum, for each level: it is the mean (squared error) or the median of its cell."""
    low, high = edges(levels)
    ends = np.zeros(len(levels))
    ends[[0, -1]] = -1, 1
    if name.startswith("lloyd"):
        mass, first, _ = moments(low, high, block, power=2)
        extra = atom(block, power=2)
        return levels * (mass + extra * abs(ends)) - (first + extra * ends)
    power = 1
    if name == "af4":
        power = 0
        high[PINNED[1] - 1] = low[PINNED[1] + 1] = 0.0
    below, above = moments(low, levels, block, power)[0], moments(levels, high, block, power)[0]
    return below - above - atom(block, power) * ends


@cache
def optimal_levels(name: str, block: int) -> np.ndarray:
    """Solve `imbalance` = 0 for the levels that are free, from NF4's or half the block's. float64, (16,)."""
    free = np.ones(16, dtype=bool)
    if name != "lloyd":
        free[list(PINNED)] = False
    if block > 64:
        start = optimal_levels(name, block // 2)
    else:
        start = nf4_levels().double().numpy()
        if name == "lloyd":
            start = 0.95 * (start - start[::-1]) / 2  # symmetric: nothing asks for a zero

    def complete(values: np.ndarray) -> np.ndarray:
        levels = start.copy()
        levels[free] = values
        return levels

    solution = optimize.root(lambda values: imbalance(complete(values), name, block)[free], start[free], tol=1e-13)
    levels = complete(solution.x)
    assert np.all(np.diff(levels) > 0), f"{name} at block {block} did not converge"
    return levels


def expected_error(levels: Tensor, block: int, power: int) -> float:
    """E|w − Q(w)|^power of N(0, 1) weights in blocks of `block`, exact up to quadrature; power is 1 or 2."""
    q = levels.double().numpy()
    low, high = edges(q)
    ends = atom(block, power) * ((1 - q[-1]) ** power + (q[0] + 1) ** power)
    if power == 2:
        mass, first, second = moments(low, high, block, power)
        return float((second - 2 * q * first + q**2 * mass).sum() + ends)
    below, above = moments(low, q, block, power), moments(q, high, block, power)
    return float((q * below[0] - below[1] + above[1] - q * above[0]).sum() + ends)


def quantize_affine(w: Tensor, block: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Sixteen even levels from the least to the greatest weight of each block: w ≈ d · code + m, as in GGUF's Q4_1.

    w: n values, n a multiple of `block`.
    Returns codes, uint8, (n,), and d and m, float32 values that fit float16, (n / block,) each. The codes are chosen
    before d and m are rounded to float16, as GGUF does. Raises ValueError if n is not a multiple of block.
    Source: ggml, `quantize_row_q4_1_ref`.
    """
    if w.numel() % block:
        raise ValueError(f"{w.numel()} weights do not fill blocks of {block}: choose a block size that divides.")
    blocks = w.detach().float().reshape(-1, block)
    m = blocks.amin(dim=1)
    d = (blocks.amax(dim=1) - m) / 15
    inverse = torch.where(d == 0, torch.zeros_like(d), 1 / d)
    codes = torch.floor((blocks - m[:, None]) * inverse[:, None] + 0.5).clamp(0, 15).to(torch.uint8)
    return codes.flatten(), d.half().float(), m.half().float()


def round_trip(w: Tensor, name: str, block: int = 64, double_quant: bool = False) -> Tensor:
    """The weights that the stored codes stand for: float32, in the shape of w, on the device of w.

    name: a codebook of NAMES, or "q4_1", which has two constants a block.   double_quant: the block constants are
    themselves stored in 8 bits, blocks of 256.
    """
    if name == "q4_1":
        codes, d, m = quantize_affine(w, block)
        return (codes.view(-1, block) * d[:, None] + m[:, None]).view_as(w)
    codes, absmax = stored(w, name, block, double_quant)
    return dequantize_blocks(codes, absmax, codebook(name, block), block).view_as(w)


def stored(w: Tensor, name: str, block: int, double_quant: bool) -> tuple[Tensor, Tensor]:
    """The codes of the weights and the constants of their blocks as they come back from storage."""
    codes, absmax = quantize_blocks(w, codebook(name, block), block)
    return codes, double_dequantize(*double_quantize(absmax)) if double_quant else absmax


def half_steps(w: Tensor, name: str, block: int = 64, double_quant: bool = False) -> Tensor:
    """How far each rounded weight lies from the edge of its cell: half the distance to the nearest other level.

    h = ½ min_{l ≠ k} |q_l − q_k| · constant of the block, with k the weight's code: rounding again undoes any smaller
    change, unless the block's largest weight changes. float32, in the shape of w, on its device; names and constants
    are those of `round_trip`, without "q4_1".
    """
    codes, absmax = stored(w, name, block, double_quant)
    gaps = nn.functional.pad(codebook(name, block).diff(), (1, 1), value=torch.inf)
    return dequantize_blocks(codes, absmax, torch.minimum(gaps[:-1], gaps[1:]) / 2, block).view_as(w)


def linear_layers(model: nn.Module, left_out: tuple[str, ...] = ("lm_head",)) -> dict[str, nn.Linear]:
    """The linear layers of a model by name, without those whose last name part is left out."""
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] not in left_out
    }


@torch.no_grad()
def quantise_dense(model: nn.Module, quant: str, block: int = 64, double_quant: bool = True) -> nn.Module:
    """Replace the weight of every linear layer but the head by its dequantised values, in place.

    This computes the same function as a 4-bit base, without its memory. quant: a codebook.
    """
    for part in linear_layers(model).values():
        part.weight.copy_(round_trip(part.weight, quant, block, double_quant))
    return model
