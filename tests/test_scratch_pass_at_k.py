"""pass@k: brute force over subsets and over every outcome, and the bias of what one would write first."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.scratch.pass_at_k import pass_at_k, plug_in, reliability

few = settings(max_examples=40, deadline=None)
cases = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


def expected(estimate, n: int, k: int, p: float) -> float:
    """The mean of an estimate over every number of right answers that can come out."""
    counts = np.arange(n + 1)
    chances = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in counts])
    return float(chances @ estimate(n, counts, k))


@few
@given(cases)
def test_it_is_the_share_of_subsets_with_a_right_answer(case):
    n, c, k = case
    answers = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(answers, k))
    assert pass_at_k(n, [c], k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert reliability(n, [c], k)[0] == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-12)


@few
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.floats(0, 1))
def test_it_is_unbiased_over_every_outcome(size, p):
    n, k = size
    assert expected(pass_at_k, n, k, p) == pytest.approx(1 - (1 - p) ** k)
    assert expected(reliability, n, k, p) == pytest.approx(p**k, abs=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("k", [2, 5, 10])
def test_the_plug_in_is_too_low(k, p):
    """By Jensen for every n; by the formula where n is large against k²; at k = 1 both are c / n."""
    for n in (10, 20, 50):
        assert expected(plug_in, n, k, p) < 1 - (1 - p) ** k - 1e-6
    n = 2000
    bias = -k * (k - 1) / 2 * p * (1 - p) ** (k - 1) / n
    assert expected_large(n, k, p) - (1 - (1 - p) ** k) == pytest.approx(bias, rel=0.1)
    assert plug_in(7, np.arange(8), 1) == pytest.approx(np.arange(8) / 7)
    assert pass_at_k(7, np.arange(8), 1) == pytest.approx(np.arange(8) / 7)


def expected_large(n: int, k: int, p: float) -> float:
    """The plug-in's mean for many answers, by logarithms of the chances."""
    counts = np.arange(n + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(c + 1) - math.lgamma(n - c + 1) for c in counts])
    return float(np.exp(logs + counts * math.log(p) + (n - counts) * math.log1p(-p)) @ plug_in(n, counts, k))


def test_many_answers_do_not_overflow():
    """C(5000, 500) has more digits than a float can count; exact integers agree with the product."""
    n, c, k = 5000, 40, 500
    with pytest.raises(OverflowError):
        float(math.comb(n, k))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)  # Python divides the integers themselves
    assert pass_at_k(n, [c], k)[0] == pytest.approx(exact, rel=1e-12)


@few
@given(cases)
def test_more_tries_never_hurt_and_right_answers_help(case):
    n, c, k = case
    found = pass_at_k(n, np.arange(n + 1), k)
    assert (np.diff(found) >= -1e-12).all() and found[0] == 0 and found[-1] == 1
    if k < n:
        assert pass_at_k(n, [c], k + 1)[0] >= pass_at_k(n, [c], k)[0] - 1e-12


@pytest.mark.parametrize(("n", "c", "k", "said"), [(4, [1], 5, "draw 5"), (4, [1], 0, "draw 1"), (4, [5], 2, "0 to 4")])
def test_what_cannot_be_judged_is_refused(n, c, k, said):
    with pytest.raises(ValueError, match=said):
        pass_at_k(n, c, k)
