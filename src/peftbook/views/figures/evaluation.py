"""Figures of the chapter on evaluation: what several tries are worth, and what the plug-in misses."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.studies import tries
from peftbook.views.figures.parts import SMALL, Points, label_points, plain_ticks
from peftbook.views.figures.style import canvas, colour, finding, shade

LOOKS = {"cold": ("prompt", (0, (4, 1.5))), "hot": ("lora", "-")}


def several_tries(store: Store) -> Figure:
    """What is a second try worth? pass@k of sampled queries at two temperatures, and the plug-in from as many."""
    figure, axes = canvas(1, 2, height=3.9, sharey=True)
    records, ks = tries.records_of(store), range(1, tries.SAMPLES + 1)
    ends: dict[str, Points] = {}
    for part, name in zip(axes, LOOKS, strict=True):
        tone, line = LOOKS[name]
        curves = np.array([tries.of_questions(records, "pass", name, k).mean(axis=1) for k in ks])
        naive = np.array([tries.of_questions(records, "plug_in", name, k).mean() for k in ks])
        part.plot(ks, curves, color=shade(tone, 0.35), linewidth=0.8)
        part.plot(ks, curves.mean(axis=1), color=colour(tone), linewidth=2.0, linestyle=line)
        part.plot(ks, naive, color=colour("muted"), linewidth=1.4, linestyle=(0, (1, 1.2)))
        part.set(xscale="log", xlabel=f"Answers k, T = {tries.TEMPERATURES[name]:g}", xlim=(0.9, 110))
        plain_ticks(part, (1, 2, 4, 8, 16))
        part.tick_params(labelsize=SMALL)
        ends[name] = {"unbiased": (ks[-1], curves.mean(axis=1)[-1], tone), "plug-in": (ks[-1], naive[-1], "muted")}
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("Questions with a right answer\namong k, 0–1")
    text = "With 16 tries T = 1 solves {tries.hot_minus_cold_16;fewer than|not separably more than|more than} T = 0.3"
    finding(figure, text, store)
    for part, name in zip(axes, LOOKS, strict=True):
        label_points(part, ends[name], column=0.67)
    return figure
