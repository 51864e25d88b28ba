"""Figures of the chapter on forgetting and capacity: what an update costs the old task, and what a rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.results import quantity
from peftbook.studies import forgetting, frontier
from peftbook.views.figures.lora import SMOLLM2
from peftbook.views.figures.parts import (
    LOSS,
    as_row,
    draw_margin,
    draw_rows,
    labelled,
    mark,
    note,
    plain_ticks,
)
from peftbook.views.figures.style import canvas, colour, finding, name_rows, shade
from peftbook.views.figures.updates import PATHS, draw_path

FRONTIERS = {
    "full": ("Full", "full", "s", "-"),
    "lora": ("LoRA", "lora", "o", "-"),
    "oft": ("OFT", "accent", "D", (0, (4, 1.5))),
    "replay": ("LoRA + replay", "lora", "P", (0, (1, 1))),
}
MATCHED = {
    ("lora", "oft"): "LoRA − OFT",
    ("oft", "replay"): "OFT − replay",
    ("lora", "replay"): "LoRA − replay",
    ("full", "lora"): "Full − LoRA",
}


def frontiers(store: Store) -> Figure:
    """Who forgets least for what is learned? General loss against target loss along training, and their differences."""
    figure, (axes, differences) = canvas(2, 1, height=6.8, height_ratios=(1.7, 1))
    ends = {}
    for arm, (label, tone, marker, line) in FRONTIERS.items():
        paths = [paths[arm] for paths in frontier.seed_paths((arm,), store)]
        losses = [one.losses(np.ones(len(one.target_tokens)), np.ones(len(one.general_tokens))) for one in paths]
        gained, forgotten = np.swapaxes(losses, 0, 1)
        ends[label] = draw_path(axes, gained, forgotten, tone, marker, line)
    axes.set(xlabel=f"E2E loss, {LOSS} (learned more →)", ylabel=f"General loss added,\n{LOSS}")
    low, high = axes.get_xlim()
    axes.set_xlim(high, low - 0.4 * (high - low))
    draw_margin(differences, -frontier.MARGIN, frontier.MARGIN, 0)
    rows = [
        as_row(label, quantity(f"frontier.{one}_minus_{other}", store), frontier.seed_differences(one, other, store))
        for (one, other), label in MATCHED.items()
    ]
    draw_rows(
        differences, rows, f"General loss at equal E2E loss, {LOSS}\n(band: margin; right: the second forgets less)"
    )
    text = (
        "At equal E2E loss LoRA with replay forgets {frontier.oft_minus_replay_moved;more|not separably less|less} "
        "than OFT, LoRA alone {frontier.lora_minus_oft_moved;less|not separably less|more}"
    )
    return labelled(figure, text, axes, ends, column=0.74, store=store)


def update_directions(store: Store) -> Figure:
    """How many directions does an update use? Singular directions with 90 % of its energy, a dot a matrix."""
    figure, axes = canvas(height=5.0)
    arms = tuple(forgetting.ARMS)
    for at, arm in enumerate(arms):
        _, tone, marker, _ = PATHS[arm]
        middle = quantity(f"forgetting.{arm}_update_rank", store).value
        ranks = store.need(forgetting.intruder_probe(arm)).per_example["update_rank"]  # of the first seed's matrices
        draw_spread(axes, at, [float(rank) for rank in ranks], middle, tone, marker)
        rank = getattr(forgetting.ARMS[arm][0], "rank", None)
        if rank is not None:
            axes.plot([rank, rank], [at - 0.36, at + 0.36], color=colour(tone), linewidth=2.4)
        found = quantity(f"forgetting.{arm}_intruders", store)
        note(axes, f"{found.value:.0f} new", 1.02, at, transform=axes.get_yaxis_transform(), va="center", ha="left")
    noise = [noise_rank(*sides) for sides in SMOLLM2.linears.values()]
    draw_spread(axes, len(arms), noise, float(np.median(noise)), "muted", "*")
    axes.set_xscale("log")
    plain_ticks(axes, (1, 3, 10, 30, 100, 300))
    name_rows(axes, [*(PATHS[arm][0] for arm in arms), "Noise"], 0.4, 0.6)
    axes.set_xlim(0.8, 620)
    axes.set_xlabel("Directions with 90 % of the update's energy\n(dot: a matrix; large: the median; bar: the rank)")
    full, lora = (f"{{forgetting.{arm}_update_rank;value}}" for arm in ("full_middle", "r64"))
    return finding(figure, f"LoRA's update (r = 64) uses {lora} directions, full fine-tuning's {full}", store)


def draw_spread(axes: Axes, at: float, ranks: Sequence[float], middle: float, tone: str, marker: str) -> None:
    """One row: a dot a matrix, beside each other where they are equal, and their median."""
    lift = at + 0.26 * np.sin(2.4 * np.arange(len(ranks)))
    axes.plot(ranks, lift, "o", markersize=3.5, color=shade(tone, 0.45))
    axes.plot(middle, at, **(mark(tone, marker) | {"markersize": 9}))


@cache
def noise_rank(rows: int, columns: int) -> int:
    """Effective rank of a matrix of independent N(0, 1) entries."""
    from torch import from_numpy

    from peftbook.scratch.forgetting import energy_rank

    return energy_rank(from_numpy(np.random.default_rng(0).standard_normal((min(rows, columns), max(rows, columns)))))
