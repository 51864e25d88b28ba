"""The map of the newer family, and how many numbers each of its methods trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from peftbook.memory import DecoderShape
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
Shape = tuple[str, float, float, float, float]  # kind, middle, width and height of a matrix, inches from its cell's


class Cell(NamedTuple):
    """A method on the map: name, matrices, texts with how far right of the middle they stand, and formula.

    state: what Adam keeps, to the right of a matrix that narrows to it.
    """

    name: str
    shapes: tuple[Shape, ...]
    texts: tuple[tuple[float, str], ...]
    formula: str
    state: str = ""


def square(x: float, kind: str = "frozen") -> Shape:
    """A whole weight."""
    return kind, x, 0.0, SIDE, SIDE


def trained(*boxes: tuple[float, float, float, float]) -> tuple[Shape, ...]:
    """Trained matrices."""
    return tuple(("trained", *box) for box in boxes)


def factors(x: float) -> tuple[Shape, ...]:
    """A thin B and a flat A."""
    return trained((x - 0.2, 0.0, 0.13, SIDE), (x + 0.16, 0.165, SIDE, 0.13))


def started(name: str, source: str, formula: str) -> Cell:
    """A method that measures something on data and starts the factors from it."""
    return Cell(name, (("data", -0.53, 0.0, 0.62, SIDE), *factors(0.41)), ((-0.53, source), (-0.05, "→")), formula)


STEP, STRIPE = SIDE / 4, SIDE / 5
ROTATION = trained(*((0.38 + at * STEP, -at * STEP, STEP, STEP) for at in (-1.5, -0.5, 0.5, 1.5)))
SHARDS = trained(*((0.24 + 0.15 * at, 0.0, 0.13, SIDE) for at in range(4)))
STRIPES: tuple[Shape, ...] = tuple(
    ("trained" if at in (-1, 2) else "frozen", -0.6, at * STRIPE, SIDE, STRIPE) for at in range(-2, 3)
)
ROWS: tuple[tuple[str, tuple[Cell, ...]], ...] = (
    ("W is multiplied", (
        Cell("OFT, BOFT", (square(-0.38), *ROTATION, square(0.38, "outline")), ((0, "·"),),
             r"$W R,\ \ R R^\top = I$"),
        Cell("HiRA", (square(-0.66), *factors(0.42)), ((-0.14, "⊙ (1+"), (0.87, ")")), r"$W \odot (1 + B A)$"),
        Cell("DoRA", (*trained((-0.78, 0.0, 0.1, SIDE)), square(-0.34), *factors(0.4)), ((-0.65, "·"), (0.02, "+")),
             r"$m \odot (W + B A)\, /\, \Vert\cdot\Vert$"),
    )),
    ("What is added is shared", (
        Cell("MiSS (was Bone)", (square(-0.42), *SHARDS), ((-0.04, "+"),), r"$W + D\,[I\ I \,\ldots\, I]$"),
        Cell("VeRA", (square(-0.72), *trained((-0.22, 0, 0.08, SIDE), (0.24, 0, 0.08, 0.26)),
                      ("random", 0.0, 0, 0.26, SIDE), ("random", 0.56, 0, SIDE, 0.26)), ((-0.4, "+"),),
             r"$W + \beta \odot B\,(\delta \odot A)$"),
        Cell("RandLoRA", (square(-0.66), ("random", 0.06, 0, 0.13, SIDE), ("random", 0.53, 0, SIDE, 0.13),
                          *trained((0.21, 0, 0.08, 0.13), (0.53, -0.13, SIDE, 0.07))), ((-0.24, "+ Σ"),),
             r"$W + \sum_j B_j \Lambda_j A\, \Gamma_j$"),
    )),
    ("LoRA, started from data", (
        started("EVA", "inputs", "$A$: leading inputs"),
        started("CorDA", "$W C$", r"$BA$: of $\mathrm{SVD}(WC)\,C^{-1}$"),
        started("LoRA-GA", "$G$", r"$A, B$: of $\mathrm{SVD}(G)$"),
    )),
    ("All of W moves, Adam's state is small", (
        Cell("GaLore, Fira", (square(-0.6, "trained"),), (), r"$P\,\mathrm{Adam}(P^\top G)$", r"of $P^\top G$"),
        Cell("APOLLO", (square(-0.6, "trained"),), (), r"$G\, \mathrm{diag}(c)$", "for scales $c$"),
        Cell("LISA", STRIPES, (), "a few layers at a time", "of 2 layers"),
    )),
)  # fmt: skip
KEY = {"frozen": "frozen", "trained": "trained", "random": "random, frozen", "data": "from data"}


def matrix(axes: Axes, x: float, y: float, wide: float, tall: float, kind: str) -> None:
    """A matrix around (x, y): of a kind of the key, or an outline."""
    looks: dict[str, dict[str, Any]] = {
        "frozen": {"facecolor": colour("fill"), "edgecolor": colour("muted")},
        "trained": {"facecolor": shade("lora", 0.85), "edgecolor": colour("lora")},
        "random": {"facecolor": colour("paper"), "edgecolor": colour("muted"), "hatch": "xxxx"},
        "data": {"facecolor": shade("prompt", 0.85), "edgecolor": colour("prompt")},
        "outline": {"fill": False, "edgecolor": colour("muted"), "linewidth": 0.7, "linestyle": (0, (2, 2))},
    }
    axes.add_patch(Rectangle((x - wide / 2, y - tall / 2), wide, tall, **({"linewidth": 0.9} | looks[kind])))


def draw_cell(axes: Axes, cell: Cell, x: float, y: float) -> None:
    """The drawing of a method around (x, y)."""
    for kind, right, up, wide, tall in cell.shapes:
        matrix(axes, x + right, y + up, wide, tall, kind)
    for right, text in cell.texts:
        on_data = cell.shapes[0][:2] == ("data", right)
        size = SMALL if on_data or len(text) > 3 else SIZE
        say(axes, x + right, y, text, "paper" if on_data else "ink", fontsize=size)
    if cell.state:
        corners = [(x - 0.32, y - SIDE / 2), (x - 0.32, y + SIDE / 2), (x - 0.08, y + 0.08), (x - 0.08, y - 0.08)]
        axes.add_patch(Polygon(corners, facecolor=shade("muted", 0.25), edgecolor="none"))
        say(axes, x, y, cell.state, ha="left", fontsize=SMALL)


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
            draw_cell(axes, cell, x, top - 0.9)
            say(axes, x, top - 1.42, cell.formula, fontsize=SMALL)
    draw_key(axes, 0.2)
    return finding(figure, "Newer methods do one of four things to weights")


def draw_key(axes: Axes, y: float) -> None:
    """What the four fills mean."""
    x = 0.16
    for kind, text in KEY.items():
        matrix(axes, x + 0.08, y, 0.16, 0.16, kind)
        axes.text(x + 0.24, y, text, va="center", fontsize=SMALL, color=colour("ink"))
        x += 0.5 + 0.085 * len(text)
