"""Figures of the chapter on shipping: what rounding leaves of an update, what many adapters cost a decoding step."""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.results import quantity
from peftbook.views.figures.parts import Points, labelled, mark, note
from peftbook.views.figures.style import canvas, colour

WEIGHTS = 400_000
SIZES = np.geomspace(1e-4, 1e-1, 25)  # of the update's entries over the weights'
MEASURED = {"unchanged": "unchanged_weights_share", "error": "update_error_share", "kept": "update_kept_share"}
LABELS = {"unchanged": "weights that stay", "error": "error / update", "kept": "update kept"}


@cache
def roundings() -> dict[str, np.ndarray]:
    """What rounding to bfloat16 leaves of normal updates to normal weights, for each of SIZES."""
    import torch

    from peftbook.scratch.rounding import merge_rounded

    generator = torch.Generator().manual_seed(0)
    W, delta = (torch.randn(WEIGHTS, generator=generator) for _ in range(2))
    found = [merge_rounded(W, float(size) * delta) for size in SIZES]
    return {name: np.array([getattr(one, name) for one in found]) for name in LABELS}


def rounded_updates(store: Store) -> Figure:
    """How much of an update survives rounding? Normal weights and updates, and the three shares that were measured."""
    figure, axes = canvas(height=4.2)
    looks = {
        "unchanged": ("muted", "s", (0, (1, 1.2))),
        "error": ("qlora", "D", (0, (4, 1.5))),
        "kept": ("lora", "o", "-"),
    }
    curves = roundings()
    shares = {name: quantity(f"merging_quality.{key}", store).value / 100 for name, key in MEASURED.items()}
    at = np.exp(np.interp(-shares["unchanged"], -curves["unchanged"], np.log(SIZES)))
    ends: Points = {}
    for name, (tone, marker, line) in looks.items():
        axes.plot(SIZES, 100 * curves[name], color=colour(tone), linestyle=line)
        axes.plot(at, 100 * shares[name], **(mark(tone, marker) | {"markersize": 9}))
        ends[LABELS[name]] = (SIZES[-1], 100 * curves[name][-1], tone)
    axes.axvline(at, color=colour("rule"), linewidth=1, zorder=0)
    note(axes, "marks: a LoRA of\nthe book, measured", 0.4, 0.55, ha="left", va="center")
    axes.set(xscale="log", xlabel="Size of the update over size of the weights", ylabel="%")
    axes.set_xlim(SIZES[0], SIZES[-1] * 12)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["0.0001", "0.001", "0.01", "0.1"])
    axes.minorticks_off()
    axes.set_ylim(-3, 108)
    text = "Merged into bfloat16, {merging_quality.unchanged_weights_share;value} of the weights do not change"
    return labelled(figure, text, axes, ends, column=0.77, store=store)
