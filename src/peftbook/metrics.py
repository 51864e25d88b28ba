"""Metrics and the one uncertainty rule: numbers in, numbers out, no models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from peftbook.errors import InputError

__all__ = ["Interval", "exact_match", "judge", "mean_interval", "paired_interval", "perplexity", "rouge"]

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
BOOTSTRAP_DRAWS = 2000


def rouge(predictions: Sequence[str], references: Sequence[str], *, stem: bool = False) -> dict[str, list[float]]:
    """ROUGE-1, -2 and -L F-measure of every pair, 0–1, by the rouge_score package.

    F = 2PR / (P + R) over clipped n-grams (1, 2) or the longest common subsequence (L), on lower-cased ASCII words.
    Source: Lin 2004; Google's rouge_score 0.1.2, whose tokenizer drops every character outside a–z and 0–9.
    """
    from rouge_score.rouge_scorer import RougeScorer

    check_lengths(predictions, references)
    scorer = RougeScorer(list(ROUGE_KINDS), use_stemmer=stem)
    scores = [
        scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {kind: [score[kind].fmeasure for score in scores] for kind in ROUGE_KINDS}


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where the texts are equal up to case, runs of white space and one final full stop, else 0."""
    check_lengths(predictions, references)
    return [
        float(normalise(prediction) == normalise(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def normalise(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").lower()


def check_lengths(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise InputError(f"There are {len(predictions)} predictions for {len(references)} references: give one each.")


def perplexity(nats: Sequence[float], label_tokens: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood per label token. nats: summed per example.

    Infinite where the exponential overflows: above 709 nats a token, which a badly diverged run reaches.
    """
    mean = math.fsum(nats) / sum(label_tokens)
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided intervals and the standard errors behind them.

    half95, half90: half-widths.  seed_se, example_se: the two terms; infinite with fewer than two seeds.
    """

    mean: float
    half95: float
    half90: float
    seed_se: float
    example_se: float
    seeds: int
    examples: int

    @property
    def low(self) -> float:
        return self.mean - self.half95

    @property
    def high(self) -> float:
        return self.mean + self.half95


def mean_interval(
    scores: Sequence[Sequence[float]], weights: Sequence[float] | None = None, *, draws: int = BOOTSTRAP_DRAWS
) -> Interval:
    """The book's interval: mean ± t(n−1) · sqrt(s² / n + SE²_examples).

    scores: (seeds, examples).  weights: (examples,) or None; with weights the mean of a seed is Σ scores / Σ weights
    (loss per label token: scores are summed nats, weights are label tokens).  s is the SD of the per-seed means,
    SE_examples the bootstrap error over examples of the seed-averaged mean.  For a paired comparison pass the
    differences.  With one seed there is no t quantile: half-widths are infinite.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(f"Scores have shape {table.shape}: give a non-empty (seeds, examples) table.")
    weight = np.ones(table.shape[1]) if weights is None else np.asarray(weights, dtype=float)
    if weight.shape != table.shape[1:]:
        raise InputError(f"There are {weight.size} weights for {table.shape[1]} examples: give one each.")
    per_seed = table.sum(axis=1) / weight.sum()
    seeds, examples = table.shape
    averaged = table.mean(axis=0)
    rng = np.random.default_rng(20260101)
    picks = rng.integers(examples, size=(draws, examples))
    boot = averaged[picks].sum(axis=1) / weight[picks].sum(axis=1)
    example_se = float(boot.std(ddof=1))
    seed_se = float(per_seed.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else math.inf
    total = math.hypot(seed_se, example_se)
    quantile95, quantile90 = (float(stats.t.ppf(p, max(seeds - 1, 1))) for p in (0.975, 0.95))
    return Interval(
        float(per_seed.mean()), quantile95 * total, quantile90 * total, seed_se, example_se, seeds, examples
    )


def paired_interval(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], weights: Sequence[float] | None = None
) -> Interval:
    """The interval of first − second over shared seeds and shared examples: row i of both has the same seed."""
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != two.shape:
        raise InputError(f"Paired scores have shapes {one.shape} and {two.shape}: compare equal seeds and examples.")
    return mean_interval(one - two, weights)


def judge(difference: Interval, margin: float, claim: tuple[float, float]) -> str:
    """Verdict on a claim about a difference, by the one rule.

    claim: the interval that the claim allows (−inf and inf are fine).  reproduced: the 95 % interval lies inside it.
    refuted: the 95 % interval lies wholly outside it, beyond the margin.  equivalent: the 90 % interval lies inside
    ±margin.  undecided: anything else.
    """
    low, high = difference.low, difference.high
    if low >= claim[0] and high <= claim[1]:
        return "reproduced"
    if low > claim[1] + margin or high < claim[0] - margin:
        return "refuted"
    if -margin <= difference.mean - difference.half90 and difference.mean + difference.half90 <= margin:
        return "equivalent"
    return "undecided"
