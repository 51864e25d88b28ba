"""Figures of the studies of few bits: which codebook errs least, what that costs, and what tuning brings back.

Bars are 95 % intervals and small strokes single seeds; a hollow mark has one seed or nothing that was trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.core import specs
from peftbook.core.records import Store
from peftbook.evidence.results import quantity
from peftbook.methods.qlora import QLoRA
from peftbook.studies import codebooks, double_quant, qlora_width, recovery, weight_error
from peftbook.views.figures.parts import (
    LOSS,
    SMALL,
    Points,
    as_row,
    decimals,
    difference_row,
    draw_interval,
    draw_margin,
    draw_rows,
    draw_series,
    label_points,
    mark,
    mark_key,
    mosaic,
    note,
    plain_ticks,
    signed,
)
from peftbook.views.figures.style import SIZE, canvas, colour, finding, shade

# Codebooks: short label, marker, tone. What QLoRA offers or compares is in colour, the best ones of a kind are grey.
BOOKS = {
    "nf4": ("NF4", "o", "lora"),
    "af4": ("AF4", "P", "accent"),
    "int4": ("INT4, ±7", "s", "ink"),
    "int4_16": ("INT4, 16 levels", "X", "ink"),
    "fp4": ("FP4 (bnb)", "D", "qlora"),
    "e2m1": ("FP4 (E2M1)", "^", "prompt"),
    "e3m0": ("FP4 (E3M0)", "v", "fewshot"),
    "lloyd": ("MSE-best", "*", "muted"),
    "lloyd_pinned": ("MSE-best, pinned", "d", "muted"),
    "l1_pinned": ("MAE-best, pinned", "<", "muted"),
}
# On trial and its control: title, tone, marker.
BITS = {"nf4": ("NF4", "qlora", "D"), "nf2": ("Two bits, the control", "untuned", "s")}
SOURCES = {"normal": "N(0, 1)", "minilm": "MiniLM", "small": "Small Llama", "smollm2": "SmolLM2"}


def codebook_errors(store: Store) -> Figure:
    """Which codebook errs least on which weights? Error against block size: normal draws, then trained weights."""
    figure, panels = mosaic([["normal"] * 3, ["minilm", "small", "smollm2"]], height=6.9, height_ratios=(1.55, 1))
    ends = {}
    for source, axes in panels.items():
        records, large = codebooks.records_of(source, store), source == "normal"
        blocks = records[0].curve["block"]
        size: dict[str, Any] = {"markersize": 6.5, "linewidth": 1.7} if large else {"markersize": 4.5, "linewidth": 1.2}
        for name, (label, marker, tone) in BOOKS.items():
            values = np.mean([record.curve[f"{name}_mse"] for record in records], axis=0)
            paint, line = shade(tone, 0.5) if source == "smollm2" else colour(tone), (0, (3, 1.5))
            edge: dict[str, Any] = {"markeredgecolor": colour("paper"), "markeredgewidth": 0.6}
            look = size | edge | {"color": paint, "marker": marker, "linestyle": line if tone == "muted" else "-"}
            axes.plot(blocks, values, **look)
            if large:
                ends[label] = (blocks[-1], values[-1], tone)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        plain_ticks(axes, (32, 64, 256, 1024, 4096) if large else (32, 256, 4096))
        axes.set_title({"normal": "N(0, 1), mean of five draws", "smollm2": "SmolLM2 *"}.get(source, SOURCES[source]))
        axes.set_xlim(26, 4096 * (24 if large else 1.6))
    low = min(axes.get_ylim()[0] for axes in panels.values())
    high = max(axes.get_ylim()[1] for axes in list(panels.values())[1:])
    for source, axes in panels.items():
        if source != "normal":
            axes.set_ylim(low, high)
        decimals(axes.yaxis, label=source in ("normal", "minilm"))
    figure.supylabel("Mean squared error, weights scaled to 1", fontsize=SIZE)
    figure.supxlabel("Weights that share one scale (block size)\n* its weights come from a 4-bit file", fontsize=SIZE)
    name = "codebooks_squared.nf4_excess_mse_over_lloyd_pinned"
    word, excess = f"{{{name};below|not separable from|above}}", 100 * quantity(name, store).value
    text = f"At block 64 NF4's mean squared error is {word} the best with −1, 0 and 1: {excess:+.2f} %"
    finding(figure, text, store)
    label_points(panels["normal"], ends, column=0.65, gap=13.5)
    return figure


def weight_error_scatter(store: Store) -> Figure:
    """Does the error of the weights predict what a model loses? One dot a codebook and block, block 64 named."""
    figure, panels = mosaic([["small", "small"], ["minilm", "smollm2"]], height=7.0, height_ratios=(1.5, 1))
    points = {source: draw_scatter(axes, source, store) for source, axes in panels.items()}
    panels["small"].set_ylabel(f"Loss added, {LOSS}")
    panels["minilm"].set_ylabel("Cosine distance")
    panels["smollm2"].set_ylabel("Loss added")
    figure.supxlabel(
        "Mean squared error of the weights (scaled to 1); large: block 64\n* its weights come from a 4-bit file",
        fontsize=SIZE,
    )
    small, minilm = (f"{{weight_error.{source}_correlation_mse}}" for source in ("small", "minilm"))
    finding(figure, f"Error and loss correlate by {small} on small Llamas, {minilm} on MiniLM", store)
    axes = panels["small"]
    axes.margins(y=0.09)
    low, high = axes.get_xlim()
    axes.set_xlim(low, low * (high / low) ** 1.5)
    label_points(axes, points["small"], column=0.71, gap=13.5)
    return figure


def draw_scatter(axes: Axes, source: str, store: Store) -> Points:
    """One model: weight error against task error; strokes join a codebook's blocks. Returns the points of block 64."""
    blocks = weight_error.CONFOUNDED_BLOCKS if source == "smollm2" else weight_error.BLOCKS
    chosen, lowest = {}, np.inf
    for name, (label, marker, tone) in BOOKS.items():
        x = [quantity(f"weight_error.{source}_{name}_{block}_mse", store).value for block in blocks]
        found = [quantity(f"weight_error.{source}_{name}_{block}_cost", store) for block in blocks]
        y = [one.value for one in found]
        axes.plot(x, y, color=shade(tone, 0.45), linewidth=1, marker=marker, markersize=5, zorder=1)
        at = blocks.index(weight_error.BLOCK)
        low, high = found[at].low or 0.0, found[at].high or 0.0
        axes.plot([x[at]] * 2, [low, high], color=shade(tone, 0.45), linewidth=2, zorder=2)
        big = mark(shade(tone, 0.5) if source == "smollm2" else tone, marker)
        axes.plot(x[at], y[at], **(big | {"markersize": 9}))
        chosen[label] = (x[at], y[at], tone)
        lowest = min(lowest, *y)
    rank = quantity(f"weight_error.{source}_correlation_mse", store)
    text = f"ρ = {rank.value:.2f} ({rank.low:.2f} to {rank.high:.2f})".replace("-", "−")
    if source == "small":
        agreed = quantity(f"weight_error.{source}_ceiling", store).value
        note(axes, f"rank correlation\n{text};\ntwo halves of the data: {agreed:.2f}", 0.02, 0.97, ha="left")
    else:
        note(axes, text, 0, 1.02, ha="left", va="bottom")
    axes.set_xscale("log")
    if lowest > 0:
        axes.set_yscale("log")
        decimals(axes.yaxis, (1, 2, 5))
    decimals(axes.xaxis, (1, 2, 5))
    axes.set_title("SmolLM2 *" if source == "smollm2" else SOURCES[source], pad=6 if source == "small" else 20)
    return chosen


def double_quantisation(store: Store) -> Figure:
    """Is double quantisation free? Bits of a stored weight, and the loss that 8-bit constants add."""
    figure, panels = canvas(2, 2, height=4.9)
    for (bits, added), (source, title, tone) in zip(
        panels, (("small", "Small Llama", "lora"), ("smollm2", "SmolLM2 *", "muted")), strict=True
    ):
        rows = []
        for at, block in enumerate(double_quant.BLOCKS):
            name = f"double_quant_bits.{source}_{block}"
            plain, double = (quantity(f"{name}_{kind}_bits", store).value for kind in ("none", "dynamic8"))
            arrow = {"arrowstyle": "-|>", "color": colour(tone), "lw": 1.6}
            bits.annotate("", (double, at), (plain, at), arrowprops=arrow)
            bits.plot(plain, at, **mark(tone, "D", hollow=True))
            margin = quantity(f"{name}_margin", store).value
            added.barh(at, margin, 0.8, color=colour("fill"), zorder=0)
            found = quantity(f"{name}_cost", store)
            rows.append(as_row(f"block {block}", found, (), tone))
            bold: dict[str, Any] = {"fontsize": SMALL, "color": colour(tone), "fontweight": "bold"}
            bits.text((plain + double) / 2, at - 0.2, f"−{plain - double:.3f}", ha="center", **bold)
            added.text(found.value, at - 0.2, signed(found.value), ha="left", **bold)
        for axes in (bits, added):
            draw_rows(axes, rows if axes is added else [row._replace(value=np.nan, low=None) for row in rows], "", 4)
        bits.set(title=title, xlim=(3.92, 4.58))
        added.axvline(0, color=colour("muted"), linewidth=1.2)
        added.set_yticklabels([])
    panels[1, 0].set_xlabel("Bits per weight, scales\nin 32 (◇) → 8 bits")
    panels[1, 1].set_xlabel(f"Loss added, {LOSS}\n(band: {double_quant.SHARE:g} × NF4's cost)")
    figure.supxlabel("* its weights come from a 4-bit file", fontsize=SMALL, color=colour("muted"))
    saved, cost = "{double_quant_bits.small_64_saved_bits;value}", "{double_quant_bits.small_64_cost}"
    return finding(figure, f"8-bit scales save {saved} a weight for {cost}", store)


def recovery_gaps(store: Store) -> Figure:
    """Does tuning recover what few bits lose? Test loss above the 16-bit base, before and after tuning."""
    figure, panels = canvas(2, 1, height=6.6, height_ratios=(len(gaps("small")), len(gaps("smollm2")) + 0.4))
    titles = {"small": "Small Llama", "smollm2": "SmolLM2 *"}
    for axes, (source, title) in zip(panels, titles.items(), strict=True):
        comparison = recovery.COMPARISONS[source]
        draw_margin(axes, 0, recovery.MARGIN, 0)
        rows = []
        for at, (arm, label) in enumerate(gaps(source).items()):
            after = difference_row(label, comparison, arm, "lora", store, tone="qlora", marker="D")
            said = signed(after.value)
            if arm in recovery.QUANTISED[source]:
                before = difference_row("", comparison, f"{arm}_before", "before", store, tone="untuned", hollow=True)
                draw_interval(axes, at + 0.3, before)
                said = f"{signed(before.value)} → {said}"
            rows.append(after._replace(label=f"{label}\n{said}"))
        draw_rows(axes, rows, "", 6)
        axes.set_title(title)
    panels[1].set_xlabel(f"Test loss − 16-bit base's, {LOSS}\n(band: margin; * weights from a 4-bit file)")
    marks = {"before tuning": mark("untuned", "o", hollow=True), "after tuning": mark("qlora", "D")}
    mark_key(figure, panels[0], marks)
    word = "{recovery.smollm2_nf4_minus_lora_loss;ahead of|not separable from|behind}"
    return finding(figure, f"After tuning SmolLM2, NF4 is {word} 16 bits", store)


def gaps(source: str) -> dict[str, str]:
    """Tuned arms on quantised bases of a model, and the one that has a start of theirs on 16 bit, with their labels."""
    starts = {"loftq": ", LoftQ", "pissa": ", PiSSA"}
    out = {}
    for arm in recovery.COMPARISONS[source].arms:
        if isinstance(arm.method, QLoRA):
            base = arm.method.quant.upper() if arm.method.rounded else "16 bit"
            out[arm.name] = base + starts.get(arm.method.init, "")
    return out


def width_gaps(store: Store) -> Figure:
    """Does QLoRA match LoRA at every width? Test loss above 16 bit's, after tuning and before, against the width."""
    figure, panels = canvas(1, 2, height=4.6)
    widths, plans = list(specs.SMALL_LLAMAS), qlora_width.PLANS.values()
    for axes, (quant, (title, tone, marker)) in zip(panels, BITS.items(), strict=True):
        after = [difference_row("", plan, quant, "lora", store, tone=tone, marker=marker) for plan in plans]
        before = [difference_row("", plan, f"{quant}_before", "before", store) for plan in plans]
        draw_series(axes, widths, after, shift=0.95)
        for width, row in zip(widths, before, strict=True):
            axes.plot([1.05 * width] * 2, [row.low, row.high], color=colour(tone), linewidth=1.2)
            axes.plot(1.05 * width, row.value, **mark(tone, marker, hollow=True))
        bottom, top = axes.get_ylim()
        axes.axhspan(bottom - 1, qlora_width.MARGIN, color=colour("fill"), linewidth=0, zorder=0)
        axes.axhline(0, color=colour("muted"), linewidth=1.2)
        axes.set(xscale="log", xlabel="Width of the model", title=title)
        axes.set_ylim(min(bottom, -0.004), max(top, 1.2 * qlora_width.MARGIN))
        axes.set_xlim(0.8 * widths[0], 1.25 * widths[-1])
        plain_ticks(axes, widths)
    panels[0].set_ylabel(f"Test loss − 16 bit's, {LOSS}")
    marks = {"after tuning": mark("ink", "D"), "before tuning": mark("ink", "D", hollow=True)}
    mark_key(figure, panels[0], marks)
    narrow, wide = (f"{{qlora_width.w{width}_nf4_minus_lora_loss;below|not separable from|above}}"
                    for width in (widths[0], widths[-1]))  # fmt: skip
    text = f"NF4 ends {narrow} 16 bits' loss at width {widths[0]}, {wide} it at width {widths[-1]}"
    return finding(figure, text, store)
