"""ROUGE-1, -2, -L and BERTScore as one metric for Hugging Face `evaluate`, without the hub.

    import evaluate
    from peftbook.evaluate_metric import PATH

    metric = evaluate.load(PATH)
    metric.compute(predictions=["Return the sum."], references=["Return the total."])

`evaluate.load("rouge")` fetches its script from the hub; given the path of a script it loads that one instead.
`evaluate` copies this file and reads its imports line by line, so each stands on a line of its own.
"""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import evaluate

from peftbook.core.errors import InputError
from peftbook.evidence import metrics

__all__ = ["PATH", "RougeBertScore"]

PATH = str(Path(__file__).resolve())

DESCRIPTION = """\
ROUGE-1, ROUGE-2 and ROUGE-L F-measure (rouge_score, no stemmer) and BERTScore F1 (all-MiniLM-L6-v2, layer 6, no idf,
not rescaled), each the mean over the pairs, 0-1. An empty prediction scores 0.
"""
CITATION = """\
Lin 2004, ROUGE: a package for automatic evaluation of summaries.
Zhang et al. 2020, BERTScore: evaluating text generation with BERT, arXiv:1904.09675.
"""


class RougeBertScore(evaluate.Metric):
    """The scores that the book's tables show, computed by the same functions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description="predictions: list of str, what the model wrote; references: list of str, one for each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        """Means by name, and the encoder that BERTScore depends on. Raises InputError for no pairs."""
        from peftbook.training.scoring import bertscore, embedded_encoder

        if not predictions:
            raise InputError("There are no predictions to score: give at least one pair.")
        scores = metrics.rouge(predictions, references) | {"bertscore_f1": bertscore(predictions, references)}
        means = {name: math.fsum(values) / len(values) for name, values in scores.items()}
        return means | {"bertscore_encoder": embedded_encoder()}
