"""Figures of the quantisation chapter: codebooks, their error and what a stored weight costs.

Errors are those of N(0, 1) weights, by the quadrature of `scratch.codebooks`: no sampling, no seed. The deck takes some
of these charts and needs torch for no other, so that the scratch code is imported when it is asked.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import NullLocator
from scipy import optimize, special

from peftbook.evidence.chart import Chart, Series
from peftbook.views.figures.parts import SMALL, decimals, labelled
from peftbook.views.figures.style import SIZE, canvas, colour, drawing, finding, say, shade, tag

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
BLOCK_AXIS = "Weights that share one scale (block size)"
MARKS = {
    "NF4": ("o", "-", "lora"),
    "INT4": ("s", (0, (4, 1.5)), "full"),
    "FP4 (bnb)": ("D", ":", "qlora"),
    "FP4 (E2M1)": ("^", (0, (5, 1.2, 1, 1.2)), "prompt"),
}
BOOKS = {"NF4": "nf4", "INT4": "int4_16", "FP4 (bnb)": "fp4", "FP4 (E2M1)": "e2m1"}  # names in `scratch.codebooks`


@cache
def codebooks() -> dict[str, np.ndarray]:
    """Levels by name, ascending, scaled to [-1, 1]. bitsandbytes' FP4 is not the OCP type E2M1."""
    from peftbook.scratch.codebooks import codebook

    return {label: codebook(name).double().numpy() for label, name in BOOKS.items()}


@cache
def best_levels(bits: int, block: int) -> np.ndarray:
    """The 2^bits levels of least squared error for N(0, 1) weights in blocks: each is the mean of its cell. float64."""
    from peftbook.scratch.codebooks import imbalance
    from peftbook.scratch.nf4 import nf4_levels

    start = 1.1 * nf4_levels(bits).double().numpy()
    start = (start - start[::-1]) / 2.4  # symmetric, the ends within ±1
    found = optimize.root(imbalance, start, args=("lloyd", block), tol=1e-12)
    assert found.success and np.all(np.diff(found.x) > 0), f"{bits} bits at block {block} did not converge"
    return found.x


def mean_squared_error(levels: np.ndarray, block: int) -> float:
    """E[(w − Q(w))²] of N(0, 1) weights in blocks scaled by their largest magnitude."""
    import torch

    from peftbook.scratch.codebooks import expected_error

    return expected_error(torch.from_numpy(levels), block, 2)


def bin_shares(levels: np.ndarray, block: int) -> np.ndarray:
    """The share of N(0, 1) weights that each code holds: (levels,), sums to 1."""
    from peftbook.scratch.codebooks import atom, edges, moments

    shares = moments(*edges(levels), block, power=0)[0]
    shares[[0, -1]] += atom(block, power=0)  # the largest magnitude itself, of either sign
    return shares


def scaled_density(x: np.ndarray, block: int) -> np.ndarray:
    """Density at x in (−1, 1) of w / M for the weights that are not the block's largest."""
    from peftbook.scratch.codebooks import density, largest_magnitudes

    largest, weight = largest_magnitudes(block)
    return weight @ (density(largest[:, None] * x) * (largest / (2 * special.ndtr(largest) - 1))[:, None])


def codebook_levels(block: int = 64) -> Figure:
    """Where do the 16 levels lie? Each codebook's levels under the density of scaled normal weights."""
    figure, axes = canvas(height=3.9)
    x = np.linspace(-1, 1, 401)
    density = scaled_density(x, block)
    axes.fill_between(x, 0, density, color=shade("muted", 0.28), linewidth=0)
    axes.plot(x, density, color=colour("muted"), linewidth=1.4)
    step = density.max() / 3.2
    for row, (name, levels) in enumerate(codebooks().items(), start=1):
        marker, _, tone = MARKS[name]
        axes.axhline(-row * step, color=colour("rule"), linewidth=1)
        look = {"color": colour(tone), "markersize": 7, "markeredgecolor": colour("paper")}
        axes.plot(levels, np.full(len(levels), -row * step), marker, **look)
        axes.text(-1.08, -row * step, name, ha="right", va="center", color=colour(tone), fontweight="bold")
    axes.text(-1.08, density.max() * 0.45, "normal\nweights", ha="right", va="center", color=colour("muted"))
    axes.set(xlim=(-1.05, 1.05), ylim=(-4.6 * step, density.max() * 1.05))
    axes.set_xlabel(f"Weight / largest magnitude of its block of {block}")
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    return finding(figure, "NF4's levels lie closest where weights are most frequent")


def code_shares(block: int = 64) -> Chart:
    """Share of normal weights that each of NF4's codes holds."""
    shares = [100 * float(share) for share in bin_shares(codebooks()["NF4"], block)]
    return Chart(
        [Series("Share of weights, %", shares, "lora")],
        "NF4 code (0 is −1, 7 is zero, 15 is +1)",
        "Weights in the code, %",
        [str(code) for code in range(16)],
        y_range=(0, None),
        number_format="0",
        gap=28,
    )


def bin_mass(block: int = 64) -> Figure:
    """Does NF4 fill its 16 codes equally? The share of normal weights in each code."""
    chart = code_shares(block)
    figure, axes = canvas(height=3.4)
    axes.bar(range(16), chart.series[0].values, 100 / (100 + chart.gap), color=colour("lora"))
    axes.set_xticks(range(16), chart.categories)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel=chart.x_title, ylabel=chart.y_title)
    axes.axhline(100 / 16, color=colour("qlora"), linestyle=(0, (4, 1.5)), linewidth=1.6)
    tag(axes, "equal shares", (15.5, 100 / 16), (0, 4), "qlora", ha="right")
    shares = chart.series[0].values
    for share in (min(shares), max(shares)):
        tag(axes, f"{share:.1f}", (shares.index(share), share), (0, 2), ha="center", fontweight="normal")
    axes.set_ylim(0, max(shares) * 1.14)
    least, most = min(shares), max(shares)
    return finding(figure, f"NF4's 16 codes hold from {least:.1f} to {most:.1f} % of normal weights")


def block_errors() -> Chart:
    """Mean squared error of normal weights against block size, four codebooks."""
    blocks = [float(block) for block in BLOCKS]
    series = [
        Series(name, [1000 * mean_squared_error(levels, block) for block in BLOCKS], MARKS[name][2], blocks)
        for name, levels in codebooks().items()
    ]
    return Chart(
        series,
        BLOCK_AXIS,
        "Mean squared error × 1,000",
        log={"x": 4},
        number_format="0",
        x_format="0",
        x_range=(16, 4096),
        y_range=(0, None),
    )


RATES = (2, 3, 4, 5, 6)  # bits of a code


def error_against_bits(block: int = 64) -> Figure:
    """How near is a codebook to the best there can be? Error against stored bits, by codebook, and the bound below."""
    from peftbook.scratch.double_quant import bits_per_parameter
    from peftbook.scratch.nf4 import nf4_levels

    figure, axes = canvas(height=4.4)
    stored = [bits_per_parameter(block) - 4 + bits for bits in RATES]
    books = {
        "even levels": (lambda bits: np.linspace(-1, 1, 2**bits - 1), "INT4"),
        "NF4's recipe": (lambda bits: nf4_levels(bits).double().numpy(), "NF4"),
        "best levels": (lambda bits: best_levels(bits, block), "FP4 (E2M1)"),
    }
    ends = {}
    for name, (levels, look) in books.items():
        marker, line, tone = MARKS[look]
        errors = [mean_squared_error(levels(bits), block) for bits in RATES]
        axes.plot(stored, errors, marker=marker, linestyle=line, color=colour(tone), markeredgecolor=colour("paper"))
        ends[name] = (stored[-1], errors[-1], tone)
    bound = np.array([stored[0] - 0.3, stored[-1]])
    axes.plot(bound, 4.0**-bound, color=colour("ink"), linewidth=1.4)
    ends["Shannon's bound"] = (bound[-1], 4.0 ** -bound[-1], "ink")
    axes.set(yscale="log", xlim=(1.7, 8.9), ylabel="Mean squared error / σ²")
    axes.set_xticks(stored, [f"{bits:.2f}" for bits in stored])
    axes.set_xlabel(f"Bits per stored weight, block {block}, constants included")
    decimals(axes.yaxis, (1, 2, 5))
    axes.tick_params(axis="y", labelsize=SMALL)
    excess = ends["NF4's recipe"][1] / ends["Shannon's bound"][1]
    text = f"At {RATES[-1]} bits NF4's recipe errs {excess:.1f} times as much as any code must"
    return labelled(figure, text, axes, ends, column=0.66, gap=15)


EDGES = (1.62, 5.6)  # of the three rows, in inches
TOPS = (2.98, 1.8, 0.76)  # where they stand
HEADS = (("Weights", "a block"), ("÷ largest", "nearest level"), ("Stored", "4-bit codes"))


def quantisation_steps(count: int = 12) -> Figure:
    """How does a weight become four bits? One block's weights, scaled, snapped and coded, with real numbers."""
    weights = np.random.default_rng(7).normal(size=count) * 0.05
    largest = float(np.abs(weights).max())
    codes = np.abs(weights[:, None] / largest - codebooks()["NF4"]).argmin(axis=1)
    figure, axes = drawing(5.8, 4.05)
    x = np.linspace(EDGES[0] + 0.18, EDGES[1] - 0.18, count)
    for y, (head, text) in zip(TOPS, HEADS, strict=True):
        say(axes, 0.1, y + 0.16, head, ha="left", fontweight="bold")
        say(axes, 0.1, y - 0.14, text, "muted", ha="left", fontsize=SIZE - 2)
    draw_weights(axes, x, weights)
    draw_snapped(axes, x, weights / largest, codes)
    for px, code in zip(x, codes, strict=True):
        corner, wide = (px - (x[1] - x[0]) / 2 + 0.02, TOPS[2] - 0.17), x[1] - x[0] - 0.04
        axes.add_patch(Rectangle(corner, wide, 0.34, facecolor=shade("lora", 0.2), edgecolor=colour("lora")))
        say(axes, px, TOPS[2] - 0.005, str(code), fontsize=SIZE - 1)
    say(axes, sum(EDGES) / 2, 0.26, f"and one scale for the block: {largest:.3f}", "qlora", fontweight="bold")
    for start, end in pairwise(TOPS):
        ends = (0.45, start - 0.3), (0.45, end + 0.34)
        axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=13, color=colour("muted")))
    return finding(figure, "A weight becomes a code and its block's scale")


def draw_weights(axes: Axes, x: np.ndarray, weights: np.ndarray) -> None:
    """The weights of a block as bars about a line, the largest in colour and with its value."""
    peak = int(np.abs(weights).argmax())
    for at, (px, height) in enumerate(zip(x, 0.5 * weights / np.abs(weights).max(), strict=True)):
        tone = colour("qlora" if at == peak else "muted")
        axes.plot([px, px], [TOPS[0], TOPS[0] + height], color=tone, linewidth=5, solid_capstyle="butt")
    axes.plot(EDGES, [TOPS[0]] * 2, color=colour("ink"), linewidth=0.8)
    lift, va = (-0.12, "top") if weights[peak] > 0 else (0.12, "bottom")
    text = f"{weights[peak]:.3f}".replace("-", "−")
    say(axes, x[peak], TOPS[0] + lift, text, "qlora", va=va, fontweight="bold", fontsize=SIZE - 1)


def draw_snapped(axes: Axes, x: np.ndarray, scaled: np.ndarray, codes: np.ndarray) -> None:
    """The scaled weights as circles over the levels, and the level that each snaps to as a bar."""
    levels = TOPS[1] + 0.5 * codebooks()["NF4"]
    for level in levels:
        axes.plot(EDGES, [level] * 2, color=colour("rule"), linewidth=0.8, zorder=0)
    for px, value, code in zip(x, scaled, codes, strict=True):
        axes.plot(px, TOPS[1] + 0.5 * value, "o", markersize=6, fillstyle="none", color=colour("muted"))
        axes.plot(px, levels[code], "_", markersize=13, markeredgewidth=2.6, color=colour("lora"))


def outlier_error(count: int = 64) -> Figure:
    """What does one large weight do to the others? Their error against its size, in one block of normal weights."""
    others = np.random.default_rng(0).normal(size=(400, count - 1))
    sizes = np.linspace(0.5, 12, 24)
    figure, axes = canvas(height=4.2)
    ends: dict[str, tuple[float, float, str]] = {}
    for name in ("NF4", "INT4", "FP4 (bnb)"):
        levels, (marker, line, tone) = codebooks()[name], MARKS[name]
        errors = [rounding_error(others, levels, size) for size in sizes]
        axes.plot(sizes, errors, color=colour(tone), linestyle=line, marker=marker, markevery=4, linewidth=1.6)
        ends[name] = sizes[-1], errors[-1], tone
    axes.set(xlabel="One weight, in standard deviations of the others", ylabel="Error of the others, RMS")
    axes.set(ylim=(0, None), xlim=(0, 15.5))
    few, many = (rounding_error(others, codebooks()["NF4"], size) for size in (sizes[0], sizes[-1]))
    text = (
        f"One weight of {sizes[-1]:.0f} standard deviations makes NF4 err {many / few:.1f} times as much on the others"
    )
    return labelled(figure, text, axes, ends, column=0.82)


def rounding_error(others: np.ndarray, levels: np.ndarray, outlier: float) -> float:
    """Root mean square error of the weights of blocks, (blocks, weights), that hold an outlier of this size besides."""
    largest = np.maximum(np.abs(others).max(axis=1, keepdims=True), outlier)
    nearest = levels[np.abs(others[..., None] / largest[..., None] - levels).argmin(axis=-1)]
    return float(np.sqrt(np.mean((others - largest * nearest) ** 2)))
