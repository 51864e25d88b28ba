"""The queue: what studies still lack, in order of worth, several runs side by side, one process each.

Nothing is kept but the records: a queue that was killed is started again and goes on, with the runs that were under
way at their last checkpoint. Failures are reported and stop nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from peftbook.errors import InputError
from peftbook.records import Record, Store, export_records
from peftbook.results import describe
from peftbook.specs import Probe, Run
from peftbook.studies import Study
from peftbook.tasks import get_task, task_names
from peftbook.training.hardware import cores, cpu_model
from peftbook.training.precision import products_here
from peftbook.training.threads import best_threads, cores_gained

__all__ = ["Outcome", "default_workers", "predicted_here", "run_studies", "run_subprocess"]

SLOW = 10.0  # times as long as on the book's machines, from which a run says so before it starts
WORKER_BYTES = 5e9  # what training at 135M parameters may take on a CPU
WORKER = ("-m", "peftbook.training.worker")

Spec = Run | Probe
Compute = Callable[[Spec, int], tuple[bool, str]]
Predict = Callable[[Sequence[Spec]], Sequence[float | None]]


class Running(Protocol):
    """What an interrupted queue ends: a process, or a task on another machine."""

    def terminate(self) -> None: ...


RUNNING: set[Running] = set()


@dataclass(frozen=True)
class Outcome:
    """What became of one run of the queue."""

    run: Spec
    seconds: float
    ok: bool
    message: str = ""


def default_workers(platform: str) -> int:
    """One worker for each core that adds speed, where memory allows WORKER_BYTES each, since threads gain less than
    runs side by side; on a GPU one.
    """
    if platform != "cpu":
        return 1
    import psutil

    return max(1, min(cores_gained(), int(psutil.virtual_memory().available // WORKER_BYTES)))


def run_subprocess(
    run: Spec,
    threads: int = 0,
    *,
    folder: Path | None = None,
    show: bool = False,
    variables: Mapping[str, str] | None = None,
    processes: int = 1,
    strategy: str = "ddp",
) -> tuple[bool, str]:
    """Compute one run in a process of its own. Returns success and, if it failed, why in one line.

    threads: of the process; 0 means as many as speed it up.  folder: where its record goes (default: the usual).
    show: let how far it is, and a traceback, through to standard error.  variables: more of its environment.
    processes: with more than one, the process starts so many, which compute the run together and share its threads.
    """
    command = [sys.executable, *WORKER]
    if processes > 1:
        command += ["--processes", str(processes), "--strategy", strategy]
    if show:
        command.append("--show")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads or best_threads())} | dict(variables or {})
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep, so a neighbour is not slowed down
    if folder is not None:
        environment["PEFTBOOK_RECORDS"] = str(folder)
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            stderr=None if show else complaints,
        )  # fmt: skip
        RUNNING.add(process)
        try:
            said = _talk(process, run.canonical()).strip().splitlines()
        finally:
            RUNNING.discard(process)
        if process.returncode == 0:
            return True, ""
        complaints.seek(0)
        complained = complaints.read().strip().splitlines()
    if process.returncode < 0:
        return False, f"ended by signal {-process.returncode}{' (out of memory?)' * (process.returncode == -9)}"
    lines = said if process.returncode == 2 else complained  # a refusal is said, a traceback is complained
    return False, lines[-1] if lines else f"ended with exit status {process.returncode}"


def _talk(process: subprocess.Popen, spec: str) -> str:
    """Give the worker its spec and read what it says until it ends. Its input stays open: it ends when we do."""
    assert process.stdin is not None and process.stdout is not None
    with process.stdout:
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit status says so
            process.stdin.write(f"{spec}\n")
            process.stdin.flush()
        said = process.stdout.read()
    process.wait()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return said


@dataclass
class Estimates:
    """How long a run takes, from the records made here and from what this queue has seen; else as predicted.

    elsewhere: of runs on other machines, which say what to expect only where nothing better is known.
    """

    seconds: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    elsewhere: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    predicted: dict[Hashable, float | None] = field(default_factory=dict)
    asked: bool = False

    def note(self, spec: Spec, seconds: float, here: bool = True) -> None:
        """One more run that took so long."""
        known = self.seconds if here else self.elsewhere
        known[kind_of_work(spec)].append(seconds)
        known[spec.platform].append(seconds)

    def read(self, store: Store) -> None:
        """Note how long every record at hand took to make."""
        for record in store.all():
            if (seconds := record.wall_seconds) is not None:
                self.note(record.spec, seconds, made_here(record))

    def of(self, spec: Spec) -> float | None:
        """Median seconds of runs with the same kind of work, else what is predicted for one of them, else the median
        on other machines, else of all runs of the platform, else None."""
        kind = kind_of_work(spec)
        if found := self.seconds.get(kind):
            return statistics.median(found)
        if (predicted := self.predicted.get(kind)) is not None:
            return predicted
        for known, name in ((self.elsewhere, kind), (self.seconds, spec.platform), (self.elsewhere, spec.platform)):
            if found := known.get(name):
                return statistics.median(found)
        return None

    def slow_words(self, spec: Spec) -> str:
        """That a run takes far longer here than it did on the machines of its kind's records; else empty."""
        there = self.elsewhere.get(kind_of_work(spec))
        return slow_words(self.of(spec), statistics.median(there) if there else None)

    def foresee(self, specs: Sequence[Spec], predict: Predict) -> None:
        """Have one run of every kind predicted that was neither seen nor asked for.

        Where there are runs at all the first call asks, if for nothing: asking measures the machine, by whose rates
        each record will say what was predicted.
        """
        new: dict[Hashable, Spec] = {}
        for spec in specs:
            kind = kind_of_work(spec)
            if kind not in self.predicted and not self.seconds.get(kind):
                new.setdefault(kind, spec)
        if new or (specs and not self.asked):
            self.asked = True
            self.predicted |= dict(zip(new, predict(list(new.values())), strict=True))


def kind_of_work(spec: Spec) -> Hashable:
    """What makes two runs take about equally long: platform, task, method, tokens, texts; or the measure of a probe."""
    if isinstance(spec, Probe):
        return spec.platform, spec.measure, len(spec.runs)
    tokens = spec.budget.tokens if spec.budget else 0
    shots = spec.method.examples_shown
    return spec.platform, spec.task.name, spec.method.full_kind, shots, tokens, spec.evaluation.n_generate


def predicted_here(specs: Sequence[Spec], threads: int = 1) -> list[float | None]:
    """Seconds that runs will take on this machine, by the time model; None for those that it does not know.

    Another process computes them, after measuring the machine if that was never done. threads: of each run.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    said = subprocess.run(
        [sys.executable, "-m", "peftbook.training.estimate"], capture_output=True, text=True, env=environment,
        input="".join(f"{spec.canonical()}\n" for spec in specs),
    ).stdout.splitlines()  # fmt: skip
    lines = said[: len(specs)] + [""] * (len(specs) - len(said))
    return [float(line) if line else None for line in lines]


def missing_data(task: str) -> str:
    """Why a task of the book cannot be loaded here, in a sentence; empty if it can."""
    if task in task_names():
        try:
            get_task(task)
        except InputError as error:
            return str(error)
    return ""


def machine_here(platform: str) -> str:
    """The name that timing runs made here carry; empty where there is no such platform. Asked in another process."""
    ask = f"from peftbook.training.hardware import machine_name; print(machine_name({platform!r}))"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout.strip()


@dataclass
class Queue:
    """One call of `run_studies`: what it was given and where it stands.

    done, known: runs with a record, and runs determined so far.  waiting: those to be made, in order.
    """

    studies: Sequence[Study]
    store: Store
    report: Callable[[str], None]
    workers: int
    deadline: float | None
    data: Callable[[str], str]
    machine: Callable[[str], str]
    predict: Predict
    refuse: Callable[[Spec], str]
    estimates: Estimates = field(default_factory=Estimates)
    outcomes: list[Outcome] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    said: set[tuple[str, str]] = field(default_factory=set)
    done: int = 0
    known: int = 0
    waiting: list[Spec] = field(default_factory=list)

    def survey(self) -> None:
        """Find out again what is known and what is missing: stages appear as runs finish."""
        known: set[str] = set()
        missing: dict[str, Spec] = {}
        for study in self.studies:
            hindered: dict[str, int] = defaultdict(int)
            for run in study.runs(self.store):
                spec = self.store.spec(run)
                key = spec.key
                known.add(key)
                if key in missing or self.store.path(key) is not None:
                    continue
                if why := self.obstacle(spec):
                    hindered[why] += 1
                else:
                    missing[key] = spec
            for why, count in hindered.items():
                if (study.name, why) not in self.said:
                    self.said.add((study.name, why))
                    self.say(f"SKIP  {study.name}: {count} run{'s' * (count > 1)} left out: {why}")
        self.known = len(known)
        self.done = sum(self.store.path(key) is not None for key in known)
        self.waiting = [spec for key, spec in missing.items() if key not in self.tried]
        self.estimates.foresee(self.waiting, self.predict)

    def obstacle(self, spec: Spec) -> str:
        """Why a run cannot be made here, in a sentence; empty if nothing is in the way."""
        if why := self.refuse(spec):
            return why
        for run in (spec,) if isinstance(spec, Run) else spec.runs:
            if why := self.data(run.task.name):
                return why
        if spec.purpose == "timing" and spec.machine and spec.machine != (here := self.machine(spec.platform)):
            return f"they are timed on {spec.machine!r}, and this machine is {here!r}."
        return ""

    def next(self, running: Sequence[Spec]) -> Spec | None:
        """The first waiting run that may start beside those that run now, by the clock and by the timing rule."""
        if len(running) >= self.workers or any(spec.purpose == "timing" for spec in running):
            return None
        for spec in self.waiting:
            if self.fits(spec):
                return None if spec.purpose == "timing" and running else spec
        return None

    def fits(self, spec: Spec) -> bool:
        """Whether a run would end before the deadline; the first run of a call always does."""
        if self.deadline is None or not self.tried:
            return True
        return time.monotonic() + (self.estimates.of(spec) or 0) <= self.deadline

    def time_left(self) -> str:
        """About how long the known rest takes, in words."""
        seconds = [self.estimates.of(spec) for spec in self.waiting]
        if not seconds or any(one is None for one in seconds):
            return "time left unknown" if seconds else "last ones"
        alone = sum(one or 0 for one, spec in zip(seconds, self.waiting, strict=True) if spec.purpose == "timing")
        return f"about {duration(alone + (sum(one or 0 for one in seconds) - alone) / self.workers)} left"

    def finish(self, outcome: Outcome) -> None:
        """Keep what became of a run and say it."""
        self.outcomes.append(outcome)
        if outcome.ok:
            self.estimates.note(outcome.run, outcome.seconds)
        failed = sum(not one.ok for one in self.outcomes)
        self.survey()
        word = "done " if outcome.ok else "FAILED"
        counts = f"{self.done}/{self.known}, {f'{failed} failed, ' if failed else ''}{self.time_left()}"
        why = f": {outcome.message}" if outcome.message else ""
        self.say(f"{word} in {duration(outcome.seconds)} [{counts}] {name_of(outcome.run)}{why}")

    def say(self, text: str) -> None:
        """One event, one line."""
        self.report(f"{datetime.datetime.now():%H:%M:%S} {text}")


def print_line(line: str) -> None:
    """To standard output at once, so that a log is never behind."""
    print(line, flush=True)


def run_studies(
    studies: Sequence[Study],
    store: Store,
    *,
    compute: Compute = run_subprocess,
    report: Callable[[str], None] = print_line,
    workers: int = 1,
    limit: int | None = None,
    minutes: float | None = None,
    export: Path | None = None,
    this_machine: Callable[[str], str] = machine_here,
    predict: Predict = lambda specs: [None] * len(specs),
    refuse: Callable[[Spec], str] = lambda spec: "",
) -> list[Outcome]:
    """Compute what is missing until no study determines a new run; each run is tried once a call.

    Studies are served in the order given and each in its own order; a run that two of them share is computed once. A
    stage that depends on earlier results appears when those have records. Runs that cannot be made here (data that is
    not at hand, timings of another machine) are named and passed over.

    workers: runs side by side, each with its share of the cores; a timing run has the machine to itself.
    limit: start no more than so many runs.  minutes: start no run that would probably end later; one is always tried.
    export: keep the records made by this call in this file too, after every run.
    predict: seconds of runs of a kind that no record tells of.
    refuse: what else is in the way of a run, in a sentence, for engines that cannot make every run.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    asked = functools.cache(missing_data), functools.cache(this_machine)
    queue = Queue(studies, store, report, workers, deadline, *asked, predict, refuse)
    queue.estimates.read(store)
    running: dict[Future, tuple[Spec, float]] = {}
    made: list[str] = []
    with ThreadPoolExecutor(workers) as pool, ending_workers():
        queue.survey()
        while True:
            while limit is None or len(queue.tried) < limit:
                spec = queue.next([spec for spec, _ in running.values()])
                if spec is None:
                    break
                queue.tried.add(spec.key)
                queue.waiting.remove(spec)
                queue.say(f"start [{queue.done}/{queue.known}] {name_of(spec)}")
                if slow := queue.estimates.slow_words(spec):
                    queue.say(f"SLOW  {slow}")
                threads = cores() if spec.purpose == "timing" else best_threads(max(1, cores() // workers))
                running[pool.submit(compute, spec, threads)] = spec, time.monotonic()
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                spec, began = running.pop(future)
                queue.finish(Outcome(spec, time.monotonic() - began, *future.result()))
                if queue.outcomes[-1].ok and export is not None:
                    made.append(spec.key)
                    export_records(store, made, export)
    if late := [spec for spec in queue.waiting if not queue.fits(spec)]:
        queue.say(f"STOP  {len(late)} runs would end after {minutes:g} minutes: run the same command to go on")
    return queue.outcomes


@contextlib.contextmanager
def ending_workers() -> Iterator[None]:
    """On an error or Ctrl-C, end what runs, so that nothing is waited for."""
    try:
        yield
    except BaseException:
        for process in list(RUNNING):
            process.terminate()
        raise


def made_here(record: Record) -> bool:
    """Whether a record comes from a machine like this one: that processor, multiplying bfloat16 as this one does."""
    if record.spec.platform != "cpu":
        return True
    native = record.provenance.get("bf16_products", "native") == "native"
    return record.provenance.get("cpu") == cpu_model() and native == products_here().native


def slow_words(here: float | None, there: float | None) -> str:
    """That a run takes SLOW times as long here as there, in a sentence; empty where it does not. Seconds, or None."""
    if not here or not there or here < SLOW * there:
        return ""
    return (
        f"This takes about {duration(here)} here and took {duration(there)} on the machine of the book's records: "
        "`peftbook doctor` says what this machine has."
    )


def name_of(spec: Spec) -> str:
    """Key and description, in one line."""
    return f"{spec.key[:12]} {describe(spec)}"


def duration(seconds: float) -> str:
    """Seconds in words: `41 s`, `12 min`, `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
