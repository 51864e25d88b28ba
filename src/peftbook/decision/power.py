"""How many seeds and test examples a comparison needs, before anything is trained: from the spread of our own records.

Two arms that were run with the same seeds and scored on the same test examples have a paired difference, whose errors
say how much seeds and examples scatter on such a task. What the differences were is no part of the answer.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import WithJsonSchema

from peftbook.core.records import Record
from peftbook.core.specs import Run
from peftbook.decision.terms import MEASURES, Measure
from peftbook.evidence import comparison, stats
from peftbook.evidence.planning import MOST_SEEDS, POWER, found_by, found_with
from peftbook.evidence.stats import FEWEST_EXAMPLES, FEWEST_GROUPS, FEWEST_SEEDS, Interval
from peftbook.tasks import TaskData, groups_of, test_groups

LEVEL = 0.025  # one-sided, of one comparison
ROUND = [unit * digits for unit in (1, 10, 100, 1000, 10_000) for digits in range(10, 100)]
EXAMPLES = [count for count in ROUND if count >= FEWEST_EXAMPLES]  # of two significant digits, as plans are said


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

    None where more than `MOST_SEEDS` seeds or a million examples would be needed.
    """
    best: tuple[int, int] | None = None
    for seeds in (*range(FEWEST_SEEDS, 21), *range(25, MOST_SEEDS, 5)):
        counts = [count for count in EXAMPLES if best is None or seeds * count < math.prod(best)]

        def enough(count: int, seeds: int = seeds) -> bool:
            return detectable_difference(of, count, seeds, share) <= margin

        if counts and enough(counts[-1]):
            best = seeds, counts[bisect.bisect_left(counts, True, key=enough)]
    return best


def detectable_difference(of: Spreads, examples: int, seeds: int, share: float) -> float:
    """The difference that so many test examples and seeds find in so large a share of the pairs."""
    sizes = np.sort(found_by(of.intervals, np.full(len(of.intervals), float(examples)), seeds, LEVEL)).tolist()
    return sizes[math.ceil(share * len(sizes)) - 1]


# --- of a plan -------------------------------------------------------------------------------------------------

# By measure the standard deviations of a paired difference, of one row and of one seed: the larger of the medians over
# the pairs of our own runs on docstrings and on E2E; a test makes them again from the records.
SCATTER = {"rouge1": (0.11, 0.012), "rouge2": (0.12, 0.010), "rougeL": (0.11, 0.011), "perplexity": (0.17, 0.028)}
SPLIT_ROWS = 0.25  # of rows on which two methods disagree, one right and one wrong, where nobody knows


def scatter_of(measure: str) -> tuple[float, float, str]:
    """SCATTER of a measure and what it rests on; where our runs say nothing of the measure, on a guess that is said.

    A row that is right or wrong, on which two equally good methods disagree with probability p, scatters by √p.
    """
    if measure in SCATTER:
        return *SCATTER[measure], "if yours scatter as ours did"
    row, seed = SCATTER["rougeL"]
    if measure == "bertscore_f1":
        return row, seed, "if they scatter as ROUGE-L did in our runs, which say too little of BERTScore"
    words = f"if two methods disagree on {100 * SPLIT_ROWS:g} % of the rows, which is known once runs are scored"
    return math.sqrt(SPLIT_ROWS), seed, words


@dataclass(frozen=True)
class Sight:
    """What the decision on a plan could see. difference: found four times in five, infinite where nothing would be.

    mistaken: in what share of pairs whose methods are equally good one would be called better.  groups: of the rows,
    where they share some; each then counts as one row.
    """

    seeds: int
    rows: int
    difference: Annotated[float, WithJsonSchema({"type": ["number", "null"]})]  # JSON has no infinity
    mistaken: float
    groups: int = 0


def sight(measure: str, rows: int, seeds: int, arms: int = 2, groups: int = 0) -> Sight:
    """What so many test rows and seeds show of two of so many arms, by the rule of `decision` and `scatter_of`.

    groups: of the rows, where they share some; each then counts as one row, which is the worst case: intervals over the
    nine packages of our docstrings were two to five times as narrow as that.  Against the untuned model differences
    may scatter twice as much.

    The difference is `found_with`, level = 0.05 / max(arms − 1, 2), one-sided. The half-width of one seed is over rows
    alone: then luck of training passes for a difference, found = half_width(2 · level) + z_0.8 · √(seed_se² + row_se²)
    and mistaken = 2 Φ(−half / √(seed_se² + row_se²)). Two seeds decide nothing, nor do fewer than 20 rows or eight
    groups.
    """
    row, seed, _ = scatter_of(measure)
    units, level = groups or rows, 0.05 / max(arms - 1, 2)
    spread = Interval.of(0.0, seed / math.sqrt(seeds), row / math.sqrt(units), seeds, units, groups=groups)
    if rows < FEWEST_EXAMPLES or not spread.decides:
        return Sight(seeds, rows, math.inf, 0.0, groups)
    if seeds > 1:
        return Sight(seeds, rows, found_with(spread, units, seeds, level), 2 * level, groups)
    half, error = replace(spread, seed_se=0.0).half(2 * level), spread.standard_error
    power = float(stats.quantile(2 * (1 - POWER), math.inf))
    return Sight(seeds, rows, half + power * error, 2 * float(stats.special.ndtr(-half / error)), groups)


def sights_of(runs: Sequence[Run], task: TaskData, measure: str = "rougeL") -> tuple[Sight, ...]:
    """What a plan's test rows see with its seeds, and with three and five; groups count as one row each.

    measure: by its name, or a metric of the user's own, a score from 0 to 1. Empty for a plan that compares nothing, or
    has no rows to score. Trials do not count.
    """
    runs = [run for run in runs if run.evaluation.split == "test"]
    trained = [run for run in runs if run.budget is not None]
    arms = {run.model_copy(update={"seed": 0}).key for run in runs}
    rows = task.splits["test"]
    counts = [run.evaluation.n_loss if measure == "perplexity" else run.evaluation.n_generate for run in runs]
    scored = min(*counts, len(rows)) if counts else 0
    if not trained or len(arms) < 2 or not scored:
        return ()
    tested = rows[:scored]
    units = len({group or row.id for group, row in zip(groups_of(tested), tested, strict=True)})
    seeds = len({run.seed for run in trained})
    groups = units if units < scored else 0
    return tuple(sight(measure, scored, count, len(arms), groups) for count in sorted({seeds, 3, 5}) if count >= seeds)


def sight_words(found: Sequence[Sight], measure: str = "rougeL") -> str:
    """The sights of a plan in a sentence or two; empty without any."""
    if not found:
        return ""
    own, more = found[0], found[1:]
    known = MEASURES.get(measure)
    unit = (known.unit or known.label) if known else f"in “{measure}”"
    plural = "s" * (own.seeds != 1)
    start = f"{own.rows:,} test rows{f' in {own.groups:,} groups' * bool(own.groups)} and {own.seeds} seed{plural}"
    if math.isinf(own.difference):
        in_groups = f" in {FEWEST_GROUPS} groups" if own.groups else ""
        words = f"{start} decide nothing: {FEWEST_EXAMPLES} rows{in_groups} and 1 seed, or 3 and more, are the fewest."
    else:
        words = (
            f"{start} find a difference of {own.difference:.2g} {unit} between two trained methods four times in five, "
            f"{scatter_of(measure)[2]}"
            + (". That is the worst case, of rows that are all alike within a group." if own.groups else ".")
        )
        if own.seeds == 1:
            words += f" Of 100 equally good methods luck would tell {round(100 * own.mistaken)} apart."
    others = [f"{one.difference:.2g} with {one.seeds} seeds" for one in more if math.isfinite(one.difference)]
    counted = "With the luck of training counted too, they find" if own.seeds == 1 else "They find"
    return words + (f" {counted} {' and '.join(others)}." if others else "")
