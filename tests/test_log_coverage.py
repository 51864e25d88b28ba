"""The interval of `decide` on scores of real runs covers as it says."""

from __future__ import annotations

import log_coverage


def test_the_interval_covers_on_the_scores_of_a_real_run():
    """Right and wrong answers of two methods, a hundred of them; and no more alarms where there is no difference."""
    _, first, second = next(log_coverage.pairs("sql", "execution_match"))
    found = log_coverage.shares(first, second, 100, 600)
    assert 0.93 < found["decide"] < 0.97 and found["decide alarms"] < 0.07
