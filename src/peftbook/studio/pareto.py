"""Pareto plot: score against cost, as SVG that takes its colours from the page and is read without colour.

Rows on the front are filled, the others hollow; the shape of a marker tells the method, the label says it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from peftbook.decision import COSTS, Comparison, Row, pareto
from peftbook.methods import look_of
from peftbook.results import format_value
from peftbook.studio.markup import joined, piece

__all__ = ["pareto_svg"]

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
STYLE = (
    ".pareto-svg{font:13px system-ui,sans-serif;max-width:100%;height:auto;display:block}"
    ".pareto-svg text{fill:var(--ink,currentColor)}.pareto-svg .quiet{fill:var(--muted,#66707b)}"
    ".pareto-svg .grid{stroke:var(--rule,#c9c5ba);stroke-width:1}.pareto-svg .lead{stroke:var(--muted,#66707b);"
    "stroke-width:.7;fill:none}.pareto-svg .front{stroke:var(--accent,#0b6360);stroke-width:1.6;fill:none;"
    "stroke-dasharray:5 3}.pareto-svg .span{stroke:var(--muted,#66707b);stroke-width:1.4}"
    ".pareto-svg .mark{stroke:var(--muted,#66707b);stroke-width:1.8;fill:var(--paper,none)}"
    ".pareto-svg .on{stroke:var(--accent,#0b6360);fill:var(--accent,#0b6360)}"
)
TOP, BOTTOM, LEFT, ZERO = 30, 64, 52, 34


def pareto_svg(found: Comparison, cost: str = "", width: int = 720, height: int = 360) -> str:
    """The deciding measure with its 95 % intervals against a cost in logarithms; empty where nothing is compared.

    cost: one of COSTS, the comparison's own without. Rows without that cost, as the untuned ones, stand left of the
    axis at 0; the axis says so. Below a width of 500 the labels are shorter.
    """
    cost = cost or found.cost
    rows = [row for row in found.contest if all(map(math.isfinite, ends(found, row)))]
    if not rows:
        return ""
    labels_width = 190 if width >= 500 else 118
    right = width - labels_width
    costs = [row.cost(cost) for row in rows if row.cost(cost) > 0]
    start = LEFT + (ZERO if len(costs) < len(rows) else 10)
    low, high = (math.log10(min(costs)), math.log10(max(costs))) if costs else (0.0, 0.0)
    room = max((high - low) * 0.06, 0.08)
    low, high = low - room, high + room
    bottom, top = y_range(found, rows)

    def x(row: Row) -> float:
        price = row.cost(cost)
        return LEFT + ZERO / 2 if price <= 0 else start + (math.log10(price) - low) / (high - low) * (right - start)

    def y(value: float) -> float:
        return TOP + (top - value) / (top - bottom) * (height - TOP - BOTTOM)

    front = pareto(rows, cost, found.measure.name)
    places = spread_out([y(row.scores[found.measure.name].mean) for row in rows], 17, TOP, height - BOTTOM)
    parts = [
        y_axis(found, bottom, top, y, right, height),
        x_axis(cost, low, high, start, right, height, zero=len(costs) < len(rows)),
        front_line([(x(row), y(row.scores[found.measure.name].mean)) for row in front]),
    ]
    for row, place in zip(rows, places, strict=True):
        parts.append(point(found, row, row in front, x(row), y, place, right, labels_width))
    label = (
        f"{found.measure.label} against {COSTS[cost]}. {scale(len(costs) < len(rows))}. "
        f"On the front: {', '.join(row.label for row in front)}."
    )
    return str(
        piece(
            '<svg class="pareto-svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{label}">'
            "<style>{style}</style>{parts}</svg>",
            w=width,
            h=height,
            label=label,
            style=Markup(STYLE),
            parts=joined(parts),
        )
    )


def ends(found: Comparison, row: Row) -> tuple[float, float, float]:
    one = row.scores[found.measure.name]
    return one.low, one.mean, one.high


def y_range(found: Comparison, rows: Sequence[Row]) -> tuple[float, float]:
    """Of all means and, as far as these do not drown them, of their intervals."""
    means = [row.scores[found.measure.name].mean for row in rows]
    room = 3 * max(max(means) - min(means), 1e-3 * max(map(abs, means)), 1e-6)
    low = max(min(ends(found, row)[0] for row in rows), min(means) - room)
    high = min(max(ends(found, row)[2] for row in rows), max(means) + room)
    around = 0.04 * (high - low) or 0.05
    return low - around, high + around


def spread_out(wanted: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Places as near as may be to those wanted, at least `gap` apart, between top and bottom where they fit."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    places = [0.0] * len(wanted)
    above = top - gap
    for at in order:
        above = places[at] = max(wanted[at], above + gap)
    below = bottom + gap
    for at in reversed(order):
        below = places[at] = min(places[at], below - gap)
    return places


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a range."""
    raw = (high - low) / most
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [step * at for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def y_axis(found: Comparison, bottom: float, top: float, y, right: float, height: float) -> Markup:
    """Grid, numbers, and what is measured."""
    marks = ticks(bottom, top)
    digits = max(0, -math.floor(math.log10(marks[1] - marks[0]))) if len(marks) > 1 else 3
    lines = [
        piece('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="quiet" x="{}" y="{t}" '
              'text-anchor="end">{}</text>', LEFT, right, LEFT - 8, format_value(one, digits), y=f"{y(one):.1f}",
              t=f"{y(one) + 4:.1f}")
        for one in marks
    ]  # fmt: skip
    better = "higher" if found.measure.sign > 0 else "lower"
    lines.append(piece('<text x="4" y="16">{}, {} is better</text>', found.measure.label, better))
    return joined(lines)


def x_axis(cost: str, low: float, high: float, start: float, right: float, height: float, zero: bool) -> Markup:
    """Numbers in logarithms, 0 apart from them, what is paid, and what the scale is."""
    base, unit = height - BOTTOM, "bytes" if cost.endswith("bytes") else ""
    marks = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in (1, 2, 5)
        if low <= math.log10(factor * 10.0**power) <= high
    ]
    if len(marks) < 3:  # within a decade: more round numbers, still in their logarithmic places
        marks = max(marks, [one for one in ticks(10**low, 10**high, 4) if one > 0], key=len)
    elif len(marks) > 5:
        marks = [one for one in marks if math.log10(one) % 1 < 1e-9] or marks[::3]
    if not marks:
        marks = [float(f"{10 ** ((low + high) / 2):.2g}")]
    marks = marks[:: math.ceil(len(marks) / 5)]
    stretches = [(LEFT, LEFT + ZERO - 7), (LEFT + ZERO, right)] if zero else [(LEFT, right)]  # with a gap beside 0
    lines = [piece('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>', *one, y=base) for one in stretches]
    shown = [(start + (math.log10(one) - low) / (high - low) * (right - start), words(one, unit)) for one in marks]
    if zero:
        apart = [one for one in shown if one[0] > LEFT + ZERO + 14] or shown  # its 0 and a number would touch
        shown = [(LEFT + ZERO / 2, "0"), *apart]
    for place, said in shown:
        lines.append(
            piece('<line class="grid" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="quiet" x="{x}" y="{}" '
                  'text-anchor="middle">{}</text>', base, base + 5, base + 18, said, x=f"{place:.1f}")
        )  # fmt: skip
    name = COSTS[cost].capitalize() + {"train_seconds": ", seconds", "gigabyte_seconds": ", GB·s"}.get(cost, "")
    lines.append(piece('<text x="{}" y="{}">{}</text>', LEFT, height - 26, name))
    lines.append(piece('<text class="quiet" x="{}" y="{}">{}</text>', LEFT, height - 8, scale(zero)))
    return joined(lines)


def scale(zero: bool) -> str:
    """How the axis is to be read."""
    return "Logarithmic scale" + ("; 0 stands apart" if zero else "")


def words(value: float, unit: str) -> str:
    """A number of an axis, short."""
    if unit:
        return format_value(value, 0, unit)
    for size, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if name == 'k' else size):g} {name}"
    return f"{value:g}"


def front_line(places: Sequence[tuple[float, float]]) -> Markup:
    """The front as steps: what one gets for each cost."""
    if len(places) < 2:
        return Markup("")
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
    return piece('<path class="front" d="{}"/>', path)


def point(found: Comparison, row: Row, on_front: bool, x: float, y, place: float, right: float, room: float) -> Markup:
    """A row: interval, marker, and its label at the right with a line that leads to it."""
    low, mean, high = ends(found, row)
    most = int((room - 16) / 6.9)
    label = row.label if len(row.label) <= most else row.label[: most - 1].rstrip() + "…"
    low, high = (min(max(y(end), TOP - 10), 10_000) for end in (low, high))
    return piece(
        '<g><title>{full}: {score}</title><line class="span" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'
        '<path class="lead" d="M{from_} {mid}L{edge} {place}H{end}"/>'
        '<path class="mark{on}" d="{shape}" transform="translate({x} {mid})"/>'
        '<text x="{text}" y="{base}">{label}</text></g>',
        full=row.label, score=format_value(mean, 3), x=f"{x:.1f}", low=f"{low:.1f}", high=f"{high:.1f}",
        from_=f"{x + 8:.1f}", mid=f"{y(mean):.1f}", edge=right - 6, place=f"{place:.1f}", end=right + 2,
        on=" on" if on_front else "", shape=MARKERS[look_of(row.method).marker], text=right + 6,
        base=f"{place + 4:.1f}", label=label,
    )  # fmt: skip
