"""Do independently trained LoRA updates find the same directions?

Written before the runs. q and v projections, ranks 8, 64 and 64 again, all with different seeds; three such triples.
The overlap of the first directions, pooled over all modules, is held against that of random vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peftbook import metrics, specs
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS
from peftbook.studies.sweep import as_quantity
from peftbook.tasks import task_spec

__all__ = ["RANKS", "STUDIES", "probes", "records"]

RANKS = (8, 64, 64)
TRIPLES = ((1, 101, 201), (2, 102, 202), (3, 103, 203))
RATE = 8e-4
TARGETS = ("q_proj", "v_proj")


def probes() -> list[specs.Probe]:
    """One probe for each triple of seeds."""
    budget = specs.Budget(tokens=E2E_TOKENS, learning_rate=RATE)
    return [
        specs.Probe(
            measure="weights.subspaces",
            runs=tuple(
                specs.Run(
                    task=task_spec("e2e"), method=specs.LoRA(rank=rank, targets=TARGETS), budget=budget, seed=seed
                )
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


def pooled(store: Store, name: str) -> metrics.Interval | None:
    """φ(1, 1) over triples and modules."""
    found = records(store)
    if not found:
        return None
    return metrics.mean_interval([[float(v) for v in one.per_example[f"{name}_first"]] for one in found])


def band(store: Store) -> float:
    """The largest 95 % point of the pooled value of random vectors."""
    return max(float(one.measurements["null_pooled_95"] or 0) for one in records(store))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Pooled φ(1, 1) between ranks, between seeds and at the start; the random band."""
    out: dict[str, Quantity] = {}
    found = records(store)
    keys = tuple(one.key for one in found)
    for name in ("small_large", "large_large", "start"):
        if (interval := pooled(store, name)) is not None:
            out[f"{name}_first"] = as_quantity(interval, "", keys, len(TRIPLES))
    if found:
        out["random_band"] = Quantity(band(store), "", keys, seeds=len(TRIPLES), digits=4)
        out["modules"] = Quantity(float(found[0].measurements["modules"] or 0), "modules", keys, digits=0)
    return out


def verdict(store: Store) -> Verdict:
    """Is the pooled overlap of the first directions above the random band?"""
    found = pooled(store, "small_large")
    if found is None:
        return Verdict("not yet run", "The three triples are not all there.")
    limit = band(store)
    outcome = metrics.judge(found, 0.0, (limit, math.inf))
    return Verdict(
        outcome,
        f"The pooled overlap of the first directions is {found.mean:.3f} (95 % interval {found.low:.3f} to "
        f"{found.high:.3f}); random vectors stay below {limit:.4f} in 95 of 100 draws.",
        ("small_large_first",),
    )


STUDIES = {
    "subspace": Study(
        name="subspace",
        title="Do different ranks and seeds find the same directions?",
        claim="The top direction of a LoRA update is shared between ranks and seeds; most others are not.",
        source="hu2021, Figures 3 and 4",
        refuted_if="the pooled φ(1, 1) of ranks 8 and 64 lies inside the 95 % band of random vectors (whole interval).",
        does_not_show="Shared directions may come from the data's strongest signal rather than from a low-rank task; a "
        "short training of q and v on one task.",
        chapter="book/lora",
        runs=lambda store: probes(),
        quantities=quantities,
        verdict=verdict,
    )
}
