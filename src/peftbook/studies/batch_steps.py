"""At equal steps, does a larger batch set LoRA further behind full fine-tuning? Asked on docstrings, whose data ship.

Written before the runs. `batch_size` compares batches at equal tokens on E2E. Its control does so at equal steps, and
there the larger batch left LoRA less far behind (−0.141 nats per token, −0.265 to −0.017). Here model, arms and batches
are the same, and all runs take about 25 steps, over the first 800 training examples of docstrings. A budget is a number
of tokens, so that runs of the smaller batch take 23 to 27 steps by seed, and both arms of a seed as many. The grids lie
around the best rates of 25 steps on E2E; the best rate and its neighbours have three seeds. All test examples decide,
fifty of each package.

Predicted: as on E2E, LoRA's loss falls by more than that of full fine-tuning. The control is that sixteen times as many
examples a step are worth something to one of the arms. Looked at before: the lengths of the examples, and no training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from peftbook.core.records import Store
from peftbook.studies import BLIND, Quantity, Verdict, margins, study
from peftbook.studies.batch_size import (
    ARMS,
    LARGEST,
    MIDDLES,
    SMALLEST,
    Pair,
    clipping,
    comparison,
    cost,
    extra,
    paid_by,
)
from peftbook.studies.tuned_comparison import FURTHER, decide, runs_of

TOKENS = 118_657  # of the first 800 examples by the small Llama's tokenizer
MARGIN = margins.LOSS
PLANS = {
    batch: replace(
        comparison(batch, TOKENS * batch // LARGEST, MIDDLES[LARGEST], task="docstrings"),
        further=FURTHER,
        test_examples=450,
    )
    for batch in (SMALLEST, LARGEST)
}
BOTH: Pair = (PLANS[SMALLEST], PLANS[LARGEST])


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses and rates by batch, what the larger batch costs each arm, and how much more it costs LoRA."""
    out = paid_by("", BOTH, store)
    for batch, plan in PLANS.items():
        out |= plan.quantities(store, (("r16", "full"),), f"b{batch}_")
    return out


@study("batch_steps", runs_of(*BOTH), quantities)
def verdict(store: Store) -> Verdict:
    """Is LoRA no further behind with the larger batch, which is worth something to one of the arms?"""
    batches = f"from {SMALLEST} to {LARGEST} examples a batch"
    what = f"At equal steps, {batches}, LoRA's change of test loss minus that of full fine-tuning"
    found = decide(extra(store, BOTH), 0.0, (-math.inf, MARGIN), what, "extra_cost", "nats per token")
    costs = {name: cost(name, store, BOTH) for name in ARMS}
    said = "; ".join(f"{ARMS[name]} changes by {one:+.3f}" for name, one in costs.items())
    found = replace(
        found,
        sentence=f"{found.sentence.removesuffix('.')}; {said}.{clipping(BOTH, store)}",
        quantities=(*found.quantities, *(f"{name}_cost" for name in ARMS)),
    )
    if all(one.high >= -MARGIN for one in costs.values()):
        return replace(found, outcome="undecided", held=BLIND)
    return found
