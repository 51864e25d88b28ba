"""A `Chart` drawn by matplotlib, for pages and files: what the deck has as a native chart is described once for both.

A figure adds what only it says: a level, a value written beside its point, names at the ends of the lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from peftbook.evidence.chart import Chart, Series
from peftbook.views.figures.parts import Points, draw_stacks, plain_ticks
from peftbook.views.figures.style import canvas, colour, look, name_rows

FEW = 9  # values of x that each get a number of their own
HATCHES = ("", "///", "")


def lines(chart: Chart, *, height: float, column: float = 0.0) -> tuple[Figure, Axes, Points]:
    """A figure of one chart of lines, and the end of each for `label_points` in a column, for which room is left."""
    figure, axes = canvas(height=height)
    ends = draw_lines(axes, chart)
    if column:
        left, right = (math.log10(end) if "x" in chart.log else end for end in reach(chart.series))
        edge = left + (right - left) / (column - 0.04)
        axes.set_xlim(right=10**edge if "x" in chart.log else edge)
    return figure, axes, ends


def reach(series: Sequence[Series]) -> tuple[float, float]:
    """The least and the largest x."""
    xs = [x for each in series for x in each.x]
    return min(xs), max(xs)


def draw_lines(axes: Axes, chart: Chart) -> Points:
    """Every series with its method's colour, dash and marker, and its intervals. Returns the last point of each."""
    ends: Points = {}
    for series in chart.series:
        style = look(series.look, line=series.line) | ({} if series.marks else {"marker": ""})
        axes.plot(series.x, series.values, label=series.name, **style)
        for x, span in zip(series.x, series.spread, strict=False):
            axes.plot([x, x], span, color=colour(series.look), linewidth=2.4, solid_capstyle="butt")
        ends[series.name] = series.x[-1], series.values[-1], series.look
    for axis in chart.log:
        axes.set(**{f"{axis}scale": "log"})
    xs = sorted({x for each in chart.series for x in each.x})
    if "x" in chart.log and len(xs) <= FEW:
        plain_ticks(axes, [int(x) if x == int(x) else x for x in xs])
    if chart.number_format == "#,##0":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=chart.x_title, ylabel=chart.y_title, ylim=chart.y_range)
    return ends


def draw_bars(axes: Axes, chart: Chart) -> None:
    """Bars of the categories: upright, or lying and stacked with the sum beside each; one look a series, or a bar."""
    if not chart.horizontal:
        (series,) = chart.series
        places, width = range(len(chart.categories)), 100 / (100 + chart.gap)
        tones = chart.point_looks or [series.look] * len(places)
        axes.bar(places, series.values, width, color=[colour(tone) for tone in tones])
        axes.set_xticks(places, chart.categories)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel=chart.x_title, ylabel=chart.y_title, ylim=chart.y_range)
        return
    looks = {series.name: (series.look, 0.8, hatch) for series, hatch in zip(chart.series, HATCHES, strict=False)}
    values = zip(*(series.values for series in chart.series), strict=True)
    rows = [dict(zip(looks, row, strict=True)) for row in values]
    draw_stacks(axes, rows, looks, unit=1)
    name_rows(axes, chart.categories)
    axes.set(xlabel=chart.y_title, ylabel=chart.x_title, xlim=(0, 1.12 * max(sum(row.values()) for row in rows)))
