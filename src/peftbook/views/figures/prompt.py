"""Figures of the prompt-tuning chapter: where the soft prompt sits and how small it is."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.methods.prompt import PromptTuning
from peftbook.views.figures.block import rounded, wire
from peftbook.views.figures.lora import HIDDEN, SMOLLM2
from peftbook.views.figures.style import SIZE, colour, drawing, finding, say, shade


def prompt_parameters(length: int) -> int:
    """Trainable numbers of a soft prompt: one vector of the model's width for each virtual token."""
    return PromptTuning(length=length).parameters(SMOLLM2)


# What stands under the model, left to right: tone and text; and what each run of it is, its count, name and tone.
VECTORS = (
    *(("prompt", text) for text in ("$P_1$", "$P_2$", "…", "$P_{20}$")),
    *(("muted", text) for text in ("def", "add", "(a, b)", "…")),
    *(("lora", text) for text in ("Add", "two")),
)
RUNS = ((0, 4, "trained vectors", "prompt"), (4, 4, "the question", "muted"), (8, 2, "the answer", "lora"))
LEFT, CELL, TALL = 0.2, 0.54, 0.62  # inches: where the first vector starts, the width and the height of one


def soft_prompt_position() -> Figure:
    """What is trained in prompt tuning? The vectors before the embedded text; the whole model is frozen."""
    figure, axes = drawing(5.8, 3.5)
    for at, (tone, text) in enumerate(VECTORS):
        draw_vector(axes, at, tone, text)
    rounded(
        axes,
        LEFT,
        1.74,
        10 * CELL,
        0.74,
        facecolor=shade("muted", 0.14),
        edgecolor=colour("muted"),
        hatch="//",
        hatch_linewidth=0.3,
    )
    ground = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 3}
    say(axes, LEFT + 5 * CELL, 2.11, "The whole model, frozen", fontsize=SIZE + 1, fontweight="bold", bbox=ground)
    for at, text in ((7, "Add"), (8, "two")):
        x = LEFT + (at + 0.5) * CELL
        wire(axes, (x, 2.5), (x, 2.82), color=colour("lora"))
        say(axes, x, 2.93, text, "lora")
    say(axes, LEFT + 6.85 * CELL, 2.93, "loss on the answer only:", "lora", ha="right", fontweight="bold")
    for start, count, text, tone in RUNS:
        ends = (LEFT + start * CELL + 0.06, LEFT + (start + count) * CELL - 0.06)
        axes.plot(ends, [0.6, 0.6], color=colour(tone), linewidth=2)
        say(axes, LEFT + (start + count / 2) * CELL, 0.4, text, tone, fontsize=SIZE, fontweight="bold")
    say(axes, LEFT, 0.12, f"20 × {HIDDEN} = {prompt_parameters(20):,} trained numbers", "prompt", ha="left")
    return finding(figure, "Only the vectors before the text are trained")


def draw_vector(axes: Axes, at: int, tone: str, text: str) -> None:
    """One of the model's inputs: filled where it is trained, else pale; an arrow leads into the model."""
    soft, x = tone == "prompt", LEFT + (at + 0.5) * CELL
    face = colour(tone) if soft else shade(tone, 0.18)
    rounded(axes, LEFT + at * CELL + 0.035, 0.72, CELL - 0.07, TALL, facecolor=face, edgecolor=colour(tone))
    say(axes, x, 0.72 + TALL / 2, text, "paper" if soft else "ink", fontsize=SIZE if soft else SIZE - 2)
    wire(axes, (x, 1.36), (x, 1.72))
