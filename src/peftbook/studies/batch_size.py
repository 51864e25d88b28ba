"""Does LoRA pay more for a large batch than full fine-tuning does?

Written before the runs. Full fine-tuning and LoRA (r = 16, alpha 32, all linear layers) on the small Llama in float32,
one pass over the first 800 training examples of E2E: as 400 steps of 2, 100 of 8 or 25 of 32. An example has 53 label
tokens on average, so that a batch of 32 means its gradient over 1,700 of them. Each arm has a grid of its own
at each batch: three rates a factor of 2 apart, one seed, extended at the edges; where the parabola through the best
rate and its neighbours lies more than BEARABLE lower, the rates halfway to them are trained too. Five fresh seeds at
the chosen rates.

What an arm pays is its test loss at the largest batch minus that at the smallest. Equal tokens leave a large batch
fewer steps, which costs either arm; the claim is about the difference of the two costs, paired by seed and example. One
arm must surely have paid more than the margin: where a large batch costs nothing there is nothing to tolerate. Warm-up
is a tenth of the steps at every batch, gradients are clipped at norm 1. How often they were is told since a reader
found that it differs by batch.

Shown and not judged: the batch in the middle. A control: a training with the smallest batch and as few steps as the
largest takes, rates tuned again. Where LoRA is as far behind after these as after the few steps of the largest batch,
what it pays for is the number of steps and not the batch.

Looked at before: the sweeps of `recovery` (LoRA on the same model and task, 59 steps of 8), from which the middles of
LoRA's grids come; those of full fine-tuning are an eighth of them. They showed a valley so steep that rates a factor of
2 apart are too coarse. With seed 99 the first nine steps of full fine-tuning in batches of 32 at 8e-4, in which its
training loss fell from 5.8 to 2.9, and two trainings on `sort`: LoRA in 26 steps of 128, and the first 230 steps of
full fine-tuning in batches of 8. That task was given up, because the loss soon stands at the entropy of a sorted list
that nobody has read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.core.specs import Run
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, paired, table, weights
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.studies import BLIND, Quantity, Verdict, gathered, margins, study
from peftbook.studies.standard import rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison, decide

BATCHES = (2, 8, 32)  # examples
SMALLEST, LARGEST = BATCHES[0], BATCHES[-1]
EXAMPLES = 800
TOKENS = 116_167  # of these examples by the small Llama's tokenizer: every run is one pass
MARGIN = margins.LOSS
BEARABLE = MARGIN / 4  # shortfall of a grid
ARMS = {"full": "Full fine-tuning", "r16": "LoRA, r = 16"}
CONTRARY = "the control says the opposite: at equal steps LoRA pays surely less"
MIDDLES = {2: 3, 8: 4, 32: 5}  # batch → k of the middle rate of LoRA, 2e-4 · 2^k


def comparison(batch: int, tokens: int, middle: int, *, task: str = "e2e", untuned: bool = False) -> TunedComparison:
    """Both arms at one batch size; full fine-tuning's rates are an eighth of LoRA's."""
    grids = {"full": rates(middle - 4, middle - 2), "r16": rates(middle - 1, middle + 1)}
    methods = {"full": Full(), "r16": LoRA(rank=16)}
    arms = tuple(Arm(name, ARMS[name], methods[name], grids[name]) for name in ARMS)
    return TunedComparison(
        task=task,
        tokens=tokens,
        arms=(*arms, *([Arm("untuned", "Untuned", Untuned())] if untuned else [])),
        train_examples=EXAMPLES,
        batch_size=batch,
        bearable=BEARABLE,
        seeds=(1, 2, 3, 4, 5),
        dtype="fp32",
        model=specs.SMALL_LLAMA,
    )


COMPARISONS = {batch: comparison(batch, TOKENS, MIDDLES[batch], untuned=batch == SMALLEST) for batch in BATCHES}
# As many steps of the smallest batch as the largest takes.
FEW_STEPS = comparison(SMALLEST, TOKENS * SMALLEST // LARGEST, MIDDLES[SMALLEST])
Pair = tuple[TunedComparison, TunedComparison]  # the smaller batch, then the larger
EQUAL_TOKENS = (COMPARISONS[SMALLEST], COMPARISONS[LARGEST])
EQUAL_STEPS = (FEW_STEPS, COMPARISONS[LARGEST])


def runs(store: Store) -> list[Run]:
    """The two batches that decide first, then few steps and the batch between."""
    middle = [COMPARISONS[batch] for batch in BATCHES[1:-1]]
    order = (COMPARISONS[SMALLEST], COMPARISONS[LARGEST], FEW_STEPS, *middle)
    return [run for one in order for run in one.runs(store)]


def pair(name: str, plans: Pair, store: Store) -> tuple[list[Record], list[Record]]:
    """An arm's final records at the larger and the smaller batch. Raises Missing, Unusable where one diverged."""
    small, large = plans
    return large.finals(name, store), small.finals(name, store)


def cost(name: str, store: Store, plans: Pair = EQUAL_TOKENS) -> stats.Interval:
    """Test loss of an arm at the larger batch minus that at the smaller, by seed and example. Raises Missing."""
    one, two = pair(name, plans, store)
    found = paired(one, two, "loss_nats", plans[0].groups(two[0]))
    return stats.with_choice(found, *(plan.choice_error(name, store) for plan in plans))


def extra(store: Store, plans: Pair = EQUAL_TOKENS) -> stats.Interval:
    """LoRA's `cost` minus that of full fine-tuning, by seed and example. Raises Missing."""
    records = {name: pair(name, plans, store) for name in ARMS}
    paid = {name: table(one, "loss_nats") - table(two, "loss_nats") for name, (one, two) in records.items()}
    weight = weights(records["r16"][0], "loss_nats") or ()
    groups = plans[0].groups(records["r16"][0][0])[: len(weight)]
    found = stats.paired_interval(paid["r16"], paid["full"], weight, groups)
    return stats.with_choice(found, *(plan.choice_error(name, store) for plan in plans for name in ARMS))


def clipping(plans: Pair, store: Store) -> str:
    """In what share of each arm's steps gradients are clipped, in words; empty if records do not tell. Raises Missing.

    Batches, and steps at equal tokens, differ in this too.
    """
    shares = {name: [plan.clipped_share(plan.finals(name, store)) for plan in plans] for name in ARMS}
    if None in itertools.chain(*shares.values()):
        return ""
    said = "; ".join(f"{ARMS[name]}, {small:.0f}% and {large:.0f}%" for name, (small, large) in shares.items())
    batches = " and ".join(str(plan.batch_size) for plan in plans)
    return f" Steps with clipped gradients, with {batches} examples a batch: {said}."


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses and rates by batch, what the largest batch costs each arm, and how much more it costs LoRA."""
    out: dict[str, Quantity] = {}
    for prefix, plan in ({f"b{batch}_": plan for batch, plan in COMPARISONS.items()} | {"few_": FEW_STEPS}).items():
        out |= plan.quantities(store, (("r16", "full"),), prefix)
    return out | paid_by("", EQUAL_TOKENS, store) | paid_by("few_", EQUAL_STEPS, store)


def paid_by(prefix: str, plans: Pair, store: Store) -> dict[str, Quantity]:
    """The cost of each arm and `extra`, as quantities, as far as their records are there."""

    def of(name: str) -> dict[str, Quantity]:
        found = extra(store, plans) if name == "extra" else cost(name, store, plans)
        keys = [keys_of(*pair(arm, plans, store)) for arm in (ARMS if name == "extra" else (name,))]
        return {f"{prefix}{name}_cost": Quantity.of(found, "nats per token", tuple(itertools.chain(*keys)))}

    return gathered(of, (*ARMS, "extra"))


@study("batch_size", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Does the largest batch cost LoRA more than full fine-tuning, and does it surely cost either anything?"""
    what = (
        f"From {SMALLEST} to {LARGEST} examples a batch, what LoRA pays in test loss minus what full fine-tuning does"
    )
    found = decide(extra(store), MARGIN, (0.0, math.inf), what, "extra_cost", "nats per token")
    costs = {name: cost(name, store) for name in ARMS}
    said = "; ".join(f"{ARMS[name]} pays {one:+.3f}" for name, one in costs.items())
    sentence = f"{found.sentence.removesuffix('.')}; {said}.{clipping(EQUAL_TOKENS, store)}"
    named = (*found.quantities, *(f"{name}_cost" for name in ARMS))
    if all(one.low <= MARGIN for one in costs.values()):
        blunt = f"Neither is surely above {MARGIN}: there is nothing to tolerate."
        return Verdict("undecided", f"{sentence} {blunt}", named, found.judged, held=BLIND)
    steps = extra(store, EQUAL_STEPS)
    sentence += f" At equal steps it is {steps.mean:+.3f} ({steps.low:+.3f} to {steps.high:+.3f})."
    if steps.high < 0 and found.outcome in ("reproduced", "direction only"):
        return Verdict("undecided", sentence, (*named, "few_extra_cost"), found.judged, held=CONTRARY)
    return replace(found, sentence=sentence, quantities=named)
