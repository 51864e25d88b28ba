"""What the deck's charts of measured quantities share: each chart stands beside the figure of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

from peftbook.evidence import results
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.stats import Interval
from peftbook.studies import Quantity
from peftbook.views.placeholders import ends


def forest(rows: Sequence[tuple[str, str, Quantity]], axis: str, digits: int, number_format: str) -> Chart:
    """Horizontal bars of (label, look, quantity) with their 95 % intervals; each category says its value."""
    series = Series(axis, [found.value for _, _, found in rows], spread=[ends(found) for _, _, found in rows])
    labels = [f"{name}: {'+' * (one.value > 0)}{results.format_value(one.value, digits)}" for name, _, one in rows]
    looks = [look for _, look, _ in rows]
    return Chart([series], "", axis, labels, horizontal=True, number_format=number_format, point_looks=looks, gap=40)


def differences(rows: Sequence[tuple[str, str, Interval]], axis: str, digits: int = 3, form: str = "0.00") -> Chart:
    """Bars of (label, look, paired difference) with their 95 % intervals; each label says its value."""
    found = [(label, look, Quantity(one.mean, "", (), one.low, one.high)) for label, look, one in rows]
    return forest(found, axis, digits, form)
