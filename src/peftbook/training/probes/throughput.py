"""How many runs an hour the queue makes."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.runtime import queue
from peftbook.studies import Study, Verdict
from peftbook.training.probes import Findings, positive

# What every run of the measurement is: a tiny Llama learns to sort, in some seconds.
SMALL_RUN: dict[str, Any] = {
    "depth": 1, "hidden": 64, "heads": 4, "length": 10, "pretrain_steps": 200, "pretrain_rate": 0.003, "steps": 100,
    "prompt_rates": (0.1,), "prefix_rates": (0.1,), "lora_rates": (0.01,),
}  # fmt: skip


def throughput(probe: specs.Probe) -> Findings:
    """Runs an hour of so many equal runs, each in a process of its own, as the queue serves them.

    settings: workers, jobs. Every worker has its share of the cores, at least one; with threads, so many.

    seconds: from the first start to the last end.  driver_seconds: processor time of the serving process for each run.
    per_example: run_seconds from a run's start to its end, work_seconds those in which it computes; the rest is the
    start of its process.
    """
    workers, jobs = positive(probe, "workers", "jobs")
    runs = [small_run(seed) for seed in range(jobs)]
    study = Study(
        "throughput",
        "",
        "",
        "",
        "",
        "",
        "",
        lambda store: runs,
        lambda store: {},
        lambda store: Verdict("measured", ""),
    )
    with tempfile.TemporaryDirectory() as folder:
        store, compute = Store(Path(folder)), in_folder(Path(folder), probe)
        began, used = time.monotonic(), time.process_time()
        outcomes = queue.run_studies([study], store, compute=compute, report=lambda line: None, workers=workers)
        seconds, driver = time.monotonic() - began, time.process_time() - used
        if failed := [outcome for outcome in outcomes if not outcome.ok]:
            raise InputError(f"A run of the measurement failed: {failed[0].message}.")
        work = [record.wall_seconds or 0.0 for run in runs if (record := store.get(run)) is not None]
    measured = {"seconds": seconds, "runs_per_hour": 3600 * jobs / seconds, "driver_seconds": driver / jobs}
    return Findings(
        measured, per_example={"run_seconds": [outcome.seconds for outcome in outcomes], "work_seconds": work}
    )


def in_folder(folder: Path, probe: specs.Probe) -> queue.Compute:
    """Computes a run with its record in `folder`, and with as many threads as the probe sets, if it sets any."""
    compute = functools.partial(queue.run_subprocess, folder=folder)
    if "threads" not in probe.settings:
        return compute
    (threads,) = positive(probe, "threads")
    return lambda run, share: compute(run, threads)


def small_run(seed: int) -> specs.Probe:
    """One of the equal runs."""
    return specs.Probe(
        measure="synthetic.sort_by_depth",
        settings=SMALL_RUN,
        model=specs.RANDOM_LLAMA,
        seed=seed,
    )
