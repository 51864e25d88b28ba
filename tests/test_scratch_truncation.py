"""What a limit leaves: laws of the cut, and the bound that a number of looks gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from peftbook.scratch.truncation import graded_share, remaining_tokens, upper_bound

sizes = st.integers(min_value=1, max_value=200)


@given(sizes, sizes, sizes, st.sampled_from(["left", "right"]))
def test_a_cut_leaves_at_most_the_limit_and_nothing_is_invented(context, target, limit, side):
    """Both parts shrink or stay, and together they fill the limit whenever there is enough to fill it."""
    before, after = remaining_tokens(context, target, limit, side)
    assert 0 <= before <= context and 0 <= after <= target
    assert before + after == min(limit, context + target)


@given(sizes, sizes, sizes)
def test_the_right_cut_is_that_of_a_list(context, target, limit):
    """The oracle is a slice: marks of context and target, cut at the limit from either side."""
    row = ["c"] * context + ["t"] * target
    for side, left in (("right", row[:limit]), ("left", row[-limit:])):
        assert remaining_tokens(context, target, limit, side) == (left.count("c"), left.count("t"))


def test_the_share_of_all_targets_weighs_long_ones_more():
    """Tokens are counted, not examples."""
    assert graded_share([(10, 10), (64, 30)], 64) == 10 / 40
    assert graded_share([(10, 10), (64, 30)], 94) == 1


def test_an_unknown_side_is_refused():
    """The message names the value and the choices."""
    with pytest.raises(ValueError, match="side is 'middle'"):
        remaining_tokens(1, 1, 1, "middle")


@pytest.mark.parametrize("looks", [1, 3, 20, 300])
def test_the_bound_is_that_of_the_binomial(looks):
    """At the bound, seeing no success has a chance of exactly the level: Clopper and Pearson, one-sided."""
    assert stats.binom.pmf(0, looks, upper_bound(looks)) == pytest.approx(0.05)
    assert upper_bound(looks) == pytest.approx(stats.beta.ppf(0.95, 1, looks))
