"""Pairs of rows: their differences by the book's one rule, and which differences count when there are many."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from peftbook import metrics
from peftbook.decision.arms import Arm
from peftbook.decision.comparison import Contrast, Measure, Pair
from peftbook.errors import InputError
from peftbook.metrics import Interval
from peftbook.tasks import Example

__all__ = ["beats_baseline", "contrast", "detect", "order", "p_value", "pair_arms", "settle", "standard_error"]

POWER = 0.8  # of a comparison with the number of examples that is asked for
MOST_SEEDS = 100


def pair_arms(arms: Mapping[str, Arm], measures: Sequence[Measure], deciding: Measure) -> tuple[Pair, ...]:
    """Every pair's differences over the seeds and test examples that both have; pairs that share no seed left out."""
    out = []
    for (first, one), (second, two) in itertools.combinations(arms.items(), 2):
        found = {each.name: difference(one, two, each.column) for each in measures}
        known = {name: interval for name, interval in found.items() if interval is not None}
        if deciding.name in known:
            out.append(Pair(first, second, known, p_value(known[deciding.name])))
    return tuple(out)


def difference(one: Arm, two: Arm, column: str) -> Interval | None:
    """one − two by the book's rule; None where they share no seed or a score is missing."""
    if column not in one.columns or column not in two.columns:
        return None
    mine, theirs = one.finished, two.finished
    seeds = (
        [seed for seed in mine if seed in theirs]
        if one.random and two.random
        else list((one if one.random else two).finished)
    )
    if not seeds:
        return None
    first, second = np.array(one.scores(column, seeds)), np.array(two.scores(column, seeds))
    weights = one.weights if column == "loss_nats" else None
    if len(seeds) > 1:
        return metrics.paired_interval(first.tolist(), second.tolist(), weights)
    if first.shape != second.shape:
        raise InputError(f"Paired runs have {first.size} and {second.size} examples: score the same ones.")
    return metrics.example_interval((first - second)[0].tolist(), weights)


def standard_error(one: Interval) -> float:
    """What an interval's half-width is a multiple of."""
    return math.hypot(one.seed_se, one.example_se)


def p_value(one: Interval) -> float:
    """Two-sided, of the hypothesis that the difference is zero: of t = mean / error.

    The degrees of freedom are Satterthwaite's, ν = (a² + b²)² / (a⁴/(s − 1) + b⁴/(n − 1)), for the errors a of s seeds
    and b of n examples. The book's interval takes s − 1 for both; that is for one comparison: in the tails, where a
    correction for many looks, three seeds could then detect nothing, however small their error.
    """
    error = standard_error(one)
    if error == 0:
        return float(one.mean == 0)
    spent = one.example_se**4 / max(one.examples - 1, 1)
    if one.seeds > 1:
        spent += one.seed_se**4 / (one.seeds - 1)
    return 2 * float(stats.t.sf(abs(one.mean) / error, error**4 / spent))


def stands(one: Interval) -> bool:
    """Whether the book's 95 % interval leaves out zero: no correction lets a difference pass that does not."""
    return abs(one.mean) > one.half95


def detect(pairs: Sequence[Pair], measure: Measure, rows: int, level: float) -> tuple[Pair, ...]:
    """The pairs, of each whether it rules out the worse row as the best one.

    It does by a one-sided test at level / (k − 1), with k rows: the row that is truly best can be ruled out in k − 1
    ways only (Bonferroni), so with probability 1 − level it is among those that no pair rules out, whatever the rows
    are. Source: Gupta 1965, subset selection; Hsu 1984, comparisons with the best.
    """
    each = level / max(rows - 1, 1)
    return tuple(
        dataclasses.replace(one, detected=one.p / 2 <= each and stands(one.differences[measure.name])) for one in pairs
    )


def order(pair: Pair, measure: Measure) -> tuple[str, str]:
    """(better, worse) by the means."""
    ahead = measure.sign * pair.differences[measure.name].mean >= 0
    return (pair.first, pair.second) if ahead else (pair.second, pair.first)


def beats_baseline(baselines: Mapping[str, str], pairs: Sequence[Pair], measure: Measure, level: float) -> set[str]:
    """Labels of the rows that are better than the untuned row of their model: Holm's step-down over all of these.

    baselines: label → label of the untuned row. The smallest p is held against level / m, the next against
    level / (m − 1), until one fails. Source: Holm 1979.
    """
    asked = [one for one in pairs if one.second == baselines.get(one.first) or one.first == baselines.get(one.second)]
    found = set()
    for rank, one in enumerate(sorted(asked, key=lambda pair: pair.p)):
        if one.p > level / (len(asked) - rank):
            break
        better, worse = order(one, measure)
        if stands(one.differences[measure.name]) and baselines.get(better) == worse:
            found.add(better)
    return found


def settle(gain: Interval, margin: float, level: float) -> tuple[int, int]:
    """About how many test examples and seeds would settle a comparison, with a power of 80 %.

    Settled is either way, whichever takes less: the gain d that was seen is detected at a one-sided level, or it is
    shown to be below the margin. That wants a standard error of d / (q + z) or of (margin − d) / (q' + z), with z the
    quantile of the power and q, q' those of the two tests: normal ones for one seed, else also those of the book's
    interval, t with seeds − 1 degrees of freedom. The squared errors of seeds and of examples go with one over their
    numbers; seeds are added until theirs is at most half of what is wanted.
    """
    if gain.seeds == 1:
        wanted = wanted_error(gain.mean, margin, level, 1)
        examples = gain.examples * (gain.example_se / wanted) ** 2 if wanted > 0 else 0.0
        return max(round_up(examples), gain.examples + 1), 1
    for seeds in range(gain.seeds, MOST_SEEDS + 1):
        wanted, of_seeds = wanted_error(gain.mean, margin, level, seeds), gain.seed_se**2 * gain.seeds / seeds
        left = wanted**2 - of_seeds
        if wanted > 0 and left >= wanted**2 / 2:
            examples = max(gain.examples, round_up(gain.examples * gain.example_se**2 / left))
            if seeds > gain.seeds or examples > gain.examples:
                return examples, seeds
    return gain.examples, MOST_SEEDS


def wanted_error(gain: float, margin: float, level: float, seeds: int) -> float:
    """The standard error at which a comparison is settled with a power of 80 %."""
    power, detects, inside = (float(stats.norm.ppf(p)) for p in (POWER, 1 - level, 0.95))
    if seeds > 1:
        detects = max(detects, float(stats.t.ppf(0.975, seeds - 1)))
        inside = float(stats.t.ppf(0.95, seeds - 1))
    return max(gain / (detects + power), (margin - gain) / (inside + power))


def round_up(count: float) -> int:
    """Up to two significant digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(count, 1))) - 1)
    return unit * math.ceil(count / unit - 1e-9)


def contrast(
    arms: Mapping[str, Arm], measure: Measure, texts: Mapping[str, Sequence[str]], examples: Sequence[Example]
) -> tuple[Contrast, ...]:
    """Test examples, those first on which the arms' first seeds are furthest apart; none where no two wrote texts.

    Where the measure has no score for each text, as perplexity has none that compares texts, ROUGE-L ranks them.
    """
    column = measure.column if measure.column != "loss_nats" else "rougeL"
    shown = {}
    for label, arm in arms.items():
        first = next(iter(arm.finished.values()))
        if column in arm.columns and texts.get(first.key):
            shown[label] = (texts[first.key], arm.columns[column][0])
    if len(shown) < 2:
        return ()
    count = min(len(examples), *(min(len(written), len(scores)) for written, scores in shown.values()))
    out = []
    for at, example in enumerate(examples[:count]):
        scores = {label: values[at] for label, (_, values) in shown.items()}
        written = {label: texts_[at] for label, (texts_, _) in shown.items()}
        out.append(Contrast(example, written, scores, max(scores.values()) - min(scores.values())))
    return tuple(sorted(out, key=lambda one: -one.spread))
