"""Metrics: texts and numbers in, numbers out, no models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from peftbook.core.errors import InputError, need

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
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
    need("rouge_score", "ROUGE")
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
    """Per-example statistics from which corpus BLEU is computed, and sacrebleu's signature.

    The ten lists are matched and total n-grams of order 1 to 4, and the lengths of text and closest reference.
    Corpus BLEU is computed from their sums by `bleu`, so that a bootstrap over examples needs no texts.
    """
    need("sacrebleu", "BLEU")
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
    need("sacrebleu", "BLEU")
    from sacrebleu.metrics import BLEU

    sums = [int(math.fsum(statistics[name])) for name in BLEU_STATISTICS]
    found = BLEU.compute_bleu(correct=sums[:4], total=sums[4:8], sys_len=sums[8], ref_len=sums[9], smooth_method="exp")
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
