"""The workers' side of the job queue: claim a job, report its progress, end it, release jobs of dead workers.

Every claim raises the job's `attempt`; writes with an older attempt change nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.runtime.processes import HOST, end_group, identity, is_alive
from peftbook.studio.jobs import Job, Jobs, JobState, parse_run

STALE_SECONDS = 120.0  # without a heartbeat, after which a worker on another machine counts as dead
RETRIES = 5  # of a job whose process is killed, before the job fails


@dataclass(frozen=True)
class WorkerState:
    """A worker: whether its process lives, and the job that it computes, if any."""

    id: str
    pid: int
    alive: bool
    job: str = ""


class WorkerQueue(Jobs):
    """The workers' side of the job queue. No method raises for a job that no longer exists."""

    def workers(self) -> list[WorkerState]:
        """The registered workers, with the job that each computes."""
        rows = self._rows(
            "SELECT workers.*, coalesce(jobs.id, '') AS job FROM workers "
            "LEFT JOIN jobs ON jobs.worker = workers.id AND jobs.state = 'running' ORDER BY workers.started"
        )
        now = time.time()
        return [WorkerState(row["id"], row["pid"], lives(row, now), row["job"]) for row in rows]

    def beat(self, worker: str, pid: int) -> None:
        now = time.time()
        with self._write() as db:
            db.execute(
                "INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET beat = excluded.beat",
                (worker, pid, identity(pid), HOST, now, now),
            )

    def leave(self, worker: str) -> None:
        with self._write() as db:
            db.execute("DELETE FROM workers WHERE id = ?", (worker,))

    def waiting(self) -> list[Job]:
        """The queued jobs, in the order in which they will be claimed."""
        return self._jobs("jobs.state = 'queued' GROUP BY jobs.id ORDER BY jobs.queued, jobs.number")

    def claim(self, worker: str, pid: int, job_id: str = "") -> Job | None:
        """Claim the job that has waited longest, or the given one; None if it is not queued.

        A worker has one job at a time: one that it claimed before and never started is queued again.
        """
        if self._row("SELECT 1 FROM jobs WHERE state = 'queued' OR (state = 'running' AND worker = ?)", worker) is None:
            return None
        self.beat(worker, pid)
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', worker = '' WHERE state = 'running' AND worker = ? AND child = 0",
                (worker,),
            )
            found = db.execute(
                "SELECT jobs.id FROM jobs JOIN projects ON projects.id = jobs.project AND NOT projects.removed "
                "WHERE state = 'queued' AND ? IN ('', jobs.id) ORDER BY queued, number LIMIT 1",
                (job_id,),
            ).fetchone()
            if found is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', attempt = attempt + 1, started = ?, finished = NULL, worker = ?, "
                "child = 0, child_identity = '', phase = 'loading', phase_done = 0, phase_total = 0, phase_began = ?, "
                "seconds_left = NULL, wanted = '', error = '' WHERE id = ?",
                (now := time.time(), worker, now, found["id"]),
            )
        return self.job(found["id"])

    def adopt(self, job_id: str, attempt: int, pid: int) -> bool | None:
        """Register the process that computes this attempt, before it touches a file. None if the job is another's by
        now; else whether it starts anew.
        """
        with self._write() as db:
            row = db.execute(
                "UPDATE jobs SET child = ?, child_identity = ? WHERE id = ? AND attempt = ? AND state = 'running' "
                "AND wanted = '' AND child = 0 RETURNING anew",
                (pid, identity(pid), job_id, attempt),
            ).fetchone()
        return None if row is None else bool(row["anew"])

    def begun(self, job_id: str, attempt: int) -> None:
        """Note that the files of earlier attempts are deleted: from now on checkpoints are this attempt's own."""
        with self._write() as db:
            db.execute("UPDATE jobs SET anew = 0 WHERE id = ? AND attempt = ?", (job_id, attempt))

    def progress(
        self,
        job_id: str,
        attempt: int,
        *,
        phase: str,
        done: int = 0,
        total: int = 0,
        step: int | None = None,
        steps: int = 0,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        seconds: float = 0.0,
        seconds_left: float | None = None,
        points: Sequence[tuple[int, float]] = (),
    ) -> bool:
        """Store the progress of an attempt, with new points of its curve; False if it should stop.

        seconds: since its phase began, if it is another than before.  seconds_left: until the phase ends.
        """
        with self._write() as db:
            row = db.execute(
                "UPDATE jobs SET phase = ?, phase_done = ?, phase_total = ?, seconds_left = ?, "
                "phase_began = CASE WHEN phase = ? AND phase_began IS NOT NULL THEN phase_began ELSE ? END "
                "WHERE id = ? AND attempt = ? AND state = 'running' RETURNING wanted",
                (phase, done, total, seconds_left, phase, time.time() - seconds, job_id, attempt),
            ).fetchone()
            if row is None:
                return False
            if step is not None:
                db.execute(
                    "UPDATE jobs SET step = ?, steps = ?, loss = ?, tokens_per_second = ? WHERE id = ?",
                    (step, steps, loss, tokens_per_second, job_id),
                )
            db.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", [(job_id, *one) for one in points])
        return row["wanted"] == ""

    def finish(self, job_id: str, attempt: int) -> bool:
        """End an attempt that has a record: done, or failed if the record says so or cannot be read. False if there is
        no record yet, or if the attempt is not the current one. The next runs of a tuned plan are queued first, so that
        the plan never looks complete in between.
        """
        row = self._row("SELECT project, run FROM jobs WHERE id = ?", job_id)
        if row is None:
            return False
        store = Store(self.home / "projects" / row["project"] / "records")
        try:
            record = store.get(parse_run(row["run"]))
        except InputError as error:
            return self._end(job_id, attempt, "failed", str(error))
        if record is None:
            return False
        with contextlib.suppress(InputError):  # another record is damaged, which its own job says
            self.advance(row["project"])
        return self._end(job_id, attempt, "failed" if record.failure else "done", record.failure)

    def fail(self, job_id: str, attempt: int, why: str) -> bool:
        """End an attempt as failed. why: one sentence."""
        return self._end(job_id, attempt, "failed", why)

    def stopped(self, job_id: str, attempt: int) -> bool:
        return self._end(job_id, attempt, "cancelled", "")

    def died(self, job_id: str, attempt: int, why: str) -> bool:
        """Queue a job again whose process was killed; after RETRIES retries it fails."""
        with self._write() as db:
            row = db.execute(
                "UPDATE jobs SET deaths = deaths + 1 WHERE id = ? AND attempt = ? AND state = 'running' "
                "RETURNING deaths",
                (job_id, attempt),
            ).fetchone()
            if row is not None and row["deaths"] < RETRIES:
                db.execute("UPDATE jobs SET state = 'queued', child = 0, worker = '' WHERE id = ?", (job_id,))
                return True
        return row is not None and self.fail(
            job_id, attempt, f"Its process {why} {RETRIES} times: give it more memory."
        )

    def _end(self, job_id: str, attempt: int, state: JobState, error: str) -> bool:
        with self._write() as db:
            return bool(
                db.execute(
                    "UPDATE jobs SET state = ?, error = ?, finished = ?, seconds_left = NULL, wanted = '', "
                    "worker = '', child = 0 WHERE id = ? AND attempt = ? AND state = 'running'",
                    (state, error, time.time(), job_id, attempt),
                ).rowcount
            )

    def wanted(self, job_id: str, attempt: int) -> bool:
        """Whether an attempt should continue: it is the current one, and neither cancelled nor its project deleted."""
        row = self._row(
            "SELECT 1 FROM jobs JOIN projects ON projects.id = project AND NOT removed "
            "WHERE jobs.id = ? AND attempt = ? AND state = 'running' AND wanted = ''",
            job_id,
            attempt,
        )
        return row is not None

    def release(self, mine: str = "", busy: Collection[str] = ()) -> list[str]:
        """Release the jobs of dead workers and end their processes; returns the ids of the released jobs.

        A job that has a record is finished, one that was being cancelled is cancelled, others are queued again.
        mine: the calling worker, of whose slots only those in `busy` have a process: its other claims never started.
        """
        rows = self._rows(
            "SELECT jobs.*, removed FROM jobs JOIN projects ON projects.id = project WHERE state = 'running'"
        )
        now = time.time()  # workers after jobs: who has claimed one has beaten before
        workers = {row["id"]: lives(row, now) for row in self._rows("SELECT * FROM workers")}
        freed: list[str] = []
        for row in rows:
            idle = mine and row["worker"].partition("-")[0] == mine and row["worker"] not in busy
            if workers.get(row["worker"]) and not idle:
                continue
            end_group(row["child"], row["child_identity"])
            if is_alive(row["child"], row["child_identity"]):
                continue  # it hangs in the system: next time
            if self.finish(row["id"], row["attempt"]) or (
                (row["wanted"] or row["removed"]) and self.stopped(row["id"], row["attempt"])
            ):
                freed.append(row["id"])
                continue
            with self._write() as db:  # only if no child has adopted it since we looked
                changed = db.execute(
                    "UPDATE jobs SET state = 'queued', worker = '', child = 0 "
                    "WHERE id = ? AND attempt = ? AND state = 'running' AND child = ?",
                    (row["id"], row["attempt"], row["child"]),
                ).rowcount
            freed += [row["id"]] * changed
        with self._write() as db:
            db.executemany(
                "DELETE FROM workers WHERE id = ?", [(name,) for name, alive in workers.items() if not alive]
            )
        return freed


def lives(worker: sqlite3.Row, now: float) -> bool:
    """Whether a worker lives: by its process on this machine, elsewhere by its last heartbeat."""
    if worker["host"] == HOST:
        return is_alive(worker["pid"], worker["identity"])
    return now - worker["beat"] < STALE_SECONDS
