"""Figures of the QLoRA chapter: what 4 bits cost in time, what a saved byte costs, what requantising leaves.

Times are the time model's, at the rates that one machine showed in every process of the study `step_seconds` that timed
held-out configurations.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.results import quantity, study_quantities
from peftbook.memory import SHAPES, Configuration, Setup, training_step
from peftbook.memory.time_model import Rates, step_seconds
from peftbook.studies import activations, memory, merging, recovery, survival
from peftbook.studies import step_seconds as measured_steps
from peftbook.views.figures.parts import (
    SMALL,
    as_row,
    decimals,
    draw_rows,
    draw_series,
    label_points,
    mark,
    note,
    plain_ticks,
)
from peftbook.views.figures.style import canvas, colour, finding, shade, tag

ROW = Setup(method="lora", device="cpu")
NF4 = replace(ROW, quantised="nf4")
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# label → shape, tone, marker, line
MODELS: Mapping[str, tuple[str, str, str, Any]] = {
    "Llama-2-7B": ("llama-2-7b", "qlora", "D", "-"),
    "SmolLM2-135M": ("smollm2-135m", "lora", "o", (0, (4, 1.5))),
}
LONG = 2048
# label → set-up, tone, marker, place of the label (points)
WAYS: Mapping[str, tuple[Setup, str, str, tuple[int, int]]] = {
    "Full": (replace(ROW, method="full"), "full", "s", (8, 0)),
    "LoRA": (ROW, "lora", "o", (8, 3)),
    "QLoRA": (NF4, "qlora", "D", (8, 3)),
    "QLoRA, bf16 adapters": (replace(NF4, adapter_dtype="bf16"), "qlora", "^", (8, -4)),
    "LoRA, checkpointed": (replace(ROW, checkpointing=True), "lora", "P", (-4, 14)),
    "QLoRA, checkpointed": (replace(NF4, checkpointing=True), "qlora", "X", (-6, -14)),
}
# what is merged into before quantising → words, tone, marker
RECIPES = {"requantised": ("4-bit base", "qlora", "D"), "requantised_16bit": ("16-bit base", "lora", "o")}
# model → label, tone, marker, line
SURVIVORS: Mapping[str, tuple[str, str, str, Any]] = {
    "small": ("small Llama", "lora", "o", "-"),
    "smollm2": ("SmolLM2 *", "qlora", "D", (0, (4, 1.5))),
}


def machine_rates(store: Store) -> list[str]:
    """The rates of every process that timed held-out configurations, as JSON."""
    records = activations.half(measured_steps.probe, "held-out", store)
    return [json.dumps(record.metrics_info["rates"], sort_keys=True) for record in records]


@functools.cache
def slowdown(model: str, rates: str) -> np.ndarray:
    """Seconds of a QLoRA step over those of a LoRA step on a bfloat16 base, for one row of each of TOKENS."""
    known, symbols = Rates.from_json(json.loads(rates)), dict.fromkeys("stk", np.array(TOKENS, dtype=float))
    one, two = (sum(step_seconds(SHAPES[model], setup, known, symbols).values()) for setup in (NF4, ROW))
    return np.asarray(one / two)


def step_times(setup: Setup, rates: list[str]) -> np.ndarray:
    """Seconds of a step of Llama-2-7B at each of the rates."""
    one = Configuration(SHAPES["llama-2-7b"], setup)
    return np.array([measured_steps.predicted(one, known) for known in rates])


def slowdown_against_tokens(store: Store) -> Figure:
    """When does a 4-bit base slow a step? QLoRA's time over LoRA's against the tokens of the step."""
    figure, axes = canvas(height=4.2)
    rates = machine_rates(store)
    for label, (name, tone, marker, line) in MODELS.items():
        found = np.array([slowdown(name, one) for one in rates])  # (processes, tokens)
        axes.fill_between(TOKENS, found.min(0), found.max(0), color=shade(tone, 0.25), linewidth=0)
        middle = np.median(found, axis=0)
        look = {"color": colour(tone), "linestyle": line, "marker": marker, "markeredgecolor": colour("paper")}
        axes.plot(TOKENS, middle, **look, label=label)
    known = study_quantities("quantised_step_time", store)
    labels = {"qlora": "4 layers, measured", "lora": "all layers, measured"}
    for name, (shape, length, _) in memory.TIMED.items():
        if (one := known.get(f"qlora_over_lora_{name}")) is not None:
            tone = "qlora" if shape.hidden == SHAPES["llama-2-7b"].hidden else "lora"
            axes.plot([length] * 2, [one.low, one.high], color=colour(tone), linewidth=2)
            axes.plot(length, one.value, **(mark(tone, "*") | {"markersize": 14}), label=labels.pop(tone, None))
    axes.axhline(1, color=colour("muted"), linewidth=1.2)
    axes.set(xscale="log", xlabel=f"Tokens of the step, one row ({store.machine or merging.MACHINE})")
    axes.set_ylabel("Time of a step, QLoRA / LoRA")
    plain_ticks(axes, TOKENS[::2])
    axes.set_ylim(0.9)
    axes.legend(loc="upper right")
    text = (
        "In layers of a 7B model a short QLoRA step takes {quantised_step_time.qlora_over_lora_7b_layers} LoRA's time"
    )
    return finding(figure, text, store)


def memory_against_time(store: Store) -> Figure:
    """What does a saved byte cost? Peak memory of a step of Llama-2-7B against its time, relative to LoRA's."""
    figure, axes = canvas(height=4.6)
    rates = machine_rates(store)
    found: dict[str, tuple[float, float]] = {}
    usual = step_times(replace(ROW, seq=LONG), rates)
    for label, (setup, tone, marker, place) in WAYS.items():
        longer = replace(setup, seq=LONG)
        ratio = step_times(longer, rates) / usual
        size = training_step(SHAPES["llama-2-7b"], longer).peak().total / 1e9
        axes.plot([ratio.min(), ratio.max()], [size] * 2, color=shade(tone, 0.5), linewidth=2.4, solid_capstyle="butt")
        found[label] = np.median(ratio), size
        axes.plot(np.median(ratio), size, **(mark(tone, marker) | {"markersize": 9}))
        end = float(ratio.max() if place[0] > 0 else ratio.min())
        side = "left" if place[0] > 0 else "right"
        tag(axes, f"{label}, {size:.1f}", (end, size), place, tone, ha=side, va="center", fontsize=SMALL)
    axes.set(xlabel=f"Time of a step / LoRA's ({store.machine or merging.MACHINE})", ylabel="GB at the peak")
    axes.set_ylim(0)
    (time, peak), (long, least) = (found[way] for way in ("QLoRA", "QLoRA, checkpointed"))
    text = f"Checkpointing takes QLoRA from {peak:.0f} to {least:.1f} GB for {long / time:.2f} × the time"
    return finding(figure, text)


def requantised_gains(store: Store) -> Figure:
    """What is left of an adapter after quantising again? The share of its gain that each recipe loses."""
    figure, axes = canvas(height=4.0)
    models, rows = {"small": "small Llama", "smollm2": "SmolLM2 *"}, []
    for model, arm in recovery.MERGED:
        for recipe, (base, tone, marker) in RECIPES.items():
            found = quantity(f"requantised.{model}_{arm}_{recipe}_lost", store)
            label = f"{models[model]}, {arm.upper()}\nmerged into {base}"
            rows.append(as_row(label, found, (), tone, marker))
    axes.axvspan(0, 100 * recovery.MARGIN_MERGED, color=colour("fill"), linewidth=0, zorder=0)
    axes.axvline(0, color=colour("muted"), linewidth=1.2)
    axes.axvline(100, color=colour("muted"), linewidth=1.2, linestyle=(0, (1, 1.5)))
    draw_rows(axes, rows, "Adapter's gain that is lost, % (band: margin)\n* its weights come from a 4-bit file")
    small, other = (f"{{requantised.{model}_nf4_requantised_lost;value}}" for model in models)
    text = f"Quantising to NF4 again loses {small} of the gain on the small Llama, {other} on SmolLM2"
    return finding(figure, text, store)


def surviving_gains(store: Store) -> Figure:
    """Does the size of an update tell whether it survives? The kept share of its gain, and of itself, against size."""
    figure, axes = canvas(height=4.2)
    known, ends = study_quantities("survival", store), {}
    for model, (label, tone, marker, line) in SURVIVORS.items():
        names = [f"{model}_{number}" for number in range(1, len(survival.RATES[model]) + 1)]
        size = {name: quantity(f"survival.{name}_size", store).value for name in names}
        gaining = sorted((name for name in names if f"{name}_kept" in known), key=lambda name: size[name])
        xs = [size[name] for name in gaining]
        draw_series(axes, xs, [as_row("", known[f"{name}_kept"], (), tone, marker) for name in gaining], line=line)
        axes.plot(xs, [known[f"{name}_update_kept"].value for name in gaining], **mark(tone, marker, hollow=True))
        ends[label] = (xs[-1], known[f"{gaining[-1]}_kept"].value, tone)
    for share in (0, 100):
        axes.axhline(share, color=colour("muted"), linewidth=1.2, zorder=0)
    axes.set(xscale="log", xlabel="Size of the update: RMS(γBA) / RMS(half a step of the grid)")
    axes.set_ylabel("Kept after quantising again, %")
    decimals(axes.xaxis, (1, 3))
    note(axes, "filled: of the gain in loss\nhollow: κ, of the update itself\n* from a 4-bit file", 0.03, ha="left")
    axes.set_xlim(right=9 * max(x for x, _, _ in ends.values()))
    label_points(axes, ends, column=0.8)
    small, other = (f"{{survival.{model}_correlation;value}}" for model in SURVIVORS)
    text = f"Size and survival of an update correlate by {small} on the small Llama, {other} on SmolLM2"
    return finding(figure, text, store)
