"""The queue: what a study still lacks, one process a run, resumable; failures are recorded and do not stop it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbook.records import Store
from peftbook.specs import LoRA, Probe, Run, Untuned
from peftbook.studies import Study

__all__ = ["Outcome", "run_studies", "run_subprocess"]


@dataclass(frozen=True)
class Outcome:
    """What became of one run of the queue."""

    run: Run
    seconds: float
    ok: bool
    message: str = ""


def run_subprocess(run: Run, folder: Path | None = None) -> tuple[bool, str]:
    """Compute one run in a process of its own, so that its peak memory is its own and a crash stops nothing else.

    folder: where its record goes (default: where new records go). Returns success and the last line of complaint.
    """
    environment = dict(os.environ)
    if folder is not None:
        environment["PEFTBOOK_RECORDS"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-m", "peftbook.training.execute"],
        input=run.canonical(), text=True, stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    said = done.stdout.strip().splitlines()
    return done.returncode == 0, said[-1] if said and done.returncode else ""


def run_studies(
    studies: Sequence[Study],
    store: Store,
    *,
    compute: Callable[[Run], tuple[bool, str]] = run_subprocess,
    report: Callable[[str], None] = print,
    limit: int | None = None,
) -> list[Outcome]:
    """Compute what is missing until no study determines a new run; each run is tried once a call.

    Studies are served in the order given. A run that two studies share is computed once. A stage that depends on
    earlier results appears when those have records.
    """
    outcomes: list[Outcome] = []
    tried: set[str] = set()
    while limit is None or len(outcomes) < limit:
        waiting = [run for study in studies for run in study.missing(store) if run.key not in tried]
        if not waiting:
            break
        run = waiting[0]
        tried.add(run.key)
        report(f"[{len(outcomes) + 1}, {len({one.key for one in waiting})} known to be missing] {describe(run)}")
        began = time.monotonic()
        ok, message = compute(run)
        outcomes.append(Outcome(run, time.monotonic() - began, ok, message))
        report(f"    {'done' if ok else 'FAILED'} in {outcomes[-1].seconds:.0f} s {message}".rstrip())
    return outcomes


def describe(run: Run | Probe) -> str:
    """One line for people: method, rate, seed, task, key."""
    if isinstance(run, Probe):
        said = " ".join(f"{name}={value}" for name, value in run.settings.items() if isinstance(value, (str, int)))
        on = f" on {len(run.runs)} runs" if run.runs else ""
        return f"{run.key[:12]} {run.measure}{on} {said} seed {run.seed}"
    method = run.method
    rate = f" lr {run.budget.learning_rate:g}" if run.budget else ""
    shots = f" {method.shots}-shot" if isinstance(method, Untuned) else ""
    rank = f" r{method.rank}" if isinstance(method, LoRA) else ""
    split = run.evaluation.split
    return f"{run.key[:12]} {run.task.name} {method.kind}{rank}{shots}{rate} seed {run.seed} ({split})"
