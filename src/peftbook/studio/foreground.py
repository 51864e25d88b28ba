"""Run a plan in the foreground of a terminal: show its progress, keep a worker alive, stop on Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from peftbook.studio.store import STARTED, Job, Studio, start_worker
from peftbook.studio.terminal import Ticker, one_line
from peftbook.studio.tuning import is_trial

COMMANDS = COMPARE, TRAIN = "peftbook compare", "peftbook train"  # names of plans that no page asked for
POLL_SECONDS = 0.25
LEAST_STEPS, RISEN = 6, 1.5  # that are looked at; above its first value by so much a loss has left it
STOP_SECONDS = 15.0  # for a worker to end a job that was cancelled; it takes a fraction of one


@contextlib.contextmanager
def worker_ahead(studio: Studio, runs: int) -> Iterator[None]:
    """A context in which a plan of so many new runs is checked, while their worker imports its libraries.

    The worker ends if the plan is refused or interrupted.
    """
    if runs:
        start_worker(studio.home, *(["--several"] if runs > 1 else []))
    try:
        with ended_as_interrupted():
            yield
    except BaseException:
        end_worker(studio, waiting=False)
        raise


def wait_for(studio: Studio, plan_id: str) -> bool:
    """Wait until no job of a plan is queued or runs, a worker always alive; False after Ctrl-C.

    A worker that this process started ends when nothing is left to do, and on Ctrl-C.
    """
    looked: set[str] = set()
    try:
        with ended_as_interrupted(), Ticker(sys.stderr) as ticker:
            while True:
                jobs = studio.jobs(plan=plan_id)
                ticker.show(jobs)
                for job in jobs:
                    early = job.steps and job.step >= early_steps(job.steps) and not is_trial(job.run)
                    if early and job.id not in looked:
                        looked.add(job.id)
                        if words := loss_words(studio.curve(job.id), job.steps):
                            ticker.line.end(f"{one_line(job.label)}: {words}")
                if all(job.ended for job in jobs):
                    break
                start_worker(studio.home)
                time.sleep(POLL_SECONDS)
        end_worker(studio, waiting=False)
    except KeyboardInterrupt:
        note(stop(studio, plan_id))
        return False
    return True


def early_steps(steps: int) -> int:
    """A twentieth of the training, after which its loss is looked at; of a short one, more."""
    return min(steps, max(LEAST_STEPS, steps // 20))


def loss_words(points: Sequence[tuple[int, float]], steps: int) -> str:
    """That a loss leaves its start upwards, or does not move, in a sentence; empty where it falls.

    points: step and loss from the first step on; of a training that goes on from a checkpoint nothing is said.
    It does not move where the last third is lower than the first by less than the standard error of that difference.
    """
    seen = [loss for _, loss in points[: early_steps(steps)]]
    if len(seen) < LEAST_STEPS or points[0][0] != 1:
        return ""
    first, last = seen[: len(seen) // 3], seen[-(len(seen) // 3) :]
    before, now = statistics.fmean(first), statistics.fmean(last)
    told = f"after {len(seen)} of {steps} steps the loss is {now:.3f}, at the first {seen[0]:.3f}"
    if now > RISEN * seen[0]:
        return f"{told}: it rises. Stop with Ctrl-C, and lower the learning rate."
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / len(first))
    return f"{told}: it stands still so far." if before - now < error else ""


@contextlib.contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise KeyboardInterrupt, unless they are ignored."""
    may = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if may and hasattr(signal, name)]
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(studio: Studio, plan_id: str) -> str:
    """Cancel a plan's jobs, but for those that plans of the studio's page want too, and wait until none of them runs;
    returns a summary in words. Running jobs end with their last checkpoints, whoever started their worker.
    """
    project, taken = studio.plan(plan_id).project, dict[str, Job]()
    while new := [
        job
        for job in studio.jobs(plan=plan_id)
        if not (job.ended or job.cancelling) and job.id not in wanted_by_page(studio, project)
    ]:
        for job in new:  # a tuned plan may have grown when the last of them ended
            studio.cancel(job.id)
            taken[job.id] = job
    end_worker(studio, waiting=True)
    deadline = time.monotonic() + STOP_SECONDS
    while any(studio.job(job).state == "running" for job in taken) and time.monotonic() < deadline:
        studio.release()
        time.sleep(POLL_SECONDS)
    jobs = studio.jobs(plan=plan_id)
    done, off = (sum(job.state == state for job in jobs) for state in ("done", "cancelled"))
    parts = [f"{done} of {len(jobs)} runs are done", f"{off} taken off the queue"]
    folder = studio.folder(project) / "checkpoints"
    kept = [
        (folder / job.run.checkpoint / "progress.json").is_file() for job in taken.values() if job.state == "running"
    ]
    if kept:
        parts.append(f"{sum(kept)} of {len(kept)} under way with a checkpoint to go on from")
    if left := sum(not job.ended for job in jobs):
        parts.append(f"{left} stay queued for the studio, which asked for them too")
    return f"Stopped: {', '.join(parts)}; give the same command again to go on."


def wanted_by_page(studio: Studio, project_id: str) -> set[str]:
    """The ids of the jobs that plans of the studio's page want."""
    return {job for plan in studio.plans(project_id) if plan.name not in COMMANDS for job in plan.jobs}


def noted_failures(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are not done, each printed; trials of a rate only if no final run of their method is among them."""
    judged = {(job.run.model, job.run.method) for job in jobs if not is_trial(job.run)}
    failed = [
        job
        for job in jobs
        if job.state != "done" and not (is_trial(job.run) and (job.run.model, job.run.method) in judged)
    ]
    for job in failed:
        note(f"{job.label}: {job.state}{f', {job.error}' if job.error else ''}")
    return failed


def end_worker(studio: Studio, waiting: bool) -> bool:
    """End the worker that this process started, with `waiting` even if jobs are queued; whether one was ended."""
    busy = not all(job.ended for job in studio.jobs())
    mine = [process for process in STARTED if process.poll() is None]
    if not mine or (busy and not waiting):
        return False
    for process in mine:
        process.terminate()
    for process in mine:
        process.wait()
    STARTED[:] = [process for process in STARTED if process not in mine]
    return True


def note(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
