"""Is merging free? In time, against a LoRA left beside the weights and a bottleneck adapter; in quality, in bfloat16.

Written before the runs. Latency: all variants in one process, trial by trial in random order; several processes. The
first condition below is the paper's (float32, batch 1, 128 tokens, a forward pass) and alone decides; the others are
shown. Quality: a short LoRA run on E2E, three seeds; the loss on validation examples before and after merging.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import keys_of, measured, score, table, weights
from peftbook.methods.lora import LoRA
from peftbook.studies import Quantity, Verdict, by_seed, gathered, margins, study
from peftbook.studies.standard import probe_of, training
from peftbook.tasks import split_groups

MACHINE = "AMD EPYC, 2 cores"  # the machine whose records ship; `costs` was timed on another
# dtype, batch → trials of a process, processes
CONDITIONS = {("fp32", 1): (30, 5), ("bf16", 1): (30, 5), ("fp32", 32): (6, 3), ("bf16", 32): (6, 3)}
PAPERS = ("fp32", 1)
TOKENS = 128
DECODE_STEPS = 2
RANK = 16
WIDTH = 64
PARTS = ("forward", "decode")
MARGIN_TIME = margins.SHARE

SEEDS = (1, 2, 3)
TRAIN_TOKENS = 14_000
RATE = 4e-4
EXAMPLES = 100
MARGIN_QUALITY = margins.SHARE
STATES = ("merged", "merged_then_rounded", "unmerged_bf16", "merged_bf16")


def timing(measure: str, seed: int, machine: str, model: specs.Model | None = None, **settings: Any) -> specs.Probe:
    """One process that measures times or peaks, on a machine that does nothing else."""
    return specs.Probe(
        measure=measure, settings=settings, model=model or specs.Model(), seed=seed, purpose="timing", machine=machine
    )


def latency_probe(dtype: str, batch: int, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process of one condition."""
    return timing(
        "serving.latency",
        seed,
        machine,
        dtype=dtype,
        batch=batch,
        tokens=TOKENS,
        decode_steps=DECODE_STEPS,
        trials=CONDITIONS[dtype, batch][0],
        rank=RANK,
        width=WIDTH,
    )


def latency_probes(store: Store) -> list[specs.Probe]:
    """The paper's condition first; the processes of a condition after each other."""
    return [latency_probe(*condition, seed) for condition, (_, count) in CONDITIONS.items() for seed in range(count)]


def latency_records(condition: tuple[str, int], store: Store) -> list[Record]:
    """The records of a condition. Raises Missing."""
    return store.need_all(latency_probe(*condition, seed) for seed in range(CONDITIONS[condition][1]))


def merge_probe(seed: int) -> specs.Probe:
    """A short LoRA run whose adapter is merged."""
    return probe_of("serving.merge_gap", training("e2e", LoRA(rank=RANK), TRAIN_TOKENS, RATE, seed, n_loss=EXAMPLES))


merge_records = by_seed(merge_probe, SEEDS)


def log_ratio(first: np.ndarray, second: np.ndarray) -> stats.Interval:
    """Interval of log(median of first / median of second), paired by process and trial: (processes, trials) seconds."""
    trials = first.shape[1]
    picks = resampling.resamples(trials)
    medians = (np.median(times[:, picks], axis=2).T for times in (first, second))  # (1 + draws, processes)
    return resampling.statistic_interval(np.log(next(medians)) - np.log(next(medians)), trials)


def ratio_quantity(interval: stats.Interval, keys: tuple[str, ...]) -> Quantity:
    """An interval of log ratios as a ratio."""
    return Quantity.ratio(interval, keys, 3, "ratio of medians; interval over processes and trials")


def slowdown(first: str, second: str, part: str, records: Sequence[Record]) -> stats.Interval:
    """log(first / second) of a condition's records."""
    return log_ratio(*(table(records, f"{name}_{part}_seconds") for name in (first, second)))


def latency_quantities(store: Store) -> Mapping[str, Quantity]:
    """Median seconds of every variant, and each variant's time over the merged model's, for every condition."""
    return gathered(lambda at: condition_quantities(*at, store), itertools.product(CONDITIONS, PARTS))


def condition_quantities(condition: tuple[str, int], part: str, store: Store) -> dict[str, Quantity]:
    """What one condition tells about a part of the work. Raises Missing."""
    records, where = latency_records(condition, store), f"{part}_{condition[0]}_batch{condition[1]}"
    out, keys, note = {}, keys_of(records), "median and range of the processes' medians"
    for name in ("base", "merged", "lora", "adapter"):
        values = [1000 * seconds for seconds in measured(records, f"{name}_{part}_seconds")]
        trials, processes = CONDITIONS[condition]
        median = Quantity.middle(values, "ms", keys, note, seeds=processes, n=trials, digits=1)
        out[f"{name}_{where}_milliseconds"] = median
    for first, second in (("merged", "base"), ("lora", "merged"), ("adapter", "merged")):
        out[f"{first}_over_{second}_{where}"] = ratio_quantity(slowdown(first, second, part, records), keys)
    return out


def said_ratio(what: str, interval: stats.Interval) -> str:
    """`what 1.02 times (95 % interval 0.99 to 1.05)`."""
    value, low, high = interval.exp
    return f"{what} {value:.2f} times (95 % interval {low:.2f} to {high:.2f})"


@study("merging_latency", latency_probes, latency_quantities)
def latency_verdict(store: Store) -> Verdict:
    """Is the merged model as fast as the base, and slower if the LoRA is left beside the weights?"""
    records = latency_records(PAPERS, store)
    merged, beside = (slowdown(*pair, "forward", records) for pair in (("merged", "base"), ("lora", "merged")))
    least = math.log(1 + MARGIN_TIME)
    parts = {stats.judge(merged, 0.0, (-math.inf, least)), stats.judge(beside, 0.0, (least, math.inf))}
    outcome = stats.together(parts)
    sentence = (
        f"At batch 1 in float32 {said_ratio('the merged model takes', merged)} the base model's forward pass and "
        f"{said_ratio('an unmerged LoRA', beside)} the merged model's; margin {MARGIN_TIME:.0%}."
    )
    names = ("merged_over_base_forward_fp32_batch1", "lora_over_merged_forward_fp32_batch1")
    return Verdict(outcome, sentence, names)


@study("adapter_latency", latency_probes, latency_quantities)
def adapter_verdict(store: Store) -> Verdict:
    """Is a bottleneck adapter slower than a merged LoRA at batch 1?"""
    interval = slowdown("adapter", "merged", "forward", latency_records(PAPERS, store))
    sentence = (
        f"At batch 1 in float32 {said_ratio('a bottleneck adapter takes', interval)} the merged model's forward pass; "
        f"margin {MARGIN_TIME:.0%}."
    )
    return Verdict(
        stats.judge(interval, 0.0, (math.log(1 + MARGIN_TIME), math.inf)),
        sentence,
        ("adapter_over_merged_forward_fp32_batch1",),
    )


def nats(records: Sequence[Record], state: str) -> np.ndarray:
    """(seeds, examples) summed nats of a state of the weights."""
    return table(records, f"{state}_loss_nats")


def lost_share(records: Sequence[Record], state: str, against: str, tuned: str = "unmerged") -> stats.Interval:
    """Loss of a state minus another's, as a share of what the adapter gained over the untuned model (float32).

    tuned: the state that has the whole gain. The gain of an example is averaged over seeds, so that numerator and
    denominator share examples and label tokens.
    """
    gained = (nats(records, "untuned") - nats(records, tuned)).mean(axis=0)
    difference = nats(records, state) - nats(records, against)
    return stats.mean_interval(difference, gained, split_groups("e2e", "validation", len(gained)))


def loss_quantities(records: Sequence[Record], states: Sequence[str], tuned: str) -> dict[str, Quantity]:
    """The loss of every state, and what the adapter gained: the loss of the untuned model minus that of `tuned`."""
    keys, unit = keys_of(records), "nats per token"
    losses = {f"{state}_loss": Quantity.of(score(records, f"{state}_loss_nats"), unit, keys, 4) for state in states}
    gain = stats.paired_interval(nats(records, "untuned"), nats(records, tuned), weights(records, "loss_nats"))
    return losses | {"gain": Quantity.of(gain, unit, keys)}


def quality_quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses of every state, what merging and rounding lose of the adapter's gain, and what became of the update."""
    records = merge_records(store)
    keys, out = keys_of(records), loss_quantities(records, ("untuned", "untuned_bf16", "unmerged", *STATES), "unmerged")
    for state in STATES:
        out[f"{state}_lost"] = percent(lost_share(records, state, "unmerged"), keys)
        out[f"{state}_logit_gap"] = Quantity.of(mean_percent(records, f"{state}_logit_gap"), "%", keys, 2)
    out["bf16_merge_lost"] = percent(lost_share(records, "merged_bf16", "unmerged_bf16"), keys)
    for name in ("update_kept_share", "update_error_share", "unchanged_weights_share"):
        out[name] = Quantity.of(mean_percent(records, name), "%", keys, 1)
    return out


def mean_percent(records: Sequence[Record], name: str) -> stats.Interval:
    """A share that was measured once a seed, in percent."""
    return stats.seed_interval([100 * share for share in measured(records, name)])


def percent(interval: stats.Interval, keys: tuple[str, ...], digits: int = 2, note: str = "") -> Quantity:
    """A share with its interval in percent."""
    value, low, high = (100 * one for one in (interval.mean, interval.low, interval.high))
    return Quantity(value, "%", keys, low, high, interval.seeds, interval.examples, digits, note)


@study("merging_quality", lambda store: [*map(merge_probe, SEEDS)], quality_quantities)
def quality_verdict(store: Store) -> Verdict:
    """Does merging into bfloat16 weights lose more than the margin of the adapter's gain?"""
    lost = lost_share(merge_records(store), "merged_bf16", "unmerged_bf16")
    outcome = stats.judge(lost, 0.0, (-math.inf, MARGIN_QUALITY))  # the claim holds the margin already
    sentence = (
        f"Merging into bfloat16 weights loses {lost.mean:+.2%} of what the adapter gained "
        f"(95 % interval {lost.low:+.2%} to {lost.high:+.2%}; margin {MARGIN_QUALITY:.0%})."
    )
    return Verdict(outcome, sentence, ("bf16_merge_lost",))
