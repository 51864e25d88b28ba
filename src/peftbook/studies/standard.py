"""The standard run: how many tokens does LoRA need on each task, before any comparison is made?

Written before the runs. One long LoRA run a task, at a rate a little above its default, with the validation loss taken
along the way. The budget of the comparisons is the first measured point at which LoRA has 90 % of the gain over the
untuned model that its best point on the long run shows.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftbook import specs
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.tasks import task_spec

__all__ = ["STEPS", "STUDY", "TASKS", "budget_point", "probe"]

# task → tokens of the long run; about 160 steps of 8 examples
TASKS = {"e2e": 136_000, "docstrings": 176_000}
STEPS = (2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 160)
RATE = 4e-4
SHARE = 0.9
EXAMPLES = 200


def probe(task: str) -> specs.Probe:
    """The long run of a task, with the validation loss at STEPS and at its end."""
    run = specs.Run(
        task=task_spec(task),
        method=specs.LoRA(),
        budget=specs.Budget(tokens=TASKS[task], learning_rate=RATE),
        evaluation=specs.Evaluation(split="validation", n_loss=EXAMPLES),
    )
    return specs.Probe(measure="curves.learning_curve", settings={"steps": STEPS}, runs=(run,))


def budget_point(record: Record) -> int:
    """Index of the first point of the curve that has SHARE of the largest gain over the untuned model."""
    losses = record.curve["validation_loss_nats"]
    before, best = losses[0], min(losses)
    return next(at for at, loss in enumerate(losses) if before - loss >= SHARE * (before - best))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each task: loss before and at best, and tokens and steps at which the share of the gain is reached."""
    out: dict[str, Quantity] = {}
    for task in TASKS:
        if (record := store.get(probe(task))) is None:
            continue
        losses, at = record.curve["validation_loss_nats"], budget_point(record)
        keys = (record.key,)
        for name, value in (("before", losses[0]), ("best", min(losses)), ("at_budget", losses[at])):
            out[f"{task}_loss_{name}"] = Quantity(
                float(value), "nats per token", keys, seeds=1, n=EXAMPLES, digits=3
            )  # fmt: skip
        out[f"{task}_tokens"] = Quantity(float(record.curve["tokens"][at]), "tokens", keys, seeds=1, digits=0)
        out[f"{task}_steps"] = Quantity(float(record.curve["step"][at]), "steps", keys, seeds=1, digits=0)
    return out


def verdict(store: Store) -> Verdict:
    """No claim of a paper: the study measures what the others are planned with."""
    found = quantities(store)
    if any(f"{task}_tokens" not in found for task in TASKS):
        return Verdict("not yet run", "The long runs are not all there.")
    said = "; ".join(
        f"{task}: {found[f'{task}_tokens'].value:,.0f} tokens ({found[f'{task}_steps'].value:.0f} steps)"
        for task in TASKS
    )
    return Verdict("measured", f"LoRA has {SHARE:.0%} of its best gain after {said}.", ("e2e_tokens",))


STUDY = Study(
    name="standard",
    title="The standard run: how long to train",
    claim="A few dozen steps are enough to compare methods: LoRA's gain comes early.",
    source="hu2021",
    refuted_if="nothing: this study measures the budget that the others use",
    does_not_show="Where the gain of other methods, other rates or larger models comes; one seed a task.",
    chapter="book/head-to-head",
    runs=lambda store: [probe(task) for task in TASKS],
    quantities=quantities,
    verdict=verdict,
)

STUDIES = {STUDY.name: STUDY}
