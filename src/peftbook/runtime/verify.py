"""Rerun recorded runs and compare: a random sample, into a temporary folder."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftbook.core.records import Record, Store
from peftbook.core.specs import Probe, Run
from peftbook.runtime.queue import run_subprocess
from peftbook.tasks import missing_data, task_names

# Loss in nats, scores 0–1, BLEU 0–100. The same machine repeats a run bit by bit; another processor rounds differently,
# and after dozens of steps of bfloat16 the loss moves in the third decimal and greedy texts flip now and then.
TOLERANCES = {"loss_nats": 0.02, "rougeL": 0.03, "bertscore_f1": 0.03, "execution_match": 0.03, "bleu": 2.0}


@dataclass(frozen=True)
class Verified:
    """What a repeated run showed: outcome is `same`, `drift`, `failed` or `skipped` (then `count` records at once)."""

    key: str
    outcome: str
    sentence: str
    count: int = 1


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
    text = "; ".join(sentence for _, sentence in worst) or "both diverged"
    drift = any(excess > 0 for excess, _ in worst)
    return Verified(name, "drift" if drift else "same", f"{name}: {'DRIFT' if drift else 'same'}: {text}")


def verify_sample(store: Store, sample: int, seed: int) -> Iterator[Verified]:
    """Repeat `sample` random quality runs made on a CPU and compare each, as it is done.

    The kinds of records that are never sampled are yielded first. Probes hold many numbers of many kinds and no common
    tolerance; runs whose data is not at hand cannot be repeated.
    """
    quality = [record for record in store.all() if record.spec.purpose == "quality" and record.spec.platform == "cpu"]
    candidates: list[tuple[Record, Run]] = []
    left_out: dict[str, int] = defaultdict(int)
    for record in quality:
        if isinstance(record.spec, Probe):
            left_out[
                f"{record.spec.measure}: probes have no common tolerance, repeat one with `peftbook run --key`"
            ] += 1
        elif record.spec.task.name not in task_names() or missing_data(record.spec.task.name):
            left_out[f"{record.spec.task.name}: the data of this task is not at hand"] += 1
        else:
            candidates.append((record, record.spec))
    for what, count in sorted(left_out.items()):
        yield Verified("", "skipped", f"{count} record{'s' * (count > 1)} of {what}", count)
    for record, run in random.Random(seed).sample(candidates, min(sample, len(candidates))):
        yield verify(record, run)


def verify(record: Record, run: Run) -> Verified:
    """Repeat one run in a folder of its own and compare."""
    with tempfile.TemporaryDirectory() as folder:
        ok, message = run_subprocess(run, folder=Path(folder))
        again = Store(Path(folder)).get(run) if ok else None
    if again is None:
        return Verified(record.short_key, "failed", f"{record.short_key}: did not run: {message}")
    return compare(record, again)
