"""Figures of the LoRA chapter: what the update is and how many parameters it has."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftbook.figures import figure
from peftbook.figures.style import SIZE, canvas, colour, drawing, question, shade
from peftbook.memory import SHAPES
from peftbook.methods.lora import LoRA

__all__ = ["SMOLLM2", "low_rank_update", "parameters_against_rank", "parameters_per_rank"]

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


@figure
def parameters_against_rank() -> Figure:
    """How many parameters does a rank buy? r (d_out + d_in) over SmolLM2-135M's layers, for four sets of targets."""
    ranks = [2**k for k in range(9)]
    figure, axes = canvas(height=3.9)
    styles = zip(("v", "s", "D", "o"), (":", (0, (5, 1.2, 1, 1.2)), (0, (4, 1.5)), "-"), strict=True)
    tones = ("fewshot", "prompt", "qlora", "lora")
    for (name, targets), (marker, line), tone in zip(TARGETS.items(), styles, tones, strict=True):
        counts = [rank * parameters_per_rank(targets) for rank in ranks]
        axes.plot(ranks, counts, marker=marker, linestyle=line, color=colour(tone), markeredgecolor=colour("paper"))
        lift = {"all linear": 1, "MLP": -2, "attention": -6, "q and v": -8}[name]
        axes.annotate(
            name,
            (ranks[-1], counts[-1]),
            xytext=(9, lift),
            textcoords="offset points",
            va="center",
            color=colour(tone),
            fontweight="bold",
        )
    axes.axhline(SMOLLM2.parameters, color=colour("full"), linewidth=1.4)
    axes.annotate(
        "every weight",
        (1, SMOLLM2.parameters),
        xytext=(0, -6),
        textcoords="offset points",
        va="top",
        color=colour("full"),
        fontweight="bold",
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_xlim(0.85, 1500)
    axes.set_ylim(3e4, 3e8)
    axes.set(xlabel="Rank r", ylabel="Trained parameters")
    question(figure, "How many parameters does a rank buy?")
    return figure


@figure
def low_rank_update(rank: int = 16) -> Figure:
    """What does LoRA add to a weight? W₀ (576 × 576) and its update B A, drawn to scale."""
    figure, axes = drawing(5.8, 3.2)
    side, thin = 1.72, 1.72 * rank / HIDDEN
    base = 0.72

    def block(x: float, y: float, w: float, h: float, tone: str, frozen: bool) -> None:
        face = shade(tone, 0.16) if frozen else colour(tone)
        axes.add_patch(
            Rectangle(
                (x, y),
                w,
                h,
                facecolor=face,
                edgecolor=colour(tone),
                linewidth=1.2,
                hatch="///" if frozen else None,
                hatch_linewidth=0.4,
            )
        )

    def say(x: float, y: float, text: str, size: float = SIZE, tone: str = "ink", **more) -> None:
        axes.text(x, y, text, fontsize=size, color=colour(tone), **{"ha": "center", "va": "center", **more})

    block(0.25, base, side, side, "muted", frozen=True)
    axes.text(
        0.25 + side / 2,
        base + side / 2,
        "$W_0$",
        fontsize=22,
        color=colour("ink"),
        ha="center",
        va="center",
        bbox={"facecolor": colour("paper"), "edgecolor": "none", "pad": 4},
    )
    say(0.25 + side / 2, base - 0.2, "576 × 576, frozen", SIZE - 1, "muted")
    middle = base + side / 2
    say(2.42, middle, r"$+\;\;\frac{\alpha}{r}$", 20)
    left = 3.05
    block(left, base, thin, side, "lora", frozen=False)
    say(left + 0.02, base + side + 0.2, "$B$", 18, "lora")
    say(left - 0.02, base - 0.2, f"576 × {rank}", SIZE - 1, "lora")
    across = left + thin + 0.36
    say(left + thin + 0.18, middle, "·", 20)
    block(across, middle - thin / 2, side, thin, "qlora", frozen=False)
    say(across + side / 2, middle + 0.26, "$A$", 18, "qlora")
    say(across + side / 2, middle - 0.26, f"{rank} × 576", SIZE - 1, "qlora")
    trained = rank * 2 * HIDDEN
    say(
        across + side / 2,
        base + 0.2,
        f"{trained:,} trained\nof {HIDDEN**2:,}: {100 * trained / HIDDEN**2:.1f} %",
        SIZE,
        "ink",
        fontweight="bold",
        va="center",
    )
    say(0.25, 0.2, "B starts at zero, so training starts from the model as it is.", SIZE - 1, ha="left")
    question(figure, f"What does LoRA add to a weight? (to scale, r = {rank})")
    return figure
