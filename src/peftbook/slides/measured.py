"""Charts of what was measured: each holds the records' numbers, and its intervals as error bars."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from peftbook import results
from peftbook.evidence.chart import Chart, Series
from peftbook.figures import costs, evidence, methods, updates
from peftbook.methods import arm_looks
from peftbook.records import Store
from peftbook.results import quantity
from peftbook.slides.charts import LOSS, TRAINED, chart, ends, forest
from peftbook.slides.placeholders import outcomes
from peftbook.studies import Quantity, activations, benchmark, data_size, forgetting, prompt_design
from peftbook.studies.methods import LABELS


def arms_chart(store: Store, scores: dict[str, str], axis: str, number_format: str, arms: Iterable[str]) -> Chart:
    """Bars of the arms' test scores with 95 % intervals. scores: quantity suffix → series name."""
    arms = list(arms)
    series = []
    for score, name in scores.items():
        found = [quantity(f"methods.{arm}_{score}", store) for arm in arms]
        spread = [(float(q.low or 0), float(q.high or 0)) for q in found]
        series.append(Series(name, [q.value for q in found], spread=spread))
    labels = [arm_looks()[arm].label for arm in arms]
    return Chart(series, "", axis, labels, number_format=number_format, y_range=(0, None), label_format="0.00")


@chart
def test_loss(store: Store) -> Chart:
    """Test loss of every arm with its 95 % interval."""
    losses = arms_chart(store, {"loss": "Test loss"}, "Test loss, nats per token", "0.0", LABELS)
    return replace(losses, point_looks=list(LABELS))


@chart
def test_scores(store: Store) -> Chart:
    """ROUGE-L and BERTScore of every arm with 95 % intervals."""
    chart = arms_chart(store, {"rougeL": "ROUGE-L", "bertscore_f1": "BERTScore F1"}, "Score, 0–1", "0.0", LABELS)
    for series, look in zip(chart.series, ("lora", "qlora"), strict=True):
        series.look = look
    return chart


@chart
def learning_rates(store: Store) -> Chart:
    """Validation loss against learning rate; diverged runs are left out."""
    series = []
    for arm in TRAINED:
        points = [pair for pair in zip(*methods.sweep_points(arm, store), strict=True) if math.isfinite(pair[1])]
        series.append(Series(arm_looks()[arm].label, [y for _, y in points], arm, [x for x, _ in points]))
    series.sort(key=lambda one: -len(one.x))  # LibreOffice drops points of a first series that is shorter
    values = [value for one in series for value in one.values]
    low, high = min(values), min(max(values), min(values) + methods.CAP)
    y_range = (math.floor(low * 10) / 10 - 0.1, math.ceil(high * 10) / 10)
    return Chart(series, "Learning rate", f"Validation loss, {LOSS}", log={"x": 10}, y_range=y_range,
                 number_format="0.0", x_format="0E+0", x_range=(1e-5, 1.0))  # fmt: skip


@chart
def training_curves(store: Store) -> Chart:
    """Training loss of the final runs, mean over seeds, smoothed over nine steps."""
    series = []
    for arm in TRAINED:
        curves = [record.curve["train_loss_nats"] for record in methods.chosen_records(arm, store)]
        mean = [math.fsum(step) / len(step) for step in zip(*curves, strict=False)]
        smoothed = [round(value, 4) for value in methods.smooth(mean)]
        steps = [float(step) for step in range(1, len(smoothed) + 1)]
        series.append(Series(arm_looks()[arm].label, smoothed, arm, steps, marks=False))
    low = math.floor(min(min(one.values) for one in series) * 2) / 2
    return Chart(series, "Optimiser step (batch of 8)", f"Training loss, {LOSS}", number_format="0.0",
                 y_range=(low, None), x_range=(0, None))  # fmt: skip


def cost_chart(store: Store, name: str, axis: str, unit: float, number_format: str) -> Chart:
    """Bars of one cost by method with the range of the repeats."""
    arms = ["full", "lora", "qlora", "prompt"]
    found = [quantity(f"costs.{arm}_{name}", store) for arm in arms]
    field_name = {"step_seconds": "median_step_seconds", "peak_memory": "peak_memory_bytes"}[name]
    runs = [costs.repeats(arm, store, field_name) for arm in arms]
    series = Series(axis, [q.value / unit for q in found], spread=[(min(r) / unit, max(r) / unit) for r in runs])
    labels = [arm_looks()[arm].label for arm in arms]
    return Chart([series], "", axis, labels, y_range=(0, None), number_format=number_format, label_format="0.00",
                 point_looks=arms)  # fmt: skip


@chart
def best_rates(store: Store) -> Chart:
    """Validation loss against learning rate on E2E, first seed, up to what the book's figure shows."""
    looks = {"full": ("Full", "full"), "r1": ("LoRA, r = 1", "fewshot"), "r16": ("LoRA, r = 16", "lora"),
             "r256": ("LoRA, r = 256", "qlora")}  # fmt: skip
    curves = {arm: evidence.rate_sweep(arm, store).seeds[0] for arm in looks}
    lowest = min(min(one.values()) for one in curves.values())
    series = []
    for arm, (label, look) in looks.items():
        shown = {rate: loss for rate, loss in sorted(curves[arm].items()) if loss <= lowest + evidence.CAP}
        series.append(Series(label, list(shown.values()), look, list(shown)))
    series.sort(key=lambda one: -len(one.x))
    y_range = (math.floor(lowest * 10) / 10, math.ceil((lowest + evidence.CAP) * 10) / 10)
    return Chart(series, "Learning rate", f"Validation loss, {LOSS}", log={"x": 10}, y_range=y_range,
                 number_format="0.0", x_format="0E+0", x_range=(1e-6, 0.1))  # fmt: skip


@chart
def target_differences(store: Store) -> Chart:
    """Test loss above that of all linear layers, at equal parameters, paired."""
    arms = {"query_value": ("q and v", "fewshot"), "attention": ("attention", "prompt"), "mlp": ("MLP", "qlora")}
    rows = [(label, look, quantity(f"targets_all.{arm}_minus_all_loss", store)) for arm, (label, look) in arms.items()]
    return forest(rows, f"Test loss − that of all linear layers, {LOSS}", 3, "0.00")


@chart
def latency(store: Store) -> Chart:
    """Time of a forward pass at batch 1 over that of the merged model, two precisions."""
    names = {"merged_over_base": "merged / base", "adapter_over_merged": "adapter / merged",
             "lora_over_merged": "unmerged / merged"}  # fmt: skip
    series = []
    for dtype, label, look in (("fp32", "float32", "lora"), ("bf16", "bfloat16", "qlora")):
        found = [quantity(f"merging_latency.{name}_forward_{dtype}_batch1", store) for name in names]
        series.append(Series(label, [q.value for q in found], look, spread=[ends(q) for q in found]))
    return Chart(series, "", "Ratio of times, forward pass", list(names.values()), y_range=(0, None),
                 number_format="0.0", label_format="0.00")  # fmt: skip


@chart
def requantised(store: Store) -> Chart:
    """Share of the adapter's gain that is lost when the merged model is quantised again."""
    cases = {"small_nf4": ("small Llama, NF4", "lora"), "small_nf2": ("small Llama, NF2", "qlora"),
             "smollm2_nf4": ("SmolLM2 *, NF4", "untuned")}  # fmt: skip
    name = "requantised.{}_requantised_lost"
    rows = [(label, look, quantity(name.format(case), store)) for case, (label, look) in cases.items()]
    return forest(rows, "Share of the gain that is lost, %", 1, "0", "%")


@chart
def recovered(store: Store) -> Chart:
    """Test loss above that of the 16-bit base, before and after tuning, small Llama."""
    bits = {"nf4": "NF4", "fp4": "FP4", "int4": "INT4", "nf2": "NF2"}
    series = []
    before, after = "recovery.small_{}_before_minus_before_loss", "recovery.small_{}_minus_lora_loss"
    for label, name, look in (("before tuning", before, "untuned"), ("after tuning", after, "qlora")):
        found = [quantity(name.format(one), store) for one in bits]
        series.append(Series(label, [q.value for q in found], look, spread=[ends(q) for q in found]))
    return Chart(series, "", f"Loss above 16 bits, {LOSS}", list(bits.values()), number_format="0.00")


@chart
def prompt_lengths(store: Store) -> Chart:
    """Test loss on E2E against the length of the prompt, three starts."""
    starts = {"vocabulary": ("from vocabulary", "prompt"), "text": ("from a text", "lora"),
              "random": ("random", "fewshot")}  # fmt: skip
    lengths = [float(n) for n in prompt_design.LENGTHS]
    series = []
    for init, (label, look) in starts.items():
        names = [prompt_design.arm_name(n, init) for n in prompt_design.LENGTHS]
        found = [quantity(f"prompt_length.{name}_loss", store) for name in names]
        series.append(Series(label, [q.value for q in found], look, lengths))
    low = math.floor(min(min(one.values) for one in series) * 10) / 10 - 0.1
    return Chart(series, "Virtual tokens", f"Test loss, {LOSS}", log={"x": 10}, number_format="0.0", x_format="0",
                 x_range=(1, 100), y_range=(low, None))  # fmt: skip


@chart
def benchmark_differences(store: Store) -> Chart:
    """E2E NLG: every method's test loss above LoRA's, paired, lowest on top."""
    rows = []
    for arm in (arm for arm in evidence.benchmark_order(store) if arm != "lora"):
        label, tone, _ = evidence.arm_look(arm)
        found = benchmark.COMPARISON.difference(arm, "lora", "loss_nats", store)
        look = tone if tone in arm_looks() else "untuned"
        rows.append((label, look, Quantity(found.mean, "", (), found.low, found.high)))
    return replace(forest(rows, f"Test loss − LoRA's, {LOSS}", 2, "0.0"), gap=40)


@chart
def example_differences(store: Store) -> Chart:
    """Test loss minus LoRA's against the number of training examples, paired, with 95 % intervals."""
    series = []
    for arm, look in (("prompt", "prompt"), ("full", "full")):
        found = [each.difference(arm, "lora", "loss_nats", store) for each in data_size.COMPARISONS.values()]
        values, spread = [one.mean for one in found], [(one.low, one.high) for one in found]
        x = [float(size) for size in data_size.SIZES]
        series.append(Series(f"{arm_looks()[arm].label} − LoRA", values, look, x, spread))
    return Chart(series, "Training examples, one token budget", f"Test loss − LoRA's, {LOSS}", log={"x": 10},
                 number_format="0.0", x_format="#,##0", x_range=(10, 10_000))  # fmt: skip


@chart
def forgotten(store: Store) -> Chart:
    """Loss on prose that training on E2E added, by method and rate."""
    rows = [(*updates.PATHS[arm][:2], quantity(f"forgetting.{arm}_forgotten", store)) for arm in forgetting.ARMS]
    return forest(rows, f"Loss added on other text, {LOSS}", 2, "0.0")


@chart
def difference_histogram(store: Store) -> Chart:
    """How many test examples have which difference in loss, LoRA minus full, averaged over seeds."""
    found = methods.example_differences(*(methods.chosen_records(arm, store) for arm in ("lora", "full")))
    half = math.ceil(float(np.quantile(np.abs(found), 0.98)) * 10) / 10
    edges = np.linspace(-half, half, 13)
    counts, _ = np.histogram(np.clip(found, -half, half), edges)
    middles = [f"{100 * one:+.0f}".replace("-", "−") for one in (edges[1:] + edges[:-1]) / 2]
    series = Series("Test examples", [float(count) for count in counts], "lora")
    looks = ["lora" if edge < 0 else "full" for edge in edges[:-1]]
    return Chart([series], "LoRA − full, hundredths of a nat per token", "Test examples", middles,
                 y_range=(0, None), number_format="0", gap=4, point_looks=looks)  # fmt: skip


@chart
def predicted_peaks(store: Store) -> Chart:
    """Error of the computed peak against the measured one, a point a configuration."""
    halves = activations.by_half(activations.peak_probe, store)
    series = []
    for half, label, look in (("held-out", "held out", "lora"), ("open", "seen while it was written", "untuned")):
        x = [float(size) / 1e6 for record in halves[half] for size in record.per_example["peak_bytes"]]
        errors = [100 * (ratio - 1) for record in halves[half] for ratio in activations.peaks(record)]
        series.append(Series(label, errors, look, x, line=False))
    errors = [error for one in series for error in one.values]
    y_range = (4 * math.floor(min(errors) / 4), 4 * math.ceil(max(errors) / 4))
    return Chart(series, "Measured peak beyond weights and optimiser, MB", "Predicted − measured, %", log={"x": 10},
                 number_format="0", x_format="#,##0", x_range=(1, 100), y_range=y_range)  # fmt: skip


@chart
def verdicts(store: Store) -> Chart:
    """How many claims of papers have each verdict."""
    said = list(outcomes(store).values())
    counts = {outcome: said.count(outcome) for outcome in results.OUTCOMES if outcome in said}
    labels = [f"{outcome}: {count}" for outcome, count in counts.items()]
    looks = {"reproduced": "lora", "equivalent": "prompt", "refuted": "qlora", "fails in this regime": "qlora"}
    series = Series("Claims", [float(count) for count in counts.values()])
    return Chart([series], "", "Claims", labels, horizontal=True, number_format="0", y_range=(0, None), gap=40,
                 point_looks=[looks.get(outcome, "untuned") for outcome in counts])  # fmt: skip


@chart
def step_seconds(store: Store) -> Chart:
    """Seconds of a training step by method."""
    return cost_chart(store, "step_seconds", "Seconds per step", 1.0, "0.0")


@chart
def peak_memory(store: Store) -> Chart:
    """Peak memory of the process by method."""
    return cost_chart(store, "peak_memory", "Peak memory, GB", 1e9, "0.0")
