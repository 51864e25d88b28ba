"""What a training step costs: seconds and peak memory by method, on one named machine.

Timing runs have the machine to themselves; their records carry its name, so that a reader's machine adds its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from peftbook.core.records import Missing, Record, Store
from peftbook.core.specs import Run
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, measured
from peftbook.studies import Quantity, Verdict, by_seed, gathered, margins, study
from peftbook.studies.methods import ARMS
from peftbook.studies.standard import training

MACHINE = "Intel(R) Xeon(R) Processor, 2 cores"  # the machine whose records ship
REPEATS = (0, 1, 2)
TOKENS = 8_000
MARGIN = margins.SHARE
RATES = {"full": 5e-5, "lora": 2e-4, "qlora": 2e-4, "prompt": 0.03}


def timing_run(arm: str, seed: int, machine: str = MACHINE) -> Run:
    """Some steps of training at the batch of the methods study, and the smallest evaluation."""
    return training("docstrings", ARMS[arm], TOKENS, RATES[arm], seed, n_loss=1, purpose="timing", machine=machine)


def runs(store: Store) -> list[Run]:
    """Repeats round-robin over the arms, so that a slow minute of the machine touches all of them."""
    return [timing_run(arm, seed) for seed in REPEATS for arm in ARMS]


arm_records = by_seed(timing_run, REPEATS)


def log_ratio(first: str, second: str, field: str, store: Store) -> stats.Interval:
    """log(first / second) of a measurement, paired by repeat: mean ± t(n−1) · s / √n. Raises Missing.

    Repeats of one seed follow each other, so that what the machine does in these minutes touches both.
    """
    one, two = (measured(arm_records(arm, store), field) for arm in (first, second))
    return stats.seed_interval([math.log(a / b) for a, b in zip(one, two, strict=True)])


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Median, fastest and slowest of the repeats, for step time, speed and peak memory; ratios to LoRA, by repeat."""
    out = gathered(lambda arm: repeats(arm, arm_records(arm, store)), ARMS)
    note = "geometric mean of the repeats' ratios, t interval over repeats"
    for arm in (arm for arm in ARMS if arm != "lora"):
        for name, field in (("step_seconds", "median_step_seconds"), ("peak_memory", "peak_memory_bytes")):
            with suppress(Missing):
                keys = keys_of(*(arm_records(other, store) for other in (arm, "lora")))
                ratio = Quantity.ratio(log_ratio(arm, "lora", field, store), keys, 2, note)
                out[f"{arm}_over_lora_{name}"] = replace(ratio, n=0)
    return out


def repeats(arm: str, records: list[Record]) -> dict[str, Quantity]:
    """An arm's median and range of the repeats."""
    out, keys, note = {}, keys_of(records), "median and range of the repeats"
    for name, field, unit, digits in (
        ("step_seconds", "median_step_seconds", "s", 2),
        ("tokens_per_second", "train_tokens_per_second", "tokens/s", 0),
        ("peak_memory", "peak_memory_bytes", "bytes", 2),
    ):
        values = measured(records, field)
        one = Quantity.middle(values, unit, keys, note, seeds=len(values), digits=digits)
        out[f"{arm}_{name}"] = replace(one, low=None, high=None) if unit == "bytes" else one
    return out


@study("costs", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Does QLoRA need less peak memory than LoRA here?"""
    found = log_ratio("qlora", "lora", "peak_memory_bytes", store)
    value, low, high = found.exp
    return Verdict(
        stats.judge(found, math.log(1 + MARGIN), (-math.inf, 0.0)),
        f"At 135M parameters QLoRA's peak process memory is {value:.2f} times LoRA's on {MACHINE} (95 % interval "
        f"{low:.2f} to {high:.2f} over {len(REPEATS)} paired repeats; margin {MARGIN:.0%}).",
        ("qlora_over_lora_peak_memory",),
    )
