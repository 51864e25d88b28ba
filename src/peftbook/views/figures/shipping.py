"""Figures of the chapter on shipping: what rounding leaves of an update, what many adapters cost a decoding step."""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.results import quantity
from peftbook.memory import SHAPES
from peftbook.views.figures import figure
from peftbook.views.figures.parts import SMALL, Points, labelled, mark, note, plain_ticks
from peftbook.views.figures.style import canvas, colour, finding, tag

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


@figure
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


REQUESTS = 32
COUNTS = (1, 2, 4, 8, 16, 32)
RANK = 16


def decoding_bytes(adapters: int, way: str) -> float:
    """Bytes of weights that one decoding step of Llama-2-7B reads in bfloat16, for a batch over so many adapters.

    way: `mixed` reads the base once and each adapter once; `one after the other` reads base and adapter in a pass for
    each adapter; `merged copies` read a whole model for each.  P base parameters, P_A those of an adapter:
    2 (P + n P_A), 2 n (P + P_A), 2 n P.
    """
    shape = SHAPES["llama-2-7b"]
    base = float(shape.parameters)
    adapter = float(RANK * shape.layers * sum(map(sum, shape.linears.values())))
    passes = {
        "mixed": base + adapters * adapter,
        "one after the other": adapters * (base + adapter),
        "merged copies": adapters * base,
    }
    return 2 * passes[way]


@figure
def bytes_a_step() -> Figure:
    """What does a decoding step over many adapters read? Bytes of weights by the number of adapters, three ways."""
    figure, axes = canvas(height=4.0)
    looks = {
        "mixed": ("lora", "o", "-"),
        "one after the other": ("qlora", "D", (0, (4, 1.5))),
        "merged copies": ("full", "s", (0, (1, 1.2))),
    }
    for way, (tone, marker, line) in looks.items():
        values = [decoding_bytes(count, way) / 1e9 for count in COUNTS]
        shift = {"merged copies": 1.05}.get(way, 1.0)
        axes.plot(np.array(COUNTS) * shift, values, **(mark(tone, marker) | {"linestyle": line}))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"Adapters in a batch of {REQUESTS} requests",
        ylabel="GB of weights read a step\n(Llama-2-7B, computed)",
    )
    plain_ticks(axes, COUNTS)
    axes.set_yticks([10, 30, 100, 300], ["10", "30", "100", "300"])
    axes.minorticks_off()
    tag(axes, "one after the other,\nor merged copies", (5, 150), (0, 0), "qlora", ha="right", fontsize=SMALL)
    tag(axes, "one mixed batch", (8, 17), (0, 0), "lora", fontsize=SMALL)
    mixed, copies = (decoding_bytes(COUNTS[-1], way) / 1e9 for way in ("mixed", "merged copies"))
    text = f"For {COUNTS[-1]} adapters a mixed batch reads {mixed:.0f} GB a step, merged copies {copies:.0f}"
    return finding(figure, text)
