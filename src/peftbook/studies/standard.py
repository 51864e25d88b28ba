"""The standard run: how many tokens does LoRA need on each task, before any comparison is made?

Written before the runs. One long LoRA run a task, at twice its paper's rate, with the validation loss taken along the
way; on E2E a shorter one at eight times that rate, because a comparison tunes its rate. The budget is the first point
of any of a task's runs that has 90 % of the gain over the untuned model, the gain being that of the best point of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence.comparison import keys_of
from peftbook.methods import Method
from peftbook.methods.lora import LoRA
from peftbook.studies import Quantity, Verdict, gathered, study
from peftbook.tasks import task_spec

# task → (learning rate, tokens) of its runs
RUNS = {"e2e": ((4e-4, 136_000), (1.6e-3, 52_000)), "docstrings": ((4e-4, 176_000),)}
STEPS = (2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 160)
SHARE = 0.9
EXAMPLES = 200
# What the other studies take from the curve: tokens of a standard run on E2E.
E2E_TOKENS = 34_000


def rates(low: int, high: int, step: int = 1) -> tuple[float, ...]:
    """2e-4 · 2^k for k from `low` to `high`: the lattice that the studies on E2E share, so that they share runs.

    2e-4 is the rate of Hu et al. 2021, Table 11.
    """
    return tuple(float(f"{2e-4 * 2.0**k:.3g}") for k in range(low, high + 1, step))


def training(task: str, method: Method, tokens: int, rate: float | None, seed: int = 0, **more: Any) -> specs.Run:
    """A training on so many tokens of a task that ships.

    rate: None of a method that trains nothing.  more: other fields of budget, evaluation or run, by their names.
    """
    budget, evaluation = (
        {name: more.pop(name) for name in part.model_fields if name in more}
        for part in (specs.Budget, specs.Evaluation)
    )
    return specs.Run(
        task=task_spec(task),
        method=method,
        budget=None if rate is None else specs.Budget(tokens=tokens, learning_rate=rate, **budget),
        evaluation=specs.Evaluation(**evaluation),
        seed=seed,
        **more,
    )


def probe_of(measure: str, run: specs.Run, **settings: Any) -> specs.Probe:
    """A measurement of what one run trains."""
    return specs.Probe(measure=measure, settings=settings, runs=(run,), model=run.model, seed=run.seed)


def probes(task: str) -> list[specs.Probe]:
    """The runs of a task, with the validation loss at STEPS and at the end."""
    return [
        probe_of("curves.learning_curve", training(task, LoRA(), tokens, rate, n_loss=EXAMPLES), steps=STEPS)
        for rate, tokens in RUNS[task]
    ]


def records(task: str, store: Store) -> list[Record]:
    """The records of a task's runs. Raises Missing."""
    return store.need_all(probes(task))


def budget_point(found: list[Record]) -> tuple[Record, int]:
    """The record and the index of its first point that has SHARE of the largest gain, for the fewest tokens."""
    before = float(found[0].curve["validation_loss_nats"][0])
    best = min(min(record.curve["validation_loss_nats"]) for record in found)
    points = []
    for number, record in enumerate(found):
        for at, loss in enumerate(record.curve["validation_loss_nats"]):
            if before - loss >= SHARE * (before - best):
                points.append((record.curve["tokens"][at], number, at))
    _, number, at = min(points)
    return found[number], at


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each task: loss before and at best, and tokens and steps at which the share of the gain is reached."""
    return gathered(lambda task: budget(task, records(task, store)), RUNS)


def budget(task: str, found: list[Record]) -> dict[str, Quantity]:
    """Loss before and at best, the first point with SHARE of the gain, and the share there in per cent."""
    (record, at), keys = budget_point(found), keys_of(found)
    losses, tokens, steps = (record.curve[name] for name in ("validation_loss_nats", "tokens", "step"))
    best = min(min(record.curve["validation_loss_nats"]) for record in found)
    share = 100 * (losses[0] - losses[at]) / (losses[0] - best)
    nats = {"before": losses[0], "best": best, "at_budget": losses[at]}
    return {
        **{
            f"{task}_loss_{name}": Quantity(float(value), "nats per token", keys, seeds=1, n=EXAMPLES, digits=3)
            for name, value in nats.items()
        },
        f"{task}_share": Quantity(share, "%", keys, seeds=1, n=EXAMPLES, digits=0),
        f"{task}_tokens": Quantity(float(tokens[at]), "tokens", keys, seeds=1, digits=0),
        f"{task}_steps": Quantity(float(steps[at]), "steps", keys, seeds=1, digits=0),
    }


@study("standard", lambda store: [probe for task in RUNS for probe in probes(task)], quantities)
def verdict(store: Store) -> Verdict:
    """No claim of a paper: the study measures what the others are planned with."""
    found = {name: value for task in RUNS for name, value in budget(task, records(task, store)).items()}
    said = "; ".join(
        f"{task}: {found[f'{task}_tokens'].value:,.0f} tokens ({found[f'{task}_steps'].value:.0f} steps)"
        for task in RUNS
    )
    return Verdict("measured", f"LoRA has {SHARE:.0%} of its best gain after {said}.", ("e2e_tokens",))
