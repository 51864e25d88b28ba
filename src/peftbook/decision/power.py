"""How many seeds and test examples a comparison needs, before anything is trained: from the spread of our own records.

Two arms that were run with the same seeds and scored on the same test examples have a paired difference, whose errors
say how much seeds and examples scatter on such a task. What the differences were is no part of the answer.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from peftbook.decision.terms import Measure
from peftbook.evidence import comparison
from peftbook.evidence.planning import found_with, settle
from peftbook.evidence.stats import FEWEST_SEEDS, Interval
from peftbook.records import Record
from peftbook.specs import Run
from peftbook.tasks import test_groups

__all__ = ["LEVEL", "Spreads", "found", "needed", "spreads"]

LEVEL = 0.025  # one-sided, of one comparison


@dataclass(frozen=True)
class Spreads:
    """What was measured on one task with one model. intervals: of the paired differences of every two arms."""

    task: str
    model: str
    intervals: tuple[Interval, ...]


def spreads(records: Iterable[Record], measure: Measure) -> list[Spreads]:
    """The paired differences of trained arms that share task, model, test examples, tokens and at least three seeds."""
    arms: dict[tuple, dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        run = record.spec
        if not isinstance(run, Run) or not run.budget or run.evaluation.split != "test" or record.failure:
            continue
        if comparison.has_column([record], measure.column):
            alike = (run.task.name, run.model.name, run.budget.tokens, run.budget.train_examples, run.evaluation)
            arms[alike][run.model_copy(update={"seed": 0}).key][run.seed] = record
    found: dict[tuple[str, str], list[Interval]] = defaultdict(list)
    for (task, model, *_), known in arms.items():
        for first, second in itertools.combinations(known.values(), 2):
            seeds = sorted(first.keys() & second.keys())
            if len(seeds) >= FEWEST_SEEDS:
                one, other = ([arm[seed] for seed in seeds] for arm in (first, second))
                groups = test_groups(task, comparison.examples_of(one, measure.column))
                difference = comparison.paired(one, other, measure.column, groups)
                found[task, model] += [difference] * (difference.standard_error > 0)
    return [Spreads(*where, tuple(ones)) for where, ones in sorted(found.items()) if ones]


def needed(of: Spreads, margin: float) -> list[tuple[int, int]]:
    """(seeds, test examples) that would find a difference of the margin, by each spread; the easiest first."""
    plans = [settle(one, margin, LEVEL) for one in of.intervals]
    return sorted(((seeds, examples) for examples, seeds in plans), key=lambda plan: plan[0] * plan[1])


def found(of: Spreads, examples: int, seeds: int) -> list[float]:
    """The differences that so many test examples and seeds would find, by each spread, ascending."""
    return sorted(found_with(one, examples, seeds, LEVEL) for one in of.intervals)
