"""How much does an adapter store? Random pairs, so that there is nothing to learn but the pairs themselves.

Written before the runs. A Llama with random weights stays frozen; LoRA on its q and v projections is trained on random
keys and values, 100 exposures of each pair, at four ranks. Two series: `ample`, with four times as many bits of data as
two bits a parameter could hold, so that the adapter is the limit; `scarce`, with the same few pairs at every rank, so
that the data become the limit. What a model stores is counted from its loss on the pairs.

In proportion means: as many bits a parameter at the largest rank as at the smallest. The ample series alone decides;
the scarce one is a row beside it, since nothing can store more than there is. The first rule asked for growth and not
for proportion; it was changed before there was a record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftbook import metrics
from peftbook.records import Record, Store
from peftbook.specs import Model, Probe
from peftbook.studies import Quantity, Study, Verdict

__all__ = ["RANKS", "SEEDS", "SERIES", "STUDIES", "parameters", "probe"]

RANKS = (1, 2, 4, 8)
SEEDS = (1, 2, 3)
SERIES = ("ample", "scarce")
DEPTH, HIDDEN, HEADS = 2, 64, 4
VALUES = 256  # 8 bits a pair
EXPOSURES = 100
RULE_BITS, SURPLUS = 2, 4  # bits a parameter that are held against the data, and how many times over there are data
SCARCE_PAIRS = 256  # 2,048 bits: four bits a parameter at rank 1, half a bit at rank 8
RATES = (0.003, 0.01, 0.03)
GROWTH, MARGIN = 0.1, 0.05  # bits a parameter: least growth that counts, and the margin below it
DELTA = 0.25  # of 1: how far bits a parameter at the largest rank over the smallest may be from proportion
SURPLUS_LEFT = 0.9  # share of the data above which the data, not the adapter, may be the limit

# The model is made from the settings and the seed: no weights are loaded.
SCRATCH = Model(name="random-llama", revision="made from settings and seed")


def parameters(rank: int) -> int:
    """Trained values of LoRA on q and v, both hidden × hidden: depth · 2 · rank · (hidden + hidden)."""
    return DEPTH * 2 * rank * 2 * HIDDEN


def pairs(series: str, rank: int) -> int:
    """How many pairs a run is shown."""
    if series == "scarce":
        return SCARCE_PAIRS
    return math.ceil(SURPLUS * RULE_BITS * parameters(rank) / math.log2(VALUES))


def probe(series: str, rank: int, seed: int) -> Probe:
    """One model, one rank, one set of pairs."""
    settings: dict = {
        "depth": DEPTH,
        "hidden": HIDDEN,
        "heads": HEADS,
        "rank": rank,
        "pairs": pairs(series, rank),
        "values": VALUES,
        "exposures": EXPOSURES,
        "batch": 64,
        "rates": RATES,
    }
    return Probe(measure="synthetic.recall_bits", settings=settings, model=SCRATCH, seed=seed)


def runs(store: Store) -> list[Probe]:
    """Seed by seed, small adapters first."""
    return [probe(series, rank, seed) for seed in SEEDS for rank in RANKS for series in SERIES]


def records(series: str, rank: int, store: Store) -> list[Record]:
    """The records of one point in seed order; empty unless all are there."""
    found = [record for seed in SEEDS if (record := store.get(probe(series, rank, seed))) is not None]
    return found if len(found) == len(SEEDS) else []


def bits(record: Record) -> float:
    return float(record.measurements["stored_bits"] or 0)


def slope(store: Store) -> metrics.Interval | None:
    """Bits for each further parameter in the ample series: a least-squares line for each seed, then the interval."""
    points = {rank: records("ample", rank, store) for rank in RANKS}
    if not all(points.values()):
        return None
    sizes = [parameters(rank) for rank in RANKS]
    lines = [np.polyfit(sizes, [bits(points[rank][at]) for rank in RANKS], 1)[0] for at in range(len(SEEDS))]
    return metrics.mean_interval([[float(line)] for line in lines])


def ratio(series: str, store: Store) -> metrics.Interval | None:
    """Bits a parameter at the largest rank over those at the smallest, paired by seed.

    None while a record is missing, or where a run at the smallest rank stored nothing.
    """
    small, large = records(series, RANKS[0], store), records(series, RANKS[-1], store)
    if not small or not large or min(map(bits, small)) == 0:
        return None
    sizes = parameters(RANKS[0]) / parameters(RANKS[-1])
    return metrics.mean_interval([[sizes * bits(b) / bits(a)] for a, b in zip(small, large, strict=True)])


def share(series: str, rank: int, store: Store) -> float:
    """Share of the data that is stored, mean over seeds."""
    found = records(series, rank, store)
    return math.fsum(map(bits, found)) / len(found) / (pairs(series, rank) * math.log2(VALUES))


def best_rate(series: str, rank: int, store: Store) -> float:
    """The rate that stores most, mean over seeds."""
    stored = np.mean([record.curve["stored_bits"] for record in records(series, rank, store)], axis=0)
    return RATES[int(stored.argmax())]


def unusable(store: Store) -> str:
    """Why the ample series decides nothing, or an empty text."""
    for rank in RANKS:
        if (held := share("ample", rank, store)) > SURPLUS_LEFT:
            return f"at rank {rank} {held:.0%} of the data are stored, so that the data may be the limit"
    for rank in RANKS:
        if (rate := best_rate("ample", rank, store)) in (RATES[0], RATES[-1]):
            return f"the best rate at rank {rank}, {rate:g}, is an end of its grid"
    return ""


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each series and rank: bits, bits a parameter, share of the data, best rate; slope and ratios."""
    out: dict[str, Quantity] = {}
    for series in SERIES:
        for rank in RANKS:
            if not (found := records(series, rank, store)):
                continue
            keys, size = tuple(record.key for record in found), parameters(rank)
            data = pairs(series, rank) * math.log2(VALUES)
            for name, divisor, unit, digits in (
                ("bits", 1.0, "bits", 0),
                ("bits_per_parameter", float(size), "bits per parameter", 2),
                ("share", data, "", 3),
            ):
                interval = metrics.mean_interval([[bits(record) / divisor] for record in found])
                out[f"{series}_r{rank}_{name}"] = as_quantity(interval, unit, keys, digits)
            out[f"{series}_r{rank}_parameters"] = Quantity(size, "parameters", keys[:1], digits=0)
            rate = best_rate(series, rank, store)
            out[f"{series}_r{rank}_best_rate"] = Quantity(rate, "", keys, seeds=len(SEEDS), digits=-2)
        if (found_ratio := ratio(series, store)) is not None:
            keys = tuple(record.key for rank in (RANKS[0], RANKS[-1]) for record in records(series, rank, store))
            out[f"{series}_ratio"] = as_quantity(found_ratio, "", keys, 2)
    if (line := slope(store)) is not None:
        keys = tuple(record.key for rank in RANKS for record in records("ample", rank, store))
        out["slope"] = as_quantity(line, "bits per parameter", keys, 2)
    return out


def as_quantity(interval: metrics.Interval, unit: str, keys: tuple[str, ...], digits: int) -> Quantity:
    """An interval over seeds as a named quantity."""
    return Quantity(interval.mean, unit, keys, interval.low, interval.high, len(SEEDS), digits=digits)


def verdict(store: Store) -> Verdict:
    """Do the stored bits grow in proportion to the trained parameters while the data suffice?"""
    line = slope(store)
    if line is None:
        return Verdict("not yet run", "The runs with ample data are not all there.")
    ends = f"rank {RANKS[-1]} over rank {RANKS[0]}"
    said = (
        f"Each further parameter stores {line.mean:.2f} bits (95 % interval {line.low:.2f} to {line.high:.2f}; "
        f"growth counts from {GROWTH}, margin {MARGIN})"
    )
    found, few = ratio("ample", store), ratio("scarce", store)
    if found is None:
        return Verdict("undecided", f"{said}; a run at rank {RANKS[0]} stored nothing to compare with.", ("slope",))
    said += (
        f"; {ends}, a parameter stores {found.mean:.2f} times as much ({found.low:.2f} to {found.high:.2f}; claim 1 ± "
        f"{DELTA:g})"
    )
    if few is not None:
        said += (
            f"; with only {SCARCE_PAIRS} pairs {few.mean:.2f} times, and the largest adapter holds "
            f"{share('scarce', RANKS[-1], store):.0%} of what there is"
        )
    named = ("ample_ratio", "slope")
    if reason := unusable(store):
        return Verdict("undecided", f"{said}; but {reason}.", named)
    parts = {
        metrics.judge(line, MARGIN, (GROWTH, math.inf)),
        metrics.judge(found, 0.0, (1 - DELTA, 1 + DELTA)),  # the claim holds the margin already
    }
    outcome = "refuted" if "refuted" in parts else "reproduced" if parts == {"reproduced"} else "undecided"
    return Verdict(outcome, f"{said}.", named)


STUDIES = {
    "capacity": Study(
        name="capacity",
        title="How many bits does an adapter store?",
        claim="What an adapter stores grows in proportion to its trained parameters while the data suffice.",
        source="allenzhu2024, abstract",
        refuted_if=f"Each further parameter stores less than {GROWTH - MARGIN:g} bits, or a parameter of rank "
        f"{RANKS[-1]} stores less than {1 - DELTA:g} or more than {1 + DELTA:g} times what one of rank {RANKS[0]} does "
        "(the whole 95 % interval); only where data are left over and no best rate is an end of its grid.",
        does_not_show="The two bits a parameter of Allen-Zhu and Li, which are for whole language models after 1,000 "
        "exposures: here a random Llama of width 64 is frozen, only LoRA on q and v is trained, with 100 exposures, "
        "three rates and one batch size. More exposures may store more. That storage ends with the data is "
        "arithmetic, shown by the scarce series and not put to the test.",
        chapter="book/lora",
        runs=runs,
        quantities=quantities,
        verdict=verdict,
    )
}
