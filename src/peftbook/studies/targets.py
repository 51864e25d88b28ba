"""Which matrices should LoRA adapt, at one parameter budget?

Written before the runs. About 3.05 million trained parameters in each arm: q and v at rank 53, all attention matrices
at rank 26, the MLP at rank 16, all linear layers at rank 10; alpha is twice the rank, so that every arm has the same
scaling; four rates a factor of 4 apart for each arm, one seed; three fresh seeds at the chosen rate. Both claims are
decided on refined grids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from peftbook.core.records import Store
from peftbook.methods.lora import LoRA
from peftbook.studies import Quantity, Verdict, margins, study
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison, runs_of

MARGIN = margins.LOSS
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
CHOICES = {
    "query_value": ("q and v, r = 53", 53, ("q_proj", "v_proj")),
    "attention": ("attention, r = 26", 26, ATTENTION),
    "mlp": ("MLP, r = 16", 16, MLP),
    "all": ("all linear layers, r = 10", 10, (*ATTENTION, *MLP)),
}
COMPARISON = TunedComparison(
    task="e2e",
    tokens=E2E_TOKENS,
    arms=tuple(
        Arm(name, label, LoRA(rank=rank, alpha=2 * rank, targets=targets), rates(-2, 4, 2), 2e-4)
        for name, (label, rank, targets) in CHOICES.items()
    ),
    factor=4,
    seeds=(1, 2, 3, 4, 5),
    first_look=3,
)
REFINED = replace(COMPARISON, bearable=MARGIN / 2)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Loss of each choice and the differences to the MLP and to all layers."""
    pairs = (("attention", "mlp"), ("query_value", "all"), ("attention", "all"), ("mlp", "all"))
    return REFINED.quantities(store, pairs)


@study("targets", runs_of(REFINED, COMPARISON), quantities)
def mlp_verdict(store: Store, plan: TunedComparison = REFINED) -> Verdict:
    """Is attention-only worse than MLP-only?"""
    what = "Test loss of attention-only minus MLP-only"
    return plan.verdict("attention", "mlp", MARGIN, (0.0, math.inf), what, store)


@study("targets_all", runs_of(REFINED, COMPARISON), quantities)
def all_verdict(store: Store, plan: TunedComparison = REFINED) -> Verdict:
    """Are q and v alone worse than all linear layers?"""
    what = "Test loss of q and v minus all linear layers"
    return plan.verdict("query_value", "all", MARGIN, (0.0, math.inf), what, store)
