"""Judging: which of two answers people prefer without knowing whose they are, as a score of the two rows.

A test row is worth 1 to the run whose answer is preferred, 0 to the other, ½ to both in a tie; of several raters the
mean counts. Rows on which both runs wrote the same are ties that nobody is asked about. All raters go through the rows
in one order drawn at random, so that the rows up to the last one that was judged are a random sample of all.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftbook.core.records import Record
from peftbook.decision.terms import Measure

PREFERRED = Measure("preferred", "Preferred by people", "preferred", margin=0.1, share=True)


@dataclass(frozen=True)
class Judgement:
    """What a rater said of the answers to a test row.

    first, second: ids of the jobs that wrote them.  preferred: 1 for the first, 0 for the second, 0.5 for a tie.
    """

    first: str
    second: str
    example: str
    rater: str
    preferred: float


def drawn(pair: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The ids of test rows in the order in which a pair is judged, the same for all raters."""
    return sorted(ids, key=lambda one: digest(*pair, one))


def first_is_left(pair: Sequence[str], example: str, rater: str) -> bool:
    """On which side a rater sees the answer of the first run: by chance, the same whenever it is looked at."""
    return digest(*pair, example, rater)[0] % 2 == 0


def digest(*words: str) -> bytes:
    return hashlib.sha256("\n".join(words).encode()).digest()


def preferences(order: Sequence[str], same: set[str], judgements: Sequence[Judgement]) -> dict[str, float]:
    """By id of a test row the first run's score, of the rows up to the last one that was judged.

    order: `drawn`.  same: ids of the rows on which both wrote the same.
    """
    said: dict[str, list[float]] = {}
    for one in judgements:
        said.setdefault(one.example, []).append(one.preferred)
    reached = max((at for at, example in enumerate(order) if example in said), default=-1)
    return {
        example: 0.5 if example in same else sum(said[example]) / len(said[example])
        for example in order[: reached + 1]
        if example in same or example in said
    }


def with_preferences(first: Record, second: Record, scores: Mapping[str, float], ids: Sequence[str]) -> list[Record]:
    """The two records on the rows with a score, which is a column beside their others. ids: of all test rows."""
    found = []
    for record, of in ((first, lambda score: score), (second, lambda score: 1 - score)):
        columns = {
            name: [value for value, example in zip(values, ids, strict=False) if example in scores]
            for name, values in record.per_example.items()
        }
        columns[PREFERRED.column] = [of(scores[example]) for example in ids if example in scores]
        found.append(record.model_copy(update={"per_example": columns}))
    return found


def say_raters(judgements: Sequence[Judgement]) -> str:
    """Who judged how many rows, and how far two of them agree, in words.

    κ = (p − q)/(1 − q), where p is the share of their common rows on which two raters say the same, and q the share
    that chance would give them. Source: Cohen 1960.
    """
    rows = Counter(one.rater for one in judgements)
    told = "Judged without knowing whose answer was whose: " + ", ".join(f"{who} {n} rows" for who, n in rows.items())
    said = {(one.rater, one.example): one.preferred for one in judgements}
    common = {
        pair: [example for who, example in said if who == pair[0] and (pair[1], example) in said]
        for pair in itertools.combinations(rows, 2)
    }
    if not (pair := max(common, key=lambda one: len(common[one]), default=None)) or not (both := common[pair]):
        return f"{told}. Nobody else judged the same rows: another person may prefer otherwise."
    agreed = sum(said[pair[0], example] == said[pair[1], example] for example in both) / len(both)
    one, two = (Counter(said[who, example] for example in both) for who in pair)
    chance = sum(one[value] * two[value] for value in one) / len(both) ** 2
    kappa = f", Cohen's kappa {(agreed - chance) / (1 - chance):.2f}" if chance < 1 else ""
    return f"{told}. {pair[0]} and {pair[1]} agree on {100 * agreed:.0f} % of {len(both)} common rows{kappa}."
