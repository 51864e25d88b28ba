"""Figures of the chapter on combining adapters: what an average keeps, at which scale, and what parabolas say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from peftbook.core.records import Store
from peftbook.evidence.results import quantity
from peftbook.studies import averaging, joint_adapter
from peftbook.studies.averaging import COUNTS, LABELS, LEAST, MARGIN, SCALES
from peftbook.views.figures.parts import (
    ForestRow,
    Points,
    as_row,
    draw_margin,
    draw_rows,
    labelled,
    mark,
    mark_key,
    mosaic,
    plain_ticks,
)
from peftbook.views.figures.style import colour, finding

LOOKS = {  # task → tone, marker, line
    "tickets": ("lora", "o", "-"),
    "sort": ("qlora", "D", (0, (4, 1.5))),
    "e2e": ("full", "s", (0, (1, 1.2))),
    "docstrings": ("prompt", "^", (0, (4, 1.5, 1, 1.5))),
}
LOWEST = -150  # of the axis of shares by scale, %


def kept_rows(task: str, store: Store) -> Iterator[ForestRow]:
    """The shares that averages keep of a task, and hollow that of one adapter trained on all rows, with their seeds."""
    for cell in averaging.CELLS:
        if cell.task == task:
            others = [LABELS[other] for other in cell.subset if other != task]
            label = f"{LABELS[task]}, all four" if len(others) > 1 else f"{LABELS[task]} with {others[0]}"
            state, name = f"{'+'.join(cell.subset)}_average", f"averaging.{cell.name}_average_kept"
            seeds = 100 * averaging.share_replicates(averaging.records_of(store), task, state)[0]
            yield as_row(label, quantity(name, store), seeds.tolist(), *LOOKS[task][:2])
    seeds = 100 * averaging.share_replicates(joint_adapter.records_of(store), task, "joint")[0]
    found = quantity(f"joint_adapter.{task}_kept", store)
    yield as_row(f"{LABELS[task]}, jointly", found, seeds.tolist(), *LOOKS[task][:2])._replace(hollow=True)


def kept_by_average(store: Store) -> Figure:
    """What does an average keep of each task's gain? Three pairs, the four, and one adapter on all rows; docstrings by
    themselves.
    """
    figure, axes = mosaic([["most"], ["docstrings"]], height=8.6, height_ratios=(15, 5.6))
    parts = {
        "most": [row for task in LOOKS if task != "docstrings" for row in kept_rows(task, store)],
        "docstrings": list(kept_rows("docstrings", store)),
    }
    for name, some in parts.items():
        draw_margin(axes[name], 100 * (LEAST - MARGIN), 100 * (LEAST + MARGIN), 100 * LEAST)
        axes[name].axvline(0, color=colour("muted"), linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=0)
        draw_rows(axes[name], some, "")
    axes["docstrings"].set_xlabel(
        "Kept of the gain of the task's own adapter, %\n(line and band: the claim and its margin)"
    )
    text = (
        "Averaging four adapters {averaging.four_docstrings_average_kept;harms|may harm|helps} docstrings "
        "and keeps {averaging.four_sort_average_kept;value} of sorting's gain"
    )
    return finding(figure, text, store)


def kept_by_scale(store: Store) -> Figure:
    """At which scale does a sum keep most? The share of each task on validation rows, for pairs and for the four."""
    figure, axes = mosaic([["two", "four"]], height=4.4, sharey=True)
    records, scales, ends = averaging.records_of(store), np.array(SCALES["sum"]), Points()
    others: dict[str, list[np.ndarray]] = {name: [] for name in COUNTS}
    for name, count in COUNTS.items():
        for task, (tone, marker, line) in LOOKS.items():
            curves = 100 * averaging.scale_curve(records, "sum", count, task)
            others[name] += [curves.mean(axis=0)] if task != "docstrings" else []
            axes[name].plot(scales, curves.T, color=colour(tone), linewidth=0.7, alpha=0.5)
            axes[name].plot(scales, curves.mean(axis=0), **(mark(tone, marker) | {"linestyle": line}))
            if name == "two":
                ends[LABELS[task]] = (scales[0], max(curves.mean(axis=0)[0], LOWEST + 20), tone)
        axes[name].axvline(1 / count, color=colour("muted"), linewidth=1, linestyle=(0, (1, 1.5)), zorder=0)
        axes[name].axhline(100, color=colour("rule"), linewidth=1, zorder=0)
        axes[name].axhline(0, color=colour("rule"), linewidth=1, zorder=0)
        axes[name].set(xscale="log", xlabel=f"Scale λ, {name} adapters\n(dotted: 1/k, the average)")
        plain_ticks(axes[name], SCALES["sum"][::2])
    axes["two"].set_ylabel("Kept of the gain, %,\non validation rows")
    axes["two"].set_ylim(LOWEST, 125)
    axes["two"].set_xlim(left=0.07)
    best = {name: scales[np.mean(rows, axis=0).argmax()] for name, rows in others.items()}
    text = f"Apart from docstrings a sum keeps most at λ = {best['two']:g} for two adapters, {best['four']:g} for four"
    return labelled(figure, text, axes["two"], ends, column=0.03)


def halfway_by_parabola(store: Store) -> Figure:
    """Does a parabola foretell an average? The share that an average of two keeps against (3 + s) / 4, task by task."""
    figure, axes = mosaic([["most", "docstrings"]], height=4.0)
    more: list[bool] = []
    for task, (tone, marker, _) in LOOKS.items():
        part = axes["docstrings" if task == "docstrings" else "most"]
        cells = [cell for cell in averaging.cells_of(2) if cell.task == task]
        told = [quantity(f"averaging.{cell.name}_parabola", store).value for cell in cells]
        for x, cell in zip(told, cells, strict=True):
            row = as_row("", quantity(f"averaging.{cell.name}_average_kept", store), (), tone, marker)
            more.append((row.low or row.value) > x)
            part.plot([x, x], [row.low or row.value, row.high or row.value], color=colour(tone), linewidth=2.4)
            part.plot(x, row.value, **mark(tone, marker))
    for part in axes.values():
        ends = [min(part.get_xlim()[0], part.get_ylim()[0]), max(part.get_xlim()[1], part.get_ylim()[1])]
        part.plot(ends, ends, color=colour("muted"), linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=0)
        part.set(xlim=ends, ylim=ends, xlabel="By the parabola, %")
        part.xaxis.set_major_locator(MaxNLocator(4))
    axes["most"].set_ylabel("Kept by the average of two, %")
    mark_key(figure, axes["most"], {LABELS[task]: mark(tone, marker) for task, (tone, marker, _) in LOOKS.items()})
    return finding(figure, f"In {sum(more)} of {len(more)} cases an average keeps more than the parabola says")
