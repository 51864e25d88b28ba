"""Many adapters over one model: in one mixed batch, by swapping, or as merged copies?

Written before the runs. A batch of 16 requests whose rows belong to 1, 2, 4, 8 or 16 adapters in turn; prompts of 64
tokens, 8 tokens decoded for each. All contenders in one process, trial by trial in random order; three processes. The
mixed batch is the book's own implementation; peft's is a second contender. That mixing is faster is Punica's claim
(Chen et al. 2023, arXiv:2310.18547), for a GPU with a kernel made for it; Hu et al. 2021, section 4.2, only name the
swapping of adapters as an option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, measured, table
from peftbook.studies import Quantity, Verdict, by_seed, gathered, margins, study
from peftbook.studies.merging import MACHINE, log_ratio, ratio_quantity, timing

COUNTS = (1, 2, 4, 8, 16)
REPEATS = (0, 1, 2)
BATCH = 16
TOKENS = 64
NEW_TOKENS = 8
TRIALS = 3
RANK = 16
CONTENDERS = ("mixed", "mixed_peft", "swapped", "merged")
MARGIN = margins.SHARE


def probe(adapters: int, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process that serves a batch over so many adapters."""
    return timing(
        "serving.many_adapters",
        seed,
        machine,
        adapters=adapters,
        batch=BATCH,
        tokens=TOKENS,
        new_tokens=NEW_TOKENS,
        trials=TRIALS,
        rank=RANK,
        dtype="fp32",
    )


def runs(store: Store) -> list[specs.Probe]:
    """The ends of the range first, repeats in turn."""
    order = sorted(COUNTS, key=lambda count: (count not in (1, 16), count))
    return [probe(count, seed) for seed in REPEATS for count in order]


records = by_seed(probe, REPEATS)


def seconds(found: list[Record], name: str) -> np.ndarray:
    """(processes, trials) seconds for the whole batch, prompts and decoding."""
    return table(found, f"{name}_forward_seconds") + table(found, f"{name}_decode_seconds")


def speedup(first: str, second: str, records: list[Record]) -> stats.Interval:
    """log(time of second / time of first)."""
    return log_ratio(seconds(records, second), seconds(records, first))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Generated tokens per second of every contender and number of adapters; speed of the mixed batch over the rest."""
    return gathered(lambda count: count_quantities(count, records(count, store)), COUNTS)


def count_quantities(count: int, found: list[Record]) -> dict[str, Quantity]:
    """Of one number of adapters."""
    out, keys, note = {}, keys_of(found), "median and range of the processes' medians"
    for name in CONTENDERS:
        speeds = measured(found, f"{name}_tokens_per_second")
        speed = Quantity.middle(speeds, "tokens/s", keys, note, seeds=len(speeds), n=TRIALS, digits=1)
        out[f"{name}_{count}_tokens_per_second"] = speed
    for other in CONTENDERS[1:]:
        out[f"mixed_over_{other}_{count}"] = ratio_quantity(speedup("mixed", other, found), keys)
    return out


@study("serving", runs, quantities, most=COUNTS[-1])
def verdict(store: Store) -> Verdict:
    """Is the mixed batch faster than swapping at the largest number of adapters?"""
    count = COUNTS[-1]
    interval = speedup("mixed", "swapped", records(count, store))
    outcome = stats.judge(interval, math.log(1 + MARGIN), (0.0, math.inf))
    value, low, high = interval.exp
    sentence = (
        f"With {count} adapters for {BATCH} requests a mixed batch is {value:.2f} times as fast as swapping "
        f"(95 % interval {low:.2f} to {high:.2f}; margin {MARGIN:.0%})."
    )
    return Verdict(outcome, sentence, (f"mixed_over_swapped_{count}",))
