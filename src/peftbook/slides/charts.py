"""The deck's charts by name: `computed` and `measured` make them, `native` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peftbook import results
from peftbook.evidence.chart import Chart, Series
from peftbook.records import Store
from peftbook.studies import Quantity

LOSS = "nats per token"
TRAINED = ("full", "lora", "qlora", "prompt")
CHARTS: dict[str, Callable[[Store], Chart]] = {}


def chart(function: Callable[[Store], Chart]) -> Callable[[Store], Chart]:
    """Register what makes a chart of the records under the name of its function."""
    CHARTS[function.__name__] = function
    return function


def ends(found: Quantity) -> tuple[float, float]:
    """The interval of a quantity, or its value twice."""
    return found.value if found.low is None else found.low, found.value if found.high is None else found.high


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
