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

from peftbook import specs
from peftbook.evidence import stats
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.merging import MACHINE, log_ratio, ratio_quantity, times

__all__ = ["COUNTS", "REPEATS", "STUDY", "probe"]

COUNTS = (1, 2, 4, 8, 16)
REPEATS = (0, 1, 2)
BATCH = 16
TOKENS = 64
NEW_TOKENS = 8
TRIALS = 3
RANK = 16
CONTENDERS = ("mixed", "mixed_peft", "swapped", "merged")
MARGIN = 0.05  # a share of the time


def probe(adapters: int, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process that serves a batch over so many adapters."""
    return specs.Probe(
        measure="serving.many_adapters",
        settings={
            "adapters": adapters,
            "batch": BATCH,
            "tokens": TOKENS,
            "new_tokens": NEW_TOKENS,
            "trials": TRIALS,
            "rank": RANK,
            "dtype": "fp32",
        },
        seed=seed,
        purpose="timing",
        machine=machine,
    )


def runs(store: Store) -> list[specs.Probe]:
    """The ends of the range first, repeats in turn."""
    order = sorted(COUNTS, key=lambda count: (count not in (1, 16), count))
    return [probe(count, seed) for seed in REPEATS for count in order]


def records(adapters: int, store: Store) -> list[Record]:
    """The repeats for a number of adapters; empty unless all are there."""
    found = [record for seed in REPEATS if (record := store.get(probe(adapters, seed))) is not None]
    return found if len(found) == len(REPEATS) else []


def seconds(found: list[Record], name: str) -> list[list[float]]:
    """(processes, trials) seconds for the whole batch, prompts and decoding."""
    parts = [times(found, f"{name}_{part}") for part in ("forward", "decode")]
    return (np.array(parts[0]) + np.array(parts[1])).tolist()


def speedup(first: str, second: str, adapters: int, store: Store) -> stats.Interval | None:
    """log(time of second / time of first), or None while a record is missing."""
    found = records(adapters, store)
    return log_ratio(seconds(found, second), seconds(found, first)) if found else None


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Generated tokens per second of every contender and number of adapters; speed of the mixed batch over the rest."""
    out: dict[str, Quantity] = {}
    for count in COUNTS:
        found = records(count, store)
        if not found:
            continue
        keys = tuple(record.key for record in found)
        for name in CONTENDERS:
            values = sorted(float(record.measurements[f"{name}_tokens_per_second"] or 0) for record in found)
            note = "median and range of the processes' medians"
            out[f"{name}_{count}_tokens_per_second"] = Quantity(
                values[len(values) // 2], "tokens/s", keys, values[0], values[-1], len(values), TRIALS, 1, note
            )
        for other in CONTENDERS[1:]:
            interval = speedup("mixed", other, count, store)
            if interval is not None:
                out[f"mixed_over_{other}_{count}"] = ratio_quantity(interval, keys)
    return out


def verdict(store: Store) -> Verdict:
    """Is the mixed batch faster than swapping at the largest number of adapters?"""
    count = COUNTS[-1]
    interval = speedup("mixed", "swapped", count, store)
    if interval is None:
        return Verdict("not yet run", f"The serving probes with {count} adapters are not all there.")
    least = math.log(1 + MARGIN)
    outcome = stats.judge(interval, least, (least, math.inf))
    value, low, high = (math.exp(one) for one in (interval.mean, interval.low, interval.high))
    sentence = (
        f"With {count} adapters for {BATCH} requests a mixed batch is {value:.2f} times as fast as swapping "
        f"(95 % interval {low:.2f} to {high:.2f}; margin {MARGIN:.0%})."
    )
    return Verdict(outcome, sentence, (f"mixed_over_swapped_{count}",))


STUDY = Study(
    name="serving",
    title="What do many adapters cost to serve?",
    claim="Requests for many adapters are served faster in one mixed batch than by swapping adapters.",
    source="chen2023punica, abstract",
    refuted_if=f"with {COUNTS[-1]} adapters the mixed batch is slower than swapping (the whole 95 % interval).",
    does_not_show=f"One CPU ({MACHINE}), one model of 135M parameters, one batch of {BATCH}, prompts of {TOKENS} "
    "tokens, float32; no queueing, paging of adapters or fused kernels, which are what serving systems add: Punica is "
    "measured on GPUs with a kernel of its own. The merged copies are all in memory: the linear weights of a whole "
    "model for each adapter.",
    chapter="book/shipping",
    runs=runs,
    quantities=quantities,
    verdict=verdict,
)

STUDIES = {STUDY.name: STUDY}
