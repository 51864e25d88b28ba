"""Native charts: a `Chart` as a PowerPoint chart whose data can be edited."""

from __future__ import annotations

import math
from typing import Any

from lxml import etree
from pptx.chart.data import CategoryChartData, XyChartData
from pptx.enum.chart import (
    XL_CHART_TYPE,
    XL_LEGEND_POSITION,
    XL_MARKER_STYLE,
    XL_TICK_LABEL_POSITION,
    XL_TICK_MARK,
)
from pptx.enum.dml import MSO_LINE
from pptx.oxml.ns import qn
from pptx.util import Inches, Pt

from peftbook.evidence.chart import Chart, Series
from peftbook.methods import arm_looks
from peftbook.views.figures.style import PAPER, mixed
from peftbook.views.slides.template import FONT, INK, MUTED, RULE, SMALL, rgb

NATIVE = {  # PowerPoint's marker → matplotlib's that it stands for
    XL_MARKER_STYLE.CIRCLE: "ohH8",
    XL_MARKER_STYLE.SQUARE: "s",
    XL_MARKER_STYLE.DIAMOND: "Dd",
    XL_MARKER_STYLE.TRIANGLE: "^<>",
    XL_MARKER_STYLE.X: "v",
    XL_MARKER_STYLE.PLUS: "XP",
    XL_MARKER_STYLE.STAR: "p*",
}
MARKERS = {marker: native for native, markers in NATIVE.items() for marker in markers}
LIGHT = 0.4  # of a bar's colour
DASHES = {
    "-": MSO_LINE.SOLID,
    (0, (4, 1.5)): MSO_LINE.DASH,
    (0, (5, 1.2, 1, 1.2)): MSO_LINE.LONG_DASH_DOT,
    (0, (1, 1)): MSO_LINE.ROUND_DOT,
    ":": MSO_LINE.ROUND_DOT,
}


def add_chart(slide: Any, chart: Chart, name: str, alt: str, box: tuple[float, float, float, float]) -> None:
    """Put a native chart into a box (left, top, width, height in inches)."""
    data: Any
    if chart.categories:
        data = CategoryChartData()
        upwards = -1 if chart.horizontal else 1  # horizontal bars are drawn from below
        data.categories = chart.categories[::upwards]
        for bars in chart.series:
            data.add_series(bars.name, bars.values[::upwards])
        kind = XL_CHART_TYPE.COLUMN_CLUSTERED
        if chart.horizontal:
            kind = XL_CHART_TYPE.BAR_STACKED if chart.stacked else XL_CHART_TYPE.BAR_CLUSTERED
    else:
        data = XyChartData()
        for line in chart.series:
            series = data.add_series(line.name)
            for x, y in zip(line.x, line.values, strict=True):
                series.add_data_point(x, y)
        kind = XL_CHART_TYPE.XY_SCATTER_LINES
    frame = slide.shapes.add_chart(kind, *(Inches(value) for value in box), data)
    frame.name = f"Chart {name}"
    frame._element.nvGraphicFramePr.cNvPr.set("descr", alt)
    native = frame.chart
    native.font.size, native.font.name, native.font.color.rgb = Pt(SMALL), FONT, rgb(INK)
    native.has_title = False
    native.has_legend = len(chart.series) > 1
    if native.has_legend:
        native.legend.position, native.legend.include_in_layout = XL_LEGEND_POSITION.BOTTOM, False
        native.legend.font.size = Pt(SMALL)
    spread = any(series.spread for series in chart.series)
    y_range, step = seen(chart) if spread else (chart.y_range, None)
    axes = (
        (native.category_axis, chart.x_title, chart.x_range, chart.x_format, "x"),
        (native.value_axis, chart.y_title, y_range, chart.number_format, "y"),
    )
    for axis, title, (low, high), number_format, letter in axes:
        apart = letter == "y" and not chart.categories and number_format != "General"
        format_axis(axis, title, number_format + '" "' * apart, grid=letter == "y" or not chart.categories)
        if letter == "x" and chart.categories:
            continue
        axis.minimum_scale, axis.maximum_scale = low, high
        if letter in chart.log:
            axis._element.find(qn("c:scaling")).insert(0, etree.Element(qn("c:logBase"), val=str(chart.log[letter])))
            axis.major_unit = chart.log[letter]
        elif letter == "y":
            axis.major_unit = step
    if chart.log:
        for cross in native._chartSpace.iter(qn("c:crosses")):
            cross.set("val", "min")
    if chart.categories:
        format_bars(native, chart)
    else:
        format_lines(native, chart)


def seen(chart: Chart) -> tuple[tuple[float, float], float]:
    """A range of round numbers that shows every interval, which programs leave out, and the step between its ticks."""
    values = [end for series in chart.series for pair in series.spread for end in pair]
    low, high = min(*values, 0.0), max(*values, 0.0)
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 7)
    return (math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step), step


def format_axis(axis: Any, title: str, number_format: str, grid: bool) -> None:
    axis.has_title = bool(title)
    if title:
        axis.axis_title.text_frame.text = title
        run = axis.axis_title.text_frame.paragraphs[0].runs[0].font
        run.size, run.bold, run.color.rgb, run.name = Pt(SMALL), False, rgb(INK), FONT
    axis.has_major_gridlines = grid
    if grid:
        axis.major_gridlines.format.line.color.rgb = rgb(RULE)
        axis.major_gridlines.format.line.width = Pt(0.75)
    axis.format.line.color.rgb = rgb(MUTED)
    axis.major_tick_mark = axis.minor_tick_mark = XL_TICK_MARK.NONE
    axis.tick_labels.font.size = Pt(SMALL)
    if number_format != "General":
        axis.tick_labels.number_format, axis.tick_labels.number_format_is_linked = number_format, False


def format_bars(native: Any, chart: Chart) -> None:
    """Colours, gaps and error bars."""
    plot = native.plots[0]
    plot.gap_width = chart.gap
    if not chart.stacked:
        plot.overlap = -5
    native.category_axis.tick_label_position = XL_TICK_LABEL_POSITION.LOW  # beside the plot, not on negative bars
    upwards = -1 if chart.horizontal else 1
    for series, ours in zip(plot.series, chart.series, strict=True):
        series.invert_if_negative = False
        paint(series.format, arm_looks()[ours.look or "lora"].light, light=bool(ours.spread))
        for at, look in enumerate(chart.point_looks[::upwards]):
            paint(series.points[at].format, arm_looks()[look].light, light=bool(ours.spread))
        for index in series._element.xpath("c:dPt/c:idx"):
            index.addnext(etree.Element(qn("c:invertIfNegative"), val="0"))  # else negative bars lose their colour
        if ours.spread:
            add_error_bars(series._element, ours, upwards)


def paint(target: Any, colour: str, *, light: bool) -> None:
    """A bar in a colour; light, with an edge in the full colour, where an interval must be seen upon it."""
    target.fill.solid()
    target.fill.fore_color.rgb = rgb(mixed(colour, PAPER["light"], LIGHT) if light else colour)
    if light:
        target.line.color.rgb, target.line.width = rgb(colour), Pt(1.5)


def add_error_bars(element: Any, series: Series, order: int) -> None:
    """Custom error bars from the interval of each value; the ends are stored as distances. order: −1 from the last."""
    plus = [high - value for value, (_, high) in zip(series.values, series.spread, strict=True)][::order]
    minus = [value - low for value, (low, _) in zip(series.values, series.spread, strict=True)][::order]
    bars = etree.Element(qn("c:errBars"))
    for tag, setting in (("errBarType", "both"), ("errValType", "cust"), ("noEndCap", "0")):
        etree.SubElement(bars, qn(f"c:{tag}"), val=setting)
    for tag, values in (("plus", plus), ("minus", minus)):
        literal = etree.SubElement(etree.SubElement(bars, qn(f"c:{tag}")), qn("c:numLit"))
        etree.SubElement(literal, qn("c:formatCode")).text = "General"
        etree.SubElement(literal, qn("c:ptCount"), val=str(len(values)))
        for at, value in enumerate(values):
            point = etree.SubElement(literal, qn("c:pt"), idx=str(at))
            etree.SubElement(point, qn("c:v")).text = repr(float(value))
    shape = etree.SubElement(bars, qn("c:spPr"))
    line = etree.SubElement(shape, qn("a:ln"), w=str(Pt(2)))
    solid = etree.SubElement(line, qn("a:solidFill"))
    etree.SubElement(solid, qn("a:srgbClr"), val=INK[1:].upper())
    element.find(qn("c:cat")).addprevious(bars)


def format_lines(native: Any, chart: Chart) -> None:
    """Each line in its method's colour, dash and marker; no smoothing between points."""
    for series, ours in zip(native.plots[0].series, chart.series, strict=True):
        look = arm_looks()[ours.look]
        series.smooth = False
        line = series.format.line
        line.color.rgb, line.width, line.dash_style = rgb(look.light), Pt(2.75), DASHES[look.line]
        if not ours.marks:
            series.marker.style = XL_MARKER_STYLE.NONE
            continue
        series.marker.style, series.marker.size = MARKERS[look.marker], 10
        series.marker.format.fill.solid()
        series.marker.format.fill.fore_color.rgb = rgb(look.light)
        series.marker.format.line.color.rgb = rgb(PAPER["light"])
