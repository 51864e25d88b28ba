"""Figures of the studies behind the claims: what each measured, and how uncertain that is.

Bars are 95 % intervals and small strokes single seeds; a hollow mark has one seed or nothing that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from peftbook.figures.methods import per_seed
from peftbook.figures.parts import (
    LOSS,
    SMALL,
    Points,
    Row,
    as_row,
    decimals,
    difference_row,
    draw_interval,
    draw_margin,
    draw_rows,
    draw_series,
    label_points,
    loss_row,
    mark,
    mosaic,
    note,
    plain_ticks,
    signed,
)
from peftbook.figures.style import SIZE, canvas, colour, question, shade
from peftbook.methods import arm_looks
from peftbook.methods.qlora import QLoRA
from peftbook.records import Record, Store
from peftbook.results import quantity
from peftbook.studies import (
    benchmark,
    codebooks,
    data_size,
    double_quant,
    forgetting,
    learning_rate,
    merging,
    prompt_design,
    recovery,
    standard,
    subspace,
    targets,
    weight_error,
)

__all__ = [
    "benchmark_losses",
    "benchmark_scores",
    "codebook_absolute_errors",
    "codebook_errors",
    "double_quantisation",
    "examples_needed",
    "forgetting_paths",
    "merging_latency",
    "parabola",
    "prompt_design_losses",
    "rate_curves",
    "recovery_gaps",
    "standard_curve",
    "subspace_overlap",
    "target_matrices",
    "weight_error_scatter",
]


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
SOURCES = {"normal": "N(0, 1)", "minilm": "MiniLM", "small": "Small Llama", "smollm2": "SmolLM2"}


def arm_look(arm: str) -> tuple[str, str, str]:
    """Short label, tone and marker of an arm of the benchmark."""
    look = arm_looks()[arm]
    return look.label, arm if look.light else "accent", look.marker


# The budget and the benchmark.


def standard_curve(store: Store) -> Figure:
    """How long must LoRA train? Validation loss against tokens, and the first point with 90 % of the best gain."""
    figure, panels = canvas(2, 1, height=5.6, sharex=True)
    for axes, (task, title) in zip(panels, (("e2e", "E2E NLG"), ("docstrings", "Docstrings")), strict=True):
        found = standard.records(task, store)
        chosen, at = standard.budget_point(found)
        looks = (("lora", "o", "-"), ("qlora", "D", (0, (4, 1.5))))
        for record, (tone, marker, line) in zip(found, looks, strict=False):
            x, y = np.asarray(record.curve["tokens"]) / 1000, record.curve["validation_loss_nats"]
            axes.plot(x, y, linestyle=line, color=colour(tone))
            axes.plot(x, y, **(mark(tone, marker) | {"markersize": 5.5}))
            rate = record.spec.runs[0].budget.learning_rate  # type: ignore[union-attr]
            axes.annotate(
                f"rate {rate:g}", (x[-1], y[-1]), xytext=(0, -8), textcoords="offset points", ha="center", va="top",
                color=colour(tone), fontweight="bold", fontsize=SMALL,
            )  # fmt: skip
        losses = chosen.curve["validation_loss_nats"]
        before, best = losses[0], quantity(f"standard.{task}_loss_best", store).value
        level = before - standard.SHARE * (before - best)
        tokens, steps = chosen.curve["tokens"][at] / 1000, chosen.curve["step"][at]
        axes.axhline(level, color=colour("muted"), linestyle=(0, (1, 1.5)), linewidth=1.4)
        note(axes, f"{standard.SHARE:.0%} of the best gain".replace("%", " %"), 0.99, level + 0.02 * (before - best),
             transform=axes.get_yaxis_transform(), va="bottom")  # fmt: skip
        axes.plot([tokens, tokens], [losses[at], before - 0.42 * (before - best)], color=colour("ink"), linewidth=1.2)
        axes.plot(tokens, losses[at], marker="*", markersize=16, color=colour("ink"), markeredgecolor=colour("paper"))
        axes.annotate(
            f"{tokens:.0f} thousand tokens,\n{steps:.0f} steps", (tokens, before - 0.4 * (before - best)),
            xytext=(4, 0), textcoords="offset points", fontweight="bold", va="bottom", fontsize=SIZE - 1,
        )  # fmt: skip
        axes.set_title(title)
        axes.set_xlim(-4, 200)
        axes.set_ylim(best - 0.2 * (before - best), before + 0.06 * (before - best))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    panels[1].set_xlabel("Training tokens, thousands (one seed a curve)")
    figure.supylabel(f"Validation loss, {LOSS}", fontsize=SIZE)
    question(figure, "How long must LoRA train?")
    return figure


def benchmark_losses(store: Store) -> Figure:
    """Which method has the lowest loss on E2E NLG? Every arm's test loss, and its paired difference from LoRA."""
    comparison = benchmark.COMPARISON
    figure, (losses, differences) = canvas(1, 2, height=5.2, sharey=True)
    rows, against = [], []
    for arm in benchmark_order(store):
        label, tone, marker = arm_look(arm)
        rows.append(loss_row(label, comparison, "benchmark", arm, store, tone, marker))
        if arm == "lora":
            against.append(Row(label, 0.0, tone=tone, marker=marker))
        else:
            against.append(difference_row(label, comparison, arm, "lora", store, tone=tone, marker=marker))
    draw_rows(losses, rows, f"Test loss,\n{LOSS}")
    draw_margin(differences, -benchmark.MARGIN, benchmark.MARGIN)
    differences.axvline(0, color=colour("lora"), linewidth=1.2)
    trained = [row for arm, row in zip(benchmark_order(store), against, strict=True) if arm in TRAINED]
    low, high = (
        pick(end for row in trained for end in (row.low, row.high, 0) if end is not None) for pick in (min, max)
    )
    room = 0.08 * (high - low)
    draw_rows(differences, against, "Test loss − LoRA's,\npaired (band: margin)")
    differences.set_xlim(low - room, high + room)
    for at, row in enumerate(against):
        if row.value > high:
            note(differences, f"{row.value:+.2f} →", 0.99, at, transform=differences.get_yaxis_transform(), va="center",
                 color=colour(row.tone), fontweight="bold",
                 bbox={"facecolor": colour("paper"), "edgecolor": "none", "pad": 1})  # fmt: skip
    for axes in (losses, differences):
        axes.xaxis.set_major_locator(MaxNLocator(4))
    question(figure, "Which method has the lowest loss on E2E NLG?")
    return figure


TRAINED = [arm.name for arm in benchmark.COMPARISON.arms if arm.rates]


def benchmark_order(store: Store) -> list[str]:
    """The arms of the benchmark, lowest test loss first."""
    names = [arm.name for arm in benchmark.COMPARISON.arms]
    return sorted(names, key=lambda arm: quantity(f"benchmark.{arm}_loss", store).value)


def benchmark_scores(store: Store) -> Figure:
    """Do ROUGE-L and BLEU order the methods as the loss does? Scores of the texts, arms sorted by loss."""
    figure, panels = canvas(1, 2, height=5.2, sharey=True)
    for axes, score, column, label in (
        (panels[0], "rougeL", "rougeL", "ROUGE-L, 0–1\n(better →)"),
        (panels[1], "bleu", "bleu", "BLEU, 0–100\n(better →)"),
    ):
        rows = []
        for arm in benchmark_order(store):
            name, tone, marker = arm_look(arm)
            seeds = [float(one.measurements[column] or 0) for one in benchmark.COMPARISON.finals(arm, store)]
            rows.append(as_row(name, quantity(f"benchmark.{arm}_{score}", store), seeds, tone, marker))
        draw_rows(axes, rows, label)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    question(figure, "Do ROUGE-L and BLEU order the methods\nas the loss does? (lowest loss on top)")
    return figure


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


class Sweep(NamedTuple):
    """One arm of the learning-rate study.

    grid: its rates.  points: those near the best, without any that diverged, to which the quadratic is fitted.
    seeds: rate → validation loss, for each seed that has all points; the first has the whole grid.
    """

    grid: Sequence[float]
    points: Sequence[float]
    seeds: Sequence[Mapping[float, float]]

    def near(self) -> list[dict[float, float]]:
        """Every seed's losses at the points."""
        return [{rate: one[rate] for rate in self.points} for one in self.seeds]

    def mean(self) -> dict[float, float]:
        """The mean over seeds at the points."""
        return {rate: float(np.mean([one[rate] for one in self.seeds])) for rate in self.points}


def rate_sweep(arm: str, store: Store) -> Sweep:
    """The runs of an arm of the learning-rate study."""
    short = learning_rate.SHORT
    seeds = [found for seed in learning_rate.SEEDS if (found := learning_rate.curve(short, arm, seed, store))]
    points = [rate for rate in learning_rate.window(short, arm, store) if all(rate in one for one in seeds)]
    return Sweep(short.rates(short.arm(arm), store), points, seeds)


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
    axes.set(xscale="log", ylabel=f"Validation loss, {LOSS}")
    axes.set_ylim(lowest - 0.03, lowest + CAP + 0.03)
    draw_optima(optima, sweeps, store)
    question(figure, "Is LoRA's best learning rate ten times\nthat of full fine-tuning?")
    return figure


def draw_sweep(axes: Axes, sweep: Sweep, cap: float, tone: str, marker: str) -> None:
    """The first seed's points (arrows: above `cap` or diverged), the others' near the best, the mean's quadratic."""
    first, *others = sweep.seeds
    inside = {rate: loss for rate, loss in first.items() if loss <= cap}
    outside = [rate for rate in sweep.grid if rate not in inside]
    axes.plot(list(inside), list(inside.values()), color=tone, linewidth=0.9, linestyle=(0, (1, 1.2)))
    axes.plot(list(inside), list(inside.values()), **(mark(tone, marker) | {"markersize": 6}))
    axes.plot(outside, [cap] * len(outside), color=tone, linestyle="none", marker="$\\uparrow$", markersize=10)
    for one in others:
        axes.plot(sweep.points, [one[rate] for rate in sweep.points], **(mark(tone, marker) | {"markersize": 4}))
    axes.plot(*parabola(sweep.mean()), color=tone, linewidth=2)


def draw_optima(axes: Axes, sweeps: Mapping[str, Sweep], store: Store) -> None:
    """Each arm's vertex with its interval, or that of its only seed, over the band of the claimed ratio."""
    full = quantity("learning_rate.full_vertex", store).value
    low, high = (ratio * full for ratio in learning_rate.RATIO)
    draw_margin(axes, low, high)
    rows = []
    for at, (name, sweep) in enumerate(sweeps.items()):
        label, marker, tone = rate_look(name)
        best = [learning_rate.vertex(one) for one in sweep.near()]
        text = "" if name == "full" else "one seed"
        if name in learning_rate.REPLICATED:
            found = quantity(f"learning_rate.{name}_vertex", store)
            rows.append(as_row(label, found, [rate for rate in best if rate is not None], tone, marker))
            if name != "full":
                ratio = quantity(f"learning_rate.{name}_over_full", store)
                text = f"{ratio.value:.1f} × full, {ratio.low:.1f} to {ratio.high:.1f}"
        else:
            rows.append(Row(label, best[0] or np.nan, tone=tone, marker=marker, hollow=True))
        note(axes, text, 0.01, at, transform=axes.get_yaxis_transform(), ha="left", va="center")
    draw_rows(axes, rows, "Learning rate (lower panel: the best one, 95 %)")
    said = f"{learning_rate.RATIO[0]:g} to {learning_rate.RATIO[1]:g} × full"
    axes.annotate(said, (high, 0), xytext=(4, 0), textcoords="offset points", va="center", color=colour("muted"),
                  fontsize=SMALL)  # fmt: skip


# Prompts.


def prompt_design_losses(store: Store) -> Figure:
    """How long must a soft prompt be, and does its start matter? Test loss, and its difference from the usual one."""
    looks = {
        "random": ("fewshot", "s", (0, (4, 1.5)), 0.9),
        "vocabulary": ("prompt", "^", "-", 1.0),
        "text": ("lora", "o", (0, (1, 1)), 1.11),
    }
    usual = prompt_design.arm_name(20, "vocabulary")
    figure, panels = canvas(2, 1, height=6.4, sharex=True)
    ends: list[Points] = [{}, {}]
    for init, (tone, marker, line, shift) in looks.items():
        names = [prompt_design.arm_name(length, init) for length in prompt_design.LENGTHS]
        losses = [loss_row("", prompt_design.COMPARISON, "prompt_length", name, store, tone, marker) for name in names]
        against = [
            Row("", 0.0, tone=tone, marker=marker)
            if name == usual
            else difference_row("", prompt_design.COMPARISON, name, usual, store, tone=tone, marker=marker)
            for name in names
        ]
        for axes, rows, found in zip(panels, (losses, against), ends, strict=True):
            draw_series(axes, prompt_design.LENGTHS, rows, line=line, shift=shift)
            found[init] = (prompt_design.LENGTHS[-1] * shift, rows[-1].value, tone)
    panels[1].axhspan(-prompt_design.MARGIN, prompt_design.MARGIN, color=colour("fill"), linewidth=0, zorder=0)
    panels[0].set(xscale="log", ylabel=f"Test loss, {LOSS}")
    panels[1].set(xlabel="Virtual tokens", ylabel="Test loss − 20 tokens,\nvocabulary (paired)")
    plain_ticks(panels[1], prompt_design.LENGTHS)
    panels[1].set_xlim(0.75, 480)
    question(figure, "How long must a soft prompt be,\nand does its start matter?")
    for axes, found in zip(panels, ends, strict=True):
        label_points(axes, found, column=0.82)
    return figure


# Quantisation.


def codebook_errors(store: Store, measure: str = "mse") -> Figure:
    """Which codebook errs least on which weights? Error against block size: normal draws, then trained weights."""
    words = {"mse": "Mean squared error", "mae": "Mean absolute error"}[measure]
    figure, panels = mosaic([["normal"] * 3, ["minilm", "small", "smollm2"]], height=6.9, height_ratios=(1.55, 1))
    ends = {}
    for source, axes in panels.items():
        records = codebooks.found(source, store)
        blocks = records[0].curve["block"]
        for name, (label, marker, tone) in BOOKS.items():
            values = np.mean([record.curve[f"{name}_{measure}"] for record in records], axis=0)
            pale = source == "smollm2"
            paint = shade(tone, 0.5) if pale else colour(tone)
            axes.plot(
                blocks, values, marker=marker, color=paint, markeredgecolor=colour("paper"), markeredgewidth=0.6,
                markersize=6.5 if source == "normal" else 4.5, linewidth=1.7 if source == "normal" else 1.2,
                linestyle=(0, (3, 1.5)) if tone == "muted" else "-",
            )  # fmt: skip
            if source == "normal":
                ends[label] = (blocks[-1], values[-1], tone)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        plain_ticks(axes, (32, 64, 256, 1024, 4096) if source == "normal" else (32, 256, 4096))
        axes.set_title({"normal": "N(0, 1), mean of five draws", "smollm2": "SmolLM2 *"}.get(source, SOURCES[source]))
        axes.set_xlim(26, 4096 * (24 if source == "normal" else 1.6))
    low = min(axes.get_ylim()[0] for axes in panels.values())
    high = max(axes.get_ylim()[1] for axes in list(panels.values())[1:])
    for source, axes in panels.items():
        if source != "normal":
            axes.set_ylim(low, high)
        decimals(axes.yaxis, label=source in ("normal", "minilm"))
    figure.supylabel(f"{words}, weights scaled to 1", fontsize=SIZE)
    figure.supxlabel("Weights that share one scale (block size)\n* its weights come from a 4-bit file", fontsize=SIZE)
    question(figure, "Which codebook errs least, on which weights?")
    label_points(panels["normal"], ends, column=0.65, gap=13.5)
    return figure


def codebook_absolute_errors(store: Store) -> Figure:
    """Which codebook errs least in absolute error? As `codebook_errors`."""
    return codebook_errors(store, "mae")


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
    question(figure, "Does weight error predict what is lost?")
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
            draw_rows(axes, rows if axes is added else [row._replace(value=np.nan, low=None) for row in rows], "")
            axes.xaxis.set_major_locator(MaxNLocator(4))
        bits.set_title(title)
        bits.set_xlim(3.92, 4.58)
        added.axvline(0, color=colour("muted"), linewidth=1.2)
        added.set_yticklabels([])
    panels[1, 0].set_xlabel("Bits per weight, scales\nin 32 (◇) → 8 bits")
    panels[1, 1].set_xlabel(f"Loss added, {LOSS}\n(band: {double_quant.SHARE:g} × NF4's cost)")
    figure.supxlabel("* its weights come from a 4-bit file", fontsize=SMALL, color=colour("muted"))
    question(figure, "Is double quantisation free?")
    return figure


def recovery_gaps(store: Store) -> Figure:
    """Does tuning recover what few bits lose? Test loss above the 16-bit base, before and after tuning."""
    figure, panels = canvas(2, 1, height=6.6, height_ratios=(len(gaps("small")), len(gaps("smollm2")) + 0.4))
    titles = {"small": "Small Llama", "smollm2": "SmolLM2 *"}
    for axes, (source, title) in zip(panels, titles.items(), strict=True):
        comparison = recovery.COMPARISONS[source]
        draw_margin(axes, 0, recovery.MARGIN)
        axes.axvline(0, color=colour("muted"), linewidth=1.2)
        rows = []
        for at, (arm, label) in enumerate(gaps(source).items()):
            after = difference_row(label, comparison, arm, "lora", store, tone="qlora", marker="D")
            said = signed(after.value)
            if arm in recovery.QUANTISED[source]:
                before = difference_row("", comparison, f"{arm}_before", "before", store, tone="untuned", hollow=True)
                draw_interval(axes, at + 0.3, before)
                said = f"{signed(before.value)} → {said}"
            rows.append(after._replace(label=f"{label}\n{said}"))
        draw_rows(axes, rows, "")
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    panels[1].set_xlabel(f"Test loss − 16-bit base's, {LOSS}\n(band: margin; * weights from a 4-bit file)")
    marks = {"before tuning": mark("untuned", "o", hollow=True), "after tuning": mark("qlora", "D")}
    handles = [panels[0].plot([], [], **look, label=label)[0] for label, look in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.2)
    question(figure, "Does tuning recover what few bits lose?")
    return figure


def gaps(source: str) -> dict[str, str]:
    """Tuned arms on quantised bases of a model, with their labels."""
    starts = {"loftq": ", LoftQ", "pissa": ", PiSSA"}
    out = {}
    for arm in recovery.COMPARISONS[source].arms:
        if isinstance(arm.method, QLoRA):
            out[arm.name] = arm.method.quant.upper() + starts.get(arm.method.init, "")
    return out


# Data, targets, forgetting, subspaces, latency.


def examples_needed(store: Store) -> Figure:
    """How little data is enough? Test loss, ROUGE-L and paired differences from LoRA against training examples."""
    figure, panels = canvas(3, 1, height=7.2, sharex=True)
    arms = {"prompt": 0.92, "lora": 1.0, "full": 1.09}
    ends: list[Points] = [{}, {}, {}]
    span = np.array([data_size.SIZES[0] * 0.85, data_size.SIZES[-1] * 1.2])
    for axes, score, found in zip(panels, ("loss", "rougeL"), ends, strict=False):
        few = quantity(f"data_size.fewshot_{score}", store)
        axes.fill_between(span, few.low, few.high, color=shade("fewshot", 0.16), linewidth=0, zorder=0)
        axes.plot(span, [few.value] * 2, color=colour("fewshot"), linestyle=arm_looks()["fewshot"].line, linewidth=1.6)
        found[arm_looks()["fewshot"].label] = (span[1], few.value, "fewshot")
        for arm, shift in arms.items():
            rows = [
                as_row("", quantity(f"data_size.n{size}_{arm}_{score}", store), per_seed(one.finals(arm, store), score),
                       arm, arm_looks()[arm].marker)
                for size, one in data_size.COMPARISONS.items()
            ]  # fmt: skip
            draw_series(axes, data_size.SIZES, rows, line=arm_looks()[arm].line, shift=shift)
            found[arm_looks()[arm].label] = (data_size.SIZES[-1] * shift, rows[-1].value, arm)
    panels[2].axhspan(-data_size.MARGIN, data_size.MARGIN, color=colour("fill"), linewidth=0, zorder=0)
    panels[2].plot(span, [0, 0], color=colour("lora"), linewidth=1.6)
    ends[2][arm_looks()["lora"].label] = (span[1], 0.0, "lora")
    for arm in ("prompt", "full"):
        rows = [
            difference_row("", one, arm, "lora", store, tone=arm, marker=arm_looks()[arm].marker)
            for one in data_size.COMPARISONS.values()
        ]
        draw_series(panels[2], data_size.SIZES, rows, line=arm_looks()[arm].line, shift=arms[arm])
        ends[2][arm_looks()[arm].label] = (data_size.SIZES[-1] * arms[arm], rows[-1].value, arm)
    panels[0].set(xscale="log", ylabel=f"Test loss,\n{LOSS}")
    panels[1].set_ylabel("ROUGE-L, 0–1")
    panels[2].set(ylabel="Test loss − LoRA's\n(paired)", xlabel="Training examples (one token budget; band: margin)")
    plain_ticks(panels[2], data_size.SIZES)
    panels[2].set_xlim(span[0] * 0.93, 10_000)
    question(figure, "How little data is enough?")
    for axes, found in zip(panels, ends, strict=True):
        label_points(axes, found, column=0.85)
    return figure


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
        loss_row(label, targets.COMPARISON, "targets", name, store, "lora", marker)
        for name, (label, marker) in looks.items()
    ]
    draw_rows(losses, rows, f"Test loss, {LOSS}")
    pairs = {
        "Attention − MLP": ("attention", "mlp"),
        "q, v − all": ("query_value", "all"),
        "Attention − all": ("attention", "all"),
        "MLP − all": ("mlp", "all"),
    }
    draw_margin(differences, -targets.MARGIN, targets.MARGIN)
    differences.axvline(0, color=colour("muted"), linewidth=1.2)
    rows = [difference_row(label, targets.COMPARISON, *pair, store, tone="accent") for label, pair in pairs.items()]
    draw_rows(differences, rows, f"Difference, paired, {LOSS} (band: margin)")
    for axes in (losses, differences):
        axes.xaxis.set_major_locator(MaxNLocator(6))
    question(figure, "Which matrices should LoRA adapt?")
    return figure


PATHS = {
    "full_low": ("Full, 2.5e-5", "full", "v", (0, (1, 1))),
    "full_middle": ("Full, 1e-4", "full", "s", (0, (4, 1.5))),
    "full_high": ("Full, 4e-4", "full", "X", "-"),
    "r8": ("LoRA, r = 8", "lora", "D", (0, (1, 1))),
    "r64": ("LoRA, r = 64", "lora", "o", (0, (4, 1.5))),
    "r256": ("LoRA, r = 256", "lora", "P", "-"),
}


def forgetting_paths(store: Store) -> Figure:
    """Does LoRA forget less? Prose loss against target loss while arms train, and differences at equal target loss."""
    figure, (axes, differences) = canvas(2, 1, height=6.8, height_ratios=(1.5, 1))
    ends = {}
    for arm, (label, tone, marker, line) in PATHS.items():
        aims, prose = (
            np.array([one.curve[f"{name}_loss_nats"] for one in forgetting.curves(arm, store)])
            for name in ("validation", "prose")
        )
        rise = prose - prose[:, :1]
        axes.plot(aims.T, rise.T, color=shade(tone, 0.4), linewidth=0.8)
        x, y = aims.mean(axis=0), rise.mean(axis=0)
        axes.plot(x, y, color=colour(tone), linestyle=line, linewidth=2)
        axes.plot(x[1:], y[1:], **(mark(tone, marker) | {"markersize": 5.5}))
        ends[label] = (float(x[-1]), float(y[-1]), tone)
    axes.set(xlabel=f"E2E loss, {LOSS} (learned more →)", ylabel=f"Prose loss added, {LOSS}")
    low, high = axes.get_xlim()
    axes.set_xlim(high, low - 0.32 * (high - low))
    draw_margin(differences, -forgetting.MARGIN, forgetting.MARGIN)
    differences.axvline(0, color=colour("muted"), linewidth=1.2)
    best = forgetting.best_full(store)
    assert best is not None
    pairs = {(full, "r64"): f"forgetting.{full}_minus_r64_prose" for full in forgetting.FULL}
    pairs |= {(best, arm): f"forgetting.full_minus_{arm}_prose" for arm in ("r8", "r256")}
    rows = []
    for (full, arm), name in pairs.items():
        rate, rank = (PATHS[one][0].split(", ")[1] for one in (full, arm))
        label = f"{rate}{' (best)' if full == best else ''} − {rank}"
        tone, marker = ("full", PATHS[full][2]) if arm == "r64" else ("lora", PATHS[arm][2])
        rows.append(as_row(label, quantity(name, store), matched_seeds(full, arm, store), tone, marker))
    draw_rows(differences, rows, "Prose loss, full − LoRA, at equal E2E loss\n(band: margin; right: LoRA forgets less)")
    question(figure, "Does LoRA forget less?")
    label_points(axes, ends, column=0.79)
    return figure


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
        axes.set_ylim(len(SHOWN[0]), 0)
        axes.set_xlabel("First j of the other")
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
    question(figure, "Do ranks and seeds find the same directions?")
    return figure


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
            for at, (pair, label, tone, marker) in enumerate(pairs, start=top):
                found = quantity(f"merging_latency.{pair}_{part}_{dtype}_batch{batch}", store)
                axes.plot([found.low, found.high], [at, at], color=colour(tone), linewidth=2.4, solid_capstyle="butt")
                axes.plot(found.value, at, **mark(tone, marker), label=label if group == 0 else None)
            base = quantity(f"merging_latency.merged_{part}_{dtype}_batch{batch}_milliseconds", store).value
            note(axes, f"merged: {base:,.0f} ms", 0.99, top, transform=axes.get_yaxis_transform(), va="center")
        axes.set_ylim(len(merging.CONDITIONS) * (len(pairs) + 1) - 0.7, -0.8)
        axes.set_yticks(ticks, [f"{types[dtype]}\nbatch {batch}" for dtype, batch in merging.CONDITIONS])
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in panels:
        axes.set_xlabel("Time ratio (band: margin)")
    legend = figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        title=store.machine or merging.MACHINE,
        handletextpad=0.1,
        columnspacing=0.9,
    )
    legend.get_title().set(fontsize=SMALL, color=colour("muted"))
    question(figure, "Is merging free in time?")
    return figure
