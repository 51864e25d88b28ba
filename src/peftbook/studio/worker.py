"""The worker of a home: `python -m peftbook.studio.worker --home H`. It computes the queued jobs, one after another.

Each job is a process of its own (`work`) with all cores, and so is the assistant, which answers questions beside it. A
worker that is killed takes both with it and loses nothing: the next one finds the jobs in the store, and they go on
from their checkpoints. Only one worker serves a home.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from peftbook.errors import InputError
from peftbook.studio.database import default_home
from peftbook.studio.processes import end_group, hold, identity
from peftbook.studio.store import Job, Studio, is_open
from peftbook.training.threads import best_threads

__all__ = ["Child", "Worker", "serve"]

TICK_SECONDS = 0.2
BEAT_SECONDS = 2.0
IDLE_SECONDS = 600.0  # with nothing to do and no studio open, after which a worker ends
NOT_MINE = 3


class Child:
    """A process that this worker started, leader of its own group, with what it said and complained.

    Its standard input is a pipe that ends when this process does.
    """

    def __init__(self, module: str, *arguments: str, threads: int, job: Job | None = None):
        self.job = job
        self.said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the child
        self.complained: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"peftbook.studio.{module}", *arguments, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=self.said, stderr=self.complained, env=environment, start_new_session=True,
        )  # fmt: skip
        self.identity = identity(self.process.pid)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        if not self.ended():
            end_group(self.process.pid, self.identity, patience=0.0)
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Let go of its pipes and files."""
        assert self.process.stdin is not None
        for stream in (self.process.stdin, self.said, self.complained):
            stream.close()

    def why(self) -> str:
        """Why it ended badly: the sentence that it said, or the last line of its complaint."""
        status = self.process.returncode
        if status == 2 and (line := last_line(self.said)):
            return line
        if status < 0:
            return f"was ended by signal {-status}{' (out of memory?)' * (status == -signal.SIGKILL)}"
        return f"The job stopped with an error that nobody foresaw: {last_line(self.complained) or f'status {status}'}"


def last_line(stream: IO[bytes]) -> str:
    """The last line with something on it, at most a thousand characters."""
    stream.seek(0)
    lines = stream.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:1000] if lines else ""


class Worker:
    """One worker at work. `tick` does what is to be done now and never waits for a job."""

    def __init__(self, home: Path):
        self.studio = Studio(home)
        self.id = secrets.token_hex(8)
        self.child: Child | None = None
        self.assistant: Child | None = None
        self.last_beat = -1e9
        self.last_needed = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long there was nothing to do and no studio open."""
        if self.child is not None or self.assistant is not None or is_open(self.studio.home):
            self.last_needed = time.monotonic()
        return time.monotonic() - self.last_needed

    def begin(self) -> None:
        """Take over from workers that died."""
        self.studio.beat(self.id, os.getpid())
        for job in self.studio.release():
            self.log(f"job {job} goes on: its worker had died")
        self.studio.unanswered("The assistant was ended: ask again.")
        self.studio.purge()
        self.studio.sweep()

    def tick(self) -> None:
        """Beat, look after the job's process, start the next one, keep an assistant where questions wait."""
        if time.monotonic() - self.last_beat > BEAT_SECONDS:
            self.studio.beat(self.id, os.getpid())
            self.studio.release()
            self.last_beat = time.monotonic()
        if self.child is not None:
            self.look_after(self.child)
        if self.child is None:
            self.studio.purge()
            self.start_next()
        self.keep_assistant()

    def start_next(self) -> None:
        """Claim a job and start its process."""
        job = self.studio.claim(self.id, os.getpid())
        if job is None:
            return
        arguments = ("--home", str(self.studio.home), "--job", job.id, "--attempt", str(job.attempt))
        try:
            self.child = Child("work", *arguments, threads=best_threads(), job=job)
        except OSError as error:
            self.studio.fail(job.id, job.attempt, f"No process could be started ({error.strerror}): resume the job.")
            return
        self.log(f"job {job.id} attempt {job.attempt} started")

    def look_after(self, child: Child) -> None:
        """End a job's process that is not wanted any more; write down what became of one that has ended."""
        job, studio = child.job, self.studio
        assert job is not None
        if not child.ended() and studio.wanted(job.id, job.attempt):
            return
        wanted = child.ended() and studio.wanted(job.id, job.attempt)
        child.end()
        if studio.finish(job.id, job.attempt):
            outcome = "done"
        elif not wanted:
            studio.stopped(job.id, job.attempt)
            outcome = "stopped"
        elif child.process.returncode < 0 or child.process.returncode == NOT_MINE:
            studio.died(job.id, job.attempt, child.why())
            outcome = child.why()
        else:
            studio.fail(job.id, job.attempt, child.why())
            outcome = "failed"
        self.child = None
        child.close()
        self.log(f"job {job.id} attempt {job.attempt} {outcome}")

    def keep_assistant(self) -> None:
        """Start the assistant when a question waits; if it died over one, that one waits again."""
        if self.assistant is not None and self.assistant.ended():
            died, self.assistant = self.assistant, None
            if died.process.returncode != 0:
                self.log(f"assistant ended: {died.why()}")
                self.studio.unanswered(f"The assistant {assistant_end(died)}: ask again, with a shorter text.")
            died.close()
        if self.assistant is None and self.studio.is_asked():
            self.assistant = Child("assistant", "--home", str(self.studio.home), threads=best_threads())

    def end(self) -> None:
        """End what runs and leave the job to the next worker."""
        for child in (self.child, self.assistant):
            if child is not None:
                child.end()
                child.close()
        self.child = self.assistant = None
        self.studio.leave(self.id)
        self.studio.release()
        self.studio.unanswered("The assistant was ended: ask again.")

    @staticmethod
    def log(line: str) -> None:
        """One event, one line: ids and states, never texts."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def assistant_end(child: Child) -> str:
    """How the assistant ended, in words that fit after its name."""
    return child.why() if child.process.returncode < 0 else "stopped with an error"


def serve(home: Path, seconds: float | None = None, idle_seconds: float = IDLE_SECONDS) -> None:
    """Be the worker of a home, as long as it is needed or for so long. Raises InputError if it has one.

    What goes wrong with the disk or the database is logged and tried again: the jobs stay as the store has them.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    studio_home = Studio(home).home
    with hold(studio_home / "worker.lock", f"Another worker serves {str(studio_home)!r} already: one is enough."):
        worker = Worker(studio_home)
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
    """Serve until told to stop or not needed; SIGTERM and Ctrl-C leave the job under way to the next worker."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.studio.worker", description=__doc__)
    parser.add_argument("--home", type=Path, default=None, help="default: $PEFTBOOK_STUDIO or the user's data folder")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve(args.home or default_home())
    except InputError as error:
        print(error, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
