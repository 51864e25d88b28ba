"""A `Chart` of lines drawn by matplotlib, for pages and files: what the deck has as a native chart is described once.

A figure adds what only it says: a level, a value written beside its point, names at the ends of the lines.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from peftbook.evidence.chart import Chart
from peftbook.views.figures.parts import Points, plain_ticks
from peftbook.views.figures.style import canvas, look

FEW = 9  # values of x that each get a number of their own


def lines(chart: Chart, *, height: float, column: float) -> tuple[Figure, Axes, Points]:
    """A figure of one chart of lines, and the end of each for `label_points` in a column, for which room is left."""
    figure, axes = canvas(height=height)
    ends = draw_lines(axes, chart)
    xs = [x for each in chart.series for x in each.x]
    left, right = (math.log10(end) if "x" in chart.log else end for end in (min(xs), max(xs)))
    edge = left + (right - left) / (column - 0.04)
    axes.set_xlim(right=10**edge if "x" in chart.log else edge)
    return figure, axes, ends


def draw_lines(axes: Axes, chart: Chart) -> Points:
    """Every series with its method's colour, dash and marker. Returns the last point of each."""
    ends: Points = {}
    for series in chart.series:
        style = look(series.look) | ({} if series.marks else {"marker": ""})
        axes.plot(series.x, series.values, label=series.name, **style)
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
