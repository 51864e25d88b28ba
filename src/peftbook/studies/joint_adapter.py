"""Does one adapter trained on the rows of four tasks keep more of each gain than the average of their four adapters?

Written before the runs. The joint adapter is LoRA of the same rank, trained on the very batches of the four single
adapters of `averaging`, seed by seed, in a shuffled order: their tokens together, and each batch of one task, so that
short answers count in a step as much as long ones. Its rate is the one with the lowest validation loss, mean over the
four tasks, with the sweep's seed, of the grid of the single adapters, extended where the best is an end. It is scored
on the same test rows, and its share of a gain is that of `averaging`.

On trial is its share minus that of the average of the updates, task by task. Any of the four differences may refute, so
that refuting takes the interval at 5 % / 4 (Bonferroni); all must bear the claim out. Control: as for the average, each
task's own adapter surely gains FLOOR.

Expected before any run: above 0 for all four, most for docstrings; for sorting, of which the average keeps most, the
interval may not clear the margin. The shares of the average were known, and nothing joint had been trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.core.tracking import untracked
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import keys_of
from peftbook.evidence.planning import Judged, judge_claim
from peftbook.evidence.sweep import Sweep, extended, trials
from peftbook.studies import Quantity, Verdict, available, averaging, margins, merging, study
from peftbook.studies.averaging import ARM, FLOOR, LABELS, ROWS, SEEDS, SWEEPS, TASKS
from peftbook.studies.tuned_comparison import tuning_quantities
from peftbook.tasks import test_groups

MARGIN = margins.SHARE
CLAIMED = (0.0, math.inf)
SWEEP_SEED, FACTOR = 0, 2.0
AVERAGE = f"{'+'.join(TASKS)}_average"


def probe(rate: float, runs: Sequence[specs.Run], seed: int) -> specs.Probe:
    """One adapter on the batches of these runs."""
    return specs.Probe(
        measure="combining.joint_losses",
        settings={"learning_rate": rate},
        runs=tuple(runs),
        model=specs.SMALL_LLAMA,
        seed=seed,
    )


def tuning() -> Sweep[specs.Probe]:
    """The sweep that chooses the rate of the joint adapter."""
    return Sweep(
        lambda rate: [probe(rate, [SWEEPS[task].sweep_run(ARM, rate, SWEEP_SEED) for task in TASKS], SWEEP_SEED)],
        ARM.rates,
        lambda losses: extended(losses, FACTOR),
    )


def final(seed: int, store: Store) -> specs.Probe:
    """The joint adapter on the batches of a seed's single ones. Raises Missing until all rates are chosen."""
    with untracked():
        rate = tuning().best(store.get)
    return probe(rate, averaging.probe(seed, store).runs, seed)


def runs(store: Store) -> list[specs.Run | specs.Probe]:
    """Those of the average, then the sweep, then the joint adapters of the seeds."""
    finals = available(lambda seed: final(seed, store), SEEDS)
    return [*averaging.runs(store), *trials([tuning()], store.get), *finals]


def finals(store: Store) -> list[Record]:
    """The joint adapters' records. Raises Missing."""
    return store.need_all(final(seed, store) for seed in SEEDS)


def records_of(store: Store) -> list[Record]:
    """The records of `averaging` with what the joint adapter of the same seed scores. Raises Missing."""
    pairs = zip(averaging.records_of(store), finals(store), strict=True)
    return [one.model_copy(update={"per_example": one.per_example | joint.per_example}) for one, joint in pairs]


def lead(records: Sequence[Record], task: str) -> stats.Interval:
    """The share of a task's gain that the joint adapter has, minus that of the average of four."""
    joint, average = (averaging.share_replicates(records, task, state) for state in ("joint", AVERAGE))
    return resampling.statistic_interval(joint - average, ROWS, test_groups(task, ROWS))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """The rate; what the joint adapter keeps of each gain, and how much more that is than what the average keeps."""
    out: dict[str, Quantity] = {}
    with suppress(Missing):
        tuned = tuning_quantities(tuning(), store.get, 1, unit="nats per token", digits=3)
        out |= {name: tuned[name] for name in ("best_rate", "sweep_runs")}
        records, trained = records_of(store), finals(store)
        keys = keys_of(averaging.records_of(store), trained)
        for task in TASKS:
            out[f"{task}_kept"] = merging.percent(averaging.share(records, task, "joint"), keys, 0)
            out[f"{task}_lead"] = replace(merging.percent(lead(records, task), keys, 0), unit="percentage points")
        means = np.mean([averaging.share_replicates(records, task, "joint")[0] for task in TASKS], axis=0)
        out["mean_kept"] = merging.percent(stats.seed_interval(means), keys, 0, "interval over seeds alone")
        tokens = [float(record.measurements["train_tokens"] or 0) for record in trained]
        out["train_tokens"] = Quantity.middle(tokens, "tokens", keys_of(trained), digits=0)
    return out


def part_of(records: Sequence[Record], task: str) -> tuple[str, Judged]:
    """The outcome of a task's difference, any of which may refute, and what it was judged on."""
    outcome, part = judge_claim(lead(records, task), MARGIN, CLAIMED, len(TASKS))
    gains = averaging.gain(records, task, f"by_{task}").low > FLOOR
    return outcome if gains else "undecided", part


@study("joint_adapter", runs, quantities, tasks=len(TASKS), percent=100 * (1 - 0.05 / len(TASKS)))
def verdict(store: Store) -> Verdict:
    """Does the joint adapter keep more of every gain than the average of four?"""
    records = records_of(store)
    parts = {task: part_of(records, task) for task in TASKS}
    leads = {task: lead(records, task) for task in TASKS}
    said = "; ".join(
        f"{LABELS[task]} {100 * one.mean:+.0f} (95 % interval {100 * one.low:+.0f} to {100 * one.high:+.0f})"
        for task, one in leads.items()
    )
    return Verdict(
        stats.together([outcome for outcome, _ in parts.values()]),
        f"Share of the gain that the joint adapter keeps, minus that of the average of four, in percentage points: "
        f"{said} (claim above 0, margin {100 * MARGIN:.0f}).",
        tuple(f"{task}_lead" for task in TASKS),
        tuple(part for _, part in parts.values()),
    )
