"""The worker of a home: `python -m peftbook.studio.worker --home H`. It computes the queued jobs, several side by side.

Each job is a process of its own (`work`) with its share of the cores: as many at once as there are cores that add
speed, where memory holds all of them by the byte model. So is the assistant, which answers questions beside them. A
worker that is killed takes all with it and loses nothing: the next one finds the jobs in the store, and they go on from
their checkpoints. Only one worker serves a home.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from peftbook.core.errors import InputError
from peftbook.runtime.fork_server import ForkServer
from peftbook.runtime.hardware import free_memory
from peftbook.runtime.processes import Child, environment_of, lock_file
from peftbook.runtime.resources import side_by_side
from peftbook.runtime.threads import best_threads, cores_gained, threads_beside
from peftbook.studio.database import default_home
from peftbook.studio.requests import DEADLINES, MEMORY_SHARE
from peftbook.studio.store import Job, Studio, is_open
from peftbook.studio.work import NOT_MINE, tidy

TICK_SECONDS = 0.2
BEAT_SECONDS = 2.0
IDLE_SECONDS = 600.0  # with nothing to do and no studio open, after which a worker ends
SPARE_SECONDS = 30.0  # without a job, after which the memory of what jobs are forked from is given back
VARIABLES = {"TOKENIZERS_PARALLELISM": "false"}  # of the environment of a studio's processes


def start(module: str, *arguments: str, threads: int = 0, by: Callable[..., Any] = subprocess.Popen) -> Child:
    """A process of the studio, which ends with this one; with as many threads as speed it up, or so many."""
    words = ("-m", f"peftbook.studio.{module}", *arguments)
    return Child(*words, threads=threads or best_threads(), variables=VARIABLES, start=by)


def memory_of(child: Child) -> int:
    """Bytes of memory that a process has now; 0 of one that has ended."""
    try:
        return psutil.Process(child.process.pid).memory_info().rss
    except psutil.Error:
        return 0


def sentence_of(child: Child) -> str:
    """Why the process of a job failed, in a sentence."""
    if child.status < 0:
        return f"was {child.failure()}"
    if child.status == 2:
        return child.failure()
    return f"The job stopped with an error that nobody foresaw: {child.failure()}"


@dataclass
class Slot:
    """Where a job is computed: the process that does it.

    id: whose the job is in the store; a worker has one for each job at a time.
    """

    id: str
    job: Job
    child: Child


class Worker:
    """One worker at work. `tick` does what is to be done now and never waits for a job."""

    def __init__(self, home: Path):
        self.studio = Studio(home)
        self.id = secrets.token_hex(8)
        self.slots: list[Slot] = []
        self.alone: set[str] = set()  # jobs whose process was killed beside another's, for want of memory perhaps
        self.assistant: Child | None = None
        self.fork_server = ForkServer()
        self.threads = 0  # in the environment of what is forked from it
        self.last_beat = -1e9
        self.last_needed = self.last_job = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long there was nothing to do and no studio open."""
        if self.slots or self.assistant is not None or is_open(self.studio.home):
            self.last_needed = time.monotonic()
        return time.monotonic() - self.last_needed

    def load(self, threads: int) -> None:
        """Begin to import what jobs are forked from, most of which have so many threads."""
        self.threads = threads
        with contextlib.suppress(OSError, RuntimeError):  # else each starts as it can, and says why not
            self.fork_server.load(environment_of(threads, VARIABLES))

    def begin(self) -> None:
        """Take over from workers that died."""
        self.studio.beat(self.id, os.getpid())
        for job in self.studio.release():
            self.log(f"job {job} goes on: its worker had died")
        self.studio.unanswered("The assistant was ended: ask again.")
        self.studio.purge()
        self.studio.sweep()
        self.studio.name_runs()

    def tick(self) -> None:
        """Beat, look after the jobs' processes, start the next one, keep an assistant where questions wait."""
        if time.monotonic() - self.last_beat > BEAT_SECONDS:
            for name in (self.id, *(slot.id for slot in self.slots)):
                self.studio.beat(name, os.getpid())
            for job in self.studio.release(self.id, {slot.id for slot in self.slots}):
                self.log(f"job {job} is not computed any more")
            self.last_beat = time.monotonic()
        for slot in list(self.slots):
            self.supervise(slot)
        self.studio.purge()
        self.start_next()
        if self.slots or self.fork_server.is_loading():
            self.last_job = time.monotonic()
        elif time.monotonic() - self.last_job > SPARE_SECONDS:
            self.fork_server.close()
        self.keep_assistant()

    def start_next(self) -> None:
        """Claim a job and start its process, if it may run beside the others; the first of several waits for the
        process that they are forked from. All have one environment, so that they can be, and their own threads.
        """
        if not (waiting := self.studio.waiting()):
            return
        many = self.side_by_side([*(slot.job for slot in self.slots), *waiting])
        threads = threads_beside(many)
        if self.fork_server.process is None:
            self.threads = threads
            if len(waiting) > 1:
                self.load(threads)
        if self.fork_server.is_loading() or len(self.slots) >= many:
            return
        taken = {slot.id for slot in self.slots}
        names = (f"{self.id}{f'-{at}' * (at > 0)}" for at in itertools.count())
        name = next(name for name in names if name not in taken)
        job = self.studio.claim(name, os.getpid(), waiting[0].id)
        if job is None:  # it was cancelled meanwhile
            return
        home, attempt = str(self.studio.home), str(job.attempt)
        arguments = ("--home", home, "--job", job.id, "--attempt", attempt, "--threads", str(threads))
        try:
            child = start("work", *arguments, threads=self.threads, by=self.fork_server.start)
        except OSError as error:
            self.studio.fail(job.id, job.attempt, f"No process could be started ({error.strerror}): resume the job.")
            return
        self.slots.append(Slot(name, job, child))
        self.log(f"job {job.id} attempt {job.attempt} started")

    def side_by_side(self, jobs: Sequence[Job]) -> int:
        """How many of these jobs, those that run and then those that wait, may run at once."""
        many = min(len(jobs), cores_gained())
        if many == 1 or any(job.id in self.alone for job in jobs[:many]):
            return 1
        family = []
        for slot in self.slots:
            with contextlib.suppress(psutil.Error):
                family.append(psutil.Process(slot.child.process.pid))
        return side_by_side([job.run for job in jobs], free_memory(family))

    def supervise(self, slot: Slot) -> None:
        """End a job's process that is not wanted any more; write down what became of one that has ended."""
        studio, job, child = self.studio, slot.job, slot.child
        if not child.ended() and studio.wanted(job.id, job.attempt):
            return
        wanted = child.ended() and studio.wanted(job.id, job.attempt)
        child.end()
        with contextlib.suppress(InputError):  # its project is gone
            tidy(studio.folder(job.project), job.run)
        if studio.finish(job.id, job.attempt):
            outcome = "done"
        elif not wanted:
            studio.stopped(job.id, job.attempt)
            outcome = "stopped"
        elif child.status < 0 or child.status == NOT_MINE:
            outcome = sentence_of(child)
            if child.status < 0 and len(self.slots) > 1:
                self.alone.add(job.id)
            studio.died(job.id, job.attempt, outcome)
        else:
            studio.fail(job.id, job.attempt, sentence_of(child))
            outcome = "failed"
        self.leave(slot)
        self.log(f"job {job.id} attempt {job.attempt} {outcome}")

    def leave(self, slot: Slot) -> None:
        """Let go of a process that has ended."""
        self.slots.remove(slot)
        slot.child.close()
        if slot.id != self.id:
            self.studio.leave(slot.id)

    def end_stuck(self) -> None:
        """End the assistant where a request's deadline is over, or where it takes too much memory; the others wait
        again.
        """
        if self.assistant is None or self.assistant.ended():
            return
        if (request := self.studio.stuck()) is not None:
            why = f"It took more than {DEADLINES[request.kind]:.0f} seconds without getting on, and was ended"
        else:
            used, total = memory_of(self.assistant), psutil.virtual_memory().total
            if used < MEMORY_SHARE * total or (request := self.studio.busiest()) is None:
                return
            why = f"It took {used / 1e9:.1f} of this machine's {total / 1e9:.1f} GB of memory, and was ended"
        self.assistant.end()
        self.assistant.close()
        self.assistant = None
        self.studio.give_up(request.id, f"{why}: ask for less, or mend what was asked.")
        self.log(f"assistant ended over request {request.id}")

    def keep_assistant(self) -> None:
        """Start the assistant when a question waits; if it died over one, that one waits again."""
        self.end_stuck()
        if self.assistant is not None and self.assistant.ended():
            died, self.assistant = self.assistant, None
            if died.status:
                self.log(f"assistant ended: {died.failure()}")
                how = f"was {died.failure()}" if died.status < 0 else "stopped with an error"
                self.studio.unanswered(f"The assistant {how}: ask again, with a shorter text.")
            died.close()
        if self.assistant is None and self.studio.is_asked():
            self.assistant = start("assistant", "--home", str(self.studio.home))

    def end(self) -> None:
        """End what runs and leave the jobs to the next worker."""
        for slot in list(self.slots):
            slot.child.end()
            self.leave(slot)
        if self.assistant is not None:
            self.assistant.end()
            self.assistant.close()
        self.assistant = None
        self.fork_server.close()
        self.studio.leave(self.id)
        self.studio.release()
        self.studio.unanswered("The assistant was ended: ask again.")

    @staticmethod
    def log(line: str) -> None:
        """One event, one line: ids and states, never texts."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def serve(home: Path, seconds: float | None = None, idle_seconds: float = IDLE_SECONDS, several: bool = False) -> None:
    """Be the worker of a home, as long as it is needed or for so long. Raises InputError if it has one.

    several: jobs will follow, so that what they are forked from is loaded at once.

    What goes wrong with the disk or the database is logged and tried again: the jobs stay as the store has them.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    studio_home = Studio(home).home
    with lock_file(studio_home / "worker.lock", f"Another worker serves {str(studio_home)!r} already: one is enough."):
        worker = Worker(studio_home)
        if several:
            worker.load(threads_beside(cores_gained()))
        begun, said = False, ""
        try:
            while deadline is None or time.monotonic() < deadline:
                try:
                    if not begun:
                        worker.begin()
                        begun = True
                    worker.tick()
                    said = ""
                    if worker.idle_seconds > idle_seconds:
                        worker.log("ends: nothing to do")
                        return
                except (sqlite3.Error, OSError, InputError) as error:
                    if said != (said := f"{type(error).__name__}: {error}"):
                        worker.log(f"trying again: {said}")
                    time.sleep(1.0)
                time.sleep(TICK_SECONDS)
        finally:
            with contextlib.suppress(sqlite3.Error, OSError, InputError):
                worker.end()


def main(argv: list[str] | None = None) -> None:
    """Serve until told to stop or not needed; SIGTERM and Ctrl-C leave the jobs under way to the next worker."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.studio.worker", description=__doc__)
    parser.add_argument("--home", type=Path, default=None, help="default: $PEFTBOOK_STUDIO or the user's data folder")
    parser.add_argument("--several", action="store_true", help="several jobs follow: load their libraries at once")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.umask(0o077)
    try:
        serve(args.home or default_home(), several=args.several)
    except InputError as error:
        print(error, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
