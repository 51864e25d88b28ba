"""The worker of a home: `python -m peftbook.studio.worker --home H`. It computes the queued jobs, several side by side.

Each job is a process of its own (`work`) with its share of the cores: as many at once as there are cores that add
speed, where memory holds all of them by the byte model. Checks, texts and files are computed beside them by assistants,
a process for each kind or several, which are killed at the limits of a task. A worker that is killed takes all with it
and loses nothing: the next one finds the tasks in the store, and jobs go on from their checkpoints. Only one worker
serves a home.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from peftbook.core.errors import InputError
from peftbook.core.progress import duration
from peftbook.runtime.doctor import gib
from peftbook.runtime.fork_server import ForkServer
from peftbook.runtime.hardware import free_memory
from peftbook.runtime.processes import Child, environment_of, lock_file
from peftbook.runtime.resources import memory_bytes, side_by_side
from peftbook.runtime.threads import best_threads, cores_gained, threads_beside
from peftbook.studio.database import default_home
from peftbook.studio.playground import Sampling
from peftbook.studio.store import Job, Studio, open_at
from peftbook.studio.tasks import ASSISTED, GIB, LIMITS, MEMORY_SHARE, Limit, Task
from peftbook.studio.work import NOT_MINE, tidy

TICK_SECONDS = 0.2
BEAT_SECONDS = 2.0
IDLE_SECONDS = 600.0  # with nothing to do and no studio open, after which a worker ends
CANCEL_SECONDS = 2.0  # after a task was cancelled, until which its assistant has stopped it
SPARE_SECONDS = 30.0  # without a job, after which the memory of what jobs are forked from is given back
VARIABLES = {"TOKENIZERS_PARALLELISM": "false"}  # of the environment of a studio's processes


def start(module: str, *arguments: str, threads: int = 0, by: Callable[..., Any] = subprocess.Popen) -> Child:
    """A process of the studio, which ends with this one; with as many threads as speed it up, or so many."""
    words = ("-m", f"peftbook.studio.{module}", *arguments)
    return Child(*words, threads=threads or best_threads(), variables=VARIABLES, start=by)


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


@dataclass
class Assistant:
    """A process that computes tasks of a kind, under a name of its own in the store.

    ends: when each attempt that it computes must have ended, by id and attempt, on the monotonic clock.
    """

    name: str
    kind: str
    child: Child
    ends: dict[tuple[str, int], float] = field(default_factory=dict)


def seconds_for(studio: Studio, task: Task) -> float:
    """How long a task may take, by its kind and size."""
    limit, units = LIMITS[task.kind], 0.0
    with contextlib.suppress(InputError, KeyError):  # of a model whose size is not known
        if task.kind == "generate":
            units = task.payload.get("max_new_tokens", Sampling.max_new_tokens)
        elif task.kind == "make":
            units = memory_bytes(studio.job(task.payload["job"]).run) / GIB
    return limit.seconds + units * limit.unit_seconds


def excess_memory(child: Child, limit: Limit) -> float:
    """The most bytes that a process may hold, if it holds more; else 0."""
    most = limit.memory_bytes or MEMORY_SHARE * psutil.virtual_memory().total
    with contextlib.suppress(psutil.Error):  # it has just ended
        if psutil.Process(child.process.pid).memory_info().rss > most:
            return most
    return 0.0


class Worker:
    """One worker at work. `tick` does what is to be done now and never waits for a job."""

    def __init__(self, home: Path):
        self.studio = Studio(home)
        self.id = secrets.token_hex(8)
        self.slots: list[Slot] = []
        self.alone: set[str] = set()  # jobs whose process was killed beside another's, for want of memory perhaps
        self.assistants: list[Assistant] = []
        self.fork_server = ForkServer()
        self.threads = 0  # in the environment of what is forked from it
        self.last_beat = -1e9
        self.last_needed = self.last_job = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long there was nothing to do and no studio open."""
        if self.slots or self.assistants or open_at(self.studio.home):
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
        for task in self.studio.release():
            self.log(f"task {task} goes on: its worker had died")
        self.studio.purge()
        self.studio.sweep()
        self.studio.name_runs()

    def tick(self) -> None:
        """Beat, look after the processes of jobs and assistants, and start what is queued."""
        if time.monotonic() - self.last_beat > BEAT_SECONDS:
            for name in (self.id, *self.names()):
                self.studio.beat(name, os.getpid())
            self.release()
            self.last_beat = time.monotonic()
        for slot in list(self.slots):
            self.supervise(slot)
        for assistant in list(self.assistants):
            self.watch(assistant)
        self.studio.purge()
        self.start_next()
        if self.slots or self.fork_server.is_loading():
            self.last_job = time.monotonic()
        elif time.monotonic() - self.last_job > SPARE_SECONDS:
            self.fork_server.close()
        self.start_assistants()

    def names(self) -> set[str]:
        """Under which the processes of this worker have tasks in the store."""
        return {*(slot.id for slot in self.slots), *(assistant.name for assistant in self.assistants)}

    def release(self) -> None:
        """Release the tasks of dead workers, and those of this one that have no process."""
        for task in self.studio.release(self.id, self.names()):
            self.log(f"task {task} is not computed any more")

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
        taken = self.names()
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

    def start_assistants(self) -> None:
        """Start an assistant for each kind of which a task waits and no assistant has room."""
        for kind in ASSISTED:
            limit, alive = LIMITS[kind], [one for one in self.assistants if one.kind == kind]
            full = all(len(one.ends) >= limit.streams for one in alive)
            if full and len(alive) < limit.processes and self.studio.has_queued(kind):
                name = f"{self.id}-{kind}-{secrets.token_hex(4)}"
                self.studio.beat(name, os.getpid())
                words = ("--home", str(self.studio.home), "--kind", kind, "--worker", name)
                self.assistants.append(Assistant(name, kind, start("assistant", *words)))

    def watch(self, assistant: Assistant) -> None:
        """End an assistant at the limits of a task, which fails then, and when it does not stop a cancelled one. What
        else it computed is queued again.
        """
        studio, child, limit, now = self.studio, assistant.child, LIMITS[assistant.kind], time.monotonic()
        tasks, ends = studio.running(assistant.name), {}
        for task in tasks:
            key = task.id, task.attempt
            ends[key] = assistant.ends.get(key) or now + seconds_for(studio, task)
            if task.cancelling:
                ends[key] = min(ends[key], now + CANCEL_SECONDS)
        assistant.ends = ends
        failed: list[tuple[Task, str]] = []
        if child.ended():
            if child.status:
                self.log(f"assistant of kind {assistant.kind} ended: {child.failure()}")
                how = f"was {child.failure()}" if child.status < 0 else "stopped with an error"
                for task in tasks:
                    studio.died(task.id, task.attempt, how)
        elif late := [task for task in tasks if ends[task.id, task.attempt] <= now]:
            failed = [(task, f"after {duration(seconds_for(studio, task))}") for task in late if not task.cancelling]
        elif tasks and (size := excess_memory(child, limit)):
            failed = [(tasks[-1], f"at {gib(size)} of memory")]
        else:
            return
        child.end()  # before its task fails, so that nobody sees it ended and its process at work
        for task, where in failed:
            studio.fail(task.id, task.attempt, f"The {limit.noun} was ended {where}, its limit: {limit.remedy}.")
            self.log(f"{task.kind} {task.id} attempt {task.attempt} was ended {where}")
        self.dismiss(assistant)
        self.release()

    def dismiss(self, assistant: Assistant) -> None:
        """End an assistant, and let go of its name."""
        self.assistants.remove(assistant)
        assistant.child.end()
        assistant.child.close()
        self.studio.leave(assistant.name)

    def end(self) -> None:
        """End what runs and leave the jobs to the next worker."""
        for slot in list(self.slots):
            slot.child.end()
            self.leave(slot)
        for assistant in list(self.assistants):
            self.dismiss(assistant)
        self.fork_server.close()
        self.studio.leave(self.id)
        self.studio.release()

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
        begun, trouble = False, ""
        try:
            while deadline is None or time.monotonic() < deadline:
                try:
                    if not begun:
                        worker.begin()
                        begun = True
                    worker.tick()
                    trouble = ""
                    if worker.idle_seconds > idle_seconds:
                        worker.log("ends: nothing to do")
                        return
                except (sqlite3.Error, OSError, InputError) as error:
                    if trouble != (trouble := f"{type(error).__name__}: {error}"):
                        worker.log(f"trying again: {trouble}")
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
