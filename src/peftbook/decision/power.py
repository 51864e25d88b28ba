"""How many seeds and test examples a comparison needs, before anything is trained: from the spread of our own records.

Two arms that were run with the same seeds and scored on the same test examples have a paired difference, whose errors
say how much seeds and examples scatter on such a task. What the differences were is no part of the answer.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from peftbook.decision.recommendation import FEWEST_EXAMPLES
from peftbook.decision.terms import Measure
from peftbook.evidence import comparison
from peftbook.evidence.planning import MOST_EXAMPLES, MOST_SEEDS, found_with, round_up
from peftbook.evidence.stats import FEWEST_SEEDS, Interval, optimize
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


def needed(of: Spreads, margin: float, share: float) -> tuple[int, int] | None:
    """The least (seeds, test examples), by their product, that find the margin in so large a share of the pairs.

    None where more than `MOST_SEEDS` seeds or `MOST_EXAMPLES` examples would be needed.
    """
    wanted = math.ceil(share * len(of.intervals))
    plans = []
    for seeds in {*range(FEWEST_SEEDS, 21), *range(25, MOST_SEEDS, 5)}:
        enough = sorted(examples_for(one, margin, seeds) for one in of.intervals)[wanted - 1]
        if enough < MOST_EXAMPLES:
            plans.append((seeds * enough, seeds, int(enough)))
    return min(plans)[1:] if plans else None


def examples_for(one: Interval, margin: float, seeds: int) -> float:
    """The test examples that find the margin with so many seeds; infinite where none do."""
    if found_with(one, MOST_EXAMPLES, seeds, LEVEL) > margin:
        return math.inf
    if found_with(one, FEWEST_EXAMPLES, seeds, LEVEL) <= margin:
        return FEWEST_EXAMPLES
    return round_up(
        optimize.brentq(lambda n: found_with(one, n, seeds, LEVEL) - margin, FEWEST_EXAMPLES, MOST_EXAMPLES)
    )


def found(of: Spreads, examples: int, seeds: int, share: float) -> float:
    """The difference that so many test examples and seeds find in so large a share of the pairs."""
    sizes = sorted(found_with(one, examples, seeds, LEVEL) for one in of.intervals)
    return sizes[math.ceil(share * len(sizes)) - 1]
