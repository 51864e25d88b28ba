"""Does the rank matter? The tuned ranks of the learning-rate study, confirmed on fresh seeds.

Written before the runs. The rates come from the sweeps of `learning_rate` (one seed, eight rates for each rank); each
rank is then trained with three fresh seeds at its own best rate and judged on the test split.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftbook.evidence import stats
from peftbook.records import Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.learning_rate import RANKS, SHORT
from peftbook.studies.sweep import Comparison

__all__ = ["COMPARISON", "STUDIES"]

MARGIN = 0.02  # nats per token
COMPARISON = Comparison(
    task="e2e",
    tokens=SHORT.tokens,
    arms=tuple(arm for arm in SHORT.arms if arm.name != "full"),
    sweep_seeds=SHORT.sweep_seeds,
)
HIGHER = tuple(rank for rank in RANKS if rank > 16)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Loss of each rank and its difference to rank 16."""
    out = COMPARISON.quantities(store)
    for rank in RANKS:
        if rank != 16:
            out |= COMPARISON.paired(f"r{rank}", "r16", store)
    return out


def verdict(store: Store) -> Verdict:
    """Is no rank above 16 better than rank 16 by more than the margin?"""
    found = {rank: COMPARISON.difference(f"r{rank}", "r16", "loss_nats", store) for rank in HIGHER}
    if any(one is None for one in found.values()):
        return COMPARISON.unsettled("Ranks above 16 against rank 16", store, "r16", *(f"r{rank}" for rank in HIGHER))
    intervals = {f"r{rank}": one for rank, one in found.items() if one is not None}
    outcomes = [stats.judge(one, 0.0, (-MARGIN, float("inf"))) for one in intervals.values()]
    differ = stats.holm({name: stats.p_value(one) for name, one in intervals.items()})
    better = [name for name, different in differ.items() if different and intervals[name].high < -MARGIN]
    outcome = "refuted" if better else "reproduced" if set(outcomes) == {"reproduced"} else "undecided"
    parts = ", ".join(
        f"r = {name[1:]} {one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for name, one in intervals.items()
    )
    return Verdict(
        outcome,
        f"Test loss minus that of rank 16, nats per token (95 % intervals; margin {MARGIN}): {parts}.",
        tuple(f"{name}_minus_r16_loss" for name in intervals),
    )


def runs(store: Store) -> list[Run]:
    """The sweeps that `learning_rate` shares, then the finals."""
    return COMPARISON.runs(store)


STUDIES = {
    "rank": Study(
        name="rank",
        title="Does the rank matter?",
        claim="A small rank is enough: beyond r = 16 the loss does not fall.",
        source="hu2021, Table 18",
        refuted_if=f"a rank above 16 is better than rank 16 by more than {MARGIN} nats per token (the whole 95 % "
        "interval beyond the margin, and significant in the family by Holm's procedure).",
        does_not_show="A short training on one easy task; what high ranks can do with much more data. Above rank 192 "
        "the k and v projections of this model cannot use all of it.",
        chapter="book/lora-practice",
        runs=runs,
        quantities=quantities,
        verdict=verdict,
    )
}
