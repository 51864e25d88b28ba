"""Metrics and the one uncertainty rule: hand counts, independent recounts, closed forms and a coverage simulation."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from scipy import stats

from peftbook.errors import InputError
from peftbook.metrics import (
    BLEU_STATISTICS,
    Interval,
    bleu,
    bleu_of_sums,
    bleu_statistics,
    exact_match,
    example_interval,
    judge,
    mean_interval,
    paired_interval,
    perplexity,
    rouge,
)

FOX = ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")
words = st.sampled_from(["a", "b", "c", "the", "fox", "Fox", "jumps", "3", "x1", "é", "..."])
sentences = st.lists(words, max_size=9).map(" ".join)


def f_measure(matches: int, predicted: int, wanted: int) -> float:
    return 0.0 if not matches else 2 * matches / (predicted + wanted)


def tokens_of(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def ngram_f(prediction: str, reference: str, n: int) -> float:
    """Clipped n-gram matches, counted again from Lin 2004, section 2."""
    one, two = (
        Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in map(tokens_of, (prediction, reference))
    )
    return f_measure((one & two).total(), one.total(), two.total())


def subsequence_f(prediction: str, reference: str) -> float:
    """Longest common subsequence by brute recursion over prefixes, Lin 2004, section 3."""
    one, two = tokens_of(prediction), tokens_of(reference)
    best = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(two):
            best[i + 1][j + 1] = best[i][j] + 1 if left == right else max(best[i][j + 1], best[i + 1][j])
    return f_measure(best[-1][-1], len(one), len(two))


def test_rouge_of_the_packages_own_example():
    """rouge_score's README pair, counted by hand: 6 of 8 and 9 words, 2 of 7 and 8 word pairs, subsequence of 5."""
    scores = rouge([FOX[1]], [FOX[0]])
    assert scores["rouge1"] == [pytest.approx(12 / 17)]
    assert scores["rouge2"] == [pytest.approx(4 / 15)]
    assert scores["rougeL"] == [pytest.approx(10 / 17)]


@settings(deadline=None)
@given(sentences, sentences)
def test_rouge_equals_an_independent_recount(prediction, reference):
    """The definition, written again in ten lines; letters outside a–z and 0–9 count as spaces."""
    scores = rouge([prediction], [reference])
    assert scores["rouge1"][0] == pytest.approx(ngram_f(prediction, reference, 1))
    assert scores["rouge2"][0] == pytest.approx(ngram_f(prediction, reference, 2))
    assert scores["rougeL"][0] == pytest.approx(subsequence_f(prediction, reference))


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
    assume(len(tokens_of(text)) >= 2)
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


# ---- the interval


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_without_spread_over_examples_the_interval_is_students(seeds):
    """Every example alike: the bootstrap term vanishes and t(n−1) · s/√n is left, as scipy gives it."""
    means = np.random.default_rng(seeds).normal(0.3, 0.02, seeds)
    interval = mean_interval(np.repeat(means[:, None], 40, axis=1))
    low, high = stats.t.interval(0.95, seeds - 1, loc=means.mean(), scale=stats.sem(means))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    low90, high90 = stats.t.interval(0.90, seeds - 1, loc=means.mean(), scale=stats.sem(means))
    assert interval.half90 == pytest.approx((high90 - low90) / 2)
    assert interval.example_se == pytest.approx(0, abs=1e-12)
    assert (interval.seeds, interval.examples) == (seeds, 40)


def test_without_spread_over_seeds_the_example_term_is_the_standard_error():
    """Seeds alike: SE_examples is σ/√N up to the bootstrap's own error of 1/√(2 · 2000) = 1.6 %."""
    row = np.random.default_rng(0).normal(size=400)
    interval = mean_interval(np.stack([row] * 3))
    assert interval.seed_se == pytest.approx(0, abs=1e-12)
    assert interval.example_se == pytest.approx(row.std() / 20, rel=0.06)
    assert interval.half95 == pytest.approx(stats.t.ppf(0.975, 2) * interval.example_se)


@given(st.integers(2, 5), st.integers(2, 30), st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_weights_give_the_loss_per_label_token(seeds, examples, seed):
    """Σ nats / Σ label tokens, which is not the mean of the examples' means; equal weights only rescale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 20, examples).astype(float)
    nats = rng.gamma(2.0, size=(seeds, examples)) * labels
    interval = mean_interval(nats, labels, draws=200)
    assert interval.mean == pytest.approx((nats.sum(axis=1) / labels.sum()).mean())
    plain, scaled = mean_interval(nats, draws=200), mean_interval(nats * 3, np.full(examples, 3.0), draws=200)
    assert (scaled.mean, scaled.half95) == (pytest.approx(plain.mean), pytest.approx(plain.half95))


@given(st.integers(0, 999), st.floats(-5, 5), st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_intervals_move_with_the_scores(seed, shift, scale):
    """Adding a constant moves the mean alone; a change of unit rescales everything; the same data, the same bits."""
    scores = np.random.default_rng(seed).normal(size=(3, 20))
    base, moved = mean_interval(scores, draws=300), mean_interval(scores * scale + shift, draws=300)
    assert moved.mean == pytest.approx(base.mean * scale + shift)
    assert moved.half95 == pytest.approx(base.half95 * scale)
    assert base == mean_interval(scores, draws=300)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """400 simulated studies with seed, example and residual effects: at least 95 % cover, within 3 binomial SDs."""
    rng = np.random.default_rng(7)
    repetitions, seeds, examples, truth = 400, 4, 60, 0.4
    covered = 0
    for _ in range(repetitions):
        scores = (
            truth
            + rng.normal(0, 0.03, (seeds, 1))
            + rng.normal(0, 0.2, (1, examples))
            + rng.normal(0, 0.1, (seeds, examples))
        )
        interval = mean_interval(scores, draws=150)
        covered += interval.low <= truth <= interval.high
    assert covered / repetitions >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repetitions)


def test_a_wrong_interval_would_fail_the_coverage_test():
    """Leaving out the seeds' term, the commonest mistake, covers far less: the simulation can tell."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        scores = 0.4 + rng.normal(0, 0.05, (4, 1)) + rng.normal(0, 0.1, (1, 60))
        interval = mean_interval(scores, draws=100)
        covered += abs(interval.mean - 0.4) <= 1.96 * interval.example_se
    assert covered / 200 < 0.8


def test_one_seed_decides_nothing():
    """Without a second seed there is no spread over seeds: infinite half-widths and no verdict on a bounded claim."""
    interval = mean_interval([[0.1, 0.2, 0.3]])
    assert interval.half95 == interval.half90 == interval.seed_se == math.inf
    assert interval.mean == pytest.approx(0.2) and interval.example_se > 0
    assert judge(interval, 0.1, (0.0, math.inf)) == "undecided"


def test_identical_arms_differ_by_nothing():
    """Zero, with an interval of zero width: pairing removes what the arms share."""
    scores = np.random.default_rng(0).normal(size=(3, 25))
    difference = paired_interval(scores, scores)
    assert (difference.mean, difference.half95, difference.half90) == (0, 0, 0)
    assert judge(difference, 0.01, (0.5, math.inf)) == "refuted"
    assert judge(difference, 0.5, (0.2, math.inf)) == "equivalent"


@given(st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_exchanging_the_arms_changes_the_sign(seed):
    """And nothing else; a shared effect of the examples does not widen the interval."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(2, 3, 20))
    there, back = paired_interval(one, two), paired_interval(two, one)
    assert there.mean == pytest.approx(-back.mean) and there.half95 == pytest.approx(back.half95)
    hard = 100 * rng.normal(size=20)
    assert paired_interval(one + hard, two + hard).half95 == pytest.approx(there.half95)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([]),
        lambda: mean_interval([[]]),
        lambda: mean_interval([1.0, 2.0]),
        lambda: mean_interval([[1.0, 2.0]], [1.0, 1.0, 1.0]),
        lambda: mean_interval([[1.0, 2.0]], [1.0]),
        lambda: paired_interval([[1.0, 2.0]], [[1.0]]),
        lambda: paired_interval([[1.0], [2.0]], [[1.0]]),
    ],
)
def test_tables_of_another_shape_are_refused(call):
    """NumPy would broadcast some of them into a number."""
    with pytest.raises(InputError, match=r"give|compare"):
        call()


def difference(mean: float, half95: float) -> Interval:
    return Interval(mean, half95, 0.8 * half95, 0.0, 0.0, 3, 100)


@pytest.mark.parametrize(
    ("mean", "half95", "claim", "verdict"),
    [  # margin 0.5 throughout
        (2.0, 1.0, (0, math.inf), "reproduced"),
        (1.0, 1.0, (0, math.inf), "reproduced"),  # touching the edge is inside
        (0.0, 0.2, (-0.5, 0.5), "reproduced"),
        (0.9, 1.0, (0, math.inf), "undecided"),
        (-2.0, 1.0, (0, math.inf), "refuted"),
        (-1.5, 1.0, (0, math.inf), "undecided"),  # outside, but not beyond the margin
        (2.0, 0.5, (-math.inf, 0), "refuted"),
        (0.9, 0.5, (-math.inf, 0), "undecided"),
        (0.1, 0.4, (0.2, math.inf), "equivalent"),  # 90 % half-width 0.32 fits in ±0.5
        (0.3, 0.4, (0.2, math.inf), "undecided"),
        (-0.2, 0.3, (0, math.inf), "equivalent"),
        (0.0, math.inf, (0, math.inf), "undecided"),
    ],
)
def test_the_one_rule(mean, half95, claim, verdict):
    """science.md, section 6, case by case."""
    assert judge(difference(mean, half95), 0.5, claim) == verdict


@given(st.floats(-3, 3), st.floats(0, 3), st.floats(0, 1), st.floats(-2, 2))
def test_a_claim_and_its_opposite_are_never_both_reproduced(mean, half95, margin, edge):
    """Nor is a claim reproduced and its opposite equivalent to it: reproduced here is refuted or undecided there."""
    found = difference(mean, half95)
    up, down = judge(found, margin, (edge, math.inf)), judge(found, margin, (-math.inf, edge))
    assert not (up == down == "reproduced") or found.low == found.high == edge
    assert up != "refuted" or down == "reproduced"


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


def test_an_interval_over_examples_alone_is_normal():
    """Narrower than with few seeds, and that of `mean_interval` up to the quantile."""
    scores = np.random.default_rng(0).normal(size=60).tolist()
    alone, seeded = example_interval(scores), mean_interval([scores, scores, scores])
    assert alone.example_se == seeded.example_se and seeded.seed_se == 0
    assert alone.half95 == pytest.approx(1.959964 * alone.example_se) and alone.half95 < seeded.half95
