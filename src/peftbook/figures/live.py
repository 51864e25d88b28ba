"""The figure of what a page that trains draws the reader's curve over."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from peftbook.figures import figure
from peftbook.figures.faults import over_seeds
from peftbook.figures.parts import SMALL, decimals
from peftbook.figures.style import canvas, question, shade
from peftbook.records import Record, Store
from peftbook.scratch.checks import means
from peftbook.studies import live

__all__ = ["live_curves"]

RATES = {"a quarter of it": 0.4, "the middle one": 0.7, "four times it": 1.0}  # → share of a method's colour


def draw_curve(axes: Axes, records: list[Record], tone: str, share: float) -> None:
    """Training loss by step, of five steps: the mean over seeds, and from the lowest seed to the highest."""
    curves = [means(list(record.curve["train_loss_nats"])) for record in records]
    shortest = min(map(len, curves))
    steps = np.arange(shortest) + 3
    low, high = (pick([curve[:shortest] for curve in curves], axis=0) for pick in (np.min, np.max))
    axes.fill_between(steps, low, high, color=shade(tone, 0.16), linewidth=0)
    mean = means(over_seeds(records, "train_loss_nats").tolist())
    axes.plot(steps, mean, color=shade(tone, share), linewidth=1.4)


@figure
def live_curves(store: Store) -> Figure:
    """Which curves does a page that trains have to meet? Training loss of five methods at three rates, in PyTorch."""
    figure, grid = canvas(2, 3, height=4.4, sharey=True)
    for axes, (name, arm) in zip(grid.flat, live.ARMS.items(), strict=False):
        for rate, share in zip(sorted(arm.rates), RATES.values(), strict=True):
            draw_curve(axes, live.found(name, rate, store), name, share)
        axes.set_title(f"{arm.label}\nmiddle rate {arm.rates[0]:g}", fontsize=SMALL, linespacing=1.3)
        axes.set_yscale("log")
        axes.tick_params(labelsize=SMALL)
        decimals(axes.yaxis, (1,))
        axes.yaxis.set_major_locator(FixedLocator((0.01, 0.1, 1, 10)))
    figure.supylabel("Loss, nats per token", fontsize=SMALL + 1)
    figure.supxlabel("Step", fontsize=SMALL + 1)
    grid[1, 2].remove()
    handles = [Line2D([], [], color=shade("ink", share), label=label) for label, share in RATES.items()]
    grid[1, 1].legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.05, 0.5), fontsize=SMALL, title="Rate"
    ).set_in_layout(False)
    return question(figure, "Which curves does a page that trains have to meet?")
