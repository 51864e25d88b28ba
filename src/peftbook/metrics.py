"""Metrics and the one uncertainty rule: numbers in, numbers out, no models."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from peftbook.errors import InputError

__all__ = [
    "Interval",
    "bleu",
    "bleu_of_sums",
    "bleu_statistics",
    "exact_match",
    "example_interval",
    "judge",
    "mean_interval",
    "paired_interval",
    "perplexity",
    "resample_counts",
    "resamples",
    "rouge",
    "statistic_interval",
]

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
BOOTSTRAP_DRAWS = 2000
BLEU_STATISTICS = (
    *(f"bleu_matched_{n}" for n in (1, 2, 3, 4)),
    *(f"bleu_total_{n}" for n in (1, 2, 3, 4)),
    "bleu_length",
    "bleu_reference_length",
)


Reference = str | Sequence[str]  # one right answer, or several


def rouge(predictions: Sequence[str], references: Sequence[Reference], *, stem: bool = False) -> dict[str, list[float]]:
    """ROUGE-1, -2 and -L F-measure of every pair, 0–1, by the rouge_score package; the best of several references.

    F = 2PR / (P + R) over clipped n-grams (1, 2) or the longest common subsequence (L), on lower-cased ASCII words.
    Source: Lin 2004; Google's rouge_score 0.1.2, whose tokenizer drops every character outside a–z and 0–9.
    """
    from rouge_score.rouge_scorer import RougeScorer

    check_lengths(predictions, references)
    scorer = RougeScorer(list(ROUGE_KINDS), use_stemmer=stem)
    scores = [
        scorer.score_multi(answers(reference), prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {kind: [score[kind].fmeasure for score in scores] for kind in ROUGE_KINDS}


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
    """1 where the text equals a reference up to case, runs of white space and one final full stop, else 0."""
    check_lengths(predictions, references)
    return [
        float(any(normalise(prediction) == normalise(one) for one in answers(reference)))
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def answers(reference: Reference) -> Sequence[str]:
    return (reference,) if isinstance(reference, str) else reference


def bleu_statistics(predictions: Sequence[str], references: Sequence[Reference]) -> tuple[dict[str, list[float]], str]:
    """What corpus BLEU is a function of, for every example, and sacrebleu's signature.

    The ten lists are matched and total n-grams of order 1 to 4, and the lengths of text and closest reference.
    Corpus BLEU is computed from their sums by `bleu`, so that a bootstrap over examples needs no texts.
    """
    from sacrebleu.metrics import BLEU

    check_lengths(predictions, references)
    scorer = BLEU()
    columns: dict[str, list[float]] = {name: [] for name in BLEU_STATISTICS}
    for prediction, reference in zip(predictions, references, strict=True):
        score = scorer.corpus_score([prediction], [[one] for one in answers(reference)])
        values = [*score.counts, *score.totals, score.sys_len, score.ref_len]
        for name, value in zip(BLEU_STATISTICS, values, strict=True):
            columns[name].append(float(value))
    return columns, str(scorer.get_signature())


def bleu(statistics: Mapping[str, Sequence[float]]) -> float:
    """Corpus BLEU, 0–100, from the ten lists of `bleu_statistics`, with sacrebleu's exponential smoothing.

    BLEU = min(1, exp(1 − r/c)) · (Π p_n)^¼. Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771.
    """
    from sacrebleu.metrics import BLEU

    sums = [int(math.fsum(statistics[name])) for name in BLEU_STATISTICS]
    found = BLEU.compute_bleu(
        correct=sums[:4], total=sums[4:8], sys_len=sums[8], ref_len=sums[9], smooth_method="exp"
    )  # fmt: skip
    return float(found.score)


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU as `bleu` computes it, from summed statistics: (…, 10) in the order of BLEU_STATISTICS → (…)."""
    matched, total, length, reference = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    log_precision, smoothing = np.zeros(sums.shape[:-1]), np.ones(sums.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for n in range(4):
            none = matched[..., n] == 0
            smoothing = np.where(none, 2 * smoothing, smoothing)
            log_precision += np.log(np.where(none, 1 / smoothing, matched[..., n]) / total[..., n]) / 4
        brevity = np.minimum(0.0, 1 - reference / length)
        return np.where((matched > 0).any(axis=-1), 100 * np.exp(log_precision + brevity), 0.0)


def normalise(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").lower()


def check_lengths(predictions: Sequence[str], references: Sequence[Reference]) -> None:
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
    counts = resample_counts(examples, draws)[1:]
    boot = (counts @ table.mean(axis=0)) / (counts @ weight)
    example_se = float(boot.std(ddof=1))
    seed_se = float(per_seed.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else math.inf
    total = math.hypot(seed_se, example_se)
    quantile95, quantile90 = (float(stats.t.ppf(p, max(seeds - 1, 1))) for p in (0.975, 0.95))
    return Interval(
        float(per_seed.mean()), quantile95 * total, quantile90 * total, seed_se, example_se, seeds, examples
    )


def example_interval(scores: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """The interval where nothing is random but the choice of examples: mean ± 1.96 · SE_examples.

    scores: (examples,).  weights: (examples,) or None, as in `mean_interval`.
    """
    found = mean_interval([list(scores)], weights)
    return normal_interval(found.mean, found.example_se, found.examples)


def normal_interval(mean: float, error: float, examples: int) -> Interval:
    """mean ± z · error of a single deterministic run."""
    half95, half90 = (float(stats.norm.ppf(p)) * error for p in (0.975, 0.95))
    return Interval(mean, half95, half90, 0.0, error, 1, examples)


@functools.lru_cache(maxsize=4)
def resamples(examples: int, draws: int = BOOTSTRAP_DRAWS) -> np.ndarray:
    """Indices of all examples in order, then of `draws` bootstrap samples: (1 + draws, examples), not to be written."""
    rng = np.random.default_rng(20260101)
    picks = np.concatenate([np.arange(examples)[None], rng.integers(examples, size=(draws, examples))])
    picks.flags.writeable = False
    return picks


@functools.lru_cache(maxsize=4)
def resample_counts(examples: int, draws: int = BOOTSTRAP_DRAWS) -> np.ndarray:
    """How often each row of `resamples` has each example: (1 + draws, examples), not to be written."""
    counts = np.stack([np.bincount(picks, minlength=examples) for picks in resamples(examples, draws)]).astype(float)
    counts.flags.writeable = False
    return counts


def statistic_interval(values: np.ndarray, examples: int) -> Interval:
    """The book's interval (`mean_interval`) for a statistic that is not a mean over examples.

    values: (1 + draws, seeds), the statistic on the rows of `resamples(examples)`. With one seed, whose randomness is
    not known, the interval covers the choice of examples alone.
    """
    per_seed, boot = values[0], values[1:].mean(axis=1)
    example_se, seeds = float(np.nanstd(boot, ddof=1)), len(per_seed)
    if seeds == 1:
        return normal_interval(float(per_seed[0]), example_se, examples)
    seed_se = float(per_seed.std(ddof=1) / math.sqrt(seeds))
    total = math.hypot(seed_se, example_se)
    half95, half90 = (float(stats.t.ppf(p, seeds - 1)) * total for p in (0.975, 0.95))
    return Interval(float(per_seed.mean()), half95, half90, seed_se, example_se, seeds, examples)


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
