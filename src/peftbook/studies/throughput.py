"""What do more workers buy? The book's own runs on many machines, by their wall times; and the queue, measured.

The runs of every study of trainings, in two stages: choices on the validation split, then confirmations on the test
split, which wait for them. `scratch.schedule` deals them out. It is a simulation: a run takes on each machine what its
record took here, and nothing fails. Runs whose records are missing are left out.

Measured: runs an hour of the queue on one machine, small runs of some seconds each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from statistics import median

from peftbook import specs
from peftbook.records import Missing, Record, Store
from peftbook.scratch.schedule import bounds, makespan
from peftbook.studies import NAMES, Quantity, Verdict, gathered, get_study, study
from peftbook.studies.memory import SCRATCH
from peftbook.studies.merging import MACHINE, timing

__all__ = ["MEASURED", "WORKERS", "probe", "stages"]

WORKERS = (1, 10, 100, 1000)
MEASURED = (1, 2, 4)
REPEATS = (0, 1, 2)
JOBS = 8
LEAST = 1.6  # times the runs an hour of one worker that two must make
Seconds = list[list[list[float]]]  # study → stage → seconds of its runs


def probe(workers: int, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One measurement of the queue."""
    return timing("throughput.throughput", seed, machine, SCRATCH, workers=workers, jobs=JOBS)


def runs(store: Store) -> list[specs.Probe]:
    """Repeat by repeat, so that a slow spell of the machine hits all counts of workers."""
    return [probe(workers, seed) for seed in REPEATS for workers in MEASURED]


def records(workers: int, store: Store) -> list[Record]:
    """The repeats of a count of workers. Raises Missing."""
    return store.need_all(probe(workers, seed) for seed in REPEATS)


def staged(store: Store) -> list[list[list[Record]]]:
    """The quality runs at hand, by study and stage; a run that studies share counts where it comes first.

    Raises Missing where there is none at all.
    """
    found, seen = [], set()
    for name in NAMES:
        if name == "throughput":
            continue
        both: tuple[list[Record], list[Record]] = [], []
        for run in get_study(name).runs(store):
            if run.purpose == "timing" or run.key in seen:
                continue
            seen.add(run.key)
            if (record := store.get(run)) is not None and record.wall_seconds is not None:
                both[isinstance(run, specs.Run) and run.evaluation.split == "test"].append(record)
        if stage := [one for one in both if one]:
            found.append(stage)
    if not found:
        raise Missing(get_study(NAMES[0]).runs(store)[0])
    return found


def stages(store: Store) -> Seconds:
    """Their seconds, from start to end."""
    return timed(staged(store))


def timed(found: list[list[list[Record]]]) -> Seconds:
    """Seconds in place of records."""
    return [[[record.wall_seconds or 0.0 for record in stage] for stage in study] for study in found]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Of the book's runs: how many, hours of the longest chain and on so many workers; and what was measured."""
    out: dict[str, Quantity] = {}
    with suppress(Missing):
        found = staged(store)
        keys, known = tuple(record.key for study in found for stage in study for record in stage), timed(found)
        hours = functools.partial(Quantity, unit="hours", runs=keys, note="from the wall times of the records")
        out["runs"] = Quantity(float(len(keys)), "runs", keys, digits=0)
        out["chain"] = hours(bounds(known, 10**9)[0] / 3600)
        for workers in WORKERS:
            out[f"on_{workers}"] = hours(makespan(known, workers) / 3600, digits=1)
    return out | gathered(lambda workers: measured(workers, records(workers, store)), MEASURED)


def measured(workers: int, repeats: list[Record]) -> dict[str, Quantity]:
    """Runs an hour of a count of workers, and what the driver and a start take."""
    keys, note = tuple(record.key for record in repeats), "median and range of the repeats"
    rates = [float(record.measurements["runs_per_hour"] or 0) for record in repeats]
    driver = [1000 * float(record.measurements["driver_seconds"] or 0) for record in repeats]
    spent = [whole - work for record in repeats for whole, work in zip(*seconds(record), strict=True)]
    each = functools.partial(Quantity.middle, runs=keys, digits=0, seeds=len(repeats), note=note)
    return {
        f"measured_{workers}": each(rates, "runs per hour", n=JOBS),
        f"driver_{workers}": each(driver, "ms"),
        f"start_{workers}": Quantity(median(spent), "s", keys, n=len(spent), digits=1, note="median of the runs"),
    }


def seconds(record: Record) -> tuple[list[float], list[float]]:
    """Of each run of a measurement: from start to end, and those in which it computed."""
    whole, work = ([float(one) for one in record.per_example[f"{name}_seconds"]] for name in ("run", "work"))
    return whole, work


@study("throughput", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Do two workers make nearly twice the runs of one in every repeat?"""
    one, two = records(1, store), records(2, store)
    ratios = [
        float(b.measurements["runs_per_hour"] or 0) / float(a.measurements["runs_per_hour"] or 1)
        for a, b in zip(one, two, strict=True)
    ]
    outcome = "reproduced" if min(ratios) >= LEAST else "refuted" if max(ratios) < LEAST else "undecided"
    sentence = (
        f"On {MACHINE} two workers make {median(ratios):.2f} times the runs an hour of one "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} repeats)."
    )
    return Verdict(outcome, sentence, ("measured_2", "measured_1"))
