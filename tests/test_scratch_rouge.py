"""ROUGE from scratch: rouge_score as the oracle, and the laws that make it a measure of shared words."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from peftbook.scratch.rouge import lcs_positions, lcs_table, rouge_l, rouge_lsum, rouge_n, tokens

few = settings(max_examples=60, deadline=None)
WORDS = ("return", "Returns", "the", "The", "graph", "node_id", "id", "x.", "naïve", "30 %", "...")
line = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
text = st.lists(line, min_size=1, max_size=3).map("\n".join)
words = st.lists(st.sampled_from("abc"), max_size=6)


@few
@given(text, text)
def test_every_kind_is_that_of_rouge_score(x, y):
    """Texts of several lines, with case, punctuation, underscores, letters that are dropped, and none at all."""
    scores = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"]).score(y, x)
    mine = (rouge_n(x, y, 1), rouge_n(x, y, 2), rouge_l(x, y), rouge_lsum(x, y))
    assert mine == pytest.approx([score.fmeasure for score in scores.values()])


def subsequences(of, length):
    return {tuple(of[at] for at in chosen) for chosen in itertools.combinations(range(len(of)), length)}


@few
@given(words, words)
def test_the_table_ends_with_the_longest_common_subsequence(x, y):
    """By the definition: the largest length of which both have a subsequence in common; and where it stands in y."""
    longest = max(n for n in range(len(y) + 1) if subsequences(x, n) & subsequences(y, n))
    assert lcs_table(x, y)[-1][-1] == longest
    positions = lcs_positions(x, y)
    assert len(positions) == longest and positions == sorted(set(positions))
    assert tuple(y[at] for at in positions) in subsequences(x, longest)


@few
@given(line, line)
def test_order_can_only_cost(x, y):
    """A common subsequence is a set of shared words, so ROUGE-L is at most ROUGE-1."""
    assert rouge_l(x, y) <= rouge_n(x, y) + 1e-12


@few
@given(text)
def test_exchanging_lines_moves_l_and_not_lsum(x):
    """Lsum matches line with line wherever it stands; a text with its lines reversed scores 1."""
    turned = "\n".join(reversed(x.split("\n")))
    assert rouge_lsum(turned, x) == pytest.approx(1 if tokens(x) else 0)
    assert rouge_l("c d\na b", "a b\nc d") == 0.5


def test_repeating_a_word_earns_nothing():
    """Clipping: the second copy is not in the reference, so precision falls and recall stays."""
    assert rouge_n("the", "the graph") == pytest.approx(2 / 3)
    assert rouge_n("the the the", "the graph") == pytest.approx(2 / 5)
