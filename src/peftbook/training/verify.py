"""Rerun recorded runs and compare: a random sample, into a temporary folder."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peftbook.records import Record, Store
from peftbook.training.queue import run_subprocess

__all__ = ["TOLERANCES", "Verified", "compare", "verify_sample"]

# Loss in nats and scores 0–1. The same machine repeats a run bit by bit; another processor rounds differently, and
# after dozens of steps of bfloat16 the loss moves in the third decimal and greedy texts flip now and then.
TOLERANCES = {"loss_nats": 0.02, "rougeL": 0.03, "bertscore_f1": 0.03}


@dataclass(frozen=True)
class Verified:
    """What a repeated run showed: outcome is `same`, `drift`, `failed` or `skipped`."""

    key: str
    outcome: str
    sentence: str


def compare(shipped: Record, again: Record) -> Verified:
    """Compare the measurements that TOLERANCES names."""
    name = shipped.key[:12]
    if bool(shipped.failure) != bool(again.failure):
        return Verified(name, "drift", f"{name}: one of the two runs diverged ({shipped.failure or again.failure})")
    worst = []
    for field, tolerance in TOLERANCES.items():
        old, new = shipped.measurements.get(field), again.measurements.get(field)
        if old is not None and new is not None:
            worst.append((abs(new - old) - tolerance, f"{field} {old:.4f} → {new:.4f} (tolerance {tolerance})"))
    text = "; ".join(sentence for _, sentence in worst)
    drift = any(excess > 0 for excess, _ in worst)
    return Verified(name, "drift" if drift else "same", f"{name}: {'DRIFT' if drift else 'same'}: {text}")


def verify_sample(store: Store, sample: int, seed: int) -> list[Verified]:
    """Repeat `sample` random quality records of this platform and compare each; runs of other data are skipped."""
    from peftbook.tasks import task_names

    records = [one for one in store.all() if one.spec.purpose == "quality" and one.spec.platform == "cpu"]
    chosen = random.Random(seed).sample(records, min(sample, len(records)))
    results = []
    for record in chosen:
        if record.spec.task.name not in task_names():
            results.append(Verified(record.key[:12], "skipped", f"{record.key[:12]}: data of its task is not at hand"))
            continue
        with tempfile.TemporaryDirectory() as folder:
            ok, message = run_subprocess(record.spec, Path(folder))
            again = Store(Path(folder)).get(record.spec) if ok else None
        if again is None:
            results.append(Verified(record.key[:12], "failed", f"{record.key[:12]}: did not run: {message}"))
        else:
            results.append(compare(record, again))
    return results
