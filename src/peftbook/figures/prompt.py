"""Figures of the prompt-tuning chapter: where the soft prompt sits and how small it is."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from peftbook.figures import figure
from peftbook.figures.lora import HIDDEN, SMOLLM2, TARGETS, parameters_per_rank
from peftbook.figures.style import SIZE, canvas, colour, drawing, question, shade
from peftbook.methods.prompt import PromptTuning

__all__ = ["parameters_against_length", "prompt_parameters", "soft_prompt_position"]


def prompt_parameters(length: int) -> int:
    """Trainable numbers of a soft prompt: one vector of the model's width for each virtual token."""
    return PromptTuning(length=length).parameters(SMOLLM2)


@figure
def soft_prompt_position() -> Figure:
    """What is trained in prompt tuning? The vectors before the embedded text; the whole model is frozen."""
    figure, axes = drawing(5.8, 3.5)
    vectors = [
        ("prompt", "$P_1$"),
        ("prompt", "$P_2$"),
        ("prompt", "…"),
        ("prompt", "$P_{20}$"),
        ("muted", "def"),
        ("muted", "add"),
        ("muted", "(a, b)"),
        ("muted", "…"),
        ("lora", "Add"),
        ("lora", "two"),
    ]
    left, cell, tall = 0.2, 0.54, 0.62
    for at, (tone, text) in enumerate(vectors):
        soft = tone == "prompt"
        axes.add_patch(
            FancyBboxPatch(
                (left + at * cell + 0.035, 0.72),
                cell - 0.07,
                tall,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor=colour(tone) if soft else shade(tone, 0.18),
                edgecolor=colour(tone),
            )
        )
        axes.text(
            left + (at + 0.5) * cell,
            0.72 + tall / 2,
            text,
            ha="center",
            va="center",
            fontsize=SIZE if soft else SIZE - 2.5,
            color=colour("paper" if soft else "ink"),
        )
        axes.add_patch(
            FancyArrowPatch(
                (left + (at + 0.5) * cell, 1.36),
                (left + (at + 0.5) * cell, 1.72),
                arrowstyle="-|>",
                mutation_scale=9,
                color=colour("muted"),
                linewidth=0.9,
            )
        )
    axes.add_patch(
        FancyBboxPatch(
            (left, 1.74),
            10 * cell,
            0.74,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=shade("muted", 0.14),
            edgecolor=colour("muted"),
            hatch="//",
            hatch_linewidth=0.3,
        )
    )
    axes.text(
        left + 5 * cell,
        2.11,
        "The whole model, frozen",
        ha="center",
        va="center",
        fontsize=SIZE + 1,
        fontweight="bold",
        bbox={"facecolor": colour("paper"), "edgecolor": "none", "pad": 3},
    )
    for at in (7, 8):
        x = left + (at + 0.5) * cell
        axes.add_patch(FancyArrowPatch((x, 2.5), (x, 2.82), arrowstyle="-|>", mutation_scale=9, color=colour("lora")))
        axes.text(x, 2.93, ("Add", "two")[at - 7], ha="center", va="center", color=colour("lora"))
    axes.text(
        left + 6.85 * cell,
        2.93,
        "loss on the answer only:",
        ha="right",
        va="center",
        color=colour("lora"),
        fontweight="bold",
    )
    for start, count, text, tone in (
        (0, 4, "trained vectors", "prompt"),
        (4, 4, "the question", "muted"),
        (8, 2, "the answer", "lora"),
    ):
        axes.plot(
            [left + start * cell + 0.06, left + (start + count) * cell - 0.06],
            [0.6, 0.6],
            color=colour(tone),
            linewidth=2,
        )
        axes.text(
            left + (start + count / 2) * cell,
            0.4,
            text,
            ha="center",
            va="center",
            color=colour(tone),
            fontsize=SIZE,
            fontweight="bold",
        )
    axes.text(
        left, 0.12, f"20 × {HIDDEN} = {prompt_parameters(20):,} trained numbers", va="center", color=colour("prompt")
    )
    question(figure, "What is trained in prompt tuning?")
    return figure


@figure
def parameters_against_length() -> Figure:
    """How small is a soft prompt? Parameters against virtual tokens, beside two LoRA adapters of the same model."""
    lengths = (1, 5, 10, 20, 50, 100, 200)
    figure, axes = canvas(height=3.8)
    counts = [prompt_parameters(length) for length in lengths]
    axes.plot(lengths, counts, marker="^", color=colour("prompt"), markeredgecolor=colour("paper"))
    axes.annotate(
        f"20 tokens: {prompt_parameters(20):,}",
        (20, prompt_parameters(20)),
        xytext=(10, -6),
        va="top",
        textcoords="offset points",
        color=colour("prompt"),
        fontweight="bold",
    )
    for name, rank in (("q and v", 1), ("all linear", 16)):
        count = rank * parameters_per_rank(TARGETS[name])
        axes.axhline(count, color=colour("lora"), linestyle="-" if rank > 1 else (0, (4, 1.5)), linewidth=1.5)
        axes.annotate(
            f"LoRA, {name}, r = {rank}: {count:,}",
            (1, count),
            xytext=(0, 5),
            textcoords="offset points",
            color=colour("lora"),
            fontweight="bold",
        )
    axes.set(xscale="log", yscale="log", xlabel="Virtual tokens", ylabel="Trained parameters")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(3e2, 1.6e7)
    question(figure, "How small is a soft prompt?")
    return figure
