"""Figures of the studies of updates: where they are made, what they forget, where they point, what merging them costs.

Bars are 95 % intervals and small strokes single seeds; a hollow mark has one seed or nothing that was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from peftbook.core.records import Record, Store
from peftbook.evidence.chart import Chart
from peftbook.evidence.results import quantity
from peftbook.studies import forgetting, merging, subspace, targets
from peftbook.views.figures.charts import forest
from peftbook.views.figures.parts import (
    LOSS,
    SMALL,
    as_row,
    difference_row,
    draw_interval,
    draw_margin,
    draw_rows,
    labelled,
    mark,
    mark_key,
    mosaic,
    note,
    score_row,
)
from peftbook.views.figures.style import canvas, colour, finding, shade


def target_matrices(store: Store) -> Figure:
    """Which matrices should LoRA adapt? Test loss at equal parameters, and the paired differences that decide."""
    looks = {
        "query_value": ("q, v (r = 53)", "o"),
        "attention": ("Attention (r = 26)", "s"),
        "mlp": ("MLP (r = 16)", "^"),
        "all": ("All linear (r = 10)", "D"),
    }
    figure, (losses, differences) = canvas(2, 1, height=5.4)
    rows = [
        score_row(label, targets.REFINED, name, f"targets.{name}_loss", store, "lora", marker)
        for name, (label, marker) in looks.items()
    ]
    draw_rows(losses, rows, f"Test loss, {LOSS}", 6)
    pairs = {
        "Attention − MLP": ("attention", "mlp"),
        "q, v − all": ("query_value", "all"),
        "Attention − all": ("attention", "all"),
        "MLP − all": ("mlp", "all"),
    }
    draw_margin(differences, -targets.MARGIN, targets.MARGIN, 0)
    rows = [difference_row(label, targets.REFINED, *pair, store, tone="accent") for label, pair in pairs.items()]
    draw_rows(differences, rows, f"Difference, paired, {LOSS} (band: margin)", 6)
    word = "{targets.query_value_minus_all_loss;ahead of|not separable from|behind}"
    return finding(figure, f"At equal parameters q and v alone are {word} all linear layers", store)


def target_differences(store: Store) -> Chart:
    """Test loss above that of all linear layers, at equal parameters, paired."""
    arms = {"query_value": ("q and v", "fewshot"), "attention": ("attention", "prompt"), "mlp": ("MLP", "qlora")}
    rows = [(label, look, quantity(f"targets_all.{arm}_minus_all_loss", store)) for arm, (label, look) in arms.items()]
    return forest(rows, f"Test loss − that of all linear layers, {LOSS}", 3, "0.00")


PATHS = {
    "full_low": ("Full, 2.5e-5", "full", "v", (0, (1, 1))),
    "full_middle": ("Full, 1e-4", "full", "s", (0, (4, 1.5))),
    "full_high": ("Full, 4e-4", "full", "X", "-"),
    "r8": ("LoRA, r = 8", "lora", "D", (0, (1, 1))),
    "r64": ("LoRA, r = 64", "lora", "o", (0, (4, 1.5))),
    "r256": ("LoRA, r = 256", "lora", "P", "-"),
}


def draw_path(axes: Axes, x: np.ndarray, y: np.ndarray, tone: str, marker: str, line: Any) -> tuple[float, float, str]:
    """An arm's way through two losses, (seeds, points): thin for a seed, thick for the mean. Returns its end."""
    axes.plot(x.T, y.T, color=shade(tone, 0.4), linewidth=0.8)
    x, y = x.mean(axis=0), y.mean(axis=0)
    axes.plot(x, y, color=colour(tone), linestyle=line, linewidth=2)
    axes.plot(x[1:], y[1:], **(mark(tone, marker) | {"markersize": 5.5}))
    return float(x[-1]), float(y[-1]), tone


def forgetting_paths(store: Store) -> Figure:
    """Does LoRA forget less? Prose loss against target loss while arms train, and differences at equal target loss."""
    figure, (axes, differences) = canvas(2, 1, height=6.8, height_ratios=(1.5, 1))
    ends = {}
    for arm, (label, tone, marker, line) in PATHS.items():
        aims, prose = (
            np.array([one.curve[f"{name}_loss_nats"] for one in forgetting.curves(arm, store)])
            for name in ("validation", "prose")
        )
        ends[label] = draw_path(axes, aims, prose - prose[:, :1], tone, marker, line)
    axes.set(xlabel=f"E2E loss, {LOSS} (learned more →)", ylabel=f"Prose loss added, {LOSS}")
    low, high = axes.get_xlim()
    axes.set_xlim(high, low - 0.32 * (high - low))
    draw_margin(differences, -forgetting.MARGIN, forgetting.MARGIN, 0)
    best = forgetting.best_full(store)
    pairs = {(full, "r64"): f"forgetting.{full}_minus_r64_prose" for full in forgetting.FULL}
    pairs |= {(best, arm): f"forgetting.full_minus_{arm}_prose" for arm in ("r8", "r256")}
    rows = []
    for (full, arm), name in pairs.items():
        rate, rank = (PATHS[one][0].split(", ")[1] for one in (full, arm))
        label = f"{rate}{' (best)' if full == best else ''} − {rank}"
        tone, marker = ("full", PATHS[full][2]) if arm == "r64" else ("lora", PATHS[arm][2])
        rows.append(as_row(label, quantity(name, store), matched_seeds(full, arm, store), tone, marker))
    draw_rows(differences, rows, "Prose loss, full − LoRA, at equal E2E loss\n(band: margin; right: LoRA forgets less)")
    text = (
        "LoRA forgets {forgetting.full_low_minus_r64_prose;more|not separably more|less} than full fine-tuning "
        "at rate 2.5e-5, and {forgetting.full_high_minus_r64_prose;more|not separably less|less} at 4e-4"
    )
    return labelled(figure, text, axes, ends, column=0.79, store=store)


def matched_seeds(first: str, second: str, store: Store) -> list[float]:
    """Prose loss of first − second at the worse of the two best target losses, seed by seed."""
    out = []
    for pair in zip(forgetting.curves(first, store), forgetting.curves(second, store), strict=True):
        target = max(min(one.curve["validation_loss_nats"]) for one in pair)
        one, two = (forgetting.matched(record, target) for record in pair)
        out.append(one - two)
    return out


SHOWN = ((1, 2, 4, 8), (1, 2, 4, 8, 64))  # leading directions of the two updates, rows and columns

FULL_OVERLAP = 0.5  # how much of the blue is in the fill of φ = 1: ink stays readable on it


def subspace_overlap(store: Store) -> Figure:
    """Do ranks and seeds find the same directions? Overlap of leading directions beyond that of random ones.

    The maps show φ(i, j) − max(i, j) / d, whose second term is the mean for random directions in d dimensions; the rows
    φ(1, 1) of the inputs' directions, the overlap of directions 2 to 8 beyond that of random ones, and φ(1, 1) of the
    outputs' directions.
    """
    figure, panels = mosaic([["small_large", "large_large"], ["rows", "rows"]], height=6.8, height_ratios=(1, 1.5))
    fill = LinearSegmentedColormap.from_list("overlap", [colour("paper"), shade("lora", FULL_OVERLAP)])
    found = subspace.records(store)
    for name, title in (("small_large", "r = 8 and r = 64"), ("large_large", "two of r = 64")):
        axes = panels[name]
        table = np.mean([shown_overlap(one, name) for one in found], axis=0)
        axes.pcolormesh(table, cmap=fill, vmin=0, vmax=1, edgecolors=colour("paper"), linewidth=1.5)
        for (row, column), value in np.ndenumerate(table):
            text = f"{max(value, 0):.2f}".removeprefix("0")
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=SMALL)
        axes.set_title(title)
        axes.set_yticks(np.arange(len(SHOWN[0])) + 0.5, [str(i) for i in SHOWN[0]])
        axes.set_xticks(np.arange(len(SHOWN[1])) + 0.5, [str(j) for j in SHOWN[1]])
        axes.set(ylim=(len(SHOWN[0]), 0), xlabel="First j of the other")
        axes.grid(visible=False)
        axes.tick_params(length=0)
    panels["small_large"].set_ylabel("First i directions")
    rows = []
    for part, tone, marker in (("first", "lora", "o"), ("later_excess", "accent", "D")):
        for name, label in (("small_large", "r = 8, 64"), ("large_large", "r = 64, 64"), ("start", "untrained")):
            words = "1st" if part == "first" else f"2nd to {subspace.RANKS[0]}th"
            value = quantity(f"subspace.{name}_{part}", store)
            rows.append(as_row(f"{words}, {label}", value, overlap_seeds(found, name, part), tone, marker))
    for name, label in (("small_large_left", "r = 8, 64"), ("large_large_left", "r = 64, 64")):
        value = quantity(f"subspace.{name}_first", store)
        rows.append(as_row(f"1st of outputs, {label}", value, overlap_seeds(found, name, "first"), "qlora", "s"))
    for limit in (subspace.SHARED, subspace.CHANCE):
        panels["rows"].axvline(limit, color=colour("muted"), linestyle=(0, (1, 1.5)), linewidth=1.4)
    draw_rows(panels["rows"], rows, f"Overlap (claim: 1st above {subspace.SHARED:g}, later below {subspace.CHANCE:g})")
    panels["rows"].set_xlim(-0.05, 1)
    text = (
        "First directions of ranks 8 and 64 overlap by {subspace.small_large_first;value}, "
        "those of their outputs by {subspace.small_large_left_first;value}"
    )
    return finding(figure, text, store)


def overlap_seeds(found: Sequence[Record], name: str, part: str) -> list[float]:
    """Each triple's overlap: of the first directions, mean over modules, or of the later ones beyond chance."""
    if part == "first":
        return [float(np.mean([float(value) for value in one.per_example[f"{name}_first"]])) for one in found]
    return [subspace.later_overlap(one, name) - subspace.random_later(one) for one in found]


def shown_overlap(record: Record, name: str) -> np.ndarray:
    """φ(i, j) − max(i, j) / d at the i and j of SHOWN, (4, 5), from the map of all i and j."""
    rows, columns = (np.array(one) for one in SHOWN)
    whole = np.asarray(record.curve[f"{name}_map"]).reshape(rows[-1], columns[-1])
    chance = float(record.measurements["mean_inverse_width"] or 0) * np.maximum(rows[:, None], columns)
    return whole[np.ix_(rows - 1, columns - 1)] - chance


def merging_latency(store: Store) -> Figure:
    """Is merging free in time? Each variant's time over the merged model's, or the merged one's over the base."""
    pairs = (
        ("merged_over_base", "merged / base", "lora", "o"),
        ("lora_over_merged", "LoRA beside / merged", "qlora", "D"),
        ("adapter_over_merged", "adapter / merged", "accent", "P"),
    )
    types = {"fp32": "float32", "bf16": "bfloat16"}
    figure, panels = canvas(1, 2, height=6.2, sharey=True)
    for axes, part, title in zip(panels, merging.PARTS, ("Forward pass", "Decoding"), strict=True):
        axes.axvspan(1, 1 + merging.MARGIN_TIME, color=colour("fill"), linewidth=0, zorder=0)
        axes.axvline(1, color=colour("muted"), linewidth=1.2)
        ticks = []
        for group, (dtype, batch) in enumerate(merging.CONDITIONS):
            top = group * (len(pairs) + 1)
            ticks.append(top + 1)
            for at, (pair, _, tone, marker) in enumerate(pairs, start=top):
                found = quantity(f"merging_latency.{pair}_{part}_{dtype}_batch{batch}", store)
                draw_interval(axes, at, as_row("", found, (), tone, marker))
            base = quantity(f"merging_latency.merged_{part}_{dtype}_batch{batch}_milliseconds", store).value
            note(axes, f"merged: {base:,.0f} ms", 0.99, top, transform=axes.get_yaxis_transform(), va="center")
        axes.set_ylim(len(merging.CONDITIONS) * (len(pairs) + 1) - 0.7, -0.8)
        axes.set_yticks(ticks, [f"{types[dtype]}\nbatch {batch}" for dtype, batch in merging.CONDITIONS])
        axes.set(title=title, xlabel="Time ratio (band: margin)")
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    marks = {label: mark(tone, marker) for _, label, tone, marker in pairs}
    mark_key(figure, panels[0], marks, title=store.machine or merging.MACHINE, title_fontsize=SMALL, columnspacing=0.9)
    text = (
        "At batch 1 LoRA beside the model takes {merging_latency.lora_over_merged_forward_fp32_batch1} the merged time"
    )
    return finding(figure, text, store)
