"""The drawing of a decoder block with a mark for every method where it acts; y in inches from the tokens up."""

from __future__ import annotations

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon

from peftbook.views.figures.family import FAMILIES, MEMBERS
from peftbook.views.figures.parts import SMALL, mark
from peftbook.views.figures.style import SIZE, colour, drawing, finding, say

LEFT, RIGHT, MIDDLE, TRUNK = 0.85, 3.1, 1.975, 0.42  # edges and middle of a sublayer's parts, x of the residual stream
TALL = 0.44  # of a matrix
MATRICES = {  # left, right, bottom
    "$W_q$": (0.85, 1.5, 1.9),
    "$W_k$": (1.65, 2.3, 1.9),
    "$W_v$": (2.45, 3.1, 1.9),
    "$W_o$": (0.85, 3.1, 3.75),
    r"$W_\mathrm{gate}$": (0.85, 1.9, 5.95),
    r"$W_\mathrm{up}$": (2.05, 3.1, 5.95),
    r"$W_\mathrm{down}$": (0.85, 3.1, 7.1),
}
NORMS = (1.22, 5.27)  # bottoms
ADAPTERS = (4.33, 7.66)
SUMS = (4.98, 8.25)  # middles
ATTENTION = 2.93
PRODUCT = 6.63
NAME: dict[str, Any] = {"tone": "paper", "fontsize": SMALL, "zorder": 4}  # of a trained part
SCALES = ((MIDDLE, 2.74), (2.775, 2.74), (MIDDLE, 6.88))


class Card(NamedTuple):
    """What stands beside the block: whose it is, its lines, its height, and the points of the line to its mark."""

    member: str
    lines: tuple[str, ...]
    y: float
    path: tuple[tuple[float, float], ...]
    hollow: bool = False


BEHIND = ((3.62, 0.52), (3.3, 0.52), (3.3, 0.2), (0.77, 0.2), (0.77, 0.3))
CARDS = (
    Card("prompt", ("Prompt, P-tuning", "$[P; X]$, once, below"), 0.52, BEHIND),
    Card("norm", ("Norm gains", r"$g + \delta$, both norms"), 1.4, ((3.62, 1.4), (3.2, 1.4))),
    Card("lora", ("LoRA, DoRA,", "VeRA, AdaLoRA", r"$W + \gamma BA$ and kin"), 2.08, ((3.62, 2.08), (3.19, 2.2))),
    Card("ia3", ("(IA)³", r"$l_k \odot k,\ \ l_v \odot v$"), 2.74, ((3.62, 2.74), (2.9, 2.74))),
    Card("prefix", ("Prefix, P-tuning v2", r"$[P_K; K],\ \ [P_V; V]$"), 3.27, ((3.62, 3.27), (3.4, 3.27))),
    Card("adapter", ("Adapter", r"$h + U\,\sigma(D h)$, twice"), 4.54, ((3.62, 4.54), (2.2, 4.54))),
    Card("bias", ("BitFit", r"$b + \delta$, but a Llama", "has no $b$"), 6.02, ((3.62, 6.02), (3.2, 6.02)), True),
    Card("ia3", ("(IA)³", r"$l_f \odot$ (gate $\odot$ up)"), 6.88, ((3.62, 6.88), (2.1, 6.88))),
    Card("subspace", ("Intrinsic dimension", r"$\theta_0 + P\varphi$, all at once"), 7.9, ((3.62, 7.9), (3.5, 7.9))),
)


def touched_block() -> Figure:
    """Where does each method touch the model? One decoder block, from the tokens up, and a mark for every method."""
    figure, axes = drawing(5.8, 9.55)
    draw_wires(axes)
    draw_frozen(axes)
    draw_trained(axes)
    for card in CARDS:
        draw_card(axes, card)
    draw_key(axes, 8.98)
    return finding(figure, "Each method acts at its own place in the block")


def rounded(axes: Axes, x: float, y: float, wide: float, tall: float, text: str = "", **look: Any) -> None:
    """A rounded box with its lower left corner at (x, y) and a text in its middle; frozen unless told."""
    frozen: dict[str, Any] = {"facecolor": colour("fill"), "edgecolor": colour("muted"), "linewidth": 0.9, "zorder": 2}
    axes.add_patch(FancyBboxPatch((x, y), wide, tall, "round,pad=0,rounding_size=0.06", **(frozen | look)))
    axes.text(x + wide / 2, y + tall / 2, text, ha="center", va="center", fontsize=SIZE, zorder=3)


def wire(axes: Axes, *points: tuple[float, float], arrow: bool = True, head: float = 9, **look: Any) -> None:
    """A line through points, with an arrow at its end; head: the size of that."""
    line: dict[str, Any] = {"color": colour("muted"), "linewidth": 1.1, "zorder": 1} | look
    axes.plot(*zip(*points, strict=True), **line)
    if arrow:
        shape: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": head, "shrinkA": 0, "shrinkB": 0}
        axes.add_patch(FancyArrowPatch(*points[-2:], **(line | shape)))


def sign(axes: Axes, x: float, y: float, text: str, radius: float = 0.1, fontsize: float = SMALL) -> None:
    """A sum or a product in a circle."""
    axes.add_patch(Circle((x, y), radius, facecolor=colour("paper"), edgecolor=colour("muted"), zorder=2))
    say(axes, x, y - 0.005, text, fontsize=fontsize, zorder=3)


def draw_wires(axes: Axes) -> None:
    """The residual stream, the two ways out of it and back, and the ways inside the sublayers."""
    axes.plot([TRUNK, TRUNK], [0.74, 8.62], color=colour("muted"), linewidth=3.2, solid_capstyle="butt", zorder=1)
    wire(axes, (TRUNK, 8.55), (TRUNK, 8.78))
    for norm, total, adapter in zip(NORMS, SUMS, ADAPTERS, strict=True):
        wire(axes, (TRUNK, norm - 0.14), (MIDDLE, norm - 0.14), (MIDDLE, norm))
        wire(axes, (MIDDLE, adapter + 0.42), (MIDDLE, total), (TRUNK + 0.11, total))
    names = list(MATRICES)
    fan_out(axes, NORMS[0], names[:3], ATTENTION, arrow=True)
    fan_out(axes, NORMS[1], names[4:6], PRODUCT, arrow=False)
    wire(axes, (1.375, PRODUCT), (2.575, PRODUCT), arrow=False)
    for start, end in (
        (ATTENTION + 0.58, MATRICES["$W_o$"][2]),
        (MATRICES["$W_o$"][2] + TALL, ADAPTERS[0]),
        (PRODUCT, MATRICES[names[6]][2]),
        (MATRICES[names[6]][2] + TALL, ADAPTERS[1]),
    ):
        wire(axes, (MIDDLE, start), (MIDDLE, end))


def fan_out(axes: Axes, norm: float, names: list[str], end: float, *, arrow: bool) -> None:
    """From a norm to each of the matrices that read it, and on to a height."""
    wire(axes, (MIDDLE, norm + 0.36), (MIDDLE, norm + 0.5), arrow=False)
    for left, right, bottom in (MATRICES[name] for name in names):
        x = (left + right) / 2
        wire(axes, (MIDDLE, norm + 0.5), (x, norm + 0.5), (x, bottom))
        wire(axes, (x, bottom + TALL), (x, end), arrow=arrow)


def draw_frozen(axes: Axes) -> None:
    """Text, norms, matrices, attention and sums, and the frame of the block."""
    rounded(axes, 0.12, 0.96, 3.38, 7.5, facecolor="none", linestyle=(0, (4, 3)), linewidth=1.1, zorder=0)
    say(axes, 2.98, 8.33, "block, × L", "muted", fontsize=SMALL)
    say(axes, 0.27, 6.6, "residual stream", "muted", fontsize=SMALL, rotation=90)
    for at in range(4):
        rounded(axes, 1.37 + at * 0.385, 0.3, 0.34, 0.4, f"$x_{at + 1}$")
    for y in NORMS:
        rounded(axes, LEFT, y, RIGHT - LEFT, 0.36, "RMSNorm, gain $g$")
    for name, (left, right, bottom) in MATRICES.items():
        rounded(axes, left, bottom, right - left, TALL, name)
    rounded(axes, LEFT, ATTENTION, RIGHT - LEFT, 0.58, "attention")
    for x, y, text in ((TRUNK, SUMS[0], "+"), (TRUNK, SUMS[1], "+"), (MIDDLE, PRODUCT, "⊙")):
        sign(axes, x, y, text, radius=0.115, fontsize=SIZE)


def draw_trained(axes: Axes) -> None:
    """What is new in colour: virtual tokens, adapters, and the markers of what moves old weights."""
    for at in range(3):
        new_part(axes, 0.215 + at * 0.385, 0.3, 0.34, 0.4, f"$P_{at + 1}$")
    for y, name in ((2.97, "$P_K$"), (3.24, "$P_V$")):
        new_part(axes, 2.98, y, 0.4, 0.23, name)
    for y in ADAPTERS:
        draw_adapter(axes, y)
    for _, right, bottom in MATRICES.values():
        stamp(axes, "lora", right, bottom + 0.32, 9)
        stamp(axes, "bias", right, bottom + 0.1, 9, hollow=True)
    for y in NORMS:
        stamp(axes, "norm", RIGHT, y + 0.18, 11)
    for x, y in SCALES:
        stamp(axes, "ia3", x, y, 13)
    stamp(axes, "subspace", 3.5, 7.9, 15)


def new_part(axes: Axes, x: float, y: float, wide: float, tall: float, text: str) -> None:
    """A trained box with a name."""
    rounded(axes, x, y, wide, tall, facecolor=colour("prompt"), edgecolor=colour("prompt"), zorder=3)
    say(axes, x + wide / 2, y + tall / 2, text, **NAME)


def draw_adapter(axes: Axes, y: float) -> None:
    """A bottleneck: D narrows, U widens."""
    corners = [(1.45, 0), (2.5, 0), (2.15, 0.21), (2.5, 0.42), (1.45, 0.42), (1.8, 0.21)]
    waist = [(x, y + up) for x, up in corners]
    axes.add_patch(Polygon(waist, facecolor=colour("prompt"), edgecolor="none", zorder=3))
    for up, name in ((0.09, "$D$"), (0.32, "$U$")):
        say(axes, MIDDLE, y + up, name, **NAME)


def stamp(axes: Axes, member: str, x: float, y: float, size: float, *, hollow: bool = False) -> None:
    """The marker of a method."""
    one = MEMBERS[member]
    axes.plot(x, y, **(mark(one.tone, one.marker, hollow=hollow) | {"markersize": size, "zorder": 5}))


def draw_card(axes: Axes, card: Card) -> None:
    """Name and formula of a method, and the line to where it acts."""
    tone, names = MEMBERS[card.member].tone, 2 if card.member == "lora" else 1
    axes.plot(*zip(*card.path, strict=True), color=colour(tone), linewidth=1.0, zorder=1.5)
    stamp(axes, card.member, 3.73, card.y, 14 if card.member == "subspace" else 10, hollow=card.hollow)
    for at, text in enumerate(card.lines):
        weight, tint = ("bold", tone) if at < names else ("normal", "ink")
        y = card.y + 0.19 * (names - 1) - 0.2 * at
        axes.text(3.87, y, text, va="center", fontsize=SMALL, fontweight=weight, color=colour(tint))


def draw_key(axes: Axes, y: float) -> None:
    """The three families by colour, and what is frozen."""
    x = 0.2
    for tone, family in (FAMILIES | {"muted": "frozen"}).items():
        face = colour("fill") if tone == "muted" else colour(tone)
        rounded(axes, x, y - 0.08, 0.16, 0.16, facecolor=face, edgecolor=colour(tone))
        axes.text(x + 0.23, y, family, va="center", fontsize=SMALL, fontweight="bold", color=colour(tone))
        x += 0.42 + 0.1 * len(family)
