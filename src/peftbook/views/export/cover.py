"""The cover of the book as a file: a full update beside the two thin matrices that stand in for it."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftbook.views.figures.style import colour, drawing, shade

WIDTH, HEIGHT, MARGIN = 6.0, 9.0, 0.6
CELLS, CELL = 12, 0.3
RANK = 2


def cover(title: str, authors: str) -> Figure:
    """Title above, authors below; between them a square matrix and two of rank RANK."""
    figure, axes = drawing(WIDTH, HEIGHT)
    main, _, last = title.rpartition(", ")
    lines = textwrap.wrap(f"{main}," if main else last, 20, break_on_hyphens=False)
    type_face: dict[str, Any] = {"fontfamily": "DejaVu Serif", "va": "top"}
    for number, line in enumerate(lines):
        axes.text(MARGIN, HEIGHT - 0.75 - 0.52 * number, line, fontsize=27, color=colour("ink"), **type_face)
    if main:
        down = HEIGHT - 0.75 - 0.52 * len(lines)
        axes.text(MARGIN, down, last, fontsize=27, fontstyle="italic", color=colour("accent"), **type_face)
    left, bottom, gap = MARGIN, 2.0, 0.35
    matrix(axes, left, bottom, (CELLS, CELLS), shade("muted", 0.16))
    matrix(axes, left + CELLS * CELL + gap, bottom, (CELLS, RANK), colour("accent"))
    matrix(axes, left, bottom - gap - RANK * CELL, (RANK, CELLS), colour("accent"))
    axes.text(MARGIN, 0.42, authors, fontsize=12, color=colour("muted"), fontfamily="DejaVu Sans", va="bottom")
    return figure


def matrix(axes: Axes, left: float, bottom: float, size: tuple[int, int], fill: str) -> None:
    """Draw rows and columns of cells; (left, bottom) is the corner."""
    for row, column in itertools.product(*map(range, size)):
        corner = (left + column * CELL, bottom + row * CELL)
        axes.add_patch(Rectangle(corner, CELL * 0.88, CELL * 0.88, color=fill, linewidth=0))
