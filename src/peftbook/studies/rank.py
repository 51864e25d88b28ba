"""Does the rank matter? The tuned ranks of the learning-rate study, confirmed on fresh seeds.

Written before the runs. The rates come from the sweeps of `learning_rate` (one seed, eight rates for each rank); each
rank is then trained with three fresh seeds at its own best rate and judged on the test split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from peftbook.core.records import Store
from peftbook.evidence import stats
from peftbook.studies import BLIND, Quantity, Verdict, margins, study
from peftbook.studies.learning_rate import RANKS, SHORT
from peftbook.studies.tuned_comparison import TunedComparison

MARGIN = margins.LOSS
COMPARISON = TunedComparison(
    task="e2e",
    tokens=SHORT.tokens,
    arms=tuple(arm for arm in SHORT.arms if arm.name != "full"),
    sweep_seeds=SHORT.sweep_seeds,
)
HIGHER = tuple(rank for rank in RANKS if rank > 16)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Loss of each rank and its difference to rank 16."""
    return COMPARISON.quantities(store, ((f"r{rank}", "r16") for rank in RANKS if rank != 16))


@study("rank", COMPARISON.runs, quantities)
def verdict(store: Store) -> Verdict:
    """Is no rank above 16 better than rank 16 by more than the margin, on a task that can tell rank 1 from rank 16?"""
    COMPARISON.finals_of(("r16", *(f"r{rank}" for rank in HIGHER)), store)
    intervals = {f"r{rank}": COMPARISON.difference(f"r{rank}", "r16", "loss_nats", store) for rank in HIGHER}
    outcomes = [stats.judge(one, 0.0, (-MARGIN, math.inf)) for one in intervals.values()]
    beyond = {name: replace(one, mean=one.mean + MARGIN) for name, one in intervals.items()}
    differ = stats.holm({name: stats.p_value(one) for name, one in beyond.items()})
    control = COMPARISON.difference("r1", "r16", "loss_nats", store)
    seen = stats.judge(control, MARGIN, (0.0, math.inf)) == "reproduced"
    if any(different and beyond[name].mean < 0 for name, different in differ.items()):
        outcome = "refuted"
    else:
        outcome = "reproduced" if seen and set(outcomes) == {"reproduced"} else "undecided"
    parts = ", ".join(f"r = {name[1:]} {one:+.3f}" for name, one in {**intervals, "r1": control}.items())
    told = "" if seen else "; a task on which rank 1 is no worse cannot tell how much rank is enough"
    return Verdict(
        outcome,
        f"Test loss minus that of rank 16, nats per token (95 % intervals; margin {MARGIN}): {parts}{told}.",
        tuple(f"{name}_minus_r16_loss" for name in (*intervals, "r1")),
        held="" if seen or outcome == "refuted" else BLIND,
    )
