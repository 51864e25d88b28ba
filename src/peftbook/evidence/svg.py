"""A chart as inline SVG in the colours and the type of the page that holds it, legible without colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from peftbook.evidence.chart import Chart, Series, spread_out

APART = 34  # pixels for what is 0 on a logarithmic axis
ROUND = "M-3 0A3 3 0 1 1 3 0A3 3 0 1 1-3 0Z"  # a mark without a shape of its own
CHAR = 6.9  # pixels of a letter in a label


@dataclass(frozen=True)
class Frame:
    """The size of a drawing in CSS pixels and what is left around its axes; labels: room for names on the right."""

    width: float
    height: float
    left: float = 52
    right: float = 12
    top: float = 14
    bottom: float = 40
    labels: float = 0

    @property
    def end(self) -> float:
        """Where the axes end on the right."""
        return self.width - self.right - self.labels

    @property
    def base(self) -> float:
        """Where they end below."""
        return self.height - self.bottom


@dataclass(frozen=True)
class Scale:
    """From values to pixels: `low` is at `start`, `high` at `end`; in logarithms with `log`, what is 0 at `zero`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: float | None = None

    def __call__(self, value: float) -> float:
        if self.zero is not None and value <= 0:
            return self.zero
        low, high, at = (math.log10(end) if self.log else end for end in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def round_numbers(self, count: int) -> list[float]:
        """About `count` round numbers."""
        return log_ticks(self.low, self.high, count) if self.log else ticks(self.low, self.high, count)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers inside [low, high], ascending."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    return [step * at for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers inside [low, high], powers of ten where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [mark for power in powers for factor in (1, 2, 5) if low <= (mark := factor * 10.0**power) <= high]
    if len(marks) < 3:  # within a decade: more round numbers, still in their logarithmic places
        marks = max(marks, [mark for mark in ticks(low, high, 4) if mark > 0], key=len)
    elif len(marks) > most:
        marks = [mark for mark in marks if math.log10(mark) % 1 < 1e-9] or marks[::3]
    return (marks or [float(f"{math.sqrt(low * high):.2g}")])[:: math.ceil(len(marks) / most) or 1]


def svg(
    chart: Chart,
    frame: Frame,
    kind: str,
    *,
    shapes: Mapping[str, str] | None = None,
    words: Callable[[float], str] = "{:g}".format,
) -> str:
    """Lines and marks over x, `kind` being the drawing's class; empty where nothing is finite.

    shapes: look → the path of its marks around 0.  words: a number of the x axis.  What is 0 stands apart on a
    logarithmic x axis. Values that are not finite are left out.
    """
    series = [drawn for each in chart.series if (drawn := finite(each)).values]
    if not series:
        return ""
    down = Scale(*axis_range(chart.y_range, [value for each in series for value in each.values]), frame.base, frame.top)
    across = x_scale(chart, [x for each in series for x in each.x], frame)
    parts = [*y_axis(chart, down, frame), *x_axis(chart, across, frame, words)]
    parts += [line(each, across, down) for each in series if each.line and len(each.values) > 1]
    parts += marks([each for each in series if each.marks], across, down, frame, shapes or {})
    size = f'viewBox="0 0 {frame.width:g} {frame.height:g}" width="{frame.width:g}" height="{frame.height:g}"'
    return f'<svg class="{kind}" {size} role="img" aria-label="{escape(chart.alt)}">{"".join(parts)}</svg>'


def finite(series: Series) -> Series:
    """The series without the points that cannot be placed."""
    kept = [at for at, pair in enumerate(zip(series.x, series.values, strict=True)) if all(map(math.isfinite, pair))]
    x, values = ([column[at] for at in kept] for column in (series.x, series.values))
    return replace(series, x=x, values=values, spread=[series.spread[at] for at in kept] if series.spread else [])


def axis_range(ends: tuple[float | None, float | None], values: Sequence[float]) -> tuple[float, float]:
    """The range that a chart asks for, else that of the values, half a unit around a single one."""
    low, high = min(values), max(values)
    low, high = (end if end is not None else own for end, own in zip(ends, (low, high), strict=True))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def x_scale(chart: Chart, xs: Sequence[float], frame: Frame) -> Scale:
    """The range that is asked for, else that of all x; logarithmic with some room and with 0 apart."""
    if "x" not in chart.log:
        return Scale(*axis_range(chart.x_range, xs), frame.left, frame.end)
    positive = [x for x in xs if x > 0] or [1.0]
    room = 10 ** max(0.06 * math.log10(max(positive) / min(positive)), 0.08)
    zero = frame.left + APART / 2 if min(xs) <= 0 else None
    start = frame.left + (10 if zero is None else APART)
    return Scale(min(positive) / room, max(positive) * room, start, frame.end, True, zero)


def y_axis(chart: Chart, down: Scale, frame: Frame) -> Iterator[str]:
    """Grid, numbers, and what is measured."""
    at = down.round_numbers(max(3, round((frame.base - frame.top) / 48)))
    digits = max(0, -math.floor(math.log10(at[1] - at[0]) + 1e-9)) if len(at) > 1 else None
    for tick in at:
        y, number = down(tick), (f"{tick:g}" if digits is None else f"{tick:,.{digits}f}").replace("-", "−")
        yield f'<line class="grid" x1="{frame.left:g}" x2="{frame.end:g}" y1="{y}" y2="{y}"/>'
        yield f'<text class="quiet" x="{frame.left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{number}</text>'
    if chart.y_title:
        yield f'<text x="4" y="16">{escape(chart.y_title)}</text>'


def x_axis(chart: Chart, across: Scale, frame: Frame, words: Callable[[float], str]) -> Iterator[str]:
    """Numbers, 0 apart from those of a logarithmic axis, what is paid or passes, and how the axis is to be read."""
    most = 5 if across.log else max(2, round((frame.end - frame.left) / 95))
    shown = [(across(tick), words(tick)) for tick in across.round_numbers(most)]
    stretches = [(frame.left, frame.end)]
    if across.zero is not None:
        stretches = [(frame.left, frame.left + APART - 7), (frame.left + APART, frame.end)]  # a gap beside 0
        rest = [one for one in shown if one[0] > frame.left + APART + 14] or shown  # its 0 and a number would touch
        shown = [(across.zero, "0"), *rest]
    base = frame.base
    for start, end in stretches:
        yield f'<line class="grid" x1="{start:g}" x2="{end:g}" y1="{base:g}" y2="{base:g}"/>'
    for x, said in shown:
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{base:g}" y2="{base + 5:g}"/>'
        yield f'<text class="quiet" x="{x}" y="{base + 18:g}" text-anchor="middle">{escape(said)}</text>'
    lines = [("", chart.x_title), *([(' class="quiet"', chart.note)] if chart.note else [])]
    for above, (tone, said) in enumerate(reversed(lines)):
        yield f'<text{tone} x="{frame.left:g}" y="{frame.height - 6 - 18 * above:g}">{escape(said)}</text>'


def line(series: Series, across: Scale, down: Scale) -> str:
    """A series as a line, or as steps."""
    points = [(across(x), down(y)) for x, y in zip(series.x, series.values, strict=True)]
    if series.steps:
        path = f"M{points[0][0]} {points[0][1]}" + "".join(f"H{x}V{y}" for x, y in points[1:])
        return f'<path class="front" d="{path}"/>'
    return f'<polyline class="line" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def marks(series: Sequence[Series], across: Scale, down: Scale, frame: Frame, shapes: Mapping[str, str]) -> list[str]:
    """Intervals and marks; each series of one point with its name on the right, where there is room for labels."""
    wanted = [down(each.values[0]) for each in series]
    places = spread_out(wanted, 17, frame.top, frame.base) if frame.labels else wanted
    return [
        "<g>"
        + "".join(mark(each, across, down, shapes.get(each.look, ROUND)))
        + (label(each.name, across(each.x[0]), down(each.values[0]), place, frame) if frame.labels else "")
        + "</g>"
        for each, place in zip(series, places, strict=True)
    ]


def mark(series: Series, across: Scale, down: Scale, shape: str) -> Iterator[str]:
    """Interval and mark of each point of a series."""
    spread: Sequence[tuple[float, float] | None] = series.spread or [None] * len(series.values)
    filled = " on" if series.solid else ""
    for x, y, ends in zip(map(across, series.x), series.values, spread, strict=True):
        yield f"<title>{escape(series.name)}: {y:.3f}</title>"
        if ends is not None:
            low, high = (max(down(end), down.end - 10) for end in ends)
            yield f'<line class="span" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'
        yield f'<path class="mark{filled}" d="{shape}" transform="translate({x} {down(y)})"/>'


def label(name: str, x: float, y: float, place: float, frame: Frame) -> str:
    """A name in the column on the right, with a line that leads to it from its mark."""
    most = int((frame.labels + frame.right - 16) / CHAR)
    short = name if len(name) <= most else name[: most - 1].rstrip() + "…"
    lead = f"M{x + 8:.1f} {y}L{frame.end - 6:g} {place:.1f}H{frame.end + 2:g}"
    text = f'<text x="{frame.end + 6:g}" y="{place + 4:.1f}">{escape(short)}</text>'
    return f'<path class="lead" d="{lead}"/>{text}'
