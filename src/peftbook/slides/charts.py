"""What a native chart holds. `computed` and `measured` say which there are, `native` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from peftbook import results
from peftbook.studies import Quantity

__all__ = ["LOSS", "TRAINED", "Chart", "Series", "ends", "forest", "named"]

LOSS = "nats per token"
TRAINED = ("full", "lora", "qlora", "prompt")


@dataclass
class Series:
    """One series: bars have one value a category, lines have x and y.

    look: a method whose colour, dash and marker it takes.  spread: (low, high) of each value.
    line, marks: whether its points are joined and marked.
    """

    name: str
    values: list[float]
    look: str = ""
    x: list[float] = field(default_factory=list)
    spread: list[tuple[float, float]] = field(default_factory=list)
    line: bool = True
    marks: bool = True


@dataclass
class Chart:
    """A native chart. categories: bars; without them the series are lines over x."""

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
    label_format: str = ""  # of the value on each bar; none without it
    point_looks: list[str] = field(default_factory=list)
    gap: int = 55  # between bars, in per cent of their width


def ends(found: Quantity) -> tuple[float, float]:
    """The interval of a quantity, or its value twice."""
    return (
        found.value if found.low is None else found.low,
        found.value if found.high is None else found.high,
    )


def named(label: str, value: float, digits: int, unit: str = "") -> str:
    """A category that says its value."""
    sign = "+" if value > 0 and not unit else ""
    return f"{label}: {sign}{results.format_value(value, digits, unit)}"


def forest(
    rows: Sequence[tuple[str, str, Quantity]], axis: str, digits: int, number_format: str, unit: str = ""
) -> Chart:
    """Horizontal bars of (label, look, quantity) with their 95 % intervals; each category says its value."""
    series = Series(axis, [found.value for _, _, found in rows], spread=[ends(found) for _, _, found in rows])
    labels = [named(label, found.value, digits, unit) for label, _, found in rows]
    looks = [look for _, look, _ in rows]
    return Chart([series], "", axis, labels, horizontal=True, number_format=number_format, point_looks=looks)
