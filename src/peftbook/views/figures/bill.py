"""Figures of the chapter on costs: bytes of a parameter, memory along a step, time, disk. One mark was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.literature import published
from peftbook.memory import SHAPES, DecoderShape, Setup, training_step
from peftbook.memory.walk import layer_names, layer_of
from peftbook.methods import arm_looks
from peftbook.views.figures.drawn import draw_lines
from peftbook.views.figures.parts import SMALL, draw_stacks, mark
from peftbook.views.figures.style import canvas, colour, finding, shade, tag

NAMES = {"llama-2-7b": "Llama-2-7B", "smollm2-135m": "SmolLM2-135M"}
# part → tone, share of it, hatch
LOOKS = {
    "weight": ("lora", 0.35, ""),
    "gradient": ("lora", 0.65, "///"),
    "fp32 copy": ("muted", 0.35, "..."),
    "two moments": ("lora", 1.0, ""),
}


def bytes_per_parameter() -> Figure:
    """What does a parameter cost? Bytes by recipe, trained and frozen."""
    from peftbook.scratch.adam import RECIPES

    figure, axes = canvas(height=4.7)
    places = [row + 0.6 * name.startswith("frozen") for row, name in enumerate(RECIPES)]
    sizes = [(recipe.weight, recipe.gradient, recipe.master, recipe.moments) for recipe in RECIPES.values()]
    rows = [dict(zip(LOOKS, row, strict=True)) for row in sizes]
    draw_stacks(axes, rows, LOOKS, unit=1, form=".3g", places=places)
    axes.set_yticks(places, list(RECIPES))
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set(xlim=(0, 18), xlabel="Bytes for each parameter (computed)", xticks=range(0, 17, 4))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=4, handlelength=1.2, columnspacing=1.2, handletextpad=0.5)
    most, least = (pick(map(sum, sizes)) for pick in (max, min))
    return finding(figure, f"A trained parameter takes up to {most:g} bytes, one frozen in NF4 {least:.2g}")


# part of a step → its terms in the byte model, tone, share of the tone, hatch
PARTS: dict[str, tuple[tuple[str, ...], str, float, str]] = {
    "weights": (("weights", "quantisation constants", "adapter"), "lora", 0.35, ""),
    "two moments": (("moments",), "lora", 1.0, ""),
    "gradients": (("gradients",), "lora", 0.65, "///"),
    "activations": (("embedding", "layer inputs", "norms", "attention", "mlp", "working"), "qlora", 0.45, ""),
    "inputs kept for A": (("adapter inputs",), "qlora", 0.8, "///"),
    "logits and loss": (("logits and loss",), "muted", 0.6, "..."),
}
OUTSIDE = 3.0  # the width of what lies before, after and between the layers, in layers


def timeline(shape: DecoderShape, setup: Setup) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Places along a step, in layers passed, and the bytes of each part there.

    Of a layer only its end is a place; of embedding, head and loss every operation is.
    """
    step = training_step(shape, setup)
    places, rows = (np.array(one) for one in zip(*landmarks(step.moments.names, shape), strict=True))
    sizes = step.moments.table * [prod(step.symbols[one] for one in symbols) for _, symbols in step.moments.columns]
    state = step.numbers(step.state)
    parts = {}
    for part, (kinds, *_) in PARTS.items():
        columns = [kind in kinds for kind, _ in step.moments.columns]
        parts[part] = sizes[rows.astype(int)][:, columns].sum(axis=1) + sum(state.get(kind, 0.0) for kind in kinds)
    return places, parts


def landmarks(names: tuple[str, ...], shape: DecoderShape) -> Iterator[tuple[float, int]]:
    """(place, moment) of all moments outside the layers and of the last of each layer, or of the layers like it."""
    standing = layer_names(shape)
    copies = {name: standing.count(name) for name in standing}

    def section(index: int) -> tuple[str, str]:
        direction, _, where = names[index].partition(" ")
        layer = layer_of(where)
        return direction, layer if layer in copies else ""

    start = 0.0
    for (direction, layer), group in groupby(range(len(names)), section):
        moments = list(group)
        if layer:  # undone one by one: the first is, before those like it
            yield start + (copies[layer] if direction == "forward" else 1), moments[-1]
            start += copies[layer]
        else:
            yield from zip(start + OUTSIDE * np.linspace(0, 1, len(moments) + 1)[1:], moments, strict=True)
            start += OUTSIDE


def step_timeline(model: str = "llama-2-7b") -> Figure:
    """What is in memory when? Bytes along one training step, all weights against LoRA."""
    figure, axes = canvas(2, 1, height=7.0, sharex=True, sharey=True)
    drawn = {method: timeline(SHAPES[model], Setup(method=method, seq=2048)) for method in ("full", "lora")}
    totals = {method: np.sum(list(parts.values()), axis=0) / 1e9 for method, (_, parts) in drawn.items()}
    highest = max(total.max() for total in totals.values())
    for ax, (method, (places, parts)) in zip(axes, drawn.items(), strict=True):
        draw_parts(ax, places, parts)
        ax.set(ylim=(0, 1.22 * highest), ylabel="GB", xlim=(0, places[-1]))
        ax.tick_params(axis="x", length=0)
        ax.grid(axis="x", visible=False)
        mark_peak(ax, places, totals[method], arm_looks()[method].label)
    middle = OUTSIDE + SHAPES[model].layers + OUTSIDE
    axes[1].set_xticks([middle / 2, middle, 1.5 * middle], ["forward →", "loss", "→ backward, optimiser"])
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=1.4)
    full, lora = (totals[method].max() for method in ("full", "lora"))
    return finding(figure, f"{NAMES[model]}: full fine-tuning peaks at {full:.3g} GB, LoRA at {lora:.3g}")


def draw_parts(axes: Axes, places: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
    """The parts on top of each other along the step."""
    sizes, looks = np.array(list(parts.values())) / 1e9, [PARTS[part] for part in parts]
    fills, hatches = [shade(tone, share) for _, tone, share, _ in looks], [hatch for *_, hatch in looks]
    edge: dict[str, Any] = {"edgecolor": colour("paper"), "linewidth": 0.4}
    axes.stackplot(places, sizes, labels=list(parts), colors=fills, hatch=hatches, **edge)
    axes.plot(places, sizes.sum(axis=0), color=colour("ink"), linewidth=1.4)


def mark_peak(axes: Axes, places: np.ndarray, total: np.ndarray, name: str) -> None:
    """A mark at the highest moment, with its value; the method's name above it on the left."""
    at = int(total.argmax())
    late = places[at] > 0.75 * places[-1]
    axes.plot(places[at], total[at], **mark("ink", "o"), clip_on=False)
    side, shift = ("right", -8) if late else ("center", 0)
    tag(axes, f"peak {total[at]:.3g} GB", (places[at], total[at]), (shift, 7), ha=side)
    axes.set_title(name)


def balance(card: str) -> float:
    """Operations that a card can do while it reads or writes one byte of its memory: a100 or h100."""
    return float(published(f"austin2025-{card}-operations").value) / float(
        published(f"austin2025-{card}-bandwidth").value
    )


def time_ratio(tokens: float, per_byte: float, moved: float = 14.0) -> float:
    """Time of a step of LoRA over that of all weights: two products a weight against three and Adam's traffic.

    per_byte: `balance` of the card.  moved: bytes that Adam reads and writes for each weight.
    """
    product = max(2 * tokens / per_byte, 2.0)  # of a bfloat16 weight with all tokens, in the time that a byte takes
    return 2 * product / (3 * product + moved)


def time_ratios() -> Chart:
    """Time of LoRA's step over that of full fine-tuning against its tokens, for two cards."""
    tokens = [2 ** (power / 4) for power in range(20, 65)]
    cards = {
        "A100": ("a100", 14.0, "lora"),
        "H100": ("h100", 14.0, "qlora"),
        "H100, fp32 master": ("h100", 28.0, "prompt"),
    }
    series = [
        Series(label, [time_ratio(count, balance(card), moved) for count in tokens], look, tokens, marks=False)
        for label, (card, moved, look) in cards.items()
    ]
    series.append(Series("operations alone", [2 / 3] * 2, "full", [tokens[0], tokens[-1]], marks=False))
    return Chart(
        series,
        "Tokens in a step",
        "LoRA's time / full fine-tuning's",
        log={"x": 4},
        number_format="0.0",
        x_format="#,##0",
        x_range=(16, 65536),
        y_range=(0, 0.8),
    )


def time_saved() -> Figure:
    """How much time can LoRA save? Time of its step over that of full fine-tuning, against the tokens of a step."""
    figure, axes = canvas(height=4.3)
    chart = time_ratios()
    draw_lines(axes, replace(chart, series=chart.series[:-1]))
    axes.axhline(2 / 3, color=colour("ink"), linewidth=1.2)
    axes.annotate("operations alone: 2/3", (chart.series[0].x[0], 2 / 3), xytext=(2, 6), textcoords="offset points")
    steps = float(published("peftcomparison-tokens").value.replace(",", "")) / 5000
    speeds = [float(published(f"peftcomparison-{arm}-speed").value.replace(",", "")) for arm in ("full", "lora")]
    axes.plot(steps, speeds[0] / speeds[1], **mark("ink", "o"))
    axes.annotate(
        "measured by others:\n3B model, L40S",
        (steps, speeds[0] / speeds[1]),
        xytext=(36, 0.5),
        va="center",
        fontsize=SMALL,
        arrowprops={"arrowstyle": "-", "color": colour("ink"), "linewidth": 0.7},
    )
    axes.set_ylim(0, 0.85)
    axes.set_xticks([64, 256, 1024, 4096, 16384, 65536], ["64", "256", "1,024", "4,096", "16,384", "65,536"])
    axes.minorticks_off()
    axes.legend(loc="lower right", title="computed, for a card", alignment="left")
    return finding(figure, "LoRA's step takes two thirds of a full one, less where tokens are few")
