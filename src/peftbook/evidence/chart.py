"""One description of a chart: what is shown; `figures.drawn`, `svg` and `slides.native` draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Series:
    """One series: bars have one value a category, lines and marks have x and y.

    look: a method whose colour, dash and marker it takes.  spread: (low, high) of each value.
    line, marks: whether its points are joined and marked.  steps: joined level first, then upright.
    solid: whether its marks are filled.
    """

    name: str
    values: list[float]
    look: str = ""
    x: list[float] = field(default_factory=list)
    spread: list[tuple[float, float]] = field(default_factory=list)
    line: bool = True
    marks: bool = True
    steps: bool = False
    solid: bool = True


@dataclass
class Chart:
    """A chart. categories: bars; without them the series have x.

    alt: what a reader who cannot see it needs.  note: how an axis is to be read, in small type.
    """

    series: list[Series]
    x_title: str
    y_title: str
    categories: list[str] = field(default_factory=list)
    log: dict[str, int] = field(default_factory=dict)  # axis → base
    y_range: tuple[float | None, float | None] = (None, None)
    x_range: tuple[float | None, float | None] = (None, None)
    horizontal: bool = False
    stacked: bool = False
    number_format: str = "General"
    x_format: str = "General"
    point_looks: list[str] = field(default_factory=list)
    gap: int = 55  # between bars, in per cent of their width
    alt: str = ""
    note: str = ""


def spread_out(values: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Positions from `low` to `high` nearest to `values` (least squares), in their order and at least `gap` apart."""
    from scipy import optimize

    order = np.argsort(values, kind="stable")
    steps = gap * np.arange(len(values))
    free = optimize.isotonic_regression(np.asarray(values, dtype=float)[order] - steps).x
    out = np.empty(len(values))
    out[order] = np.clip(free, low, high - steps[-1]) + steps
    return out
