"""The drawing of the three methods that train vectors alone: where in a block, and what that does to its matrices."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftbook.views.figures import figure
from peftbook.views.figures.block import rounded, sign, stamp, wire
from peftbook.views.figures.family import MEMBERS
from peftbook.views.figures.parts import SMALL
from peftbook.views.figures.style import colour, drawing, finding, say, shade


class Part(NamedTuple):
    """A box of the block, in inches from the middle of its column and from the bottom of the block."""

    text: str
    left: float
    bottom: float
    wide: float
    tall: float = 0.32

    @property
    def middle(self) -> float:
        """Its x."""
        return self.left + self.wide / 2

    @property
    def top(self) -> float:
        """Its upper y."""
        return self.bottom + self.tall


PARTS = {  # as transformers names them in a Llama
    "input_layernorm": Part("norm", -0.6, 0.0, 1.36, 0.3),
    "q_proj": Part("$W_q$", -0.6, 0.56, 0.4),
    "k_proj": Part("$W_k$", -0.12, 0.56, 0.4),
    "v_proj": Part("$W_v$", 0.36, 0.56, 0.4),
    "attention": Part("attention", -0.6, 1.26, 1.36, 0.32),
    "o_proj": Part("$W_o$", -0.6, 1.76, 1.36),
    "post_attention_layernorm": Part("norm", -0.6, 2.62, 1.36, 0.3),
    "gate_proj": Part(r"$W_\mathrm{gate}$", -0.6, 3.18, 0.64),
    "up_proj": Part(r"$W_\mathrm{up}$", 0.12, 3.18, 0.64),
    "down_proj": Part(r"$W_\mathrm{down}$", -0.6, 4.18, 1.36),
}
CENTRE, TRUNK, PRODUCT = 0.08, -0.8, 3.7  # x of the sublayers and of the residual stream, y of gate times up
SUBLAYERS = (  # norm, what reads it, where that meets, the last matrix, the sum
    ("input_layernorm", ("q_proj", "k_proj", "v_proj"), PARTS["attention"].bottom, "o_proj", 2.3),
    ("post_attention_layernorm", ("gate_proj", "up_proj"), PRODUCT, "down_proj", 4.72),
)


class Vector(NamedTuple):
    """A method: its name, the parts where it acts with the letters there, and its texts.

    absent: parts where today's models have nothing for it to train.
    grids: what becomes of the matrices, each a name and "rows", "columns", "none" or "added".
    """

    name: str
    member: str
    trained: dict[str, str]
    absent: tuple[str, ...]
    grids: tuple[tuple[str, str], tuple[str, str]]
    lines: tuple[str, ...]


VECTORS = (
    Vector("(IA)³", "ia3", {"k_proj": "$l_k$", "v_proj": "$l_v$", "down_proj": "$l_f$"}, (),
           (("k, v", "rows"), ("down", "columns")),
           ("scales", r"$l_k \odot k,\ \ l_v \odot v,$", r"$l_f \odot (\mathrm{gate} \odot \mathrm{up})$",
            "neutral: $l = 1$")),
    Vector("BitFit", "bias", dict.fromkeys(("q_proj", "k_proj", "v_proj"), ""),
           ("o_proj", "gate_proj", "up_proj", "down_proj"), (("$W$", "none"), ("$b$", "added")),
           ("shifts", r"$Wx + b + \delta$", r"neutral: $\delta = 0$", "Qwen2.5: q, k, v", "Llama: none")),
    Vector("Norm gains", "norm", {"input_layernorm": "", "post_attention_layernorm": ""}, (),
           (("q, k, v", "columns"), ("gate, up", "columns")),
           ("scales", r"$(g + \delta) \odot \hat x$", r"neutral: $\delta = 0$", "and the final norm")),
)  # fmt: skip
FOOT, SIDE, CELLS = 2.9, 0.56, 5  # inches: bottom of the block, side of a small matrix; its rows
STRENGTHS = (0.45, 0.9, 0.25, 0.65, 1.0)  # of five scales that differ


@figure
def three_vectors() -> Figure:
    """What can one vector change? The same block three times, and below it what becomes of the matrices."""
    figure, axes = drawing(5.8, 8.72)
    for at, vector in enumerate(VECTORS):
        draw_vector(axes, vector, 1.0 + 1.93 * at)
    return finding(figure, "A vector scales a matrix or shifts its output")


def draw_vector(axes: Axes, vector: Vector, middle: float) -> None:
    """One column: name, block with its marks, small matrices and texts."""
    tone = MEMBERS[vector.member].tone
    say(axes, middle, 8.18, vector.name, tone, fontweight="bold")
    draw_block(axes, middle)
    for name, letter in vector.trained.items():
        x, y = place(name, vector.member)
        stamp(axes, vector.member, middle + x, FOOT + y, 11)
        say(axes, middle + x + 0.1, FOOT + y + 0.02, letter, tone, fontsize=SMALL, ha="left")
    for name in vector.absent:
        x, y = place(name, vector.member)
        stamp(axes, vector.member, middle + x, FOOT + y, 9, hollow=True)
    for at, (name, what) in enumerate(vector.grids):
        draw_grid(axes, middle - 0.68 + 0.84 * at, 1.8, name, what, tone)
    for at, text in enumerate(vector.lines):
        say(axes, middle + 0.02, 1.28 - 0.26 * at, text, fontsize=SMALL, fontweight="normal" if at else "bold")


def place(name: str, member: str) -> tuple[float, float]:
    """Where a mark stands: (IA)³ behind keys and values and before `down`, the others at the right of the part."""
    part = PARTS[name]
    if member != "ia3":
        return part.left + part.wide, (part.bottom + part.top) / 2
    return (CENTRE, PRODUCT + 0.28) if name == "down_proj" else (part.middle, part.top + 0.17)


def draw_block(axes: Axes, middle: float) -> None:
    """Boxes, sums and wires of a frozen block."""

    def line(*points: tuple[float, float], arrow: bool = True) -> None:
        wire(axes, *((middle + x, FOOT + y) for x, y in points), arrow=arrow)

    line((TRUNK, -0.35), (TRUNK, 5.05))
    for part in PARTS.values():
        rounded(axes, middle + part.left, FOOT + part.bottom, part.wide, part.tall)
        say(axes, middle + part.middle, FOOT + (part.bottom + part.top) / 2, part.text, zorder=3, fontsize=SMALL)
    for first, readers, end, last, total in SUBLAYERS:
        norm, out = PARTS[first], PARTS[last]
        line((TRUNK, norm.bottom - 0.16), (CENTRE, norm.bottom - 0.16), (CENTRE, norm.bottom))
        line((CENTRE, norm.top), (CENTRE, norm.top + 0.13), arrow=False)
        for part in (PARTS[name] for name in readers):
            line((CENTRE, norm.top + 0.13), (part.middle, norm.top + 0.13), (part.middle, part.bottom))
            line((part.middle, part.top), (part.middle, end), arrow=end != PRODUCT)
        line((CENTRE, end), (CENTRE, out.bottom))
        line((CENTRE, out.top), (CENTRE, total), (TRUNK + 0.1, total))
        sign(axes, middle + TRUNK, FOOT + total, "+")
    line((PARTS["gate_proj"].middle, PRODUCT), (PARTS["up_proj"].middle, PRODUCT), arrow=False)
    sign(axes, middle + CENTRE, FOOT + PRODUCT, "⊙")


def draw_grid(axes: Axes, x: float, y: float, name: str, what: str, tone: str) -> None:
    """A small matrix whose rows or columns are scaled, or the column that is added to the product, and its name."""
    side, columns = SIDE / CELLS, 1 if what == "added" else CELLS
    for row, column in product(range(CELLS), range(columns)):
        at = {"rows": row, "columns": column, "added": row}.get(what)
        face = colour("fill") if at is None else shade(tone, STRENGTHS[at])
        axes.add_patch(
            Rectangle(
                (x + column * side, y + row * side),
                side,
                side,
                facecolor=face,
                edgecolor=colour("paper"),
                linewidth=0.8,
            )
        )
    say(axes, x + columns * side / 2, y - 0.14, name, fontsize=SMALL)
