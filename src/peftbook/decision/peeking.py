"""Looking while test rows are answered, as often as one likes: the difference so far, in an interval that stays valid.

Rows are answered in a seeded random order, so that those there are at any moment say nothing of which were taken; the
interval is that of a confidence sequence (`stats.confidence_sequence`) and holds at whatever moment one stops.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftbook import metrics
from peftbook.decision.own import measures_with
from peftbook.errors import InputError
from peftbook.evidence.stats import confidence_sequence
from peftbook.own_metrics import Metric, own_scores, parse_metric
from peftbook.results import format_value
from peftbook.tasks import Example, groups_of

__all__ = ["Peek", "answer_order", "peek", "peekable"]

LEVEL = 0.05  # of all that is looked at together


@dataclass(frozen=True)
class Peek:
    """What two runs' answers say so far. rows: answered by both, of `of`; units: rows, or groups whose rows are all
    answered.  mean: of the first run's scores minus the second's, over rows; low, high: at any time, of other such
    rows.  among: so many such intervals hold together.
    """

    rows: int
    of: int
    units: int
    mean: float
    low: float
    high: float
    among: int = 1

    @property
    def words(self) -> str:
        """`So far, 48 of 200 rows: +0.051 (+0.012 to +0.090, valid however often you look)`."""
        if not self.units:
            return f"So far, {self.rows} of {self.of} rows: nothing to compare yet."
        mean, low, high = (
            ("+" if value > 0 else "") + format_value(value, 3) for value in (self.mean, self.low, self.high)
        )
        together = f", with the {self.among} of this plan together" if self.among > 1 else ""
        return (
            f"So far, {self.rows} of {self.of} rows: {mean} ({low} to {high}, valid however often you look{together})."
        )


def answer_order(groups: Sequence[str]) -> list[int]:
    """The places of rows in the order in which they are answered: groups in a seeded random order, each in one piece.

    groups: of each row; a row without one, "", is a group of its own.
    """
    places: dict[object, list[int]] = {}
    for at, group in enumerate(groups):
        places.setdefault(group or at, []).append(at)
    known = list(places.values())
    return [at for place in np.random.default_rng(len(groups)).permutation(len(known)) for at in known[place]]


def peekable(measure: str, own: Sequence[Metric] = ()) -> Metric | None:
    """The own metric of that name, None for a measure of every comparison.

    Raises InputError for a measure that is none, and for one that no text has by itself.
    """
    if measure not in (known := measures_with(own)):
        raise InputError(f"Unknown measure {measure!r}: choose one of {', '.join(known)}.")
    metric = next((one for one in own if one.name == measure), None)
    if metric is None and not known[measure].share:
        names = ", ".join(name for name, one in known.items() if one.share)
        raise InputError(f"{known[measure].label} is computed at a run's end: look by one of {names} until then.")
    return metric


def peek(
    first: Mapping[int, str], second: Mapping[int, str], examples: Sequence[Example], measure: str = "rougeL",
    own: Sequence[Metric] = (), among: int = 1,
) -> Peek:  # fmt: skip
    """The difference between two runs on the rows that both have answered, in the order in which they are answered.

    first, second: texts by place of the row.  examples: all that will be answered, in their order.  A group whose rows
    are all there is one value, which weighs as many rows as it has: the mean is over rows, as in the decision.
    among: so many pairs are looked at, and their intervals hold together at 95 % (Bonferroni).
    """
    metric = peekable(measure, own)
    groups = groups_of(examples)
    order = answer_order(groups)
    whole = next((at for at, row in enumerate(order) if row not in first or row not in second), len(order))
    names = [groups[row] or row for row in order]  # a text, or a number where it stands alone
    while 0 < whole < len(order) and names[whole - 1] == names[whole]:
        whole -= 1
    rows = order[:whole]
    targets = tuple(examples[row].target for row in rows)
    scores = [scored(tuple(said[row] for row in rows), targets, measure, metric and metric.text())
              for said in (first, second)]  # fmt: skip
    by_unit: dict[str | int, list[float]] = {}
    for name, one, other in zip(names, *scores, strict=False):
        by_unit.setdefault(name, []).append(one - other)
    if not by_unit:
        return Peek(0, len(examples), 0, 0.0, -1.0, 1.0, among)
    values = [math.fsum(each) / len(each) for each in by_unit.values()]
    most = max(Counter(names).values())
    low, high = confidence_sequence(values, LEVEL / among, weights=[len(each) / most for each in by_unit.values()])
    mean = math.fsum(math.fsum(each) for each in by_unit.values()) / whole
    return Peek(whole, len(examples), len(values), mean, float(low[-1]), float(high[-1]), among)


@functools.lru_cache(64)
def scored(texts: tuple[str, ...], targets: tuple[str, ...], measure: str, metric: str | None) -> list[float]:
    """The score of each text."""
    if not texts:
        return []
    if metric is not None:
        return own_scores(parse_metric(metric, files=False), [texts], targets)[0]
    return metrics.exact_match(texts, targets) if measure == "exact_match" else metrics.rouge(texts, targets)[measure]
