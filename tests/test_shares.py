"""Shares near 0 and 1: intervals that cover where few rows differ, and are the rule's elsewhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from peftbook.decision.shares import difference_of_shares, ends_of_share
from peftbook.evidence import stats


def covered(found: stats.Interval, truth: float) -> bool:
    return found.low <= truth <= found.high


@pytest.mark.parametrize(("rows", "share"), [(20, 0.9), (60, 0.97), (60, 0.7), (200, 0.99), (200, 0.03)])
def test_a_share_is_covered_wherever_it_lies(rows, share):
    """Summed over all counts of right answers: 93 % at least, where the interval of a mean falls to half of that."""
    shown = usual = 0.0
    for right in range(rows + 1):
        scores = np.repeat([1.0, 0.0], [right, rows - right])[None]
        weight, one = scipy.stats.binom.pmf(right, rows, share), stats.score_interval(scores)
        low, high = ends_of_share(one, scores)
        assert 0 <= low <= one.mean <= high <= 1
        shown, usual = shown + weight * (low <= share <= high), usual + weight * covered(one, share)
    assert shown >= 0.93 and (usual < 0.9 or share in (0.03, 0.7))


@pytest.mark.parametrize(("rows", "lost", "won"), [(60, 0.03, 0.0), (60, 0.1, 0.05), (200, 0.01, 0.0)])
def test_a_difference_of_shares_is_covered_wherever_few_rows_differ(rows, lost, won):
    """Summed over all counts of rows lost and won, 93 % at least; the mean stays what was seen."""
    shown = usual = 0.0
    for worse, better in itertools.product(range(25), range(12 if won else 1)):
        weight = scipy.stats.multinomial.pmf([worse, better, rows - worse - better], rows, [lost, won, 1 - lost - won])
        if weight < 1e-5:
            continue
        first = np.repeat([0.0, 1.0, 1.0], [worse, better, rows - worse - better])[None]
        second = np.repeat([1.0, 0.0, 1.0], [worse, better, rows - worse - better])[None]
        one = stats.score_interval(first - second)
        other = difference_of_shares(one, first, second)
        assert other.mean == one.mean and (other.examples, other.seeds) == (rows, 1)
        assert -1 <= other.low <= other.high <= 1
        assert one.half95 < other.half95 or worse + better > 20
        shown, usual = shown + weight * covered(other, won - lost), usual + weight * covered(one, won - lost)
    assert shown >= 0.93 and (usual < 0.9 or won)


def test_graded_scores_keep_the_rules_interval():
    """Those of ROUGE, also where two models write the same; of groups the rows that are added are groups."""
    same = np.random.default_rng(0).uniform(0.2, 0.8, (1, 40))
    one = stats.score_interval(same - same)
    assert difference_of_shares(one, same, same) == one and ends_of_share(one, same) == (0, 0)
    right, groups = np.ones((1, 40)), [at // 5 for at in range(40)]
    known = stats.score_interval(right - right, None, groups)
    by_group, by_row = (
        difference_of_shares(stats.score_interval(right - right, None, units), right, right, units).half95
        for units in (groups, [])
    )
    assert known.half95 == 0 < by_row < by_group
