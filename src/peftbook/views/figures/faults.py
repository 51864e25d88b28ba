"""Figures of the chapter on what goes wrong: curves, answers and checks of runs with a fault, beside those without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.core.records import Record, Store
from peftbook.evidence.results import quantity
from peftbook.scratch.checks import means
from peftbook.studies import faults
from peftbook.views.figures.parts import SMALL, as_row, decimals, draw_interval, mark, mark_key
from peftbook.views.figures.style import canvas, colour, finding, name_rows, shade

FAULTY, SOUND = "qlora", "muted"
CHECKS = {
    "outweighs": "update over weights", "remaining": "loss that remains", "stuck": "values that stay",
    "unended": "rows without an end", "stray": "graded beyond answers", "shared": "test inputs in training",
    "risen": "held-out loss rises", "unlike": "prompts unlike training", "doubled": "turns doubled",
}  # fmt: skip


def over_seeds(records: Sequence[Record], name: str) -> np.ndarray:
    """A curve's mean over seeds, whose runs may differ by some steps."""
    curves = [record.curve[name] for record in records]
    return np.mean([curve[: min(map(len, curves))] for curve in curves], axis=0)


def draw_curves(axes: Axes, records: Sequence[Record], tone: str) -> None:
    """Training loss as a line, of five steps, and the loss on held-out rows as marks."""
    smooth = means(over_seeds(records, "train_loss_nats").tolist())
    axes.plot(np.arange(len(smooth)) + 3, smooth, color=colour(tone), linewidth=1.4)
    steps, held_out = (over_seeds(records, name) for name in ("checked_step", "validation_loss_nats"))
    axes.plot(steps, held_out, **(mark(tone, "o", hollow=True) | {"markersize": 4.5, "markeredgewidth": 1.1}))


def fault_curves(store: Store) -> Figure:
    """What does the loss show of each fault? Training and held-out loss by step, beside the same run without it."""
    figure, grid = canvas(3, 3, height=6.6, sharey=True)
    large = [name for name in faults.FAULTY if name not in faults.SMALLER]
    for axes, name in zip(grid.flat, large, strict=True):
        arm = faults.ARMS[name]
        draw_curves(axes, faults.records_of(arm.twin, store), SOUND)
        draw_curves(axes, faults.records_of(name, store), FAULTY)
        axes.set_yscale("log")
        decimals(axes.yaxis, (1, 3))
        axes.set_title(arm.label, fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
    grid[1, 0].set_ylabel("Loss, nats per token")
    grid[2, 1].set_xlabel("Step")
    marks = {
        "with the fault, training": {"color": colour(FAULTY)},
        "without, training": {"color": colour(SOUND)},
        "held out": mark("ink", "o", hollow=True),
    }
    mark_key(figure, grid[0, 0], marks, columnspacing=1.2, handletextpad=0.4)
    text = (
        "Masking the end costs {silent_faults.end_masked_cost;value} of answers at a training loss "
        "{silent_faults.end_masked_excess;below|not separable from|above} the sound one"
    )
    return finding(figure, text, store)


def fault_answers(store: Store) -> Figure:
    """What does each fault cost? The share of right answers on test rows, with its interval."""
    figure, axes = canvas(height=4.8)
    for at, name in enumerate(faults.ARMS):
        row = as_row("", quantity(f"faults.{name}_right", store), (), FAULTY if name in faults.FAULTY else SOUND)
        draw_interval(axes, at, row)
    name_rows(axes, [arm.label for arm in faults.ARMS.values()], 0.5, 0.7)
    axes.set(xlabel="Right answers, %", xlim=(-3, 103))
    none = [arm.label for name, arm in faults.ARMS.items() if not quantity(f"faults.{name}_right", store).high]
    return finding(figure, f"{len(none)} of {len(faults.FAULTY)} faults leave not one right answer")


def fault_checks(store: Store) -> Figure:
    """Which check sees which fault? For each run the checks that say that something is wrong."""
    figure, axes = canvas(height=5.2)
    own: list[bool] = []
    for row, (name, arm) in enumerate(faults.ARMS.items()):
        for column, check in enumerate(faults.BOUNDS):
            records = faults.records_of(name, store)
            seen = sum(faults.sees(record, check) for record in records) / len(records)
            own += [faults.sees(record, check) for record in records] if check == arm.check else []
            if check == arm.check:
                axes.plot(column, row, **(mark("ink", "s", hollow=True) | {"markersize": 15}))
            if seen:
                axes.plot(column, row, **(mark(FAULTY, "o") | {"color": shade(FAULTY, seen), "markersize": 9}))
    axes.set_xticks(range(len(CHECKS)), list(CHECKS.values()), rotation=40, ha="right", fontsize=SMALL)
    axes.set_xlim(-0.6, len(CHECKS) - 0.4)
    name_rows(axes, [arm.label for arm in faults.ARMS.values()], 0.5, 0.6)
    return finding(figure, f"{sum(own)} of {len(own)} faulty runs are seen by their own check")
