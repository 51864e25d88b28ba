"""Do independently trained LoRA updates find the same directions?

Written before the runs. q and v projections, ranks 8, 64 and 64 again, all with different seeds; three such triples.
The overlap of the first directions, pooled over all modules, is held against 0.5, the value that Hu et al. 2021 name
for a direction that is shared; the overlap of directions 2 to 8 of both updates, without the first, is held against
what random spaces have.

Beside the verdict: the directions of the outputs (left singular vectors), and how much of the first direction lies in
the rows that A happened to start with. They tell whether the task or the start chooses the direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, score
from peftbook.methods.lora import LoRA
from peftbook.studies import Quantity, Verdict, study
from peftbook.studies.standard import E2E_TOKENS, training

RANKS = (8, 64, 64)
TRIPLES = ((1, 101, 201), (2, 102, 202), (3, 103, 203))
RATE = 8e-4
TARGETS = ("q_proj", "v_proj")
SHARED, MARGIN = 0.5, 0.1  # of φ(1, 1): the paper's bound for a shared direction, and how far below it refutes
CHANCE = 0.1  # how far above that of random spaces the overlap of directions that are not shared may be
PAIRS = ("small_large", "large_large", "start")
LEFT = ("small_large_left", "large_large_left")  # of the outputs' directions, shown beside those of the inputs
IN_START = ("small_in_start", "large_in_start")


def probes() -> list[specs.Probe]:
    """One probe for each triple of seeds."""
    return [
        specs.Probe(
            measure="weights.subspaces",
            runs=tuple(
                training("e2e", LoRA(rank=rank, targets=TARGETS), E2E_TOKENS, RATE, seed)
                for rank, seed in zip(RANKS, seeds, strict=True)
            ),
            seed=seeds[0],
        )
        for seeds in TRIPLES
    ]


def records(store: Store) -> list[Record]:
    """The probes' records. Raises Missing."""
    return store.need_all(probes())


def pooled(store: Store, column: str) -> stats.Interval:
    """A column of the records, one value a module, over triples and modules; `…_first` is φ(1, 1). Raises Missing."""
    return score(records(store), column)


def later_overlap(record: Record, name: str) -> float:
    """φ of directions 2 … r of both updates, without the first: 1 for one space, (r − 1)/d on average for random ones.

    φ(i, j) · min(i, j) sums the squared cosines of the first i and j directions, so the block without the first row
    and column is S(r, r) − S(1, r) − S(r, 1) + S(1, 1), with S = φ · min(i, j); it is divided by r − 1. The recorded
    map is the mean over modules.
    """
    small, large = RANKS[:2]
    phi = np.array(record.curve[f"{name}_map"], dtype=float).reshape(small, large)
    sums = phi * np.minimum(np.arange(1, small + 1)[:, None], np.arange(1, large + 1)[None, :])
    last = small - 1
    return float(sums[last, last] - sums[0, last] - sums[last, 0] + sums[0, 0]) / last


def random_later(record: Record) -> float:
    """What `later_overlap` is on average for random spaces: (r − 1)/d, mean over modules."""
    return (RANKS[0] - 1) * float(record.measurements["mean_inverse_width"] or 0)


def later_excess(store: Store, name: str) -> stats.Interval:
    """Overlap of directions 2 … r beyond that of random spaces, over triples. Raises Missing."""
    return stats.seed_interval([later_overlap(one, name) - random_later(one) for one in records(store)])


def band(store: Store) -> float:
    """The largest 95 % point of the pooled value of random vectors."""
    return max(float(one.measurements["null_pooled_95"] or 0) for one in records(store))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Pooled φ(1, 1) and overlap of the later directions, between ranks, between seeds and at the start; their band.

    φ(1, 1) of the outputs' directions, and how much of the first direction lies in the rows that A started with.
    """
    found, out = records(store), dict[str, Quantity]()
    keys = keys_of(found)
    for name in PAIRS:
        out[f"{name}_later_excess"] = Quantity.of(later_excess(store, name), "", keys)
    for column in (*(f"{name}_first" for name in (*PAIRS, *LEFT)), *IN_START):
        out[column] = Quantity.of(pooled(store, column), "", keys)
    out["random_later"] = Quantity(random_later(found[0]), "", keys, digits=4)
    out["random_band"] = Quantity(band(store), "", keys, seeds=len(TRIPLES), digits=4)
    out["modules"] = Quantity(float(found[0].measurements["modules"] or 0), "modules", keys, digits=0)
    return out


@study("subspace", lambda store: probes(), quantities, least=SHARED - MARGIN)
def verdict(store: Store) -> Verdict:
    """Is the first direction shared by the paper's measure, and are the later ones no more alike than random ones?"""
    first, later = pooled(store, "small_large_first"), later_excess(store, "small_large")
    parts = {
        stats.judge(first, MARGIN, (SHARED, math.inf)),
        stats.judge(later, 0.0, (-math.inf, CHANCE)),  # the claim holds the margin already
    }
    outcome = stats.together(parts)
    others = {name: pooled(store, f"{name}_first").mean for name in PAIRS[1:]}
    sentence = (
        f"The pooled overlap of the first directions of ranks {RANKS[0]} and {RANKS[1]} is {first.mean:.3f} (95 % "
        f"interval {first.low:.3f} to {first.high:.3f}; claim above {SHARED}, margin {MARGIN}), of two seeds at rank "
        f"{RANKS[1]} {others['large_large']:.3f}, before training {others['start']:.3f}; random vectors stay below "
        f"{band(store):.4f} in 95 of 100 draws. Directions 2 to {RANKS[0]} overlap by {later.mean:+.3f} more than "
        f"random ones ({later.low:+.3f} to {later.high:+.3f}; claim at most {CHANCE})."
    )
    named = ("small_large_first", "small_large_later_excess", "large_large_first", "start_first")
    return Verdict(outcome, sentence, named)
