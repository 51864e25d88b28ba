"""What the deck's charts of measured quantities share: each chart stands beside the figure of the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from peftbook.core.records import Store
from peftbook.evidence import results
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.stats import Interval
from peftbook.studies import Quantity
from peftbook.views.placeholders import ends


def measured_series(label: str, names: Iterable[str], store: Store, look: str = "") -> Series:
    """Quantities by name as bars with their intervals."""
    found = [results.quantity(name, store) for name in names]
    return Series(label, [one.value for one in found], look, spread=[ends(one) for one in found])


def rate_chart(series: list[Series], unit: str, y_range: tuple[float, float], x_range: tuple[float, float]) -> Chart:
    """Validation loss against learning rate, the longest series first: LibreOffice drops points after a shorter one."""
    series.sort(key=lambda one: -len(one.x))
    return Chart(
        series,
        "Learning rate",
        f"Validation loss, {unit}",
        log={"x": 10},
        y_range=y_range,
        number_format="0.0",
        x_format="0E+0",
        x_range=x_range,
    )


def label_with_value(label: str, value: float, digits: int, unit: str = "") -> str:
    """A category that says its value."""
    sign = "+" if value > 0 and not unit else ""
    return f"{label}: {sign}{results.format_value(value, digits, unit)}"


def forest(
    rows: Sequence[tuple[str, str, Quantity]], axis: str, digits: int, number_format: str, unit: str = ""
) -> Chart:
    """Horizontal bars of (label, look, quantity) with their 95 % intervals; each category says its value."""
    series = Series(axis, [found.value for _, _, found in rows], spread=[ends(found) for _, _, found in rows])
    labels = [label_with_value(label, found.value, digits, unit) for label, _, found in rows]
    looks = [look for _, look, _ in rows]
    return Chart([series], "", axis, labels, horizontal=True, number_format=number_format, point_looks=looks)


def differences(rows: Sequence[tuple[str, str, Interval]], axis: str, digits: int = 3, form: str = "0.00") -> Chart:
    """Bars of (label, look, paired difference) with their 95 % intervals; each label says its value."""
    found = [(label, look, Quantity(one.mean, "", (), one.low, one.high)) for label, look, one in rows]
    return replace(forest(found, axis, digits, form), gap=40)
