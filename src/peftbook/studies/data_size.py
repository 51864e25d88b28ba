"""How little data is enough? Training sets of 30 to 3,000 examples at one token budget.

Written before the runs. For each size: prompt tuning, LoRA and full fine-tuning, three rates a factor of 4 apart
around the best of the larger comparison, extended at the edges, one seed; three fresh seeds at the chosen rate. Small
sets are gone through again and again until the budget is spent. Five examples in the prompt are the untuned rival.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peftbook.core.records import Store
from peftbook.core.specs import Run
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.untuned import Untuned
from peftbook.studies import Quantity, Verdict, margins, study
from peftbook.studies.benchmark import PROMPT_RATES
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison

SIZES = (30, 100, 300, 1000, 3000)
MARGIN = margins.LOSS
ARMS = (
    Arm("prompt", "Prompt tuning", PromptTuning(), PROMPT_RATES[:3]),
    Arm("lora", "LoRA", LoRA(), rates(-2, 2, 2), 2e-4),
    Arm("full", "Full fine-tuning", Full(), rates(-4, 0, 2), 5e-5),
)
COMPARISONS = {
    size: TunedComparison(
        task="e2e",
        tokens=E2E_TOKENS,
        arms=ARMS,
        factor=4,
        train_examples=size,
        generate=200,
        max_new_tokens=64,
    )
    for size in SIZES
}
FEWSHOT = TunedComparison(
    task="e2e",
    tokens=E2E_TOKENS,
    arms=(Arm("fewshot", "Five examples in the prompt", Untuned(shots=5)),),
    generate=200,
    max_new_tokens=64,
)


def runs(store: Store) -> list[Run]:
    """The size of the verdict first, then the others; sweeps before finals within a size."""
    order = (100, *(size for size in SIZES if size != 100))
    return [run for size in order for run in COMPARISONS[size].runs(store)] + FEWSHOT.runs(store)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Scores by size and arm, and the differences between arms at each size."""
    out = FEWSHOT.quantities(store)
    for size, comparison in COMPARISONS.items():
        out |= comparison.quantities(store, (("lora", "full"), ("prompt", "lora")), f"n{size}_")
    return out


@study("data_size", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Is LoRA at least as good as full fine-tuning with 100 examples?"""
    what = "With 100 examples LoRA's test loss minus full fine-tuning's"
    return COMPARISONS[100].verdict("lora", "full", 0.0, (-math.inf, MARGIN), what, store, "n100_")
