"""Is merging free? In time, against a LoRA left beside the weights and a bottleneck adapter; in quality, in bfloat16.

Written before the runs. Latency: all variants in one process, trial by trial in random order; several processes. The
first condition below is the paper's (float32, batch 1, 128 tokens, a forward pass) and alone decides; the others are
shown. Quality: a short LoRA run on E2E, three seeds; the loss on validation examples before and after merging.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from peftbook import metrics, specs
from peftbook.methods.lora import LoRA
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.sweep import as_quantity
from peftbook.tasks import task_spec

__all__ = [
    "CONDITIONS",
    "MACHINE",
    "SEEDS",
    "STUDIES",
    "latency_probe",
    "log_ratio",
    "lost_share",
    "merge_probe",
    "nats",
    "percent",
    "ratio_quantity",
]

MACHINE = "AMD EPYC, 2 cores"  # the machine whose records ship; `costs` was timed on another
# dtype, batch → trials of a process, processes
CONDITIONS = {("fp32", 1): (30, 5), ("bf16", 1): (30, 5), ("fp32", 32): (6, 3), ("bf16", 32): (6, 3)}
PAPERS = ("fp32", 1)
TOKENS = 128
DECODE_STEPS = 2
RANK = 16
WIDTH = 64
PARTS = ("forward", "decode")
MARGIN_TIME = 0.05  # a share of the time of a forward pass

SEEDS = (1, 2, 3)
TRAIN_TOKENS = 14_000
RATE = 4e-4
EXAMPLES = 100
MARGIN_QUALITY = 0.05  # a share of what the adapter gained
STATES = ("merged", "merged_then_rounded", "unmerged_bf16", "merged_bf16")


def latency_probe(dtype: str, batch: int, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process of one condition."""
    return specs.Probe(
        measure="serving.latency",
        settings={
            "dtype": dtype,
            "batch": batch,
            "tokens": TOKENS,
            "decode_steps": DECODE_STEPS,
            "trials": CONDITIONS[dtype, batch][0],
            "rank": RANK,
            "width": WIDTH,
        },
        seed=seed,
        purpose="timing",
        machine=machine,
    )


def latency_probes(store: Store) -> list[specs.Probe]:
    """The paper's condition first; the processes of a condition after each other."""
    return [latency_probe(*condition, seed) for condition, (_, count) in CONDITIONS.items() for seed in range(count)]


def latency_records(condition: tuple[str, int], store: Store) -> list[Record]:
    """The records of a condition; empty unless all are there."""
    count = CONDITIONS[condition][1]
    found = [record for seed in range(count) if (record := store.get(latency_probe(*condition, seed))) is not None]
    return found if len(found) == count else []


def merge_probe(seed: int) -> specs.Probe:
    """A short LoRA run whose adapter is merged."""
    run = specs.Run(
        task=task_spec("e2e"),
        method=LoRA(rank=RANK),
        budget=specs.Budget(tokens=TRAIN_TOKENS, learning_rate=RATE),
        evaluation=specs.Evaluation(split="validation", n_loss=EXAMPLES),
        seed=seed,
    )
    return specs.Probe(measure="serving.merge_gap", runs=(run,), seed=seed)


def merge_records(store: Store) -> list[Record]:
    """The records of the merged runs; empty unless all are there."""
    found = [record for seed in SEEDS if (record := store.get(merge_probe(seed))) is not None]
    return found if len(found) == len(SEEDS) else []


def log_ratio(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> metrics.Interval:
    """Interval of log(median of first / median of second), paired by process and trial: (processes, trials) seconds."""
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    trials = one.shape[1]
    picks = metrics.resamples(trials)
    medians = (np.median(times[:, picks], axis=2).T for times in (one, two))  # (1 + draws, processes)
    return metrics.statistic_interval(np.log(next(medians)) - np.log(next(medians)), trials)


def ratio_quantity(interval: metrics.Interval, keys: tuple[str, ...]) -> Quantity:
    """An interval of log ratios as a ratio."""
    value, low, high = (math.exp(one) for one in (interval.mean, interval.low, interval.high))
    note = "ratio of medians; interval over processes and trials"
    return Quantity(value, "×", keys, low, high, interval.seeds, interval.examples, 3, note)


def times(records: Sequence[Record], name: str) -> list[list[float]]:
    """(processes, trials) seconds."""
    return [[float(value) for value in record.per_example[f"{name}_seconds"]] for record in records]


def slowdown(first: str, second: str, part: str, condition: tuple[str, int], store: Store) -> metrics.Interval | None:
    """log(first / second) of a condition, or None while a record is missing."""
    records = latency_records(condition, store)
    if not records:
        return None
    return log_ratio(times(records, f"{first}_{part}"), times(records, f"{second}_{part}"))


def latency_quantities(store: Store) -> Mapping[str, Quantity]:
    """Median seconds of every variant, and each variant's time over the merged model's, for every condition."""
    out: dict[str, Quantity] = {}
    for condition in CONDITIONS:
        records = latency_records(condition, store)
        if not records:
            continue
        keys = tuple(record.key for record in records)
        for part in PARTS:
            where = f"{part}_{condition[0]}_batch{condition[1]}"
            for name in ("base", "merged", "lora", "adapter"):
                medians = sorted(float(record.measurements[f"{name}_{part}_seconds"] or 0) for record in records)
                out[f"{name}_{where}_milliseconds"] = Quantity(
                    1000 * medians[len(medians) // 2], "ms", keys, 1000 * medians[0], 1000 * medians[-1],
                    len(medians), CONDITIONS[condition][0], 1, "median and range of the processes' medians",
                )  # fmt: skip
            for first, second in (("merged", "base"), ("lora", "merged"), ("adapter", "merged")):
                interval = slowdown(first, second, part, condition, store)
                if interval is not None:
                    out[f"{first}_over_{second}_{where}"] = ratio_quantity(interval, keys)
    return out


def said_ratio(what: str, interval: metrics.Interval) -> str:
    """`what 1.02 times (95 % interval 0.99 to 1.05)`."""
    value, low, high = (math.exp(one) for one in (interval.mean, interval.low, interval.high))
    return f"{what} {value:.2f} times (95 % interval {low:.2f} to {high:.2f})"


def slower_by_margin(interval: metrics.Interval) -> str:
    """Verdict on "slower by more than the margin"; refuted if the whole 95 % interval lies below the margin."""
    least = math.log(1 + MARGIN_TIME)
    return "reproduced" if interval.low >= least else "refuted" if interval.high < least else "undecided"


def latency_verdict(store: Store) -> Verdict:
    """Is the merged model as fast as the base, and slower if the LoRA is left beside the weights?"""
    merged = slowdown("merged", "base", "forward", PAPERS, store)
    beside = slowdown("lora", "merged", "forward", PAPERS, store)
    if merged is None or beside is None:
        return Verdict("not yet run", "The latency probes of the paper's condition are not all there.")
    parts = {metrics.judge(merged, 0.0, (-math.inf, math.log(1 + MARGIN_TIME))), slower_by_margin(beside)}
    outcome = "refuted" if "refuted" in parts else "reproduced" if parts == {"reproduced"} else "undecided"
    sentence = (
        f"At batch 1 in float32 {said_ratio('the merged model takes', merged)} the base model's forward pass and "
        f"{said_ratio('an unmerged LoRA', beside)} the merged model's; margin {MARGIN_TIME:.0%}."
    )
    names = ("merged_over_base_forward_fp32_batch1", "lora_over_merged_forward_fp32_batch1")
    return Verdict(outcome, sentence, names)


def adapter_verdict(store: Store) -> Verdict:
    """Is a bottleneck adapter slower than a merged LoRA at batch 1?"""
    interval = slowdown("adapter", "merged", "forward", PAPERS, store)
    if interval is None:
        return Verdict("not yet run", "The latency probes of the paper's condition are not all there.")
    sentence = (
        f"At batch 1 in float32 {said_ratio('a bottleneck adapter takes', interval)} the merged model's forward pass; "
        f"margin {MARGIN_TIME:.0%}."
    )
    return Verdict(slower_by_margin(interval), sentence, ("adapter_over_merged_forward_fp32_batch1",))


def nats(records: Sequence[Record], state: str) -> np.ndarray:
    """(seeds, examples) summed nats of a state of the weights."""
    return np.array([record.per_example[f"{state}_loss_nats"] for record in records], dtype=float)


def lost_share(records: Sequence[Record], state: str, against: str, tuned: str = "unmerged") -> metrics.Interval:
    """Loss of a state minus another's, as a share of what the adapter gained over the untuned model (float32).

    tuned: the state that has the whole gain. The gain of an example is averaged over seeds, so that numerator and
    denominator share examples and label tokens.
    """
    gained = (nats(records, "untuned") - nats(records, tuned)).mean(axis=0)
    difference = nats(records, state) - nats(records, against)
    return metrics.mean_interval(difference.tolist(), gained.tolist())


def quality_quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses of every state, what merging and rounding lose of the adapter's gain, and what became of the update."""
    records = merge_records(store)
    if not records:
        return {}
    keys = tuple(record.key for record in records)
    tokens = [float(value) for value in records[0].per_example["label_tokens"]]
    out: dict[str, Quantity] = {}
    for state in ("untuned", "untuned_bf16", "unmerged", *STATES):
        interval = metrics.mean_interval(nats(records, state).tolist(), tokens)
        out[f"{state}_loss"] = as_quantity(interval, "nats per token", keys, len(SEEDS), 4)
    gain = metrics.paired_interval(nats(records, "untuned").tolist(), nats(records, "unmerged").tolist(), tokens)
    out["gain"] = as_quantity(gain, "nats per token", keys, len(SEEDS))
    for state in STATES:
        out[f"{state}_lost"] = percent(lost_share(records, state, "unmerged"), keys)
        values = [[100 * float(record.measurements[f"{state}_logit_gap"] or 0)] for record in records]
        out[f"{state}_logit_gap"] = as_quantity(metrics.mean_interval(values), "%", keys, len(SEEDS), 2)
    out["bf16_merge_lost"] = percent(lost_share(records, "merged_bf16", "unmerged_bf16"), keys)
    for name in ("update_kept_share", "update_error_share", "unchanged_weights_share"):
        values = [[100 * float(record.measurements[name] or 0)] for record in records]
        out[name] = as_quantity(metrics.mean_interval(values), "%", keys, len(SEEDS), 1)
    return out


def percent(interval: metrics.Interval, keys: tuple[str, ...]) -> Quantity:
    """A share with its interval in percent."""
    value, low, high = (100 * one for one in (interval.mean, interval.low, interval.high))
    return Quantity(value, "%", keys, low, high, interval.seeds, interval.examples, 2)


def quality_verdict(store: Store) -> Verdict:
    """Does merging into bfloat16 weights lose more than the margin of the adapter's gain?"""
    records = merge_records(store)
    if not records:
        return Verdict("not yet run", "The merged runs are not all there.")
    lost = lost_share(records, "merged_bf16", "unmerged_bf16")
    outcome = metrics.judge(lost, 0.0, (-math.inf, MARGIN_QUALITY))  # the claim holds the margin already
    sentence = (
        f"Merging into bfloat16 weights loses {lost.mean:+.2%} of what the adapter gained "
        f"(95 % interval {lost.low:+.2%} to {lost.high:+.2%}; margin {MARGIN_QUALITY:.0%})."
    )
    return Verdict(outcome, sentence, ("bf16_merge_lost",))


TIME_LIMITS = (
    f"One CPU ({MACHINE}) and one model of 135M parameters, in eager PyTorch; the latency of small layers on a GPU, a "
    "compiled graph or a larger model differs. The verdict is on the forward pass at batch 1 alone."
)

STUDIES = {
    one.name: one
    for one in (
        Study(
            name="merging_latency",
            title="Does a merged LoRA cost time?",
            claim="A merged LoRA adds no inference latency; left beside the weights it does.",
            source="hu2021, section 4.1",
            refuted_if=f"at batch 1 in float32 the merged model's forward pass is slower than the base model's by more "
            f"than {MARGIN_TIME:.0%} (the whole 95 % interval beyond it), or an unmerged LoRA is not slower than the "
            f"merged model by {MARGIN_TIME:.0%} (the whole interval below it).",
            does_not_show=TIME_LIMITS,
            chapter="book/shipping",
            runs=latency_probes,
            quantities=latency_quantities,
            verdict=latency_verdict,
        ),
        Study(
            name="adapter_latency",
            title="Does a bottleneck adapter cost time?",
            claim="Adapter layers add inference latency at batch 1, where LoRA merged into the weights adds none.",
            source="hu2021, Table 1",
            refuted_if=f"at batch 1 in float32 a bottleneck adapter's forward pass is not slower than the merged "
            f"model's by {MARGIN_TIME:.0%} (the whole 95 % interval below it).",
            does_not_show=f"{TIME_LIMITS} The adapters have width {WIDTH} after both sublayers; the paper's differ.",
            chapter="book/shipping",
            runs=latency_probes,
            quantities=latency_quantities,
            verdict=adapter_verdict,
        ),
        Study(
            name="merging_quality",
            title="Does merging cost quality?",
            claim="A LoRA can be merged into the weights, bfloat16 ones too, without loss.",
            source="hu2021, section 4.1",
            refuted_if=f"the loss after merging into bfloat16 weights, minus that of the same adapter beside the same "
            f"bfloat16 weights, is more than {MARGIN_QUALITY:.0%} of the adapter's gain over the untuned model (the "
            "whole 95 % interval beyond it).",
            does_not_show="One task, one short run and its size of update, which rounding is to be held against. "
            "Validation loss in float32 arithmetic, so that only the weights differ; merging into 4-bit weights is "
            "another matter. The base weights come from a 4-bit file.",
            chapter="book/shipping",
            runs=lambda store: [merge_probe(seed) for seed in SEEDS],
            quantities=quality_quantities,
            verdict=quality_verdict,
        ),
    )
}
