"""Metrics: hand counts, independent recounts and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from peftbook.core.errors import InputError
from peftbook.evidence.metrics import (
    BLEU_STATISTICS,
    bleu,
    bleu_of_sums,
    bleu_statistics,
    exact_match,
    perplexity,
    rouge,
)
from peftbook.scratch.rouge import rouge_l, rouge_n, tokens

FOX = ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")
words = st.sampled_from(["a", "b", "c", "the", "fox", "Fox", "jumps", "3", "x1", "é", "..."])
sentences = st.lists(words, max_size=9).map(" ".join)


def test_rouge_of_the_packages_own_example():
    """rouge_score's README pair, counted by hand: 6 of 8 and 9 words, 2 of 7 and 8 word pairs, subsequence of 5."""
    scores = rouge([FOX[1]], [FOX[0]])
    assert scores["rouge1"] == [pytest.approx(12 / 17)]
    assert scores["rouge2"] == [pytest.approx(4 / 15)]
    assert scores["rougeL"] == [pytest.approx(10 / 17)]


@settings(deadline=None)
@given(sentences, sentences)
def test_rouge_equals_an_independent_recount(prediction, reference):
    """The scratch code, which is held against the definition; letters outside a–z and 0–9 count as spaces."""
    scores = rouge([prediction], [reference])
    assert scores["rouge1"][0] == pytest.approx(rouge_n(prediction, reference, 1))
    assert scores["rouge2"][0] == pytest.approx(rouge_n(prediction, reference, 2))
    assert scores["rougeL"][0] == pytest.approx(rouge_l(prediction, reference))


@settings(deadline=None)
@given(sentences, sentences)
def test_rouge_is_symmetric_and_between_0_and_1(prediction, reference):
    """F exchanges precision and recall when the texts change places."""
    there, back = rouge([prediction], [reference]), rouge([reference], [prediction])
    for kind, (value,) in there.items():
        assert 0 <= value <= 1 and value == pytest.approx(back[kind][0])


@settings(deadline=None)
@given(sentences)
def test_identical_texts_score_1(text):
    """ROUGE-2 needs two words to have a pair."""
    assume(len(tokens(text)) >= 2)
    assert all(value == [pytest.approx(1)] for value in rouge([text], [text]).values())


def test_rouge_keeps_the_order_of_pairs_and_scores_empty_texts_0():
    """Per-example scores are compared pairwise, and a model may well write nothing."""
    scores = rouge(["fox", "", "dog"], ["fox", "fox", "fox"])
    assert scores["rouge1"] == [1.0, 0.0, 0.0]


def test_stemming_is_off_unless_asked_for():
    """The book's scores are without a stemmer; the setting stands in every record."""
    assert rouge(["jumping"], ["jumps"])["rouge1"] == [0.0]
    assert rouge(["jumping"], ["jumps"], stem=True)["rouge1"] == [1.0]


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("Return the sum.", "Return the sum", 1),
        (" Return  the\nsum. ", "return the SUM.", 1),
        ("Return the sum..", "Return the sum", 0),
        ("Return the sums.", "Return the sum.", 0),
        ("", "", 1),
        ("", "x", 0),
    ],
)
def test_exact_match_ignores_only_what_it_says(prediction, reference, score):
    """Case, white space and one final full stop."""
    assert exact_match([prediction], [reference]) == [score]


WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "dog", "."]), min_size=1, max_size=9)
PAIRS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5)


@given(PAIRS)
def test_of_several_references_the_best_counts(pairs):
    """Each score is the maximum of the single ones, and a list of one is that one."""
    for prediction, references in [(" ".join(one), [" ".join(r) for r in many]) for one, many in pairs]:
        for metric in (lambda p, r: rouge(p, r)["rougeL"], exact_match):
            single = [metric([prediction], [one])[0] for one in references]
            assert metric([prediction], [references])[0] == pytest.approx(max(single))


@given(PAIRS)
def test_bleu_of_the_statistics_is_the_corpus_bleu(pairs):
    """Summing the ten statistics over examples loses nothing: sacrebleu's own corpus score is the oracle."""
    texts = [" ".join(one) for one, _ in pairs]
    references = [[" ".join(r) for r in many] for _, many in pairs]
    statistics, signature = bleu_statistics(texts, references)
    width = max(map(len, references))
    streams = [[(many[at] if at < len(many) else None) for many in references] for at in range(width)]
    assert bleu(statistics) == pytest.approx(BLEU().corpus_score(texts, streams).score)
    assert "smooth:exp" in signature


@pytest.mark.parametrize("metric", [rouge, exact_match])
def test_predictions_and_references_pair_up(metric):
    """zip would silently drop the rest."""
    with pytest.raises(InputError, match="2 predictions for 1 references"):
        metric(["a", "b"], ["a"])


def test_perplexity_is_the_exponential_of_the_mean_per_token():
    """A uniform guess among V tokens has perplexity V, however the tokens are grouped; overflow is infinite."""
    assert perplexity([3 * math.log(50), math.log(50)], [3, 1]) == pytest.approx(50)
    assert perplexity([0.0], [7]) == 1
    assert perplexity([1e6], [1]) == math.inf


@given(
    st.lists(st.tuples(*[st.integers(0, 6)] * 4, st.integers(10, 20), st.integers(8, 20)), min_size=1, max_size=4),
)
def test_bleu_of_sums_is_sacrebleus(rows):
    """Corpus BLEU from summed statistics, n-grams that never match included."""
    columns = {name: [] for name in BLEU_STATISTICS}
    for *matched, length, reference in rows:
        for n, value in enumerate(matched, 1):
            columns[f"bleu_matched_{n}"].append(float(value))
            columns[f"bleu_total_{n}"].append(float(length - n + 1))
        columns["bleu_length"].append(float(length))
        columns["bleu_reference_length"].append(float(reference))
    sums = np.array([sum(columns[name]) for name in BLEU_STATISTICS])
    assert bleu_of_sums(sums) == pytest.approx(bleu(columns), abs=1e-9)
