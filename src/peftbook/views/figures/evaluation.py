"""Figures of the chapter on evaluation: what several tries are worth, and what the plug-in misses."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom

from peftbook.core.records import Store
from peftbook.scratch.pass_at_k import plug_in
from peftbook.studies import tries
from peftbook.views.figures import figure
from peftbook.views.figures.parts import SMALL, Points, label_points, mark, plain_ticks
from peftbook.views.figures.style import canvas, colour, finding, shade, tag

LOOKS = {"cold": ("prompt", (0, (4, 1.5))), "hot": ("lora", "-")}


SHARE = 0.1  # of the answers that are right
BIASED = {2: ("lora", "-"), 5: ("prompt", (0, (4, 1.5))), 10: ("full", (0, (1, 1.2)))}  # k → tone, line


def mean_of_plug_in(samples: int, k: int, right: float) -> float:
    """The mean of the plug-in over every number of right answers among so many, each with its probability."""
    counts = np.arange(samples + 1)
    return float(binom.pmf(counts, samples, right) @ plug_in(samples, counts, k))


@figure
def plug_in_bias() -> Figure:
    """How far too low is the plug-in? Its mean minus pass@k by the number of answers, for three k; computed."""
    figure, axes = canvas(height=3.4)
    ends: Points = {}
    for k, (tone, line) in BIASED.items():
        samples = np.unique(np.geomspace(k, 200, 40).astype(int))
        missed = [mean_of_plug_in(int(n), k, SHARE) - (1 - (1 - SHARE) ** k) for n in samples]
        axes.plot(samples, missed, color=colour(tone), linewidth=2.0, linestyle=line)
        axes.plot(samples[0], missed[0], **mark(tone, "o"))
        ends[f"k = {k}"] = (samples[0], missed[0], tone)
    lowest = -min(y for _, y, _ in ends.values())
    axes.axhline(0, color=colour("muted"), linewidth=1.2)
    axes.set(xscale="log", xlabel="Answers n (first point: n = k)", ylabel="Mean of the plug-in\nminus pass@k")
    axes.set_xlim(0.9, 200)
    plain_ticks(axes, (2, 5, 10, 20, 50, 100, 200))
    finding(figure, f"With as many answers as tries, the plug-in is up to {lowest:.2f} too low")
    for text, (x, y, tone) in ends.items():
        tag(axes, text, (x, y), (-8, 0), tone, fontsize=SMALL, ha="right")
    return figure


@figure
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
