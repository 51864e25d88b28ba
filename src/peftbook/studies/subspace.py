"""Do independently trained LoRA updates find the same directions?

Written before the runs. q and v projections, ranks 8, 64 and 64 again, all with different seeds; three such triples.
The overlap of the first directions, pooled over all modules, is held against 0.5, the value that Hu et al. 2021 name
for a direction that is shared; the overlap of directions 2 to 8 of both updates, without the first, is held against
what random spaces have. The first rule counted any overlap above chance as shared and did not test the later
directions; it was changed before there was a record.

Beside the verdict: the directions of the outputs (left singular vectors), and how much of the first direction lies in
the rows that A happened to start with. Both were added when the first overlaps had been seen, to tell whether the task
or the start chooses the direction; no rule was changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftbook import metrics, specs
from peftbook.methods.lora import LoRA
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS
from peftbook.studies.sweep import as_quantity
from peftbook.tasks import task_spec

__all__ = ["RANKS", "STUDIES", "later_overlap", "probes", "records"]

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
    budget = specs.Budget(tokens=E2E_TOKENS, learning_rate=RATE)
    return [
        specs.Probe(
            measure="weights.subspaces",
            runs=tuple(
                specs.Run(task=task_spec("e2e"), method=LoRA(rank=rank, targets=TARGETS), budget=budget, seed=seed)
                for rank, seed in zip(RANKS, seeds, strict=True)
            ),
            seed=seeds[0],
        )
        for seeds in TRIPLES
    ]


def records(store: Store) -> list[Record]:
    """The probes' records; empty unless all are there."""
    found = [record for probe in probes() if (record := store.get(probe)) is not None]
    return found if len(found) == len(TRIPLES) else []


def pooled(store: Store, column: str) -> metrics.Interval | None:
    """A column of the records, one value a module, over triples and modules; `…_first` is φ(1, 1)."""
    found = records(store)
    if not found:
        return None
    return metrics.mean_interval([[float(v) for v in one.per_example[column]] for one in found])


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


def later_excess(store: Store, name: str) -> metrics.Interval | None:
    """Overlap of directions 2 … r beyond that of random spaces, over triples; None while a record is missing."""
    found = records(store)
    return metrics.mean_interval([[later_overlap(one, name) - random_later(one)] for one in found]) if found else None


def band(store: Store) -> float:
    """The largest 95 % point of the pooled value of random vectors."""
    return max(float(one.measurements["null_pooled_95"] or 0) for one in records(store))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Pooled φ(1, 1) and overlap of the later directions, between ranks, between seeds and at the start; their band.

    φ(1, 1) of the outputs' directions, and how much of the first direction lies in the rows that A started with.
    """
    out: dict[str, Quantity] = {}
    found = records(store)
    keys = tuple(one.key for one in found)
    for name in PAIRS:
        if (excess := later_excess(store, name)) is not None:
            out[f"{name}_later_excess"] = as_quantity(excess, "", keys, len(TRIPLES))
    for column in (*(f"{name}_first" for name in (*PAIRS, *LEFT)), *IN_START):
        if (interval := pooled(store, column)) is not None:
            out[column] = as_quantity(interval, "", keys, len(TRIPLES))
    if found:
        out["random_later"] = Quantity(random_later(found[0]), "", keys, digits=4)
        out["random_band"] = Quantity(band(store), "", keys, seeds=len(TRIPLES), digits=4)
        out["modules"] = Quantity(float(found[0].measurements["modules"] or 0), "modules", keys, digits=0)
    return out


def verdict(store: Store) -> Verdict:
    """Is the first direction shared by the paper's measure, and are the later ones no more alike than random ones?"""
    first, later = pooled(store, "small_large_first"), later_excess(store, "small_large")
    if first is None or later is None:
        return Verdict("not yet run", "The three triples are not all there.")
    parts = {
        metrics.judge(first, MARGIN, (SHARED, math.inf)),
        metrics.judge(later, 0.0, (-math.inf, CHANCE)),  # the claim holds the margin already
    }
    outcome = "refuted" if "refuted" in parts else "reproduced" if parts == {"reproduced"} else "undecided"
    others = {name: found.mean for name in PAIRS[1:] if (found := pooled(store, f"{name}_first")) is not None}
    sentence = (
        f"The pooled overlap of the first directions of ranks {RANKS[0]} and {RANKS[1]} is {first.mean:.3f} (95 % "
        f"interval {first.low:.3f} to {first.high:.3f}; claim above {SHARED}, margin {MARGIN}), of two seeds at rank "
        f"{RANKS[1]} {others['large_large']:.3f}, before training {others['start']:.3f}; random vectors stay below "
        f"{band(store):.4f} in 95 of 100 draws. Directions 2 to {RANKS[0]} overlap by {later.mean:+.3f} more than "
        f"random ones ({later.low:+.3f} to {later.high:+.3f}; claim at most {CHANCE})."
    )
    named = ("small_large_first", "small_large_later_excess", "large_large_first", "start_first")
    return Verdict(outcome, sentence, named)


STUDIES = {
    "subspace": Study(
        name="subspace",
        title="Do different ranks and seeds find the same directions?",
        claim="The top direction of a LoRA update is shared between ranks 8 and 64 (overlap above 0.5); "
        "the later ones are not.",
        source="hu2021, section 7.2 and Figure 3",
        refuted_if=f"the pooled φ(1, 1) of ranks 8 and 64 is below {SHARED - MARGIN:g}, or directions 2 to 8 overlap "
        f"by more than {CHANCE} beyond random spaces (the whole 95 % interval).",
        does_not_show="Shared directions may come from the data's strongest signal rather than from a low-rank task; a "
        "short training of q and v on one task, after which much of an update still lies in the rows that A started "
        "with. The later directions' interval is over three triples alone: the "
        "record keeps the mean of their maps over modules.",
        chapter="book/lora",
        runs=lambda store: probes(),
        quantities=quantities,
        verdict=verdict,
    )
}
