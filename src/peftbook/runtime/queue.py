"""The queue: what studies still lack, in order of worth, several runs side by side, one process each.

Nothing is kept but the records: a queue that was killed is started again and goes on, with the runs that were under
way at their last checkpoint. Failures are reported and stop nothing.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from peftbook.core.exchange import export_records
from peftbook.core.progress import duration, time_of_day
from peftbook.core.records import Store
from peftbook.core.specs import Run
from peftbook.evidence.results import describe
from peftbook.runtime.durations import Estimates, Predict, Spec
from peftbook.runtime.fork_server import ForkServer
from peftbook.runtime.hardware import cores, machine_name
from peftbook.runtime.processes import Child, call_in_child
from peftbook.runtime.resources import WORKER_BYTES
from peftbook.runtime.threads import best_threads, cores_gained
from peftbook.studies import Study
from peftbook.tasks import missing_data

WORKER = ("-m", "peftbook.runtime.worker")

Compute = Callable[[Spec, int], tuple[bool, str]]

RUNNING: set[Callable[[], object]] = set()  # each ends a run that is under way


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
    fork_server: ForkServer | None = None,
) -> tuple[bool, str]:
    """Compute one run in a process of its own. Returns success and, if it failed, why in one line.

    threads: of the process; 0 means as many as speed it up.  folder: where its record goes (default: the usual).
    show: let how far it is, and a traceback, through to standard error.  variables: more of its environment.
    processes: with more than one, the process starts so many, which compute the run together and share its threads.
    fork_server: forks the run, unless its time or memory is measured or it needs more than one CPU process.
    """
    words = [*WORKER, *(["--show"] if show else [])]
    if processes > 1:
        words += ["--processes", str(processes), "--strategy", strategy]
    places = {} if folder is None else {"PEFTBOOK_RECORDS": str(folder)}
    forked = isinstance(run, Run) and (run.purpose, run.platform, processes) == ("quality", "cpu", 1)
    with Child(
        *words,
        threads=threads or best_threads(),
        variables={**(variables or {}), **places},
        show=show,
        start=fork_server.start if forked and fork_server else subprocess.Popen,
    ) as child:
        RUNNING.add(child.terminate)
        try:
            child.write(f"{run.canonical()}\n")
            child.wait()
        finally:
            RUNNING.discard(child.terminate)
        return child.status == 0, child.failure()


def machine_here(platform: str) -> str:
    """The name that timing runs made here carry; empty where there is no such platform. Asked in another process."""
    with contextlib.suppress(RuntimeError):
        return call_in_child(machine_name, platform)
    return ""


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
        known = [each for each in seconds if each is not None]
        if not seconds or len(known) < len(seconds):
            return "time left unknown" if seconds else "last ones"
        alone = sum(each for each, spec in zip(known, self.waiting, strict=True) if spec.purpose == "timing")
        return f"about {duration(alone + (sum(known) - alone) / self.workers)} left"

    def finish(self, outcome: Outcome) -> None:
        """Record the outcome of a run and report it."""
        self.outcomes.append(outcome)
        if outcome.ok:
            self.estimates.note(outcome.run, outcome.seconds)
        failed = sum(not made.ok for made in self.outcomes)
        self.survey()
        word = "done " if outcome.ok else "FAILED"
        counts = f"{self.done}/{self.known}, {f'{failed} failed, ' if failed else ''}{self.time_left()}"
        why = f": {outcome.message}" if outcome.message else ""
        self.say(f"{word} in {duration(outcome.seconds)} [{counts}] {name_of(outcome.run)}{why}")

    def say(self, text: str) -> None:
        """One event, one line."""
        self.report(f"{time_of_day()} {text}")


def print_line(line: str) -> None:
    """Print a line and flush, so that a log is current."""
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
    predict: predicts the seconds of runs of which no record of their kind is at hand.
    refuse: why an engine cannot make a run, in a sentence; empty if it can.
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
    """On an error or Ctrl-C, end the running processes instead of waiting for them."""
    try:
        yield
    except BaseException:
        for terminate in list(RUNNING):
            terminate()
        raise


def name_of(spec: Spec) -> str:
    """Key and description, in one line."""
    return f"{spec.key[:12]} {describe(spec)}"
