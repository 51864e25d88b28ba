"""The workers' side of the tasks: claim one, report its progress, end it, release the tasks of dead workers.

Every claim raises the task's `attempt`; writes with an older attempt change nothing.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.runtime.processes import HOST, end_group, identity, is_alive
from peftbook.studio.jobs import Job, Jobs, parse_run
from peftbook.studio.tasks import ASSISTED, LIMITS, TASKS_HERE, Task, TaskState

STALE_SECONDS = 120.0  # without a heartbeat, after which a worker on another machine counts as dead
REQUEUED = "state = 'queued', worker = '', child = 0, text = ''"
CURRENT = "id = ? AND attempt = ? AND state = 'running'"


@dataclass(frozen=True)
class WorkerState:
    """A worker: whether its process lives, and the job that it computes, if any."""

    id: str
    pid: int
    alive: bool
    job: str = ""


class WorkerQueue(Jobs):
    """The workers' side of the tasks. No method raises for a task that no longer exists."""

    def workers(self) -> list[WorkerState]:
        """The registered workers, with the job that each computes."""
        rows = self._rows(
            "SELECT workers.*, coalesce(tasks.id, '') AS job FROM workers LEFT JOIN tasks "
            "ON tasks.worker = workers.id AND tasks.state = 'running' AND kind = 'run' ORDER BY workers.started"
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
        return self._jobs("tasks.state = 'queued' GROUP BY tasks.id ORDER BY tasks.queued, tasks.number")

    def claim(self, worker: str, pid: int, job_id: str = "") -> Job | None:
        """Claim the job that has waited longest, or the given one; None if it is not queued.

        A worker has one job at a time: one that it claimed before and never started is queued again.
        """
        found = self._claim(worker, pid, ("run",), job_id)
        return None if found is None else self.job(found["id"])

    def take(self, worker: str, pid: int, kinds: Collection[str] = ASSISTED) -> Task | None:
        """Claim the oldest task of these kinds, none of which is "run", for the process that asks."""
        row = self._claim(worker, pid, kinds, child=pid)
        return None if row is None else Task.of(row)

    def _claim(
        self, worker: str, pid: int, kinds: Collection[str], task_id: str = "", child: int = 0
    ) -> sqlite3.Row | None:
        unstarted = "state = 'running' AND worker = ? AND child = 0"
        first = (
            f"SELECT tasks.id FROM {TASKS_HERE} AND state = 'queued' AND ? IN ('', tasks.id) "
            f"AND kind IN ({', '.join('?' * len(kinds))}) ORDER BY queued, number LIMIT 1"
        )
        if not self._rows(first, task_id, *kinds) and not self._rows(f"SELECT 1 FROM tasks WHERE {unstarted}", worker):
            return None
        self.beat(worker, pid)
        now = time.time()
        with self._write() as db:
            db.execute(f"UPDATE tasks SET {REQUEUED} WHERE {unstarted}", (worker,))
            return db.execute(
                "UPDATE tasks SET state = 'running', attempt = attempt + 1, started = ?, finished = NULL, worker = ?, "
                "child = ?, child_identity = ?, phase = 'loading', phase_done = 0, phase_total = 0, phase_began = ?, "
                f"seconds_left = NULL, wanted = '', error = '' WHERE id = ({first}) RETURNING *",
                (now, worker, child, identity(child) if child else "", now, task_id, *kinds),
            ).fetchone()

    def adopt(self, job_id: str, attempt: int, pid: int) -> bool | None:
        """Register the process that computes this attempt, before it touches a file. None if the job is another's by
        now; else whether it starts anew.
        """
        with self._write() as db:
            row = db.execute(
                f"UPDATE tasks SET child = ?, child_identity = ? WHERE {CURRENT} "
                "AND wanted = '' AND child = 0 RETURNING anew",
                (pid, identity(pid), job_id, attempt),
            ).fetchone()
        return None if row is None else bool(row["anew"])

    def begun(self, job_id: str, attempt: int) -> None:
        """Note that the files of earlier attempts are deleted: from now on checkpoints are this attempt's own."""
        with self._write() as db:
            db.execute("UPDATE tasks SET anew = 0 WHERE id = ? AND attempt = ?", (job_id, attempt))

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
                "UPDATE tasks SET phase = ?, phase_done = ?, phase_total = ?, seconds_left = ?, "
                "phase_began = CASE WHEN phase = ? AND phase_began IS NOT NULL THEN phase_began ELSE ? END "
                f"WHERE {CURRENT} RETURNING wanted",
                (phase, done, total, seconds_left, phase, time.time() - seconds, job_id, attempt),
            ).fetchone()
            if row is None:
                return False
            if step is not None:
                db.execute(
                    "UPDATE tasks SET step = ?, steps = ?, loss = ?, tokens_per_second = ? WHERE id = ?",
                    (step, steps, loss, tokens_per_second, job_id),
                )
            db.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", [(job_id, *one) for one in points])
        return row["wanted"] == ""

    def finish(self, job_id: str, attempt: int) -> bool:
        """End an attempt that has a record: done, or failed if the record says so or cannot be read. False if there is
        no record yet, or if the attempt is not the current one. The next runs of a tuned plan are queued first, so that
        the plan never looks complete in between.
        """
        row = self._row("SELECT project, payload FROM tasks WHERE id = ? AND kind = 'run'", job_id)
        if row is None:
            return False
        store = Store(self.home / "projects" / row["project"] / "records")
        try:
            record = store.get(parse_run(row["payload"]))
        except InputError as error:
            return self._end(job_id, attempt, "failed", str(error))
        if record is None:
            return False
        with contextlib.suppress(InputError):  # another record is damaged, which its own job says
            self.advance(row["project"])
        return self._end(job_id, attempt, "failed" if record.failure else "done", record.failure)

    def write_text(self, task_id: str, attempt: int, text: str) -> bool:
        """Store a text so far; False if the attempt should stop."""
        with self._write() as db:
            row = db.execute(f"UPDATE tasks SET text = ? WHERE {CURRENT} RETURNING wanted", (text, task_id, attempt))
            return [one["wanted"] for one in row] == [""]

    def complete(self, task_id: str, attempt: int, *, text: str = "", result: Any = None) -> bool:
        """End an attempt of a task that is no run with its text or result; one that is being cancelled is cancelled."""
        with self._write() as db:
            stored = db.execute(
                f"UPDATE tasks SET text = ?, result = ? WHERE {CURRENT} AND wanted = ''",
                (text, json.dumps(result), task_id, attempt),
            ).rowcount
        return self._end(task_id, attempt, "done" if stored else "cancelled", "")

    def fail(self, task_id: str, attempt: int, why: str) -> bool:
        """End an attempt as failed. why: one sentence."""
        return self._end(task_id, attempt, "failed", why)

    def stopped(self, task_id: str, attempt: int) -> bool:
        return self._end(task_id, attempt, "cancelled", "")

    def died(self, task_id: str, attempt: int, why: str) -> bool:
        """Queue a task again whose process was killed; after as many times as its kind is tried it fails. One that was
        cancelled is cancelled.
        """
        with self._write() as db:
            row = db.execute(
                f"UPDATE tasks SET deaths = deaths + 1 WHERE {CURRENT} RETURNING deaths, kind, wanted",
                (task_id, attempt),
            ).fetchone()
            if row is None:
                return False
            limit = LIMITS[row["kind"]]
            if not row["wanted"] and row["deaths"] < limit.tries:
                db.execute(f"UPDATE tasks SET {REQUEUED} WHERE id = ?", (task_id,))
                return True
        if row["wanted"]:
            return self.stopped(task_id, attempt)
        return self.fail(task_id, attempt, f"The {limit.noun}'s process {why} {limit.tries} times: {limit.remedy}.")

    def _end(self, task_id: str, attempt: int, state: TaskState, error: str) -> bool:
        with self._write() as db:
            return bool(
                db.execute(
                    "UPDATE tasks SET state = ?, error = ?, finished = ?, seconds_left = NULL, wanted = '', "
                    f"worker = '', child = 0 WHERE {CURRENT}",
                    (state, error, time.time(), task_id, attempt),
                ).rowcount
            )

    def wanted(self, task_id: str, attempt: int) -> bool:
        """Whether an attempt should continue: it is the current one, and neither cancelled nor its project deleted."""
        current = f"SELECT 1 FROM {TASKS_HERE} AND tasks.{CURRENT} AND wanted = ''"
        return self._row(current, task_id, attempt) is not None

    def has_queued(self, kind: str) -> bool:
        return self._row(f"SELECT 1 FROM {TASKS_HERE} AND state = 'queued' AND kind = ?", kind) is not None

    def running(self, worker: str) -> list[Task]:
        """The tasks that are no runs which a worker computes, oldest first."""
        query = "SELECT * FROM tasks WHERE state = 'running' AND worker = ? AND kind != 'run' ORDER BY started"
        return [Task.of(row) for row in self._rows(query, worker)]

    def release(self, mine: str = "", busy: Collection[str] = ()) -> list[str]:
        """Release the tasks of dead workers and end their processes; returns the ids of the released tasks.

        A run that has a record is finished, a task that was being cancelled is cancelled, others are queued again.
        mine: the calling worker, of whose names only those in `busy` have a process: its other claims never started.
        """
        rows = self._rows(
            "SELECT tasks.*, removed FROM tasks JOIN projects ON projects.id = project WHERE state = 'running'"
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
                    f"UPDATE tasks SET {REQUEUED} WHERE {CURRENT} AND child = ?",
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
