"""Figures of the LoRA chapter: what the update is and how many parameters it has."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftbook.evidence.chart import Chart, Series
from peftbook.memory import SHAPES
from peftbook.methods.lora import LoRA
from peftbook.views.figures.drawn import lines
from peftbook.views.figures.parts import labelled
from peftbook.views.figures.style import SIZE, colour, drawing, finding, say, shade, tag

SMOLLM2 = SHAPES["smollm2-135m"]
HIDDEN = SMOLLM2.hidden
TARGETS = {
    "q and v": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "MLP": ("gate_proj", "up_proj", "down_proj"),
    "all linear": tuple(SMOLLM2.linears),
}


def parameters_per_rank(targets: tuple[str, ...]) -> int:
    """Trainable parameters at rank 1: Σ (d_out + d_in) over the targets of every layer."""
    return LoRA(rank=1, targets=targets).parameters(SMOLLM2)


def parameter_counts() -> Chart:
    """LoRA's trained parameters against rank for four sets of target layers of SmolLM2-135M."""
    ranks = [float(2**k) for k in range(9)]
    looks = dict(zip(reversed(TARGETS), ("lora", "qlora", "prompt", "fewshot"), strict=True))
    series = [
        Series(name, [r * parameters_per_rank(TARGETS[name]) for r in ranks], look, ranks)
        for name, look in looks.items()
    ]
    return Chart(
        series,
        "Rank r",
        "Trained parameters",
        log={"x": 4, "y": 10},
        number_format="#,##0",
        x_format="0",
        x_range=(1, 256),
        y_range=(1e4, 1e8),
    )


def parameters_against_rank() -> Figure:
    """How many parameters does a rank buy? r (d_out + d_in) over SmolLM2-135M's layers, for four sets of targets."""
    figure, axes, ends = lines(parameter_counts(), height=3.9, column=0.76)
    axes.axhline(SMOLLM2.parameters, color=colour("full"), linewidth=1.4)
    tag(axes, "every weight", (1, SMOLLM2.parameters), (0, -6), "full", va="top")
    axes.set_ylim(3e4, 3e8)
    share = 16 * parameters_per_rank(TARGETS["all linear"]) / SMOLLM2.parameters
    text = f"Rank 16 on all linear layers trains {100 * share:.1f} % of SmolLM2-135M's parameters"
    return labelled(figure, text, axes, ends, column=0.76)


def low_rank_update(rank: int = 16) -> Figure:
    """What does LoRA add to a weight? W₀ (576 × 576) and its update B A, drawn to scale."""
    figure, axes = drawing(5.8, 3.2)
    side, thin = 1.72, 1.72 * rank / HIDDEN
    base = 0.72

    def block(x: float, y: float, w: float, h: float, tone: str, **look: Any) -> None:
        axes.add_patch(Rectangle((x, y), w, h, edgecolor=colour(tone), linewidth=1.2, **look))

    block(0.25, base, side, side, "muted", facecolor=shade("muted", 0.16), hatch="///", hatch_linewidth=0.4)
    ground = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 4}
    say(axes, 0.25 + side / 2, base + side / 2, "$W_0$", fontsize=22, bbox=ground)
    say(axes, 0.25 + side / 2, base - 0.2, "576 × 576, frozen", "muted", fontsize=SIZE - 1)
    middle = base + side / 2
    say(axes, 2.42, middle, r"$+\;\;\frac{\alpha}{r}$", fontsize=20)
    left = 3.05
    block(left, base, thin, side, "lora", facecolor=colour("lora"))
    say(axes, left + 0.02, base + side + 0.2, "$B$", "lora", fontsize=18)
    say(axes, left - 0.02, base - 0.2, f"576 × {rank}", "lora", fontsize=SIZE - 1)
    across = left + thin + 0.36
    say(axes, left + thin + 0.18, middle, "·", fontsize=20)
    block(across, middle - thin / 2, side, thin, "qlora", facecolor=colour("qlora"))
    say(axes, across + side / 2, middle + 0.26, "$A$", "qlora", fontsize=18)
    say(axes, across + side / 2, middle - 0.26, f"{rank} × 576", "qlora", fontsize=SIZE - 1)
    trained = rank * 2 * HIDDEN
    share = f"{trained:,} trained\nof {HIDDEN**2:,}: {100 * trained / HIDDEN**2:.1f} %"
    say(axes, across + side / 2, base + 0.2, share, fontweight="bold")
    say(axes, 0.25, 0.2, "B starts at zero, so training starts from the model as it is.", fontsize=SIZE - 1, ha="left")
    return finding(figure, f"LoRA at r = {rank} trains {100 * trained / HIDDEN**2:.1f} % as many numbers")
