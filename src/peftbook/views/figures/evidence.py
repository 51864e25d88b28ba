"""Figures of the studies behind the claims: what each measured, and how uncertain that is.

Bars are 95 % intervals and small strokes single seeds; a hollow mark has one seed or nothing that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.results import quantity
from peftbook.methods import arm_looks
from peftbook.studies import benchmark, data_size, learning_rate, prompt_design
from peftbook.views.figures.charts import differences
from peftbook.views.figures.parts import (
    LOSS,
    SMALL,
    ForestRow,
    Points,
    as_row,
    difference_row,
    draw_margin,
    draw_rows,
    draw_series,
    label_points,
    mark,
    note,
    plain_ticks,
    score_row,
)
from peftbook.views.figures.style import canvas, colour, finding, say, shade, tag


def arm_look(arm: str) -> tuple[str, str, str]:
    """Short label, tone and marker of an arm of the benchmark."""
    look = arm_looks()[arm]
    return look.label, arm if look.light else "accent", look.marker


# The budget and the benchmark.


def benchmark_losses(store: Store) -> Figure:
    """Which method has the lowest loss on E2E NLG? Every arm's test loss, and its paired difference from LoRA."""
    comparison = benchmark.COMPARISON
    figure, (losses, differences) = canvas(1, 2, height=5.2, sharey=True)
    rows, against = [], []
    for arm in benchmark_order(store):
        label, tone, marker = arm_look(arm)
        rows.append(score_row(label, comparison, arm, f"benchmark.{arm}_loss", store, tone, marker))
        against.append(difference_row(label, comparison, arm, "lora", store, tone=tone, marker=marker))
    draw_rows(losses, rows, f"Test loss,\n{LOSS}", 4)
    draw_margin(differences, -benchmark.MARGIN, benchmark.MARGIN)
    differences.axvline(0, color=colour("lora"), linewidth=1.2)
    trained = [row for arm, row in zip(benchmark_order(store), against, strict=True) if arm in TRAINED]
    low, high = (
        pick(end for row in trained for end in (row.low, row.high, 0) if end is not None) for pick in (min, max)
    )
    room = 0.08 * (high - low)
    draw_rows(differences, against, "Test loss − LoRA's,\npaired (band: margin)", 4)
    differences.set_xlim(low - room, high + room)
    ground, across = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 1}, differences.get_yaxis_transform()
    for at, row in enumerate(against):
        if row.value > high:
            look: dict[str, Any] = {"ha": "right", "fontsize": SMALL, "fontweight": "bold", "bbox": ground}
            say(differences, 0.99, at, f"{row.value:+.2f} →", row.tone, transform=across, **look)
    text = (
        "On E2E LoRA is {benchmark.ten_lora_minus_full_loss;ahead of|not separable from|behind} full fine-tuning over "
        "ten seeds, and {benchmark.prompt_minus_lora_loss;behind|not separable from|ahead of} prompt tuning"
    )
    return finding(figure, text, store)


TRAINED = [arm.name for arm in benchmark.COMPARISON.arms if arm.rates]


def benchmark_order(store: Store) -> list[str]:
    """The arms of the benchmark, lowest test loss first."""
    names = [arm.name for arm in benchmark.COMPARISON.arms]
    return sorted(names, key=lambda arm: quantity(f"benchmark.{arm}_loss", store).value)


def benchmark_differences(store: Store) -> Chart:
    """E2E NLG: every method's test loss above LoRA's, paired, lowest on top."""
    rows = []
    for arm in (arm for arm in benchmark_order(store) if arm != "lora"):
        label, tone, _ = arm_look(arm)
        look = tone if tone in arm_looks() else "untuned"
        rows.append((label, look, benchmark.COMPARISON.difference(arm, "lora", "loss_nats", store)))
    return differences(rows, f"Test loss − LoRA's, {LOSS}", 2, "0.0")


# Learning rates.


RANK_MARKS = {1: "v", 4: "D", 16: "o", 64: "^", 256: "P"}
CAP = 0.45  # nats above the lowest loss where the axis ends


def rate_look(arm: str) -> tuple[str, str, str]:
    """Label, marker and colour of an arm of the learning-rate study: higher ranks are darker."""
    if arm == "full":
        return "Full", "s", colour("full")
    rank = int(arm[1:])
    at = learning_rate.RANKS.index(rank) / (len(learning_rate.RANKS) - 1)
    return f"LoRA, r = {rank}", RANK_MARKS[rank], shade("lora", 0.55 + 0.45 * at)


class SweepCurves(NamedTuple):
    """One arm of the learning-rate study.

    grid: its rates.  seeds: rate → validation loss, for each seed that has all of `near`; the first has the whole grid.
    near: the same at the rates near the best, without any that diverged, to which the quadratic is fitted.
    """

    grid: Sequence[float]
    seeds: Sequence[Mapping[float, float]]
    near: Sequence[Mapping[float, float]]


def rate_sweep(arm: str, store: Store) -> SweepCurves:
    """The runs of an arm of the learning-rate study."""
    short = learning_rate.SHORT
    seeds = [found for seed in learning_rate.SEEDS if (found := learning_rate.curve(short, arm, seed, store))]
    points = [rate for rate in learning_rate.window(short, arm, store) if all(rate in one for one in seeds)]
    near = [{rate: one[rate] for rate in points} for one in seeds]
    return SweepCurves(short.tuning(short.arm(arm)).rates(store.get), seeds, near)


def parabola(curve: Mapping[float, float], points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares quadratic in log rate of `learning_rate.vertex`: rates over the points' range, and losses."""
    x, y = np.log(list(curve)), np.array(list(curve.values()))
    grid = np.linspace(x.min(), x.max(), points)
    return np.exp(grid), np.polyval(np.polyfit(x - x.mean(), y, 2), grid - x.mean())


def rate_curves(store: Store) -> Figure:
    """Is LoRA's best learning rate ten times that of full fine-tuning? Losses against rate, and where each is least."""
    figure, (axes, optima) = canvas(2, 1, height=6.6, sharex=True, height_ratios=(1.25, 1))
    sweeps = {arm.name: rate_sweep(arm.name, store) for arm in learning_rate.SHORT.arms}
    lowest = min(min(one.seeds[0].values()) for one in sweeps.values())
    for name, one in sweeps.items():
        _, marker, tone = rate_look(name)
        draw_sweep(axes, one, lowest + CAP, tone, marker)
    axes.set(xscale="log", ylabel=f"Validation loss, {LOSS}", ylim=(lowest - 0.03, lowest + CAP + 0.03))
    draw_optima(optima, sweeps, store)
    return finding(figure, "LoRA's best learning rate is {learning_rate.r16_over_full} full fine-tuning's", store)


def draw_sweep(axes: Axes, sweep: SweepCurves, cap: float, tone: str, marker: str) -> None:
    """The first seed's points (arrows: above `cap` or diverged), the others' near the best, the mean's quadratic."""
    first, *others = sweep.near
    inside = {rate: loss for rate, loss in sweep.seeds[0].items() if loss <= cap}
    outside = [rate for rate in sweep.grid if rate not in inside]
    axes.plot(list(inside), list(inside.values()), color=tone, linewidth=0.9, linestyle=(0, (1, 1.2)))
    axes.plot(list(inside), list(inside.values()), **(mark(tone, marker) | {"markersize": 6}))
    axes.plot(outside, [cap] * len(outside), color=tone, linestyle="none", marker="$\\uparrow$", markersize=10)
    for one in others:
        axes.plot(list(one), list(one.values()), **(mark(tone, marker) | {"markersize": 4}))
    mean = {rate: float(np.mean([one[rate] for one in sweep.near])) for rate in first}
    axes.plot(*parabola(mean), color=tone, linewidth=2)


def draw_optima(axes: Axes, sweeps: Mapping[str, SweepCurves], store: Store) -> None:
    """Each arm's vertex with its interval, or that of its only seed, over the band of the claimed ratio."""
    full = quantity("learning_rate.full_vertex", store).value
    low, high = (ratio * full for ratio in learning_rate.RATIO)
    draw_margin(axes, low, high)
    rows = []
    for at, (name, sweep) in enumerate(sweeps.items()):
        label, marker, tone = rate_look(name)
        best = [learning_rate.vertex(one) for one in sweep.near]
        text = "" if name == "full" else "one seed"
        if name in learning_rate.REPLICATED:
            found = quantity(f"learning_rate.{name}_vertex", store)
            rows.append(as_row(label, found, [rate for rate in best if rate is not None], tone, marker))
            if name != "full":
                ratio = quantity(f"learning_rate.{name}_over_full", store)
                text = f"{ratio.value:.1f} × full, {ratio.low:.1f} to {ratio.high:.1f}"
        else:
            rows.append(ForestRow(label, best[0] or np.nan, tone=tone, marker=marker, hollow=True))
        note(axes, text, 0.01, at, transform=axes.get_yaxis_transform(), ha="left", va="center")
    draw_rows(axes, rows, "Learning rate (lower panel: the best one, 95 %)")
    said = f"{learning_rate.RATIO[0]:g} to {learning_rate.RATIO[1]:g} × full"
    tag(axes, said, (high, 0), (4, 0), "muted", va="center", fontsize=SMALL, fontweight="normal")


def best_rates(store: Store) -> Chart:
    """Validation loss against learning rate on E2E, first seed, up to what the figure shows."""
    looks = {"full": ("Full", "full"), "r1": ("LoRA, r = 1", "fewshot"), "r16": ("LoRA, r = 16", "lora"),
             "r256": ("LoRA, r = 256", "qlora")}  # fmt: skip
    curves = {arm: rate_sweep(arm, store).seeds[0] for arm in looks}
    lowest = min(min(one.values()) for one in curves.values())
    series = []
    for arm, (label, look) in looks.items():
        shown = {rate: loss for rate, loss in sorted(curves[arm].items()) if loss <= lowest + CAP}
        series.append(Series(label, list(shown.values()), look, list(shown)))
    y_range = (math.floor(lowest * 10) / 10, math.ceil((lowest + CAP) * 10) / 10)
    series.sort(key=lambda one: -len(one.x))  # LibreOffice drops points after a shorter series
    return Chart(
        series,
        "Learning rate",
        f"Validation loss, {LOSS}",
        log={"x": 10},
        y_range=y_range,
        number_format="0.0",
        x_format="0E+0",
        x_range=(1e-6, 0.1),
    )


# Prompts.


def prompt_design_losses(store: Store) -> Figure:
    """How long must a soft prompt be, and does its start matter? Test loss, and its difference from the usual one."""
    looks = {
        "random": ("fewshot", "s", (0, (4, 1.5)), 0.9),
        "vocabulary": ("prompt", "^", "-", 1.0),
        "text": ("lora", "o", (0, (1, 1)), 1.11),
    }
    plan, usual = prompt_design.COMPARISON, prompt_design.arm_name(20, "vocabulary")
    figure, panels = canvas(2, 1, height=6.4, sharex=True)
    ends: list[Points] = [{}, {}]
    for init, (tone, marker, line, shift) in looks.items():
        names = [prompt_design.arm_name(length, init) for length in prompt_design.LENGTHS]
        losses = [score_row("", plan, name, f"prompt_length.{name}_loss", store, tone, marker) for name in names]
        against = [difference_row("", plan, name, usual, store, tone=tone, marker=marker) for name in names]
        for axes, rows, found in zip(panels, (losses, against), ends, strict=True):
            draw_series(axes, prompt_design.LENGTHS, rows, line=line, shift=shift)
            found[init] = (prompt_design.LENGTHS[-1] * shift, rows[-1].value, tone)
    panels[1].axhspan(-prompt_design.MARGIN, prompt_design.MARGIN, color=colour("fill"), linewidth=0, zorder=0)
    panels[0].set(xscale="log", ylabel=f"Test loss, {LOSS}")
    panels[1].set(xlabel="Virtual tokens", ylabel="Test loss − 20 tokens,\nvocabulary (paired)")
    plain_ticks(panels[1], prompt_design.LENGTHS)
    panels[1].set_xlim(0.75, 480)
    word = "{prompt_length.vocabulary_20_minus_vocabulary_100_loss;above|not separable from|below}"
    finding(figure, f"With 100 virtual tokens the loss is {word} that with 20", store)
    for axes, found in zip(panels, ends, strict=True):
        label_points(axes, found, column=0.82)
    return figure


# Data.


def examples_needed(store: Store) -> Figure:
    """How little data is enough? Test loss, ROUGE-L and paired differences from LoRA against training examples."""
    figure, panels = canvas(3, 1, height=7.2, sharex=True)
    arms, looks = {"prompt": 0.92, "lora": 1.0, "full": 1.09}, arm_looks()
    ends: list[Points] = [{}, {}, {}]
    span = np.array([data_size.SIZES[0] * 0.85, data_size.SIZES[-1] * 1.2])
    for axes, score, found in zip(panels, ("loss", "rougeL"), ends, strict=False):
        few = quantity(f"data_size.fewshot_{score}", store)
        axes.fill_between(span, few.low, few.high, color=shade("fewshot", 0.16), linewidth=0, zorder=0)
        axes.plot(span, [few.value] * 2, color=colour("fewshot"), linestyle=looks["fewshot"].line, linewidth=1.6)
        found[looks["fewshot"].label] = (span[1], few.value, "fewshot")
        for arm, shift in arms.items():
            rows = [
                score_row("", one, arm, f"data_size.n{size}_{arm}_{score}", store, arm, looks[arm].marker, score=score)
                for size, one in data_size.COMPARISONS.items()
            ]
            draw_series(axes, data_size.SIZES, rows, line=looks[arm].line, shift=shift)
            found[looks[arm].label] = (data_size.SIZES[-1] * shift, rows[-1].value, arm)
    panels[2].axhspan(-data_size.MARGIN, data_size.MARGIN, color=colour("fill"), linewidth=0, zorder=0)
    panels[2].plot(span, [0, 0], color=colour("lora"), linewidth=1.6)
    ends[2][looks["lora"].label] = (span[1], 0.0, "lora")
    for arm in ("prompt", "full"):
        rows = [
            difference_row("", one, arm, "lora", store, tone=arm, marker=looks[arm].marker)
            for one in data_size.COMPARISONS.values()
        ]
        draw_series(panels[2], data_size.SIZES, rows, line=looks[arm].line, shift=arms[arm])
        ends[2][looks[arm].label] = (data_size.SIZES[-1] * arms[arm], rows[-1].value, arm)
    panels[0].set(xscale="log", ylabel=f"Test loss,\n{LOSS}")
    panels[1].set_ylabel("ROUGE-L, 0–1")
    panels[2].set(ylabel="Test loss − LoRA's\n(paired)", xlabel="Training examples (one token budget; band: margin)")
    plain_ticks(panels[2], data_size.SIZES)
    panels[2].set_xlim(span[0] * 0.93, 10_000)
    text = (
        "With 100 examples LoRA is {data_size.n100_lora_minus_full_loss;ahead of|not separable from|behind} "
        "full fine-tuning, and prompt tuning "
        "{data_size.n100_prompt_minus_lora_loss;ahead of|not separable from|behind} LoRA"
    )
    finding(figure, text, store)
    for axes, found in zip(panels, ends, strict=True):
        label_points(axes, found, column=0.85)
    return figure
