"""Pairs of rows: their differences by the book's one rule, and which differences count when there are many."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from peftbook.decision.candidates import Candidate
from peftbook.decision.shares import difference_of_shares
from peftbook.decision.terms import Contrast, Measure, Pair
from peftbook.evidence import comparison, stats
from peftbook.evidence.stats import Groups, Interval
from peftbook.tasks import TaskExample


def pair_up(
    rows: Mapping[str, Candidate], measures: Sequence[Measure], deciding: Measure, groups: Groups = ()
) -> tuple[Pair, ...]:
    """Every pair's differences over the seeds and test examples that both have; pairs that share no seed left out."""
    out = []
    for (first, one), (second, two) in itertools.combinations(rows.items(), 2):
        found = {each.name: difference(one, two, each, groups) for each in measures}
        known = {name: interval for name, interval in found.items() if interval is not None}
        if deciding.name in known:
            out.append(Pair(first, second, known, stats.p_value(known[deciding.name])))
    return tuple(out)


def difference(one: Candidate, two: Candidate, measure: Measure, groups: Groups = ()) -> Interval | None:
    """one − two by the book's rule; None where they share no seed or a score is missing."""
    column = measure.column
    if not (one.has(column) and two.has(column)):
        return None
    first, second = comparison.shared(one.finished, two.finished, (one.random, two.random))
    found = comparison.paired(first, second, column, groups) if first else None
    if found is None or not measure.share:
        return found
    rows = comparison.examples_of(first, column)
    return difference_of_shares(found, comparison.table(first, column), comparison.table(second, column), groups[:rows])


def detect(pairs: Sequence[Pair], measure: Measure, rows: int, level: float) -> tuple[Pair, ...]:
    """The pairs, of each whether it rules out the worse row as the best one.

    It does by a one-sided test at level / (k − 1), with k rows: the row that is truly best can be ruled out in k − 1
    ways only (Bonferroni), so with probability 1 − level it is among those that no pair rules out, whatever the rows
    are. Of two rows, one is ruled out by the two-sided level, so that its interval leaves out zero.
    Source: Gupta 1965, subset selection; Hsu 1984, comparisons with the best.
    """
    each = min(2 * level / max(rows - 1, 1), level)
    return tuple(
        dataclasses.replace(one, detected=one.p <= each and one.differences[measure.name].decides) for one in pairs
    )


def order(pair: Pair, measure: Measure) -> tuple[str, str]:
    """(better, worse) by the means."""
    ahead = measure.sign * pair.differences[measure.name].mean >= 0
    return (pair.first, pair.second) if ahead else (pair.second, pair.first)


def beats_baseline(baselines: Mapping[str, str], pairs: Sequence[Pair], measure: Measure, level: float) -> set[str]:
    """Labels of the rows that are better than the untuned row of their model: Holm's step-down over all of these.

    baselines: label → label of the untuned row.
    """
    asked = {
        (one.first, one.second): one.p
        for one in pairs
        if one.second == baselines.get(one.first) or one.first == baselines.get(one.second)
    }
    differ = stats.holm(asked, level)
    found = [one for one in pairs if differ.get((one.first, one.second)) and one.differences[measure.name].decides]
    ahead = [order(one, measure) for one in found]
    return {better for better, worse in ahead if baselines.get(better) == worse}


def contrast(
    rows: Mapping[str, Candidate],
    measure: Measure,
    texts: Mapping[str, Sequence[str]],
    examples: Sequence[TaskExample],
    groups: Groups = (),
) -> tuple[Contrast, ...]:
    """Test examples, those first on which the rows' first seeds are furthest apart, of each group one; none where no
    two rows wrote texts.

    Where the measure has no score for each text, as perplexity has none that compares texts, ROUGE-L ranks them.
    """
    column = measure.column if measure.column != "loss_nats" else "rougeL"
    shown = {}
    for label, candidate in rows.items():
        first = candidate.done[0]
        if candidate.has(column) and texts.get(first.key):
            shown[label] = (texts[first.key], comparison.table([first], column)[0].tolist())
    if len(shown) < 2:
        return ()
    count = min(len(examples), *(min(len(written), len(scores)) for written, scores in shown.values()))
    out = []
    for at, example in enumerate(examples[:count]):
        scores = {label: values[at] for label, (_, values) in shown.items()}
        written = {label: texts_[at] for label, (texts_, _) in shown.items()}
        out.append(Contrast(example, written, scores, max(scores.values()) - min(scores.values())))
    group = {example.id: name for example, name in zip(examples, groups, strict=False)}
    widest = {group.get(one.example.id) or one.example.id: one for one in sorted(out, key=lambda one: one.spread)}
    return tuple(sorted(widest.values(), key=lambda one: -one.spread))
