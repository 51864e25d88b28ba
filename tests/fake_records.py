"""A store of invented but plausible records, for tests of what only reads records."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from peftbook.core.records import Record, Store
from peftbook.core.specs import Run
from peftbook.studies import get_study, methods

__all__ = ["fill_store"]

TOTAL = 134_515_008
TRAINABLE = {"untuned": 0, "full": TOTAL, "lora": 4_884_480, "qlora": 4_884_480, "prompt": 11_520}
BEST_LOSS = {"untuned": 3.55, "full": 2.52, "lora": 2.49, "qlora": 2.53, "prompt": 2.95}
BEST_EXPONENT = {"full": 1, "lora": 1, "qlora": 1, "prompt": -2}
SCORE = {"untuned": 0.19, "full": 0.33, "lora": 0.34, "qlora": 0.33, "prompt": 0.27}
STEP_SECONDS = {"full": 2.07, "lora": 1.62, "qlora": 2.31, "prompt": 1.38}
PEAK_BYTES = {"full": 6.4e9, "lora": 3.9e9, "qlora": 3.7e9, "prompt": 3.3e9}


def fill_store(folder: Path, *, timing: bool = True, diverge: bool = True) -> Store:
    """A store in `folder` with a record of every run that the studies name, stage after stage.

    diverge: whether full fine-tuning's highest rate is recorded as a failure.
    """
    store = Store(folder)
    while missing := get_study("methods").missing(store):
        for run in missing:
            store.save(fake_record(run, diverge))
    if timing:
        for run in get_study("costs").missing(store):
            store.save(fake_timing(run))
    return store


def fake_record(run: Run, diverge: bool = True) -> Record:
    """One invented quality record; equal specs give equal numbers."""
    rng = np.random.default_rng(int(run.key[:12], 16))
    # Test examples and batches are shared by all runs of a seed, so differences between arms are paired.
    shared = np.random.default_rng(5)
    kind = run.method.kind
    few = kind == "untuned" and run.method.shots
    level = 3.0 if few else BEST_LOSS[kind]
    score = 0.25 if few else SCORE[kind]
    failure, curve = "", {}
    measured: dict[str, float | int | None] = {"trainable_parameters": TRAINABLE[kind], "total_parameters": TOTAL}
    if run.budget is not None:
        away = math.log(run.budget.learning_rate / methods.rate(kind, BEST_EXPONENT[kind]), 3)
        level += 0.06 * away**2 * (2.5 if away > 0 else 1)
        batch_noise = np.random.default_rng(run.seed).normal(0, 0.3, 45)
        steps = level + (3.9 - level) * np.exp(-np.arange(45) / 6) + batch_noise + rng.normal(0, 0.05, 45)
        curve = {"train_loss_nats": [round(float(value), 6) for value in steps]}
        measured |= {"train_steps": 45, "train_tokens": 48_908, "train_seconds": 103.4}
        if diverge and kind == "full" and run.budget.learning_rate >= methods.rate("full", 2):
            failure = "Training diverged at step 7: the loss is not finite; lower the learning rate."
            curve = {"train_loss_nats": [3.9, 4.4, 5.3, 6.9, 8.8, 9.7]}
    per_example: dict[str, list[float]] = {}
    if not failure:
        tokens = shared.integers(6, 22, 200)
        nats = tokens * np.maximum(0.2, level + shared.normal(0, 0.9, 200) + rng.normal(0, 0.15, 200))
        nats *= 1 + rng.normal(0, 0.004)
        per_example = {"loss_nats": nats.round(6).tolist(), "label_tokens": tokens.astype(float).tolist()}
        measured |= {"loss_nats": float(nats.sum() / tokens.sum()), "loss_examples": 200}
    if run.evaluation.n_generate and not failure:
        base = np.clip(score + shared.normal(0, 0.17, 200) + rng.normal(0, 0.08, 200) + rng.normal(0, 0.006), 0, 1)
        scores = {"rouge1": base**0.95, "rouge2": base**2, "rougeL": base, "bertscore_f1": 0.38 + 0.6 * base}
        scores |= {"exact_match": (base > 0.8).astype(float)}
        per_example |= {name: values.round(6).tolist() for name, values in scores.items()}
        measured |= {name: float(np.mean(values)) for name, values in scores.items()}
    return Record(
        key=run.key,
        spec=run,
        measurements=measured,
        curve=curve,
        per_example=per_example,
        failure=failure,
        provenance={"cpu": "an invented processor", "cores": 2},
    )


def fake_timing(run: Run) -> Record:
    """One invented timing record."""
    rng = np.random.default_rng(int(run.key[:12], 16))
    kind = run.method.kind
    seconds = STEP_SECONDS[kind] * (1 + abs(rng.normal(0, 0.04)))
    measured = {
        "median_step_seconds": round(seconds, 4),
        "train_tokens_per_second": round(1080 / seconds, 2),
        "peak_memory_bytes": int(PEAK_BYTES[kind] * (1 + rng.normal(0, 0.01))),
    }
    return Record(key=run.key, spec=run, measurements=measured, provenance={"cpu": "an invented processor"})
