"""The way from a question to an adapter, with its ends; in inches from the lower left."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.views.figures.block import rounded, wire
from peftbook.views.figures.parts import SMALL
from peftbook.views.figures.style import colour, drawing, finding, say, shade

WIDTH, TALL, PITCH = 6.4, 0.62, 0.98  # of the drawing, of a box, from step to step
LEFT, BROAD = 0.12, 2.8  # edge and width of the steps
END, NARROW = 3.72, 2.4  # of the ends


class Branch(NamedTuple):
    """A question, the answer that leaves the way, and where that leads, in the tone of a method. on: the other one."""

    asked: str
    leaves: str
    end: str
    tone: str
    on: str


STEPS = (
    Branch("Do an instruction and\nfive examples do it?", "yes", "Train nothing", "prompt", "no"),
    Branch("Is it facts that\nare missing?", "yes", "Look them up, put\nthem in the prompt", "prompt", "no: a form"),
    Branch("Some hundred rows,\nand as many to test on?", "no", "Collect rows first", "muted", "yes"),
    Branch("Does LoRA over\n16 bits surely fit?", "yes", "LoRA", "lora", "no"),
    Branch("Does LoRA over\n4 bits surely fit?", "yes", "QLoRA", "qlora", "no: a smaller model, shorter rows"),
)  # fmt: skip
AFTER = ("Three rates, the lowest\nvalidation loss", "Answers to the test rows,\npaired with the untuned")


def from_question_to_adapter() -> Figure:
    """Should you tune, and how? Five questions, cheapest first, and what comes after them."""
    height = 0.25 + PITCH * (len(STEPS) + 1)
    figure, axes = drawing(WIDTH, height)
    tops = [height - 0.5 - TALL - PITCH * place for place in range(len(STEPS) + 1)]
    for step, y in zip(STEPS, tops, strict=False):
        box(axes, LEFT, y, BROAD, step.asked, "ink")
        wire(axes, (LEFT + BROAD, y + TALL / 2), (END, y + TALL / 2))
        say(axes, (LEFT + BROAD + END) / 2, y + TALL / 2 + 0.1, step.leaves, "muted", fontsize=SMALL)
        box(axes, END, y, NARROW, step.end, step.tone)
        if step is not STEPS[-1]:
            wire(axes, (LEFT + BROAD / 2, y), (LEFT + BROAD / 2, y - PITCH + TALL))
        say(axes, LEFT + BROAD / 2 + 0.1, y - (PITCH - TALL) / 2, step.on, "muted", ha="left", fontsize=SMALL)
    last, right = tops[-1], END + NARROW
    for y in tops[len(STEPS) - 2 : len(STEPS)]:
        beside = ((right + 0.14, y + TALL / 2), (right + 0.14, last + TALL / 2))
        wire(axes, (right, y + TALL / 2), *beside, (right, last + TALL / 2))
    box(axes, END, last, NARROW, AFTER[0], "ink")
    wire(axes, (END, last + TALL / 2), (LEFT + BROAD, last + TALL / 2))
    box(axes, LEFT, last, BROAD, AFTER[1], "ink")
    return finding(figure, "Try examples and look-up first, then LoRA or QLoRA")


def box(axes: Axes, x: float, y: float, wide: float, text: str, tone: str) -> None:
    """A rounded box with its lower left corner at a point."""
    ground = colour("fill") if tone in ("ink", "muted") else shade(tone, 0.16)
    edge = colour("muted") if tone in ("ink", "muted") else colour(tone)
    rounded(axes, x, y, wide, TALL, facecolor=ground, edgecolor=edge)
    weight = "normal" if tone in ("ink", "muted") else "bold"
    say(axes, x + wide / 2, y + TALL / 2, text, tone, fontweight=weight, linespacing=1.25)
