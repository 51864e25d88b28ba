"""The drawing of one layer in a QLoRA step: what lies in memory, what is unpacked, what gets a gradient."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from peftbook.views.figures.block import NAME, rounded, sign, wire
from peftbook.views.figures.parts import SMALL
from peftbook.views.figures.style import colour, drawing, finding, say, shade


class Tensor(NamedTuple):
    """A tensor of the layer: its type, and that of its gradient."""

    name: str
    kept: str
    gradient: str = ""


TENSORS = (
    Tensor("codes", "4 bits, two a byte"),
    Tensor("constants", "8 bits, theirs float32"),
    Tensor(r"$\hat W$", "bfloat16, unpacked"),
    Tensor("$x$, $h$", "bfloat16", "bfloat16"),
    Tensor("$A$, $B$", "float32 or bfloat16", "as $A$ and $B$"),
)
BASE, ADAPTER, JOIN = 2.92, 4.82, 3.87  # x of the two ways, and of where they part and meet
FORK, SUM = 2.95, 5.4  # y
CODES = (3, 12, 7, 9, 0, 8, 5, 10, 14, 6, 8, 2, 11, 7, 4, 9, 13, 7, 1, 8, 6, 15, 9, 5)
WHERE = tuple(product(range(4), range(6)))  # row and column of each
CELL = 0.17  # inches
COLUMNS = (0.25, 1.75, 4.15)  # x of the table's texts


def four_bit_step() -> Figure:
    """What gets a gradient, and in which type? One layer of QLoRA, forward in grey and backward in colour."""
    figure, axes = drawing(5.8, 6.75)
    draw_memory(axes)
    draw_ways(axes)
    rounded(axes, BASE - 0.45, 3.75, 0.9, 0.95, r"$\hat W$", linestyle=(0, (3, 2)), facecolor=colour("paper"))
    for y, name, widths in ((3.45, "$A$", (0.55, 0.22)), (4.48, "$B$", (0.22, 0.55))):
        low, high = widths
        corners = [(-low, 0), (low, 0), (high, 0.47), (-high, 0.47)]
        shape = [(ADAPTER + x, y + up) for x, up in corners]
        axes.add_patch(Polygon(shape, facecolor=colour("lora"), edgecolor="none", zorder=3))
        say(axes, ADAPTER, y + 0.23, name, **NAME)
    draw_table(axes, 1.8)
    return finding(figure, "Among the weights only A and B get a gradient")


def draw_memory(axes: Axes) -> None:
    """The codes of the weight, darker the higher, the constants of their blocks, and the way to the weight."""
    cells = [(0.2, 3.95, row, column, 0.15 + code / 20) for (row, column), code in zip(WHERE, CODES, strict=True)]
    cells += [(0.37, 3.43, 0, at, 0.3 + 0.15 * at) for at in range(4)]
    for x, y, row, column, strength in cells:
        look: dict[str, Any] = {"facecolor": shade("muted", strength), "edgecolor": colour("paper"), "linewidth": 0.8}
        axes.add_patch(Rectangle((x + CELL * column, y + CELL * row), CELL, CELL, **look))
    rounded(axes, 0.1, 2.95, 1.22, 2.2, facecolor="none", zorder=1)
    for y, text in ((4.93, "in memory"), (3.79, "codes"), (3.25, "constants")):
        say(axes, 0.71, y, text, fontsize=SMALL, fontweight="bold" if y > 4 else "normal")
    wire(axes, (1.32, 4.22), (BASE - 0.45, 4.22))
    for y, text in ((4.4, "unpack"), (4.04, "no way back")):
        say(axes, 1.89, y, text, "muted", fontsize=SMALL - 0.5)


def draw_ways(axes: Axes) -> None:
    """From x through both to h, and the gradients from h back to x."""
    say(axes, JOIN, 2.37, "$x$")
    say(axes, JOIN, 6.03, "$h$")
    wire(axes, (JOIN, 2.51), (JOIN, FORK), arrow=False)
    for x, start, end in ((BASE, 3.75, 4.7), (ADAPTER, 3.45, 4.95)):
        wire(axes, (JOIN, FORK), (x, FORK), (x, start))
        wire(axes, (x, end), (x, SUM), (JOIN + 0.1 * (1 if x > JOIN else -1), SUM))
    wire(axes, (ADAPTER, 3.92), (ADAPTER, 4.48))
    wire(axes, (JOIN, SUM + 0.1), (JOIN, 5.87))
    sign(axes, JOIN, SUM, "+")
    inner, back = {BASE: BASE + 0.2, ADAPTER: ADAPTER - 0.2}, JOIN + 0.18
    descend(axes, (back, 5.87), (back, SUM + 0.12))
    for x, top, bottom in ((BASE, 4.7, 3.75), (ADAPTER, 4.95, 3.45)):
        side = JOIN + (0.18 if x > JOIN else -0.18)
        descend(axes, (side, SUM - 0.16), (inner[x], SUM - 0.16), (inner[x], top))
        descend(axes, (inner[x], bottom), (inner[x], FORK + 0.16), (side, FORK + 0.16))
    descend(axes, (ADAPTER - 0.13, 4.48), (ADAPTER - 0.13, 3.92))
    descend(axes, (back, FORK - 0.06), (back, 2.51))
    say(axes, back + 0.14, 5.67, "$g$", "qlora")
    for x, text in ((BASE + 0.3, r"$\hat W^\top g$"), (ADAPTER - 0.28, r"$\gamma A^\top B^\top g$")):
        say(axes, x, FORK + 0.36, text, "qlora", fontsize=SMALL, ha="left" if x < JOIN else "right")


def descend(axes: Axes, *points: tuple[float, float]) -> None:
    """A gradient's way through points."""
    wire(axes, *points, head=11, color=colour("qlora"), linewidth=1.8, zorder=1.5)


def draw_table(axes: Axes, top: float) -> None:
    """Each tensor with its type and that of its gradient."""
    for x, text in zip(COLUMNS, ("tensor", "type", "gradient"), strict=True):
        say(axes, x, top, text, fontsize=SMALL, fontweight="bold", ha="left")
    for at, tensor in enumerate(TENSORS):
        tones = ("ink", "ink", "qlora" if tensor.gradient else "muted")
        for x, text, tone in zip(COLUMNS, (tensor.name, tensor.kept, tensor.gradient or "none"), tones, strict=True):
            say(axes, x, top - 0.32 - 0.29 * at, text, tone, fontsize=SMALL, ha="left")
