"""One look for every figure: page, deck and file show the same drawing, in a light and a dark mode.

A figure function is called inside a mode and reads its colours here; it never asks where the figure goes.
"""

from __future__ import annotations

import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from peftbook.core.records import Store
from peftbook.methods import arm_looks
from peftbook.views.placeholders import Sources, fill_title

Mode = Literal["light", "dark"]
PAPER = {"light": "#fcfbf8", "dark": "#14181d"}
TONES = {
    "light": {"ink": "#1f2933", "muted": "#56616d", "rule": "#dcd8cd", "fill": "#ece8dd", "accent": "#0b6360"},
    "dark": {"ink": "#dde2e7", "muted": "#9aa6b2", "rule": "#343d47", "fill": "#262e37", "accent": "#6cc9bf"},
}
SIZE = 12.0  # points at a width of 5.8 inches: 7.5 points on a phone 3.6 inches wide
WIDTH = 5.8
LETTERS = 8.0  # of a title, an inch
_MODE: ContextVar[Mode] = ContextVar("mode", default="light")
_DARK: ContextVar[dict[str, set[str]]] = ContextVar("dark", default={})  # noqa: B039 — what nobody asks for
HEX = re.compile(rb"#[0-9a-f]{6}\b")


def rc(mode: Mode) -> dict[str, Any]:
    """What a mode has in place of matplotlib's defaults. Fonts are those that it ships: bytes agree everywhere."""
    tone = TONES[mode]
    return {
        "svg.hashsalt": "peftbook",
        "path.simplify": False,
        "font.family": ["DejaVu Sans"],
        "font.size": SIZE,
        "figure.facecolor": PAPER[mode],
        "savefig.facecolor": PAPER[mode],
        "axes.facecolor": PAPER[mode],
        "text.color": tone["ink"],
        "axes.labelcolor": tone["ink"],
        "axes.edgecolor": tone["muted"],
        "xtick.color": tone["muted"],
        "ytick.color": tone["muted"],
        "xtick.labelcolor": tone["ink"],
        "ytick.labelcolor": tone["ink"],
        "xtick.labelsize": SIZE - 1,
        "ytick.labelsize": SIZE - 1,
        "axes.labelsize": SIZE,
        "legend.fontsize": SIZE - 1,
        "axes.titlesize": SIZE,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": tone["rule"],
        "grid.linewidth": 0.7,
        "axes.formatter.use_mathtext": True,
        "legend.frameon": False,
        "legend.handlelength": 2.2,
        "lines.linewidth": 2.0,
        "lines.markersize": 7,
        "patch.linewidth": 0.8,
        "ytick.major.size": 0,
    }


@contextmanager
def mode_context(mode: Mode) -> Iterator[None]:
    """Draw in a mode: matplotlib's settings and `colour` follow it. Raises ValueError for an unknown mode."""
    if mode not in TONES:
        raise ValueError(f"mode {mode!r} is unknown: choose 'light' or 'dark'.")
    token = _MODE.set(mode)
    try:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(rc(mode))
            yield
    finally:
        _MODE.reset(token)


def colour(name: str) -> str:
    """A method's colour, a tone (`ink`, `muted`, `rule`, `fill`, `accent`) or `paper`, in the current mode."""
    return of_mode(*(tone(name, mode) for mode in TONES))


def shade(name: str, share: float) -> str:
    """The colour mixed with paper: 1 is the colour, 0 is paper. Opaque, so that overlaps stay clean in print."""
    return of_mode(*(mixed(tone(name, mode), PAPER[mode], share) for mode in TONES))


def tone(name: str, mode: str) -> str:
    """What `colour` is in a mode."""
    if name in arm_looks():
        return getattr(arm_looks()[name], mode) or TONES[mode]["accent"]
    return PAPER[mode] if name == "paper" else TONES[mode][name]


def mixed(front: str, back: str, share: float) -> str:
    """A share of one colour and the rest of another."""
    pairs = zip(*map(matplotlib.colors.to_rgb, (front, back)), strict=True)
    return matplotlib.colors.to_hex([share * f + (1 - share) * b for f, b in pairs])


def of_mode(light: str, dark: str) -> str:
    """The colour of the current mode; of a light drawing `render_modes` learns what is dark for it."""
    _DARK.get().setdefault(light, set()).add(dark)
    return light if _MODE.get() == "light" else dark


def look(method: str) -> dict[str, Any]:
    """Plot keywords of a method: colour, marker and line style."""
    return {
        "color": colour(method),
        "marker": arm_looks()[method].marker,
        "linestyle": arm_looks()[method].line,
        "markeredgecolor": colour("paper"),
        "markeredgewidth": 0.8,
    }


def canvas(rows: int = 1, columns: int = 1, *, height: float = 3.6, **grid: Any) -> tuple[Figure, Any]:
    """A figure and its axes (one, or an array), laid out so that nothing overlaps."""
    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    return figure, figure.subplots(rows, columns, **grid)


def drawing(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure for a drawing: one axes in inches, origin at the lower left, nothing drawn yet."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def finding(figure: Figure, text: str, store: Store | None = None) -> Figure:
    """The figure, with what it shows as its title, in lines of about equal length.

    store: fills the text, see `views.placeholders`, so that it says no more than the records. Raises InputError, and
    Missing where they are not there.
    """
    text = text if store is None else fill_title(text, Sources(store))
    text = re.sub(r" (?=\[)|(?<=,) (?=[^ ]+\])", "\N{NO-BREAK SPACE}", text)  # a number and its interval stay together
    wrap, room = functools.partial(textwrap.wrap, text, break_on_hyphens=False), int(LETTERS * figure.get_figwidth())
    fewest = len(wrap(room))
    lines = next(lines for width in range(len(text) // fewest, room + 1) if len(lines := wrap(width)) <= fewest)
    look: dict[str, Any] = {"x": 0.012, "ha": "left", "fontsize": SIZE + 1.5, "fontweight": "bold"}
    figure.suptitle("\n".join(lines), color=colour("ink"), **look)
    return figure


def say(axes: Axes, x: float, y: float, text: str, tone: str = "ink", **look: Any) -> None:
    """A text in its tone, in the middle of a point unless told."""
    axes.text(x, y, text, color=colour(tone), **({"ha": "center", "va": "center"} | look))


def tag(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], tone: str = "ink", **look: Any
) -> None:
    """A direct label, `offset` points from what it names; bold and in its tone unless told."""
    kept = {"color": colour(tone), "fontweight": "bold"} | look
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **kept)


def name_rows(axes: Axes, names: Sequence[str], below: float = 0.45, above: float = 0.55) -> None:
    """Rows with their names, the first on top, so much room at either end, and no line through them."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - below, -above)
    axes.grid(axis="y", visible=False)


def render_svg(function: Callable[..., Figure], *args: Any, mode: Mode = "light", **options: Any) -> bytes:
    """The figure as SVG: text as paths, no date, fixed identifiers, so that the same figure is the same bytes."""
    with mode_context(mode):
        figure, stream = function(*args, **options), io.BytesIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    return b"\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + b"\n"


def render_modes(function: Callable[..., Figure], *args: Any, **options: Any) -> dict[Mode, bytes]:
    """The figure as SVG in both modes, drawn once: the dark one has the dark colour in place of each light one.

    It is drawn again if it holds pixels, or a colour that is no `colour` and no `shade`, or whose dark one is unclear.
    """
    dark_of = {light: {TONES["dark"][name]} for name, light in TONES["light"].items()}
    known = _DARK.set(dark_of | {PAPER["light"]: {PAPER["dark"]}})
    try:
        light = render_svg(function, *args, **options)
        choices = {one: _DARK.get().get(one.decode(), ()) for one in HEX.findall(light)}
    finally:
        _DARK.reset(known)
    if b"<image" in light or any(len(dark) != 1 for dark in choices.values()):
        return {"light": light, "dark": render_svg(function, *args, mode="dark", **options)}
    dark = {one: next(iter(found)).encode() for one, found in choices.items()}
    return {"light": light, "dark": HEX.sub(lambda one: dark[one[0]], light)}
