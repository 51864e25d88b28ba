"""BERTScore from scratch: bert_score's own matching as the oracle, and the laws of taking the best partner."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.scratch.bertscore import greedy_match, idf, rescale

few = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(3, 8), st.integers(3, 8), st.integers(2, 6))  # words of both texts, width
close = {"atol": 1e-5, "rtol": 1e-5}


def vectors(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@few
@given(sizes, st.integers(0, 999))
def test_matching_is_that_of_bert_score(shape, seed):
    """Its function takes batches, masks and idf weights; here one pair without padding."""
    from bert_score.utils import greedy_cos_idf

    n, m, width = shape
    x, y = vectors(n, width, seed), vectors(m, width, seed + 1000)
    weights = [torch.rand(rows, generator=torch.Generator().manual_seed(rows + seed)) + 0.1 for rows in (n, m)]
    masks = [torch.ones(1, rows, dtype=torch.long) for rows in (n, m)]
    theirs = greedy_cos_idf(
        y[None].clone(), masks[1], weights[1][None].clone(), x[None].clone(), masks[0], weights[0][None].clone()
    )
    torch.testing.assert_close(torch.stack(greedy_match(x, y, *weights)), torch.cat(theirs), **close)


@few
@given(sizes, st.integers(0, 999))
def test_the_laws_of_the_best_partner(shape, seed):
    """A text is its own best match, lengths of vectors do not matter, P and R change places, copies are free."""
    n, m, width = shape
    x, y = vectors(n, width, seed), vectors(m, width, seed + 1000)
    torch.testing.assert_close(torch.stack(greedy_match(x, x)), torch.ones(3), **close)
    p, r, f = greedy_match(x, y)
    torch.testing.assert_close(torch.stack(greedy_match(y, x)), torch.stack((r, p, f)), **close)
    torch.testing.assert_close(torch.stack(greedy_match(3 * x, y)), torch.stack((p, r, f)), **close)
    torch.testing.assert_close(torch.stack(greedy_match(torch.cat([x, x]), y)), torch.stack((p, r, f)), **close)


@few
@given(sizes, st.integers(0, 999))
def test_one_word_more_never_lowers_recall_and_moves_precision_by_its_share(shape, seed):
    """P becomes (n P + c) / (n + 1) with c the word's best cosine: in a long text a "not" weighs little."""
    n, m, width = shape
    x, y, word = vectors(n, width, seed), vectors(m, width, seed + 1000), vectors(1, width, seed + 2000)
    (p, r, _), (p_more, r_more, _) = greedy_match(x, y), greedy_match(torch.cat([x, word]), y)
    assert r_more >= r - 1e-6
    torch.testing.assert_close(p_more, (n * p + greedy_match(word, y)[0]) / (n + 1), **close)


def test_a_word_of_every_reference_weighs_nothing():
    """df = M gives log 1; rarer words weigh more."""
    weights = idf([["the", "sum", "the"], ["the", "graph"], ["the", "sum"]])
    assert weights["the"] == 0 and weights["graph"] > weights["sum"] > 0


def test_rescaling_keeps_the_order_and_the_top():
    """A line through (b, 0) and (1, 1): no ranking changes, differences grow by 1 / (1 − b)."""
    assert rescale(1.0, 0.83) == 1 and rescale(0.83, 0.83) == 0
    assert rescale(0.95, 0.83) - rescale(0.94, 0.83) == pytest.approx(0.01 / 0.17)
