"""Figures of the chapter on LoRA in practice: rates, rank, scaling, two learning rates, variants."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.results import quantity
from peftbook.studies import batch_size, beyond_lora, learning_rate, rank, scaling, two_rates, variants
from peftbook.views.figures.parts import (
    LOSS,
    SMALL,
    Points,
    as_row,
    difference_row,
    draw_margin,
    draw_rows,
    draw_series,
    labelled,
    mark,
    per_seed,
    plain_ticks,
    score_row,
)
from peftbook.views.figures.style import canvas, colour, finding, shade, tag

BATCH_LOOKS = {"full": ("full", "s", (0, (4, 1.5))), "r16": ("lora", "o", "-")}  # tone, marker, line


def batch_costs(store: Store) -> Figure:
    """What does a large batch cost? Test loss by batch at equal tokens, and what the largest batch costs each arm."""
    figure, (losses, costs) = canvas(2, 1, height=5.4, height_ratios=(3, 2))
    ends: Points = {}
    for name, (tone, marker, line) in BATCH_LOOKS.items():
        shift = 1.06 if name == "r16" else 0.94
        rows = [
            score_row("", plan, name, f"batch_size.b{batch}_{name}_loss", store, tone, marker)
            for batch, plan in batch_size.COMPARISONS.items()
        ]
        draw_series(losses, batch_size.BATCHES, rows, line=line, shift=shift)
        few = score_row("", batch_size.FEW_STEPS, name, f"batch_size.few_{name}_loss", store, tone, marker)
        x = batch_size.SMALLEST * shift
        losses.plot([x] * len(few.seeds), few.seeds, "_", color=colour(tone), markersize=8, mew=1.4)
        losses.plot(x, few.value, **mark(tone, marker, hollow=True))
        told = f"only {batch_size.EXAMPLES // batch_size.LARGEST} steps" if name == "r16" else ""
        tag(losses, told, (x, few.value), (9, 0), "muted", va="center", fontsize=SMALL, fontweight="normal")
        ends[batch_size.ARMS[name]] = (batch_size.LARGEST * shift, rows[-1].value, tone)
    losses.set(xscale="log", xlabel="Examples in a batch", ylabel=f"Test loss, {LOSS}")
    plain_ticks(losses, batch_size.BATCHES)
    losses.set_xlim(1.7, 100)
    pairs = {name: batch_size.pair(name, batch_size.EQUAL_TOKENS, store) for name in batch_size.ARMS}
    each = {name: np.subtract(per_seed(one, "loss"), per_seed(two, "loss")) for name, (one, two) in pairs.items()}
    rows = [
        as_row(label, quantity(f"batch_size.{name}_cost", store), each[name].tolist(), *BATCH_LOOKS[name][:2])
        for name, label in batch_size.ARMS.items()
    ]
    extra = quantity("batch_size.extra_cost", store)
    rows.append(as_row("LoRA − full", extra, (each["r16"] - each["full"]).tolist(), "ink", "D"))
    draw_margin(costs, -batch_size.MARGIN, batch_size.MARGIN, 0)
    draw_rows(costs, rows, f"Test loss at {batch_size.LARGEST} − at {batch_size.SMALLEST}, {LOSS} (band: margin)", 6)
    word = "{batch_size.extra_cost;less than|not separably more than|more than}"
    text = f"At equal tokens a batch of {batch_size.LARGEST} costs LoRA {word} full fine-tuning"
    return labelled(figure, text, losses, ends, column=0.77, store=store)


def rank_losses(store: Store) -> Figure:
    """Does the rank matter? Test loss by rank, each at its own best rate, and the paired difference from rank 16."""
    comparison = rank.COMPARISON
    figure, (losses, differences) = canvas(2, 1, height=5.4, sharex=True)
    names = {one: f"r{one}" for one in learning_rate.RANKS}
    rows = [score_row("", comparison, arm, f"rank.{arm}_loss", store, "lora") for arm in names.values()]
    draw_series(losses, list(names), rows)
    against = [difference_row("", comparison, arm, "r16", store, tone="lora") for arm in names.values()]
    differences.axhspan(-rank.MARGIN, rank.MARGIN, color=colour("fill"), linewidth=0, zorder=0)
    draw_series(differences, list(names), against)
    losses.set(xscale="log", ylabel=f"Test loss, {LOSS}")
    differences.set(xlabel="Rank r (α = 32, all linear layers; band: margin)", ylabel="Test loss − r = 16's\n(paired)")
    plain_ticks(differences, list(names))
    word = "{rank.r1_minus_r16_loss;below|not separable from|above}"
    return finding(figure, f"Rank 1's test loss is {word} rank 16's", store)


SCALING_LOOKS = {"standard": ("α/r", "lora", "o", "-"), "stabilised": ("α/√r", "qlora", "D", (0, (4, 1.5)))}


def scaling_gains(store: Store) -> Figure:
    """Does α/√r help? Tuned test loss of both scalings by rank, and the paired differences at fixed and tuned rates."""
    comparison = scaling.COMPARISON
    figure, (losses, differences) = canvas(2, 1, height=5.8)
    ends: Points = {}
    for name, (label, tone, marker, line) in SCALING_LOOKS.items():
        arms = [f"{name}{r}" for r in scaling.RANKS]
        rows = [score_row("", comparison, arm, f"scaling.{arm}_loss", store, tone, marker) for arm in arms]
        shift = 1.04 if name == "stabilised" else 1.0
        draw_series(losses, scaling.RANKS, rows, line=line, shift=shift)
        ends[label] = (scaling.RANKS[-1] * shift, rows[-1].value, tone)
    losses.set(xscale="log", xlabel="Rank r, each rate tuned", ylabel=f"Test loss,\n{LOSS}")
    plain_ticks(losses, scaling.RANKS)
    losses.set_xlim(13, 460)
    rows = [as_row("r = 256, fixed rate", quantity("scaling.fixed_rate_difference", store), (), "full", "s")]
    rows += [
        difference_row(f"r = {r}, tuned", comparison, f"stabilised{r}", f"standard{r}", store, tone="qlora", marker="D")
        for r in scaling.RANKS
    ]
    label = "r = 256, against\nη_B = 16 η_A"
    twin = difference_row(label, comparison, "stabilised256", "plus256", store, tone="accent")
    draw_margin(differences, -scaling.MARGIN, scaling.MARGIN, 0)
    draw_rows(differences, [*rows, twin], "Test loss, α/√r − α/r, paired (band: margin)", 6)
    text = (
        "At rank 256 α/√r is {scaling.fixed_rate_difference;better|not separable|worse} at a fixed rate, "
        "{scaling.stabilised256_minus_standard256_loss;better|not separable|worse} once both are tuned"
    )
    return labelled(figure, text, losses, ends, column=0.87, store=store)


WORST = 0.3  # nats above the best of the map where its fill fades to paper
FULL_FILL = 0.5  # how much of the blue is in the fill of the best point: ink stays readable on it


def rate_map(store: Store) -> Figure:
    """Does B need a higher rate than A? Validation loss on the map of both rates; diagonals have one ratio."""
    comparison = two_rates.COMPARISON
    points = {
        (rate, rate * ratio): loss
        for name, ratio in two_rates.RATIOS.items()
        for rate, loss in comparison.tuning(comparison.arm(name)).losses(store.get).items()
        if math.isfinite(loss)
    }
    best = min(points, key=lambda point: points[point])
    figure, axes = canvas(height=5.6)
    fill = LinearSegmentedColormap.from_list("loss", [shade("lora", FULL_FILL), colour("paper")])
    x, y = np.array(list(points)).T
    axes.scatter(
        x,
        y,
        s=560,
        marker="s",
        c=list(points.values()),
        cmap=fill,
        vmin=points[best],
        vmax=points[best] + WORST,
        edgecolors=colour("rule"),
    )
    for (a, b), loss in points.items():
        weight = "bold" if (a, b) == best else "normal"
        axes.text(a, b, f"{loss:.2f}", ha="center", va="center", fontsize=SMALL, fontweight=weight)
    axes.set(xscale="log", yscale="log", xlabel="Learning rate of A (lines: B's / A's)", ylabel="Learning rate of B")
    low, high, top = x.min() / 2.4, x.max() * 2.4, y.max() * 3
    for ratio in two_rates.RATIOS.values():
        axes.plot([low, high], [low * ratio, high * ratio], color=colour("rule"), linewidth=1, zorder=0)
        above = top / ratio <= high  # where the line leaves the axes
        end, offset = ((top / ratio, top), (0, 2)) if above else ((high, high * ratio), (3, 0))
        sides = {"ha": "center", "va": "bottom"} if above else {"ha": "left", "va": "center"}
        tag(axes, f"{ratio:g} ×", end, offset, "muted", fontsize=SMALL, fontweight="normal", **sides)
    axes.set(xlim=(low, high), ylim=(y.min() / 3, top))
    axes.grid(visible=False)
    word = "{two_rates.plus16_minus_lora_loss;below|not separable from|above}"
    return finding(figure, f"With B's rate 16 times A's the test loss is {word} that with one rate", store)


def variant_effects(store: Store) -> Figure:
    """Do the variants do what each claims? Steps to plain LoRA's training loss, and test loss, both against LoRA."""
    comparison = variants.COMPARISON
    figure, (steps, losses) = canvas(1, 2, height=4.8, sharey=True)
    labels = {arm.name: arm.label for arm in comparison.arms[1:]}
    speed = {name: variants.CLAIMS.get(name) == "speed" for name in labels}
    claimed = {name: name in variants.CLAIMS and not speed[name] for name in labels}
    draw_margin(steps, 1 - variants.SPEED_MARGIN, 1 + variants.SPEED_MARGIN, 1)
    rows = [
        as_row(label, quantity(f"lora_plus.{name}_steps", store), (), "lora" if speed[name] else "muted")
        for name, label in labels.items()
    ]
    draw_rows(steps, rows, "Steps / LoRA's\n(blue: its claim)", 4)
    draw_margin(losses, -variants.MARGIN, variants.MARGIN, 0)
    rows = [
        difference_row(label, variants.compared(name), name, "lora", store, tone="lora" if claimed[name] else "muted")
        for name, label in labels.items()
    ]
    draw_rows(losses, rows, f"Test loss − LoRA's,\n{LOSS}", 4)
    text = "LoRA+ (ratio 16) takes {lora_plus.plus16_steps} LoRA's steps, PiSSA {lora_plus.pissa_steps}"
    return finding(figure, text, store)


def beyond_gains(store: Store) -> Figure:
    """Does any arm gain on plain LoRA once each has its own rate? Test loss minus LoRA's, and the margin."""
    comparison = beyond_lora.COMPARISON
    figure, axes = canvas(height=4.0)
    draw_margin(axes, -beyond_lora.MARGIN, beyond_lora.MARGIN, 0)
    rows = [
        difference_row(
            comparison.arm(name).label,
            comparison,
            name,
            "lora",
            store,
            tone="lora" if name in beyond_lora.NEW else "muted",
        )
        for name in beyond_lora.FAMILY
    ]
    draw_rows(axes, rows, f"Test loss − plain LoRA's, {LOSS}\n(blue: not seen before)", 5)
    pissa, dora = (f"{{beyond_lora.{arm}_minus_lora_loss;below|not separable from|above}}" for arm in ("pissa", "dora"))
    return finding(figure, f"PiSSA's test loss is {pissa} LoRA's, DoRA's {dora} it", store)
