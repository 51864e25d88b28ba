"""The map of the newer family, and how many numbers each of its methods trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from peftbook.memory import DecoderShape
from peftbook.views.figures import figure
from peftbook.views.figures.parts import SMALL
from peftbook.views.figures.style import SIZE, colour, drawing, finding, say, shade

# Numbers.


def newer_counts(
    shape: DecoderShape, rank: int = 16, block: int = 64, shard: int = 32, bases: int = 12
) -> dict[str, int]:
    """How many numbers each method trains on all seven matrices of every layer.

    rank: of LoRA, DoRA and HiRA.  block: side of OFT's blocks.  shard: MiSS's r.  bases: rank of RandLoRA's bases, of
    which it has enough to reach full rank.
    """
    pairs = list(shape.linears.values())
    each: dict[str, Callable[[int, int], int]] = {
        "lora": lambda a, b: rank * (a + b),
        "dora": lambda a, b: rank * (a + b) + b,
        "hira": lambda a, b: rank * (a + b),
        "oft": lambda a, b: a * (block - 1) // 2,
        "miss": lambda a, b: shard * b,
        "randlora": lambda a, b: -(-min(a, b) // bases) * (bases + min(a, b)),
    }
    return {name: shape.layers * sum(count(*pair) for pair in pairs) for name, count in each.items()}


def newer_state(shape: DecoderShape, rank: int = 16, layers: int = 2) -> dict[str, int]:
    """How many numbers beside the weights an optimiser keeps for the matrices: two moments of each that it moves.

    rank: of the projection of GaLore, which keeps it, and of APOLLO, which draws it from a seed, and of LoRA.
    layers: as many as LISA trains at a time.
    """
    pairs = list(shape.linears.values())
    each: dict[str, Callable[[int, int], int]] = {
        "full": lambda a, b: 2 * a * b,
        "galore": lambda a, b: 2 * rank * max(a, b) + rank * min(a, b),
        "apollo": lambda a, b: 2 * rank * max(a, b),
        "lora": lambda a, b: 2 * rank * (a + b),
    }
    state = {name: shape.layers * sum(count(*pair) for pair in pairs) for name, count in each.items()}
    return state | {"lisa": state["full"] * layers // shape.layers}


# The map.

WIDE, COLUMN, TALL, TOP = 5.8, 1.9, 1.72, 7.62  # inches: the page, a cell, a row, the top of the first row
SIDE = 0.46  # of a drawn matrix


class Cell(NamedTuple):
    """A method on the map: name, drawing at (middle, height) and formula."""

    name: str
    draw: Callable[[Axes, float, float], None]
    formula: str


def matrix(axes: Axes, x: float, y: float, wide: float = SIDE, tall: float = SIDE, kind: str = "frozen") -> None:
    """A matrix around (x, y): frozen, trained, or random and frozen."""
    look: dict[str, Any] = {
        "frozen": {"facecolor": colour("fill"), "edgecolor": colour("muted")},
        "trained": {"facecolor": shade("lora", 0.85), "edgecolor": colour("lora")},
        "random": {"facecolor": colour("paper"), "edgecolor": colour("muted"), "hatch": "xxxx"},
        "data": {"facecolor": shade("prompt", 0.85), "edgecolor": colour("prompt")},
    }[kind]
    axes.add_patch(Rectangle((x - wide / 2, y - tall / 2), wide, tall, linewidth=0.9, **look))


def draw_rotation(axes: Axes, x: float, y: float) -> None:
    """W times a diagonal of trained blocks."""
    matrix(axes, x - 0.38, y)
    say(axes, x, y, "·")
    for at in range(4):
        step = SIDE / 4
        matrix(axes, x + 0.38 + (at - 1.5) * step, y - (at - 1.5) * step, step, step, "trained")
    axes.add_patch(
        Rectangle(
            (x + 0.38 - SIDE / 2, y - SIDE / 2),
            SIDE,
            SIDE,
            fill=False,
            edgecolor=colour("muted"),
            linewidth=0.7,
            linestyle=(0, (2, 2)),
        )
    )


def draw_factors(axes: Axes, x: float, y: float) -> None:
    """A thin B and a flat A."""
    matrix(axes, x - 0.2, y, 0.13, SIDE, "trained")
    matrix(axes, x + 0.16, y + 0.165, SIDE, 0.13, "trained")


def draw_product(axes: Axes, x: float, y: float) -> None:
    """W, entry by entry, times one plus a low-rank product."""
    matrix(axes, x - 0.66, y)
    say(axes, x - 0.14, y, "⊙ (1+", fontsize=SMALL)
    draw_factors(axes, x + 0.42, y)
    say(axes, x + 0.87, y, ")")


def draw_length(axes: Axes, x: float, y: float) -> None:
    """A trained length for each row of what LoRA turns."""
    matrix(axes, x - 0.78, y, 0.1, SIDE, "trained")
    say(axes, x - 0.65, y, "·")
    matrix(axes, x - 0.34, y)
    say(axes, x + 0.02, y, "+")
    draw_factors(axes, x + 0.4, y)


def draw_vera(axes: Axes, x: float, y: float) -> None:
    """Two random matrices that all layers share, two trained diagonals."""
    matrix(axes, x - 0.72, y)
    say(axes, x - 0.4, y, "+")
    for left, wide, tall, kind in (
        (-0.22, 0.08, SIDE, "trained"),
        (0.0, 0.26, SIDE, "random"),
        (0.24, 0.08, 0.26, "trained"),
        (0.56, SIDE, 0.26, "random"),
    ):
        matrix(axes, x + left, y, wide, tall, kind)


def draw_bases(axes: Axes, x: float, y: float) -> None:
    """A sum of random products, each with trained diagonals."""
    matrix(axes, x - 0.66, y)
    say(axes, x - 0.24, y, "+ Σ")
    for left, up, wide, tall, kind in (
        (0.06, 0, 0.13, SIDE, "random"),
        (0.21, 0, 0.08, 0.13, "trained"),
        (0.53, 0, SIDE, 0.13, "random"),
        (0.53, -0.13, SIDE, 0.07, "trained"),
    ):
        matrix(axes, x + left, y + up, wide, tall, kind)


def draw_shards(axes: Axes, x: float, y: float) -> None:
    """W and one shard, trained once and repeated."""
    matrix(axes, x - 0.42, y)
    say(axes, x - 0.04, y, "+")
    for at in range(4):
        matrix(axes, x + 0.24 + 0.15 * at, y, 0.13, SIDE, "trained")


def draw_start(axes: Axes, x: float, y: float, source: str) -> None:
    """What is measured on data, and the factors that it starts."""
    matrix(axes, x - 0.53, y, 0.62, SIDE, "data")
    axes.text(x - 0.53, y, source, ha="center", va="center", fontsize=SMALL, color=colour("paper"))
    say(axes, x - 0.05, y, "→")
    draw_factors(axes, x + 0.41, y)


def draw_state(axes: Axes, x: float, y: float, state: str, stripes: int = 0) -> None:
    """All of W is trained, or some stripes of it at a time; what Adam keeps of it is small."""
    if stripes:
        for at in range(stripes):
            kind = "trained" if at in (1, stripes - 1) else "frozen"
            matrix(axes, x - 0.6, y + (at - (stripes - 1) / 2) * SIDE / stripes, SIDE, SIDE / stripes, kind)
    else:
        matrix(axes, x - 0.6, y, SIDE, SIDE, "trained")
    corners = [(x - 0.32, y - SIDE / 2), (x - 0.32, y + SIDE / 2), (x - 0.08, y + 0.08), (x - 0.08, y - 0.08)]
    axes.add_patch(Polygon(corners, facecolor=shade("muted", 0.25), edgecolor="none"))
    axes.text(x, y, state, ha="left", va="center", fontsize=SMALL, color=colour("ink"))


ROWS: tuple[tuple[str, tuple[Cell, ...]], ...] = (
    ("W is multiplied", (
        Cell("OFT, BOFT", draw_rotation, r"$W R,\ \ R R^\top = I$"),
        Cell("HiRA", draw_product, r"$W \odot (1 + B A)$"),
        Cell("DoRA", draw_length, r"$m \odot (W + B A)\, /\, \Vert\cdot\Vert$"),
    )),
    ("What is added is shared", (
        Cell("MiSS (was Bone)", draw_shards, r"$W + D\,[I\ I \,\ldots\, I]$"),
        Cell("VeRA", draw_vera, r"$W + \beta \odot B\,(\delta \odot A)$"),
        Cell("RandLoRA", draw_bases, r"$W + \sum_j B_j \Lambda_j A\, \Gamma_j$"),
    )),
    ("LoRA, started from data", (
        Cell("EVA", functools.partial(draw_start, source="inputs"), "$A$: leading inputs"),
        Cell("CorDA", functools.partial(draw_start, source="$W C$"), r"$BA$: of $\mathrm{SVD}(WC)\,C^{-1}$"),
        Cell("LoRA-GA", functools.partial(draw_start, source="$G$"), r"$A, B$: of $\mathrm{SVD}(G)$"),
    )),
    ("All of W moves, Adam's state is small", (
        Cell("GaLore, Fira", functools.partial(draw_state, state=r"of $P^\top G$"), r"$P\,\mathrm{Adam}(P^\top G)$"),
        Cell("APOLLO", functools.partial(draw_state, state="for scales $c$"), r"$G\, \mathrm{diag}(c)$"),
        Cell("LISA", functools.partial(draw_state, state="of 2 layers", stripes=5), "a few layers at a time"),
    )),
)  # fmt: skip


@figure
def newer_map() -> Figure:
    """What does each newer method do to a weight? Four ideas, a row each: multiplied, shared, started, all of it."""
    figure, axes = drawing(WIDE, 8.35)
    for row, (title, cells) in enumerate(ROWS):
        top = TOP - TALL * row - 0.06 * row
        axes.add_patch(
            Rectangle(
                (0.06, top - TALL + 0.06),
                WIDE - 0.12,
                TALL - 0.02,
                facecolor="none",
                edgecolor=colour("rule"),
                linewidth=0.8,
            )
        )
        axes.text(0.16, top - 0.1, title, va="center", fontsize=SIZE, fontweight="bold", color=colour("ink"))
        for column, cell in enumerate(cells):
            x = 0.06 + COLUMN * (column + 0.5)
            say(axes, x, top - 0.43, cell.name, "lora", fontsize=SMALL, fontweight="bold")
            cell.draw(axes, x, top - 0.9)
            say(axes, x, top - 1.42, cell.formula, fontsize=SMALL)
    draw_key(axes, 0.2)
    return finding(figure, "Newer methods do one of four things to weights")


def draw_key(axes: Axes, y: float) -> None:
    """What the four fills mean."""
    x = 0.16
    for kind, text in (
        ("frozen", "frozen"),
        ("trained", "trained"),
        ("random", "random, frozen"),
        ("data", "from data"),
    ):
        matrix(axes, x + 0.08, y, 0.16, 0.16, kind)
        axes.text(x + 0.24, y, text, va="center", fontsize=SMALL, color=colour("ink"))
        x += 0.5 + 0.085 * len(text)
