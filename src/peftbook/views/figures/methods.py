"""Figures of the head-to-head study: scores, sizes, learning rates and training curves of the arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.stats import spearmanr

from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.evidence.comparison import table
from peftbook.methods import arm_looks
from peftbook.studies import methods
from peftbook.views.figures.parts import (
    SCORES,
    ForestRow,
    draw_rows,
    draw_series,
    interval_row,
    mark_key,
    per_seed,
)
from peftbook.views.figures.style import SIZE, canvas, colour, finding, look, say, shade, tag

NAMED = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "prompt": "prompt tuning"}
DECIDING = ("lora_minus_full", "prompt_minus_lora")  # what titles compare
DEFAULT = {"linestyle": "none", "marker": "o", "markersize": 16, "fillstyle": "none", "markeredgewidth": 1.4}
CHOSEN = {"linestyle": "none", "marker": "*", "markersize": 16}
CAP = 0.9  # nats above the lowest loss where the learning-rate axis ends


# What figures and deck share: numbers from records.


def difference(first: Sequence[Record], second: Sequence[Record], score: str) -> tuple[stats.Interval, list[float]]:
    """The paired difference first − second with its interval, and the difference of each seed."""
    by_seed = np.subtract(per_seed(first, score), per_seed(second, score))
    return methods.paired(list(first), list(second), SCORES[score][1]), by_seed.tolist()


def smooth(values: Sequence[float], span: int = 9) -> list[float]:
    """Centred running mean over `span` steps; the window is cut at the ends, never padded."""
    half = span // 2
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def example_differences(first: Sequence[Record], second: Sequence[Record]) -> np.ndarray:
    """Loss per label token of each test example, first − second, averaged over the shared seeds. (examples,)."""
    one, two = (table(list(records), "loss_nats") for records in (first, second))
    return (one - two).mean(axis=0) / np.asarray(first[0].per_example["label_tokens"], dtype=float)


# Figures.


def head_to_head(store: Store, scores: Sequence[str] = tuple(SCORES)) -> Figure:
    """What does each method gain over the untouched model? Paired test differences, 95 % intervals, every seed."""
    base = methods.final_records("untuned", store)
    found = {arm: methods.final_records(arm, store) for arm in methods.LABELS if arm != "untuned"}
    height = 1.2 + 0.373 * len(scores) * len(found)
    figure, panels = canvas(len(scores), 1, height=height, squeeze=False)
    for axes, score in zip(panels[:, 0], scores, strict=True):
        axes.axvline(0, color=colour("untuned"), linewidth=1.2)
        rows = [arm_row(arm, *difference(records, base, score)) for arm, records in found.items()]
        draw_rows(axes, rows, SCORES[score][0] + better(score), 6)
    lora, prompt = (f"{{methods.{pair}_loss;more than|not separably less than|less than}}" for pair in DECIDING)
    return finding(figure, f"LoRA gains {lora} full fine-tuning, and prompt tuning {prompt} LoRA", store)


def arm_row(arm: str, interval: stats.Interval, seeds: Sequence[float]) -> ForestRow:
    """One arm of a forest, in its look."""
    return interval_row(arm_looks()[arm].label, interval, seeds, tone=arm, marker=arm_looks()[arm].marker)


def better(score: str) -> str:
    return "  (← better)" if SCORES[score][2] < 0 else "  (better →)"


def quality_against_parameters(store: Store) -> Figure:
    """How many trained parameters does quality take? Test loss against trainable parameters, every seed."""
    figure, axes = canvas(height=3.9)
    top = 1.0
    for arm in ("untuned", "fewshot"):
        level = float(np.mean(per_seed(methods.final_records(arm, store), "loss")))
        axes.axhline(level, color=colour(arm), linestyle=arm_looks()[arm].line, linewidth=1.6)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right"}
        said = f"{arm_looks()[arm].label}: nothing trained"
        tag(axes, said, (1.0, level), (0, 4), arm, fontsize=SIZE - 1, fontweight="normal", **place)
    for arm in methods.ARMS:
        records = methods.final_records(arm, store)
        size = float(records[0].measurements["trainable_parameters"] or 0)
        row = arm_row(arm, methods.score(records, "loss_nats"), per_seed(records, "loss"))
        # Arms of equal size stand side by side, so that both are seen.
        size *= {"lora": 0.88, "qlora": 1.14}.get(arm, 1.0)
        draw_series(axes, [size], [row])
        left = arm in ("lora", "full")
        offset, side = ((-9, 0), "right") if left else ((9, 0), "left")
        tag(axes, arm_looks()[arm].label, (size, row.value), offset, arm, va="center", ha=side)
        top = max(top, size)
    axes.set(xscale="log", xlabel="Trained parameters", ylabel="Test loss, nats per token", xlim=(4e3, top * 3))
    word = "{methods.lora_minus_full_loss;below|not separable from|above}"
    text = (
        f"LoRA trains {{methods.lora_trainable_percent;value}} of the weights and ends {word} full fine-tuning's loss"
    )
    return finding(figure, text, store)


def learning_rate_curves(store: Store) -> Figure:
    """Which learning rate does each method want? Validation loss against rate, default and chosen rate marked."""
    figure, axes = canvas(height=4.1)
    for arm in methods.ARMS:
        curve = methods.plan.tuning(methods.plan.arm(arm)).losses(store.get)  # infinite where a run diverged
        rates, losses = list(curve), list(curve.values())
        axes.plot(rates, losses, **look(arm))
        best, default = int(np.argmin(losses)), rates.index(methods.DEFAULT_RATES[arm])
        axes.plot(rates[best], losses[best], **(CHOSEN | {"color": colour(arm), "markeredgecolor": colour("paper")}))
        axes.plot(rates[default], losses[default], **DEFAULT, color=colour(arm))
        # LoRA and QLoRA share their rates: one is named at the right end of its line, the other above its left end.
        at, offset, side = (-1, (9, -5), "left") if arm == "lora" else (0, (0, 15), "center")
        tag(axes, arm_looks()[arm].label, (rates[at], losses[at]), offset, arm, ha=side, va="center")
    axes.set(xscale="log", xlabel="Learning rate", ylabel="Validation loss, nats per token")
    axes.margins(x=0.09, y=0.14)
    mark_key(
        figure, axes, {"default": DEFAULT | {"color": colour("muted")}, "chosen": CHOSEN | {"color": colour("muted")}}
    )
    best_rates = [f"{{methods.{arm}_best_rate;value}} for {NAMED[arm]}" for arm in methods.ARMS if arm != "qlora"]
    return finding(figure, f"Best rates are {', '.join(best_rates)}", store)


def training_loss(store: Store) -> Figure:
    """How fast does each method learn? Training loss of every final run, faint, and the smoothed mean of the seeds."""
    figure, panels = canvas(2, 2, height=4.6, sharex=True, sharey=True)
    found = {arm: [run.curve["train_loss_nats"] for run in methods.final_records(arm, store)] for arm in methods.ARMS}
    means = {arm: smooth(np.mean(list(zip(*curves, strict=False)), axis=1)) for arm, curves in found.items()}
    for axes, (arm, curves) in zip(panels.flat, found.items(), strict=True):
        for other, grey in means.items():
            if other != arm:
                axes.plot(range(1, len(grey) + 1), grey, color=shade("muted", 0.45), linewidth=1.2)
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, color=shade(arm, 0.35), linewidth=0.8)
        axes.plot(range(1, len(means[arm]) + 1), means[arm], color=colour(arm), linewidth=2.6)
        axes.set_title(arm_looks()[arm].label, color=colour(arm))
    figure.supxlabel("Optimiser step (batch of 8 examples)", fontsize=SIZE)
    figure.supylabel("Training loss, nats per token", fontsize=SIZE)
    half = max(int(np.argmax(np.array(mean) <= (mean[0] + mean[-1]) / 2)) for mean in means.values()) + 1
    return finding(figure, f"Half of each method's fall in training loss is over by step {half}")


def lora_against_full(store: Store) -> Figure:
    """Does LoRA lose on some examples what it wins on others? Paired loss differences, example by example."""
    return paired_histogram(store, "lora", "full")


def qlora_against_lora(store: Store) -> Figure:
    """What does the 4-bit base cost? Paired loss differences, example by example."""
    return paired_histogram(store, "qlora", "lora")


def paired_histogram(store: Store, first: str, second: str) -> Figure:
    """Histogram of per-example loss differences; the tails beyond the 1st and 99th percentile stand in the end bins."""
    one, two = methods.final_records(first, store), methods.final_records(second, store)
    values = example_differences(one, two)
    interval, seeds = difference(one, two, "loss")
    reach = float(np.quantile(np.abs(values), 0.98)) * 1.02
    edges = np.linspace(-reach, reach, 27)
    counts, _ = np.histogram(np.clip(values, -reach, reach), edges)
    figure, axes = canvas(height=3.7)
    left = edges[:-1]
    width = edges[1] - edges[0]
    # A win for the first arm is solid, a loss is hatched: the halves differ without colour.
    for wins, arm, hatch in ((True, first, ""), (False, second, "////")):
        chosen = (left + width / 2 < 0) == wins
        look: dict[str, Any] = {"color": shade(arm, 0.55), "edgecolor": colour("paper"), "hatch": hatch}
        axes.bar(left[chosen], counts[chosen], width, align="edge", linewidth=0.6, **look)
        share = float(np.mean(values < 0)) if wins else float(np.mean(values > 0))
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "left" if wins else "right", "va": "top"}
        said = f"{arm_looks()[arm].label} better\non {100 * share:.0f} %"
        say(axes, 0.02 if wins else 0.98, 0.97, said, arm, fontweight="bold", **place)
    axes.axvline(0, color=colour("ink"), linewidth=1)
    top = counts.max()
    axes.set_ylim(0, top * 1.5)
    axes.plot([interval.low, interval.high], [top * 1.1] * 2, color=colour("accent"), linewidth=2.4)
    axes.plot(interval.mean, top * 1.1, "o", color=colour("accent"), markeredgecolor=colour("paper"))
    axes.plot(seeds, [top * 1.18] * len(seeds), "|", color=colour("accent"), markersize=7, markeredgewidth=1.5)
    place = {"ha": "center", "fontsize": SIZE - 1, "fontweight": "normal"}
    tag(axes, "mean, 95 %", (interval.mean, top * 1.22), (0, 3), "accent", **place)
    axes.set(
        xlabel=f"{arm_looks()[first].label} − {arm_looks()[second].label}: loss, nats per token", ylabel="Test examples"
    )
    axes.grid(axis="x", visible=False)
    word = f"{{methods.{first}_minus_{second}_loss;ahead of|not separable from|behind}}"
    share = 100 * float(np.mean(values < 0))
    return finding(
        figure,
        f"{NAMED[first]} is better on {share:.0f} % of the examples and on average {word} {NAMED[second]}",
        store,
    )


def rouge_against_bertscore(store: Store) -> Figure:
    """Do ROUGE-L and BERTScore agree on which answers are good? LoRA's test answers, averaged over seeds."""
    records = methods.final_records("lora", store)
    rouge, bert = (np.mean(table(records, name), axis=0) for name in ("rougeL", "bertscore_f1"))
    agreement = float(spearmanr(rouge, bert).statistic)
    figure, axes = canvas(height=3.9)
    axes.plot(
        rouge, bert, "o", markersize=5, color=shade("lora", 0.7), markeredgecolor=colour("paper"), markeredgewidth=0.5
    )
    said = f"rank correlation {agreement:.2f}\n{len(rouge)} examples"
    say(axes, 0.98, 0.04, said, "lora", transform=axes.transAxes, ha="right", va="bottom", fontweight="bold")
    axes.set(xlabel="ROUGE-L, 0–1", ylabel="BERTScore F1, 0–1")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return finding(figure, f"The ranks of LoRA's answers by ROUGE-L and by BERTScore correlate by {agreement:.2f}")
