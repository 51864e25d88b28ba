"""From arms × seeds × examples to intervals; used by the book's tuned comparisons and the decision on own data.

An arm is its records, one a seed; a single record stands for every seed of the arm that it is compared with. A column
is a list in every record, one value for each example; `bleu` is corpus BLEU, computed from ten columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from peftbook.core.errors import InputError
from peftbook.core.records import Record
from peftbook.evidence import metrics, resampling, stats
from peftbook.evidence.stats import Groups, Interval
from peftbook.evidence.sweep import Lookup, Sweep, neighbours

Records = Sequence[Record]  # of one arm
LISTS = {"bleu": "bleu_length"}  # computed column → one of the lists that it is computed from
R = TypeVar("R")


def keys_of(*arms: Records) -> tuple[str, ...]:
    """The keys of the records behind a value."""
    return tuple(record.key for arm in arms for record in arm)


def has_column(arm: Records, column: str) -> bool:
    """Whether there are records and all of them have the column."""
    return bool(arm) and all(LISTS.get(column, column) in record.per_example for record in arm)


def table(arm: Records, column: str) -> np.ndarray:
    """A column of an arm as a table: (seeds, examples)."""
    return np.array([record.per_example[column] for record in arm], dtype=float)


def measured(arm: Iterable[Record], name: str) -> list[float]:
    """A measurement of each record, 0 where it is empty."""
    return [float(record.measurements[name] or 0) for record in arm]


def weights(arm: Records, column: str) -> list[float] | None:
    """Weights of the examples in a score: label tokens for a loss, whose column holds summed nats; else None."""
    return table(arm[:1], "label_tokens")[0].tolist() if column.endswith("loss_nats") else None


def corpus_bleu(arm: Records, groups: Groups = ()) -> np.ndarray:
    """(1 + replicates, seeds): corpus BLEU of every record on the rows of `resampling.replicates`."""
    statistics = np.stack([table(arm, name) for name in metrics.BLEU_STATISTICS], axis=-1)  # (seeds, examples, 10)
    counts = resampling.replicates(statistics.shape[1], tuple(groups))
    return np.stack([metrics.bleu_of_sums(counts @ sums) for sums in statistics], axis=1)


def score(arm: Records, column: str, groups: Groups = ()) -> Interval:
    """An arm's score over its seeds and examples; for a loss, nats per label token.

    groups: the group of each example, or empty; groups beyond the scored examples are ignored.
    """
    units = groups[: examples_of(arm, column)]
    return interval(values_of(arm, column, units), arm, column, units)


def paired(first: Records, second: Records, column: str, groups: Groups = ()) -> Interval:
    """first − second over shared seeds and examples: record i of both has the same seed, or one of them is single.

    groups: as in `score`.  Raises InputError where the numbers of examples or of seeds do not match.
    """
    counts = [examples_of(arm, column) for arm in (first, second)]
    if counts[0] != counts[1] or len({len(first), len(second)} - {1}) > 1:
        sizes = " and ".join(str(len(arm) * count) for arm, count in zip((first, second), counts, strict=True))
        raise InputError(f"Paired runs have {sizes} scores: score the same examples.")
    units = groups[: counts[0]]
    return interval(values_of(first, column, units) - values_of(second, column, units), first, column, units)


def choice_error(sweep: Sweep, finals: Records, column: str, lookup: Lookup, groups: Groups = ()) -> float:
    """What the choice of an arm's rate by this sweep adds to the standard error of its score. Raises Missing.

    The noise of the sweep is that of its examples, by the records of the rates beside the best, and that of its seeds,
    by the spread of the final records.  groups: of the sweep's examples, as in `score`. Since few groups tell their
    error badly, that of the examples is the larger one of both, over groups and over single examples.
    """
    losses, plan = sweep.losses(lookup), sweep.plan(lookup)
    near = [rate for rate in neighbours(losses) if math.isfinite(losses[rate])]
    lower, upper = (sweep.records(plan[rate], lookup) for rate in (near[0], near[-1]))
    spread = score(finals, column).seed_se * math.sqrt(len(finals))
    example_se = max(paired(upper, lower, column, units).example_se for units in ((), groups))
    noise = stats.rate_noise(spread, len(lower), example_se)
    return sweep.choice_error(lookup, float(noise))


def values_of(arm: Records, column: str, groups: Groups) -> np.ndarray:
    """What an interval is computed from: the table of a column, or BLEU on the replicates of the examples."""
    return corpus_bleu(arm, groups) if column == "bleu" else table(arm, column)


def interval(values: np.ndarray, arm: Records, column: str, groups: Groups) -> Interval:
    """The interval of `values_of` a column, or of the difference of two such arrays."""
    if column == "bleu":
        return resampling.statistic_interval(values, examples_of(arm, column), groups)
    return stats.score_interval(values, weights(arm, column), groups)


def examples_of(arm: Records, column: str) -> int:
    """Number of scored examples."""
    return len(arm[0].per_example[LISTS.get(column, column)])


def shared(first: Mapping[int, R], second: Mapping[int, R], random: tuple[bool, bool]) -> tuple[list[R], list[R]]:
    """Pair the records of two arms, given by seed, at the seeds that both have.

    random: for each arm, whether the seed changes its result; if not, its first record is paired with every seed of
    the other arm.
    """
    one = first if random[0] else dict.fromkeys(second, next(iter(first.values())))
    two = second if random[1] else dict.fromkeys(one, next(iter(second.values())))
    seeds = [seed for seed in one if seed in two]
    return [one[seed] for seed in seeds], [two[seed] for seed in seeds]
