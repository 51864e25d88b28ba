"""What the figures of the studies share: forests of intervals, series, direct labels, ticks.

Bars are 95 % intervals and small strokes single seeds; a hollow mark has one seed or nothing that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from peftbook.core.records import Record, Store
from peftbook.evidence.chart import spread_out
from peftbook.evidence.comparison import table
from peftbook.evidence.results import quantity
from peftbook.evidence.stats import Interval
from peftbook.studies import Quantity
from peftbook.studies.tuned_comparison import TunedComparison
from peftbook.views.figures.style import SIZE, canvas, colour, finding, name_rows, shade, tag

SMALL = SIZE - 1.5  # the smallest text of these figures
LOSS = "nats per token"
SCORES = {
    "loss": ("Loss, nats per token", "loss_nats", -1),
    "rougeL": ("ROUGE-L, 0–1", "rougeL", 1),
    "bertscore_f1": ("BERTScore F1, 0–1", "bertscore_f1", 1),
}
Points = dict[str, tuple[float, float, str]]  # text → x, y, tone


class ForestRow(NamedTuple):
    """One line of a forest: a value, the ends of its 95 % interval (None where it has none) and its single seeds.

    tone: a name that `style.colour` knows, or a colour.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    seeds: Sequence[float] = ()
    tone: str = "ink"
    marker: str = "o"
    hollow: bool = False


def as_row(label: str, found: Quantity, seeds: Sequence[float] = (), tone: str = "ink", marker: str = "o") -> ForestRow:
    """A quantity as a line of a forest."""
    return ForestRow(label, found.value, found.low, found.high, seeds, tone, marker)


def interval_row(label: str, found: Interval, seeds: Sequence[float] = (), **look: Any) -> ForestRow:
    """A mean with its interval as a line of a forest."""
    return ForestRow(label, found.mean, found.low, found.high, seeds, **look)


def paint(tone: str) -> str:
    """The colour of a tone; a colour is itself."""
    return tone if tone.startswith("#") else colour(tone)


def mark(tone: str, marker: str, *, hollow: bool = False) -> dict[str, Any]:
    """Plot keywords of a mark without a line."""
    return {
        "linestyle": "none",
        "marker": marker,
        "color": paint(tone),
        "markerfacecolor": colour("paper") if hollow else paint(tone),
        "markeredgecolor": paint(tone) if hollow else colour("paper"),
        "markeredgewidth": 1.6 if hollow else 0.8,
    }


def draw_rows(axes: Axes, rows: Sequence[ForestRow], label: str, ticks: int = 0) -> None:
    """A forest: each row's interval, its value and, above them, its seeds. ticks: at most so many steps along x."""
    for at, row in enumerate(rows):
        draw_interval(axes, at, row)
        axes.plot(row.seeds, [at - 0.32] * len(row.seeds), "|", color=paint(row.tone), markersize=6, mew=1.4)
    name_rows(axes, [row.label for row in rows], 0.5, 0.7)
    axes.set_xlabel(label)
    if ticks:
        axes.xaxis.set_major_locator(MaxNLocator(ticks))


def draw_interval(axes: Axes, y: float, row: ForestRow) -> None:
    """A value with its interval at a height."""
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=paint(row.tone), linewidth=2.4, solid_capstyle="butt")
    axes.plot(row.value, y, **mark(row.tone, row.marker, hollow=row.hollow))


def draw_margin(axes: Axes, low: float, high: float, line: float | None = None) -> None:
    """The margin of a claim as a pale band; with it a line where there is no effect."""
    axes.axvspan(low, high, color=colour("fill"), linewidth=0, zorder=0)
    if line is not None:
        axes.axvline(line, color=colour("muted"), linewidth=1.2)


def draw_stacks(
    axes: Axes,
    rows: Sequence[Mapping[str, float]],
    looks: Mapping[str, tuple[str, float, str]],
    *,
    unit: float = 1e9,
    form: str = ".1f",
    places: Sequence[float] = (),
) -> None:
    """A bar a row with its parts side by side and their sum. looks: part → tone, share of it, hatch.  unit: of 1."""
    for place, parts in zip(places or range(len(rows)), rows, strict=True):
        left = 0.0
        for part, size in parts.items():
            tone, share, hatch = looks[part]
            label = part if parts is rows[0] else None
            axes.barh(
                place,
                size / unit,
                0.6,
                left=left,
                label=label,
                color=shade(tone, share),
                hatch=hatch,
                edgecolor=colour("paper"),
                linewidth=0.6,
            )
            left += size / unit
        ground = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 1}  # for a line behind it
        tag(axes, f"{left:{form}}", (left, place), (6, 0), va="center", bbox=ground)


def draw_series(
    axes: Axes, xs: Sequence[float], rows: Sequence[ForestRow], *, line: Any = "-", shift: float = 1.0
) -> None:
    """Values against a logarithmic x, with intervals and seeds; `shift` sets neighbours side by side."""
    tone, x = paint(rows[0].tone), np.asarray(xs) * shift
    axes.plot(x, [row.value for row in rows], color=tone, linestyle=line, linewidth=1.6)
    for at, row in zip(x, rows, strict=True):
        if row.low is not None and row.high is not None:
            axes.plot([at, at], [row.low, row.high], color=tone, linewidth=2.4, solid_capstyle="butt")
        axes.plot([at] * len(row.seeds), row.seeds, "_", color=tone, markersize=8, mew=1.4)
        axes.plot(at, row.value, **mark(row.tone, row.marker))


def draw_quantities(
    axes: Axes, looks: Mapping[str, tuple[Any, ...]], names: Mapping[str, Mapping[int, str]], store: Store
) -> Points:
    """Quantities as series against a logarithmic x. Returns the last point of each, for `label_points`.

    looks: series → label, tone, marker, line and, if not 1, shift.  names: series → x → name of a quantity.
    """
    ends: Points = {}
    for series, (label, tone, marker, line, *shifts) in looks.items():
        rows = [as_row("", quantity(name, store), (), tone, marker) for name in names[series].values()]
        shift = shifts[0] if shifts else 1.0
        draw_series(axes, list(names[series]), rows, line=line, shift=shift)
        ends[label] = max(names[series]) * shift, rows[-1].value, tone
    return ends


def label_points(axes: Axes, points: Points, *, column: float, gap: float = 14) -> None:
    """Direct labels in a column, each with a line to its point, moved apart where they would touch.

    column: where the texts start, as a share of the axes' width.  gap: points between lines of text. The axes' limits
    must be final.
    """
    figure = axes.get_figure(root=True)
    engine = figure.get_layout_engine() if figure else None
    assert figure is not None and engine is not None
    engine.execute(figure)
    scale = figure.dpi / 72
    aims = [axes.transData.transform((x, y))[1] / scale for x, y, _ in points.values()]
    low, high = axes.bbox.y0 / scale + gap / 2, axes.bbox.y1 / scale - gap / 2
    for at, (text, (x, y, tone)) in zip(spread_out(aims, gap, low, high), points.items(), strict=True):
        height = axes.transData.inverted().transform((0, at * scale))[1]
        line = {"arrowstyle": "-", "color": paint(tone), "linewidth": 0.7, "shrinkA": 1, "shrinkB": 6}
        axes.annotate(
            text,
            (x, y),
            xytext=(column, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=paint(tone),
            fontsize=SMALL,
            fontweight="bold",
            arrowprops=line,
        )


def labelled(
    figure: Figure,
    text: str,
    axes: Axes,
    points: Points,
    *,
    column: float,
    gap: float = 14,
    store: Store | None = None,
) -> Figure:
    """The figure with its finding as title and with direct labels, see `finding` and `label_points`."""
    finding(figure, text, store)
    label_points(axes, points, column=column, gap=gap)
    return figure


def mark_key(figure: Figure, axes: Axes, marks: Mapping[str, Mapping[str, Any]], **look: Any) -> None:
    """A legend below the figure. marks: label → plot keywords, as `mark` gives them."""
    handles = [axes.plot([], [], **keywords, label=label)[0] for label, keywords in marks.items()]
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(marks), "handletextpad": 0.2}
    figure.legend(handles=handles, **(place | look))


def note(axes: Axes, text: str, x: float = 0.98, y: float = 0.96, **keywords: Any) -> None:
    """A muted remark inside the axes, upper right unless told."""
    place: dict[str, Any] = {"ha": "right", "va": "top", "transform": axes.transAxes}
    axes.text(x, y, text, **(place | {"fontsize": SMALL, "color": colour("muted")} | keywords))


def per_seed(records: Sequence[Record], score: str) -> list[float]:
    """The test mean of each seed; loss is weighted by label tokens."""
    values = table(records, SCORES[score][1])
    weights = table(records, "label_tokens") if score == "loss" else np.ones_like(values)
    return (values.sum(axis=1) / weights.sum(axis=1)).tolist()


def seed_differences(comparison: TunedComparison, first: str, second: str, store: Store) -> list[float]:
    """Test loss of first − second for each seed; a method without randomness is the same for all."""
    one, two = (per_seed(comparison.finals(name, store), "loss") for name in (first, second))
    return np.subtract(one, two).tolist()


def difference_row(
    label: str, comparison: TunedComparison, first: str, second: str, store: Store, **look: Any
) -> ForestRow:
    """The paired difference of two arms' test losses; without an interval where both are one."""
    if first == second:
        return ForestRow(label, 0.0, **look)
    found = comparison.difference(first, second, "loss_nats", store)
    return interval_row(label, found, seed_differences(comparison, first, second, store), **look)


def score_row(
    label: str, comparison: TunedComparison, arm: str, name: str, store: Store, *look: str, score: str = "loss"
) -> ForestRow:
    """The test score of an arm, which is the quantity `name`, with its seeds. look: tone and marker."""
    return as_row(label, quantity(name, store), per_seed(comparison.finals(arm, store), score), *look)


def plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks of a logarithmic x axis at these values, written out."""
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())


def mosaic(rows: list[list[str]], *, height: float, **grid: Any) -> tuple[Figure, dict[str, Axes]]:
    """A canvas whose axes have names and may span columns."""
    figure, axes = canvas(height=height)
    axes.remove()
    return figure, figure.subplot_mosaic(rows, **grid)


def decimals(axis: Axis, subs: Sequence[float] = (1, 2, 3, 5, 7), *, label: bool = True) -> None:
    """A logarithmic axis with plain decimals, `subs` of them in each decade."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}") if label else NullFormatter())
    axis.set_minor_locator(NullLocator())


def signed(value: float) -> str:
    """A difference with its sign and two significant digits, in plain decimals."""
    digits = max(0, 1 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:+.{digits}f}".replace("-", "−")
