"""Pareto plot: score against cost, as SVG that takes its colours from the page and is read without colour.

Rows on the front are filled, the others hollow; the shape of a marker tells the method, the label says it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftbook.decision import COSTS, Comparison, Row, pareto
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.results import format_value
from peftbook.evidence.svg import Frame, svg
from peftbook.methods import look_of

DECADE, ROOM = 10.0, 0.04  # ROOM: beside a plain axis, of its length
MARKERS = {  # matplotlib's name of a marker → its outline
    "X": "M-5-5L5 5M5-5L-5 5",
    "s": "M-5.5-5.5H5.5V5.5H-5.5Z",
    "o": "M-6 0A6 6 0 1 1 6 0A6 6 0 1 1-6 0Z",
    "D": "M0-7.5L7.5 0L0 7.5L-7.5 0Z",
    "^": "M0-7L6.5 5H-6.5Z",
    "v": "M0 7L6.5-5H-6.5Z",
    "<": "M-7 0L5-6.5V6.5Z",
    ">": "M7 0L-5-6.5V6.5Z",
    "P": "M-6.5 0H6.5M0-6.5V6.5",
    "h": "M0-7L6-3.5V3.5L0 7L-6 3.5V-3.5Z",
    "H": "M-7 0L-3.5-6H3.5L7 0L3.5 6H-3.5Z",
    "8": "M-2.7-6.5H2.7L6.5-2.7V2.7L2.7 6.5H-2.7L-6.5 2.7V-2.7Z",
    "d": "M0-7.5L4.5 0L0 7.5L-4.5 0Z",
    "p": "M0-7L6.7-2.2L4.1 5.7H-4.1L-6.7-2.2Z",
    "*": "M0-7.5L1.8-2.4H7.1L2.9.9L4.4 6.1L0 3L-4.4 6.1L-2.9.9L-7.1-2.4H-1.8Z",
}


def pareto_svg(found: Comparison, cost: str = "", width: int = 720, height: int = 360) -> str:
    """The deciding measure with its 95 % intervals against a cost; empty where nothing is compared.

    cost: one of COSTS, the comparison's own without; in logarithms where it spans a decade, with rows that lack it, as
    the untuned ones, left of the axis at 0: the axis says so. Below a width of 500 the labels are shorter.
    """
    cost = cost or found.cost
    rows = [row for row in found.contest if all(map(math.isfinite, ends(found, row)))]
    if not rows:
        return ""
    front, measure = pareto(rows, cost, found.measure), found.measure
    names = ", ".join(row.label for row in front)
    costs = [row.cost(cost) for row in rows]
    most, least = max(costs), min((one for one in costs if one > 0), default=1.0)
    log = most >= DECADE * least  # within a decade the numbers of a logarithmic axis look like those of a plain one
    note = ("Logarithmic scale" + "; 0 stands apart" * (min(costs) <= 0)) * log
    chart = Chart(
        [steps(found, front, cost), *(point(found, row, cost, row in front) for row in rows)],
        COSTS[cost].capitalize() + {"train_seconds": ", seconds", "gigabyte_seconds": ", GB·s"}.get(cost, ""),
        f"{measure.label}, {'higher' if measure.sign > 0 else 'lower'} is better",
        log={"x": 10} if log else {},
        x_range=(None, None) if log else (-ROOM * most, (1 + ROOM) * most),
        y_range=y_range(found, rows),
        note=note,
        alt=". ".join(filter(None, (f"{measure.label} against {COSTS[cost]}", note, f"On the front: {names}."))),
    )
    frame = Frame(width, height, right=0, top=30, bottom=64, labels=230 if width >= 500 else 118)
    unit = "bytes" if cost.endswith("bytes") else ""
    return svg(chart, frame, "pareto-svg", shapes=MARKERS, words=lambda value: words(value, unit))


def point(found: Comparison, row: Row, cost: str, on_front: bool) -> Series:
    low, mean, high = ends(found, row)
    return Series(
        row.label, [mean], look_of(row.method).marker, [row.cost(cost)], [(low, high)], line=False, solid=on_front
    )


def steps(found: Comparison, front: Sequence[Row], cost: str) -> Series:
    """The front: what one gets for each cost."""
    means = [row.scores[found.measure.name].mean for row in front]
    return Series("front", means, x=[row.cost(cost) for row in front], marks=False, steps=True)


def ends(found: Comparison, row: Row) -> tuple[float, float, float]:
    one = row.scores[found.measure.name]
    return one.low, one.mean, one.high


def y_range(found: Comparison, rows: Sequence[Row]) -> tuple[float, float]:
    """Of all means and, as far as these do not drown them, of their intervals."""
    means = [row.scores[found.measure.name].mean for row in rows]
    room = 3 * max(max(means) - min(means), 1e-3 * max(map(abs, means)), found.measure.margin)
    low = max(min(ends(found, row)[0] for row in rows), min(means) - room)
    high = min(max(ends(found, row)[2] for row in rows), max(means) + room)
    around = 0.04 * (high - low) or 0.05
    return low - around, high + around


def words(value: float, unit: str) -> str:
    """A number of an axis, short."""
    if unit:
        return format_value(value, 0, unit)
    for size, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if name == 'k' else size):g} {name}"
    return f"{value:g}"
