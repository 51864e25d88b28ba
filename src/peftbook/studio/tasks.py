"""The table of tasks: what the studio computes for pages, API and command line.

    run         one run of a plan, in a process of its own (`work`); `jobs` has what a run alone has
    check       of a plan: {"project", "runs": [canonical text of a run, …]}; its result is a list of `preflight.Check`
    generate    a text: {"project", "text", "job": id of a done job, or "model": {"name", "revision"}, and the fields of
                `playground.Sampling`}; the text goes where the project's instruction has {input}
    make        a file: {"project", "job", "name": of a file in `downloads.ARTEFACTS`}

All but runs are computed by long-lived processes of their kind (`assistant`), within the limits of their kind.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from dataclasses import dataclass
from typing import Any, Literal, Self

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.database import Database

TaskState = Literal["queued", "running", "done", "failed", "cancelled"]
PAYLOAD_CHARS = 2_000_000
RETENTION_SECONDS = 24 * 3600.0  # of answers
GIB = 1 << 30
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Limit:
    """What a task of a kind may take before its process is killed; a run has no deadline, and memory by admission.

    processes: at once, each with so many `streams` (tasks in turn).  seconds: for a task, and `unit_seconds` more for
    each token that it may generate or each GiB of the model that it loads.  memory_bytes: resident, of a process; 0 for
    MEMORY_SHARE of the machine's.  tries: how many processes may die of a task.  remedy: what to do when it has failed.
    """

    noun: str
    remedy: str
    tries: int = 2
    processes: int = 1
    streams: int = 1
    seconds: float = 0.0
    unit_seconds: float = 0.0
    memory_bytes: int = 0


LIMITS = {
    "run": Limit("job", "give it more memory", tries=5),
    "check": Limit(
        "check",
        "choose fewer models or methods, or check again when this machine does less",
        processes=4,
        seconds=180.0,  # a file of 55 MB and two models take one minute beside a training
        memory_bytes=4 * GIB,
    ),
    "generate": Limit("text", "ask again, with a shorter text", streams=4, seconds=600.0, unit_seconds=5.0),
    "make": Limit("file", "ask again when this machine does less", seconds=600.0, unit_seconds=300.0),
}
TASKS_HERE = "tasks JOIN projects ON projects.id = project WHERE NOT removed"  # not those of deleted projects
ASSISTED = ("check", "generate", "make")  # kinds that an assistant computes


@dataclass(frozen=True)
class Task:
    """A task that is no run. attempt: how often it was started.  cancelling: it still runs, and is to stop.

    text: what has been generated so far.  result: of a check, else None.  error: why it failed, one sentence.
    """

    id: str
    kind: str
    project: str
    payload: dict
    state: TaskState
    attempt: int = 0
    cancelling: bool = False
    text: str = ""
    result: Any = None
    error: str = ""

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        """From its row in the table."""
        return cls(
            **{name: row[name] for name in ("id", "kind", "project", "state", "attempt", "text", "error")},
            payload=json.loads(row["payload"]),
            cancelling=row["state"] == "running" and row["wanted"] == "cancel",
            result=json.loads(row["result"]),
        )


class Tasks(Database):
    """The users' side of the tasks that are no runs."""

    def enqueue(self, kind: str, payload: dict) -> str:
        """Queue a task and return its id. Raises InputError for a payload above PAYLOAD_CHARS."""
        text = json.dumps(payload)
        if len(text) > PAYLOAD_CHARS:
            raise InputError(f"The question has {len(text):,} characters, the cap is {PAYLOAD_CHARS:,}: shorten it.")
        task, now = secrets.token_hex(8), time.time()
        with self._write() as db:
            self._check_project(db, str(payload.get("project")))
            db.execute("DELETE FROM tasks WHERE kind != 'run' AND created < ?", (now - RETENTION_SECONDS,))
            db.execute(
                "INSERT INTO tasks (id, project, kind, key, payload, label, state, queued, created) "
                "VALUES (?, ?, ?, ?, ?, '', 'queued', ?, ?)",
                (task, payload["project"], kind, task, text, now, now),
            )
        return task

    def get_task(self, task_id: str) -> Task:
        """The task of an id, as far as it is. Raises Unknown for a run and for one that is gone."""
        row = self._row(f"SELECT tasks.* FROM {TASKS_HERE} AND tasks.id = ? AND kind != 'run'", task_id)
        if row is None:
            raise Unknown(f"There is no answer {task_id!r}: ask again.")
        return Task.of(row)

    def cancel(self, task_id: str) -> None:
        """Take a task or a job from the queue, or have its process stop; one that has ended stays as it is.

        Raises Unknown for one that is not there.
        """
        with self._write() as db:
            known = f"SELECT 1 FROM {TASKS_HERE} AND tasks.id = ?"
            if db.execute(known, (task_id,)).fetchone() is None:
                raise Unknown(f"There is no job or answer {task_id!r}: its project may have been deleted.")
            self._cancel(db, "id", task_id)

    @staticmethod
    def _cancel(db: sqlite3.Connection, column: Literal["id", "project"], value: str) -> None:
        """Cancel queued tasks and signal running ones to stop, of the tasks with this value."""
        ended = "UPDATE tasks SET state = 'cancelled', finished = ?"
        db.execute(f"{ended} WHERE {column} = ? AND state = 'queued'", (time.time(), value))
        db.execute(f"UPDATE tasks SET wanted = 'cancel' WHERE {column} = ? AND state = 'running'", (value,))
