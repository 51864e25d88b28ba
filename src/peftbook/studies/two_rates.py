"""Two learning rates: does LoRA gain from a higher rate for B than for A, once both are tuned?

Written before the runs. Rank 16 and alpha 32 on all linear layers; η_B / η_A in {¼, 1, 4, 16, 64}, for each ratio four
rates of A a factor of 4 apart with one seed, extended at the edges: a map of both rates, whose points lie on one
lattice. Five fresh seeds at each ratio's best rate. Ratios 1, 4 and 16 are the runs of `variants`, where LoRA+ is asked
for speed. The ratio of the claim is 16, the paper's; the others are shown.

Ratio 16 and one rate are judged on all 630 test inputs with eight seeds, as a second look: five on 200 had left a
direction alone (−0.028, −0.036 to −0.019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from peftbook.core.records import Store
from peftbook.methods.lora import LoRA
from peftbook.studies import Quantity, Verdict, benchmark, margins, study, variants
from peftbook.studies.standard import rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison, runs_of
from peftbook.tasks import size_of_test

MARGIN = margins.LOSS
# arm → η_B / η_A, ascending; the names of `variants` where they share runs
RATIOS = {"quarter": 0.25, "lora": 1.0, "plus": 4.0, "plus16": 16.0, "plus64": 64.0}
COMPARISON = TunedComparison(
    task="e2e",
    tokens=variants.COMPARISON.tokens,
    arms=(
        Arm("quarter", "η_B = ¼ η_A", LoRA(b_rate_ratio=0.25), rates(0, 6, 2)),
        *(variants.COMPARISON.arm(name) for name in ("lora", "plus", "plus16")),
        Arm("plus64", "η_B = 64 η_A", LoRA(b_rate_ratio=64), rates(-6, 0, 2)),
    ),
    factor=4,
    seeds=variants.COMPARISON.seeds,
)
ALL_INPUTS = replace(
    COMPARISON,
    arms=(COMPARISON.arm("lora"), COMPARISON.arm("plus16")),
    seeds=(1, 2, 3, 4, 5, 6, 7, 8),
    first_look=5,
    test_examples=size_of_test("e2e"),
    max_new_tokens=benchmark.LOSS.max_new_tokens,  # none are asked for, but LoRA's runs are then the benchmark's
)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses of the five ratios, and their differences to one shared rate; the one that decides on all test inputs."""
    out = COMPARISON.quantities(store, ((name, "lora") for name in RATIOS if name != "lora"))
    return out | ALL_INPUTS.paired("plus16", "lora", store, prefix="all_")


@study("two_rates", runs_of(ALL_INPUTS, COMPARISON), quantities)
def verdict(store: Store) -> Verdict:
    """Is LoRA+ with ratio 16 better than one rate for both, each at its best?"""
    what = "With every rate tuned, the test loss of η_B = 16 η_A minus that of one shared rate"
    return ALL_INPUTS.verdict("plus16", "lora", MARGIN, (-math.inf, 0.0), what, store, prefix="all_")
