"""Figures of the studies on limits: what prompts can learn, what adapters hold, what serving and memory cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.core.records import Record, Store
from peftbook.studies import activations, capacity, expressiveness, memory, merging, serving, step_seconds
from peftbook.studies import memory_elsewhere as elsewhere
from peftbook.views.figures.parts import (
    SMALL,
    decimals,
    draw_quantities,
    label_points,
    labelled,
    mosaic,
    note,
    plain_ticks,
)
from peftbook.views.figures.style import canvas, colour, finding, tag

Ratios = list[tuple[float, float]]  # (measured, predicted / measured) of configurations


def accuracy_by_depth(store: Store) -> Figure:
    """What can a prompt not learn? Share of lists sorted as asked against the depth of the model."""
    looks = {
        "lora": ("LoRA, r = 1", "lora", "o", "-", 1.0),
        "lora4": ("LoRA, r = 4", "lora", "s", (0, (4, 1.5)), 1.05),
        "prefix": ("Prefix", "accent", "<", "-", 0.95),
        "prompt": ("Prompt", "prompt", "^", "-", 0.9),
        "prompt_ascending": ("Prompt, upwards", "muted", "v", (0, (1, 1)), 1.1),
    }
    figure, axes = canvas(height=4.4)
    depths, solved = expressiveness.depths_at_hand(store), expressiveness.SOLVED
    names = {arm: {depth: f"expressiveness.depth{depth}_{arm}_accuracy" for depth in depths} for arm in looks}
    ends = draw_quantities(axes, looks, names, store)
    axes.axhline(solved, color=colour("muted"), linestyle=(0, (1, 1.5)), linewidth=1.4)
    note(axes, "counts as solved", 0.99, solved + 0.01, transform=axes.get_yaxis_transform(), va="bottom")
    axes.set(xscale="log", xlabel="Layers", ylabel="Lists sorted as asked, 0–1", ylim=(-0.04, 1.06))
    plain_ticks(axes, depths)
    axes.set_xlim(0.85 * depths[0], 2.8 * depths[-1])
    prompt, lora = (f"{{expressiveness.depth{depths[-1]}_{arm}_accuracy;cannot|may|can;{solved}}}"
                    for arm in ("prompt", "lora4"))  # fmt: skip
    text = f"Even with {depths[-1]} layers a prompt {prompt} sort downwards, LoRA of rank 4 {lora}"
    return labelled(figure, text, axes, ends, column=0.74, store=store)


def stored_bits(store: Store) -> Figure:
    """How many bits does an adapter hold? Stored bits against trained parameters, one line a series."""
    looks = {
        "ample": ("ranks, ample data", "lora", "o", "-"),
        "scarce": ("ranks, few pairs", "qlora", "D", (0, (4, 1.5))),
        "layers": ("layers, r = 1", "prompt", "^", "-"),
        "long": ("1,000 exposures", "full", "s", "-"),
    }
    figure, axes = canvas(height=4.6)
    names = {name: {one.parameters: f"capacity.{one.name}_bits" for one in capacity.SERIES[name]} for name in looks}
    ends = draw_quantities(axes, looks, names, store)
    sizes = [size for series in names.values() for size in series]
    span = np.array([min(sizes), max(sizes)])
    axes.plot(span, capacity.RULE_BITS * span, color=colour("muted"), linestyle=(0, (1, 1.5)), linewidth=1.4)
    ends[f"{capacity.RULE_BITS} bits a parameter"] = (span[1], capacity.RULE_BITS * span[1], "muted")
    axes.set(xscale="log", yscale="log", xlabel="Trained parameters", ylabel="Bits stored")
    decimals(axes.yaxis, (1, 2, 5))
    plain_ticks(axes, sorted({one.parameters for one in capacity.SERIES["ample"]}))
    axes.set_xlim(span[0] * 0.8, span[1] * 9)
    finding(figure, "With data to spare an adapter stores {capacity.slope;value}", store)
    x, y, tone = ends.pop(looks["long"][0])  # which ends between the other lines
    lead = {"arrowprops": {"arrowstyle": "-", "color": colour(tone), "linewidth": 0.8, "shrinkB": 5}}
    tag(axes, looks["long"][0], (x, y), (-26, 66), tone, ha="center", **lead)
    label_points(axes, ends, column=0.66)
    return figure


def adapters_served(store: Store) -> Figure:
    """What do many adapters cost to serve? Generated tokens a second against the number of adapters in a batch."""
    looks = {
        "mixed": ("one mixed batch", "lora", "o", "-"),
        "mixed_peft": ("mixed, peft's loop", "qlora", "D", (0, (4, 1.5))),
        "swapped": ("swapped", "full", "s", "-"),
        "merged": ("merged copies", "accent", "P", (0, (1, 1))),
    }
    figure, axes = canvas(height=4.4)
    names = {name: {count: f"serving.{name}_{count}_tokens_per_second" for count in serving.COUNTS} for name in looks}
    ends = draw_quantities(axes, looks, names, store)
    axes.set_xscale("log", base=2)
    plain_ticks(axes, serving.COUNTS)
    axes.set(
        xlabel=f"Adapters in a batch of {serving.BATCH} requests\n({store.machine or merging.MACHINE})",
        ylabel="Generated tokens a second",
    )
    axes.set(ylim=(0, None), xlim=(0.85, 90))
    most = serving.COUNTS[-1]
    text = f"{most} adapters in a mixed batch run {{serving.mixed_over_swapped_{most}}} as fast as swapped"
    return labelled(figure, text, axes, ends, column=0.68, store=store)


def step_peaks(store: Store) -> Figure:
    """Can the peak of a step be computed? Predicted over measured bytes against their size, for both halves."""
    halves = joined(activations.by_half(activations.peak_probe, store), "peak_bytes", 1e6, activations.peaks)
    label = "Measured peak beyond weights and optimiser, MB"
    figure = halves_figure(halves, activations.MARGIN_PEAK, (1, 3, 10, 30, 100), label)
    return finding(figure, "Held-out peaks are predicted at {step_peaks.held_out_peak_ratio} the measured ones", store)


def step_times(store: Store) -> Figure:
    """Can the seconds of a step be computed? Predicted over measured seconds against those, for both halves."""
    records = activations.by_half(step_seconds.probe, store)
    halves = joined(records, "step_seconds", 1.0, step_seconds.ratios)
    label = f"Measured seconds of a step\n({store.machine or merging.MACHINE})"
    figure = halves_figure(halves, step_seconds.MARGIN, (0.1, 0.2, 0.5, 1, 2), label)
    text = "Half of the held-out times are predicted to within {step_seconds.held_out_median_error;value}"
    return finding(figure, text, store)


def joined(
    halves: Mapping[str, list[Record]], column: str, unit: float, ratios: Callable[[Record], Iterable[float]]
) -> dict[str, Ratios]:
    """The points of all records of each half: what a column of theirs measured, in this unit, and the ratios to it."""

    def points(record: Record) -> Ratios:
        sizes = [float(size) / unit for size in record.per_example[column]]
        return list(zip(sizes, ratios(record), strict=True))

    return {half: [one for record in records for one in points(record)] for half, records in halves.items()}


def halves_figure(halves: Mapping[str, Ratios], margin: float, ticks: Sequence[float], label: str) -> Figure:
    """The errors of a model on one axes, see `draw_halves`."""
    figure, axes = canvas(height=4.4)
    draw_halves(axes, halves, margin)
    figure.legend(loc="outside lower center", ncols=2, handletextpad=0.2)
    plain_ticks(axes, ticks)
    axes.set_xlabel(label)
    return figure


def draw_halves(axes: Axes, halves: Mapping[str, Ratios], margin: float) -> None:
    """Errors of a model in per cent against what was measured, a mark a configuration, open and held-out ones.

    halves: half → (measured, predicted / measured) of its configurations.
    """
    axes.axhline(0, color=colour("muted"), linewidth=1.2)
    axes.axhspan(-100 * margin, 100 * margin, color=colour("muted"), alpha=0.12)
    looks = {
        "open": ("looked at while it was written", "o", "none", "lora"),
        "held-out": ("held out", "D", colour("lora"), "lora"),
        "again": ("held out, later", "s", colour("prompt"), "prompt"),
    }
    for half, points in halves.items():
        label, marker, face, tone = looks[half]
        xs, errors = [one for one, _ in points], [100 * (ratio - 1) for _, ratio in points]
        axes.plot(
            xs,
            errors,
            marker=marker,
            markersize=5,
            linestyle="none",
            color=colour(tone),
            markerfacecolor=face,
            alpha=0.75,
            label=label,
        )
    axes.set(xscale="log", ylabel="Predicted − measured, %\n(band: margin)")


def memory_elsewhere(store: Store) -> Figure:
    """Does it hold for what others measured on GPUs? Predicted over published peaks, for all parts."""
    halves = {}
    for half, name in zip(elsewhere.PARTS, ("open", "held-out", "again"), strict=False):
        record = store.need(elsewhere.probe(half))
        sizes = elsewhere.per_row(record, "measured_bytes", half)
        ratios = [1 + error for error in elsewhere.errors(record, half)]
        halves[name] = [(size / 1e9, ratio) for size, ratio in zip(sizes, ratios, strict=True)]
    figure = halves_figure(halves, elsewhere.MARGIN, (5, 10, 20, 40, 80), "Published figure, GB")
    text = (
        "{memory_elsewhere.judged_within;value} of {memory_elsewhere.judged_rows;value} held out are within the margin"
    )
    return finding(figure, text, store)


def memory_errors(store: Store) -> Figure:
    """Does the byte model hold? Predicted over measured peak of every case, for torch's tensors and the process."""
    figure, axes = mosaic([["tensor_peak"], ["process_peak"]], height=6.4)
    for against, title in (("tensor_peak", "torch's tensors"), ("process_peak", "the whole process")):
        halves = {half: memory.points(cases, store, against) for half, cases in memory.HALVES.items()}
        draw_halves(axes[against], halves, memory.MARGIN)
        axes[against].set_title(f"Peak of {title}", loc="left", fontsize=SMALL)
        plain_ticks(axes[against], (0.5, 1, 2, 5, 10))
    axes["process_peak"].set_xlabel("Measured peak, GB")
    shown = axes["tensor_peak"].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=2, handletextpad=0.2)
    return finding(
        figure,
        "Held-out peaks of tensors are off by {memory.held_out_tensor_peak_largest_error;value} at most, "
        "of the process by {memory.held_out_process_peak_largest_error;value}",
        store,
    )
