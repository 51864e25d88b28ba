"""What do more workers buy? The book's own runs on many machines, by their wall times; and the queue, measured.

The runs of every study of trainings, in two stages: choices on the validation split, then confirmations on the test
split, which wait for them. `scratch.schedule` deals them out. It is a simulation: a run takes on each machine what its
record took here, and nothing fails. Runs whose records are missing are left out.

Measured: runs an hour of the queue on one machine, small runs of some seconds each.

The verdict is on `SINGLES`, a worker with one thread and one with two, and a pair of workers beside them on one
machine: the pair against the faster of the two.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.evidence.comparison import keys_of, measured
from peftbook.scratch.schedule import bounds, makespan
from peftbook.studies import NAMES, Quantity, Verdict, costs, gathered, get_study, study
from peftbook.studies.memory import SCRATCH
from peftbook.studies.merging import MACHINE, timing

WORKERS = (1, 10, 100, 1000)
MEASURED = (1, 2, 4)
REPEATS = (0, 1, 2)
JOBS = 8
LEAST = 1.6  # times the runs an hour of one worker that two must make
Seconds = list[list[list[float]]]  # study → stage → seconds of its runs


@dataclass(frozen=True)
class Crew:
    """So many workers on a machine. threads: of each run; None is a worker's share of the cores."""

    workers: int
    threads: int | None = None
    machine: str = MACHINE

    @property
    def name(self) -> str:
        """In names of quantities: `2`, `1_threads_2`."""
        return str(self.workers) if self.threads is None else f"{self.workers}_threads_{self.threads}"

    @property
    def words(self) -> str:
        """What a single worker has."""
        return f"with {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else "that has both cores"

    def probe(self, seed: int) -> specs.Probe:
        """One measurement of the queue."""
        own = {} if self.threads is None else {"threads": self.threads}
        return timing("throughput.throughput", seed, self.machine, SCRATCH, workers=self.workers, jobs=JOBS, **own)

    def records(self, store: Store) -> list[Record]:
        """Its repeats. Raises Missing."""
        return store.need_all(self.probe(seed) for seed in REPEATS)


CREWS = tuple(Crew(workers) for workers in MEASURED)
SINGLES = tuple(Crew(1, threads, costs.MACHINE) for threads in (1, 2))
PAIR = Crew(2, 1, costs.MACHINE)


def runs(store: Store) -> list[specs.Probe]:
    """Repeat by repeat, so that a slow spell of the machine hits all crews that are compared."""
    return [crew.probe(seed) for crews in (CREWS, (*SINGLES, PAIR)) for seed in REPEATS for crew in crews]


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
        keys, known = keys_of(*(stage for study in found for stage in study)), timed(found)
        hours = functools.partial(Quantity, unit="hours", runs=keys, note="from the wall times of the records")
        out["runs"] = Quantity(float(len(keys)), "runs", keys, digits=0)
        out["chain"] = hours(bounds(known, 10**9)[0] / 3600)
        for workers in WORKERS:
            out[f"on_{workers}"] = hours(makespan(known, workers) / 3600, digits=1)
    return out | gathered(lambda crew: crew_quantities(crew.name, crew.records(store)), (*CREWS, *SINGLES, PAIR))


def crew_quantities(name: str, repeats: list[Record]) -> dict[str, Quantity]:
    """Runs an hour of a count of workers, and what the driver, a start and the work of a run take."""
    keys, note = keys_of(repeats), "median and range of the repeats"
    hourly = rates(repeats)
    driver = [1000 * spent for spent in measured(repeats, "driver_seconds")]
    spent = [whole - work for record in repeats for whole, work in zip(*seconds(record), strict=True)]
    work = [second for record in repeats for second in seconds(record)[1]]
    each = functools.partial(Quantity.middle, runs=keys, digits=0, seeds=len(repeats), note=note)
    return {
        f"measured_{name}": each(hourly, "runs per hour", n=JOBS),
        f"driver_{name}": each(driver, "ms"),
        f"start_{name}": Quantity(median(spent), "s", keys, n=len(spent), digits=1, note="median of the runs"),
        f"work_{name}": Quantity(median(work), "s", keys, n=len(work), digits=0, note="median of the runs"),
    }


def seconds(record: Record) -> tuple[list[float], list[float]]:
    """Of each run of a measurement: from start to end, and those in which it computed."""
    whole, work = ([float(one) for one in record.per_example[f"{name}_seconds"]] for name in ("run", "work"))
    return whole, work


def rates(repeats: list[Record]) -> list[float]:
    """Runs an hour in each repeat."""
    return measured(repeats, "runs_per_hour")


@study("throughput", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Do two workers make nearly twice the runs of the best single worker measured, in every repeat?"""
    one = max(SINGLES, key=lambda crew: median(rates(crew.records(store))))
    paired = zip(rates(PAIR.records(store)), rates(one.records(store)), strict=True)
    ratios = [ahead / alone for ahead, alone in paired]
    outcome = "reproduced" if min(ratios) >= LEAST else "refuted" if max(ratios) < LEAST else "undecided"
    sentence = (
        f"On {PAIR.machine} two workers make {median(ratios):.2f} times the runs an hour of one {one.words} "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} repeats)."
    )
    return Verdict(outcome, sentence, (f"measured_{PAIR.name}", f"measured_{one.name}"))
