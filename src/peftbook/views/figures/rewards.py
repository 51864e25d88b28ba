"""Figures of the chapter on preferences and rewards: what each arm learned from the reward of its own answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from peftbook.core.records import Record, Store
from peftbook.evidence.comparison import table
from peftbook.evidence.results import quantity
from peftbook.scratch.checks import means
from peftbook.studies import reward_rank
from peftbook.views.figures.parts import SMALL, Points, as_row, draw_margin, draw_rows, labelled
from peftbook.views.figures.style import canvas, colour, shade

LOOKS = {
    "full": ("Full", "full", "s", "-"),
    "rank16": ("LoRA, r = 16", "prompt", "^", (0, (4, 1.5))),
    "rank1": ("LoRA, r = 1", "lora", "o", "-"),
}
WINDOW = 5  # steps that a point of a curve is the mean of


def moved(after: Sequence[Record], before: Sequence[Record], column: str) -> list[float]:
    """Each seed's share of the test lists that are right in `after` minus that in a column of `before`."""
    one, two = table(after, "exact"), table(before, column)
    return (one - two).mean(axis=1).tolist()


def reward_learning(store: Store) -> Figure:
    """Is rank 1 enough to learn from a reward? Right answers by step as they are drawn, and the gain on tests."""
    figure, (left, right) = canvas(1, 2, height=3.9)
    ends: Points = {}
    rows = []
    finals = {arm: reward_rank.finals(arm, store) for arm in LOOKS}
    for arm, (label, tone, marker, line) in LOOKS.items():
        records = finals[arm]
        curves = np.array([means(record.curve["reward"], WINDOW) for record in records])
        steps = np.arange(curves.shape[1]) + (WINDOW + 1) / 2
        for curve in curves:
            left.plot(steps, curve, color=shade(tone, 0.35), linewidth=0.8)
        left.plot(steps, curves.mean(axis=0), color=colour(tone), linewidth=2.0, linestyle=line)
        ends[label] = (steps[-1], curves[:, -1].mean(), tone)
        gain = quantity(f"reward_rank.{arm}_gain", store)
        rows.append(as_row(f"{label}\nminus start", gain, moved(records, records, "start_exact"), tone, marker))
    between = quantity("reward_rank.rank1_minus_full", store)
    rows.append(as_row("r = 1\nminus full", between, moved(finals["rank1"], finals["full"], "exact"), "ink", "D"))
    left.set(
        xlabel="Step", ylabel="Drawn answers right, 0–1", xlim=(0, reward_rank.SETTINGS["steps"] * 1.8), ylim=(0, None)
    )
    left.set_xticks(np.arange(0, reward_rank.SETTINGS["steps"] + 1, 20))
    draw_margin(right, -reward_rank.MARGIN, 0.0, line=0.0)
    draw_rows(right, rows, "Difference in share", ticks=4)
    for axes in (left, right):
        axes.tick_params(labelsize=SMALL)
    small, full = (f"{{reward_rank.rank1_minus_{arm};less than|not separably less than|more than}}"
                   for arm in ("rank16", "full"))  # fmt: skip
    text = f"Rank 1 learns {small} rank 16 from a reward, {full} all weights"
    return labelled(figure, text, left, ends, column=0.62, store=store)
