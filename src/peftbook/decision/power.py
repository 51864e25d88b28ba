"""How many seeds and test examples a comparison needs, before anything is trained: from the spread of our own records.

Two arms that were run with the same seeds and scored on the same test examples have a paired difference, whose errors
say how much seeds and examples scatter on such a task. What the differences were is no part of the answer.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from peftbook.decision.recommendation import FEWEST_EXAMPLES
from peftbook.decision.terms import Measure
from peftbook.evidence import comparison
from peftbook.evidence.planning import MOST_EXAMPLES, MOST_SEEDS, found_by, round_up
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


def needed(of: Spreads, margin: float, share: float) -> tuple[int, int] | None:
    """The least (seeds, test examples), by their product, that find the margin in so large a share of the pairs.

    None where more than `MOST_SEEDS` seeds or `MOST_EXAMPLES` examples would be needed.
    """
    wanted = math.ceil(share * len(of.intervals))
    plans: list[tuple[int, int, int]] = []
    for seeds in (*range(FEWEST_SEEDS, 21), *range(25, MOST_SEEDS, 5)):
        if plans and seeds * FEWEST_EXAMPLES >= min(plans)[0]:
            break
        enough = np.sort(examples_for(of.intervals, margin, seeds))[wanted - 1]
        if enough < MOST_EXAMPLES:
            examples = round_up(enough)
            plans.append((seeds * examples, seeds, examples))
    return min(plans)[1:] if plans else None


def examples_for(intervals: Sequence[Interval], margin: float, seeds: int) -> np.ndarray:
    """For each spread the test examples that find the margin with so many seeds; infinite where none do."""
    low, high = np.full(len(intervals), float(FEWEST_EXAMPLES)), np.full(len(intervals), float(MOST_EXAMPLES))
    never = found_by(intervals, high, seeds, LEVEL) > margin
    high = np.where(found_by(intervals, low, seeds, LEVEL) <= margin, low, high)
    while (high - low > 0.5).any():
        middle = (low + high) / 2
        enough = found_by(intervals, middle, seeds, LEVEL) <= margin
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(never, np.inf, np.ceil(high))


def found(of: Spreads, examples: int, seeds: int, share: float) -> float:
    """The difference that so many test examples and seeds find in so large a share of the pairs."""
    sizes = np.sort(found_by(of.intervals, np.full(len(of.intervals), float(examples)), seeds, LEVEL)).tolist()
    return sizes[math.ceil(share * len(sizes)) - 1]
