"""Plans and jobs. A job is a task of kind "run", whose state moves thus:

    queued → running → done | failed | cancelled        done at once if the record is at hand (cached)
    queued → cancelled                                  running → queued if its worker died
    failed | cancelled → queued                         retry (anew) or resume (from the last checkpoint)

It is one run in one project, whichever plans ask for it.
"""

from __future__ import annotations

import functools
import secrets
import shutil
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from pydantic import ConfigDict, computed_field

from peftbook.core import specs
from peftbook.core.errors import Conflict, InputError, Unknown
from peftbook.core.progress import Phase, describe_step
from peftbook.core.records import Record, Store
from peftbook.studio.tasks import Tasks, TaskState
from peftbook.studio.tuning import Tuning, labels_of, left_behind

ALL_REQUIRED = ConfigDict(json_schema_serialization_defaults_required=True)  # the API says every field
AtHand = Mapping[str, tuple[specs.Run, Record | None]]
CLEAN = (
    "error = '', started = NULL, finished = NULL, phase = '', phase_done = 0, phase_total = 0, "
    "phase_began = NULL, seconds_left = NULL, tokens_per_second = NULL, wanted = '', deaths = 0"
)


@dataclass(frozen=True)
class Job:
    """One run of a project, where it stands.

    plan: the plan that was asked for, or the first that wants this job.  attempt: how often it was started.
    created, started, finished, phase_began: seconds since 1970.  phase: a name of `core.progress`, with `phase_done`
    of `phase_total` where it counts, and `seconds_left` when that was written.  step … tokens_per_second: of the
    training.  error: why it failed, one sentence.  cached: its record was at hand when the plan was submitted.
    cancelling: it still runs, and is to stop.
    """

    __pydantic_config__ = ALL_REQUIRED

    id: str
    project: str
    plan: str
    run: specs.Run
    label: str
    state: TaskState
    attempt: int = 0
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    phase_began: float | None = None
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    error: str = ""
    cached: bool = False
    cancelling: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def key(self) -> str:
        """The key of its run and of its record."""
        return self.run.key

    @computed_field  # type: ignore[prop-decorator]
    @property
    def words(self) -> list[str]:
        """What it is doing, as page and command line say it; nothing unless it runs."""
        return list(self.doing.words()) if self.state == "running" else []

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    @property
    def doing(self) -> Phase:
        """What its process is doing now, since when and how much longer."""
        seconds = 0.0 if self.phase_began is None else max(0.0, time.time() - self.phase_began)
        steps = self.phase == "training" and self.phase_total  # without one, loss and pace are an earlier attempt's
        detail = describe_step(self.loss, self.tokens_per_second) if steps else ""
        name = self.phase or "starting"
        return Phase(name, self.phase_done, self.phase_total, seconds, self.seconds_left, detail)


JOB_COLUMNS = [one.name for one in fields(Job) if one.name not in ("plan", "run", "cached", "cancelling")]


@dataclass(frozen=True)
class Plan:
    """What was submitted together: ids of its jobs, in the order given. tuning: the text of one, by which it grows.
    measure: what was declared to decide, or nothing.
    """

    id: str
    project: str
    name: str
    created: float
    tuning: str = ""
    measure: str = ""
    jobs: tuple[str, ...] = field(default=())


@functools.lru_cache(4096)
def parse_run(text: str) -> specs.Run:
    return specs.Run.model_validate_json(text)


class Jobs(Tasks):
    """Plans and jobs. Raises InputError for an unknown id and for a change that the job's state does not allow."""

    def records(self, project_id: str) -> Store:
        """Where the project's records are, and new ones go."""
        return Store(self.folder(project_id) / "records")

    def folder(self, project_id: str) -> Path:
        """The project's folder. Raises InputError for an unknown one: no name but our own reaches the disk."""
        if self._row("SELECT 1 FROM projects WHERE id = ?", project_id) is None:
            raise Unknown(f"There is no project {project_id!r}: it may have been deleted.")
        return self.home / "projects" / project_id

    def submit(
        self,
        project_id: str,
        runs: Sequence[specs.Run],
        name: str = "",
        tuning: Tuning | None = None,
        measure: str = "",
    ) -> str:
        """Queue runs and return the id of their plan. One whose record is at hand is done at once; one that the project
        has already is shared, and queued again if it failed or was cancelled. Where a plan of just these runs is under
        way, as when two tabs queue what both checked, that is the plan.

        measure: what was declared to decide, by its name.  tuning: whose runs these are, as
        far as they were known; `advance` adds the others.
        """
        if not runs:
            raise InputError("A plan needs at least one run: choose a method.")
        plan, text = secrets.token_hex(8), "" if tuning is None else tuning.text()
        at_hand = self._at_hand(project_id, runs)
        with self._write() as db:
            self._check_project(db, project_id)
            if (equal := self._under_way(db, project_id, at_hand, text)) is not None:
                return equal
            row = (plan, project_id, name, time.time(), text, measure)
            db.execute("INSERT INTO plans VALUES (?, ?, ?, ?, ?, ?)", row)
            self._add(db, project_id, plan, at_hand)
        if tuning is not None:
            self.advance(project_id)  # the last of these runs may have been recorded since they were looked up
        return plan

    def advance(self, project_id: str) -> None:
        """Queue the next runs of the project's tuned plans, once all runs of a race's stage have records.

        Nothing is added to a plan of which a job was cancelled, until that is resumed.
        """
        lookup = self.records(project_id).get
        plans = {plan.id: Tuning.read(plan.tuning) for plan in self.plans(project_id) if plan.tuning}
        for plan, tuning in plans.items():
            jobs = self.jobs(plan=plan)
            if any(job.state == "cancelled" or job.cancelling for job in jobs):
                continue
            known = {job.key for job in jobs}
            if new := [run for run in tuning.runs(lookup) if run.key not in known]:
                at_hand = self._at_hand(project_id, new)
                with self._write() as db:
                    self._add(db, project_id, plan, at_hand)
        if left := left_behind([*plans.values()], lookup):
            waiting = [job for job in self.jobs(project_id) if job.state != "done" and lookup(job.run) is None]
            for checkpoint in {run.checkpoint for run in left} - {job.run.checkpoint for job in waiting}:
                shutil.rmtree(self.folder(project_id) / "checkpoints" / checkpoint, ignore_errors=True)

    def _at_hand(self, project_id: str, runs: Sequence[specs.Run]) -> AtHand:
        """Each run once, by its key, with its record or None."""
        store = self.records(project_id)
        return {run.key: (run, store.get(run)) for run in runs}

    @staticmethod
    def _add(db: sqlite3.Connection, project_id: str, plan: str, at_hand: AtHand) -> None:
        """Queue runs as a plan's next ones; those that it has already stay where they are. All of the project's are
        called what sets them apart now.
        """
        now = time.time()
        taken = db.execute("SELECT count(*) FROM plan_jobs WHERE plan = ?", (plan,)).fetchone()[0]
        for position, (key, (run, record)) in enumerate(at_hand.items(), start=taken):
            found = db.execute(
                "SELECT id, state FROM tasks WHERE project = ? AND key = ?", (project_id, key)
            ).fetchone()
            if found is None:
                job = secrets.token_hex(8)
                state = "queued" if record is None else "failed" if record.failure else "done"
                db.execute(
                    "INSERT INTO tasks (id, project, key, payload, label, state, queued, created, finished, error) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        job,
                        project_id,
                        key,
                        run.canonical(),
                        "",
                        state,
                        now,
                        now,
                        None if record is None else now,
                        "" if record is None else record.failure,
                    ),
                )
            else:
                job = found["id"]
                if record is None and found["state"] in ("failed", "cancelled"):
                    db.execute(f"UPDATE tasks SET state = 'queued', queued = ?, {CLEAN} WHERE id = ?", (now, job))
            cached = record is not None
            db.execute("INSERT OR IGNORE INTO plan_jobs VALUES (?, ?, ?, ?)", (plan, position, job, cached))
        Jobs._name_runs(db, project_id)

    @staticmethod
    def _name_runs(db: sqlite3.Connection, project_id: str) -> None:
        rows = db.execute("SELECT id, payload FROM tasks WHERE project = ? AND kind = 'run'", (project_id,)).fetchall()
        runs = [parse_run(row["payload"]) for row in rows]
        labels = labels_of(runs)
        named = [(labels[run.key], row["id"]) for run, row in zip(runs, rows, strict=True)]
        db.executemany("UPDATE tasks SET label = ? WHERE id = ?", named)

    def name_runs(self) -> None:
        """Call all runs what sets them apart, also those that an earlier version named."""
        with self._write() as db:
            for row in db.execute("SELECT id FROM projects WHERE NOT removed").fetchall():
                self._name_runs(db, row["id"])

    @staticmethod
    def _under_way(db: sqlite3.Connection, project_id: str, keys: Collection[str], tuning: str) -> str | None:
        """The plan of these runs and no others, or of this tuning, none of whose runs failed or was cancelled and not
        all of which are done.
        """
        tunings = dict(db.execute("SELECT id, tuning FROM plans WHERE project = ?", (project_id,)).fetchall())
        rows = db.execute(
            "SELECT plan, key, state FROM plan_jobs JOIN tasks ON tasks.id = job WHERE tasks.project = ?", (project_id,)
        ).fetchall()
        states: dict[str, dict[str, str]] = {}
        for row in rows:
            states.setdefault(row["plan"], {})[row["key"]] = row["state"]
        for plan, known in states.items():
            goes_on = set(known.values()) <= {"queued", "running", "done"} and set(known.values()) != {"done"}
            alike = tunings[plan] == tuning if tuning else not tunings[plan] and known.keys() == set(keys)
            if goes_on and alike:
                return plan
        return None

    def plans(self, project_id: str) -> list[Plan]:
        """The project's plans, oldest first."""
        return self._plans("project = ?", project_id)

    def plan(self, plan_id: str) -> Plan:
        found = self._plans("plans.id = ? AND project IN (SELECT id FROM projects WHERE NOT removed)", plan_id)
        if not found:
            raise Unknown(f"There is no plan {plan_id!r}: its project may have been deleted.")
        return found[0]

    def _plans(self, condition: str, value: str) -> list[Plan]:
        jobs: dict[str, list[str]] = {}
        joined = "SELECT plan, job FROM plan_jobs JOIN plans ON plans.id = plan"
        for row in self._rows(f"{joined} WHERE {condition} ORDER BY position", value):
            jobs.setdefault(row["plan"], []).append(row["job"])
        found = self._rows(f"SELECT * FROM plans WHERE {condition} ORDER BY created, rowid", value)
        return [Plan(**dict(row), jobs=tuple(jobs.get(row["id"], ()))) for row in found]

    def jobs(self, project_id: str | None = None, plan: str | None = None) -> list[Job]:
        """All jobs, those of a project, or those of a plan in its order; oldest first otherwise."""
        if plan is not None:
            return self._jobs("plan_jobs.plan = ? ORDER BY plan_jobs.position", plan)
        if project_id is not None:
            return self._jobs("tasks.project = ? GROUP BY tasks.id ORDER BY tasks.number", project_id)
        return self._jobs("1 GROUP BY tasks.id ORDER BY tasks.number")

    def job(self, job_id: str) -> Job:
        found = self._jobs("tasks.id = ? GROUP BY tasks.id", job_id)
        if not found:
            raise Unknown(f"There is no job {job_id!r}: its project may have been deleted.")
        return found[0]

    def _jobs(self, condition: str, *values: str) -> list[Job]:
        """`min(…)` makes SQLite take `plan` and `cached` from the first plan that wants the job."""
        columns = ", ".join(f"tasks.{name}" for name in JOB_COLUMNS)
        first = ", min(plans.rowid)" if "GROUP BY" in condition else ""
        rows = self._rows(
            f"SELECT {columns}, tasks.payload, tasks.wanted, plan_jobs.plan, plan_jobs.cached{first} FROM tasks "
            "JOIN projects ON projects.id = tasks.project AND NOT projects.removed "
            f"JOIN plan_jobs ON plan_jobs.job = tasks.id JOIN plans ON plans.id = plan_jobs.plan WHERE {condition}",
            *values,
        )
        return [
            Job(
                **{name: row[name] for name in JOB_COLUMNS},
                run=parse_run(row["payload"]),
                plan=row["plan"],
                cached=bool(row["cached"]),
                cancelling=row["state"] == "running" and row["wanted"] == "cancel",
            )
            for row in rows
        ]

    def curve(self, job_id: str) -> list[tuple[int, float]]:
        """Training loss by step, counted from 1, nats per label token: of the record if there is one, else so far."""
        job = self.job(job_id)
        record = self.records(job.project).get(job.run) if job.state in ("done", "failed") else None
        if record is not None and record.curve.get("train_loss_nats"):
            return list(enumerate(record.curve["train_loss_nats"], start=1))
        return [tuple(row) for row in self._rows("SELECT step, loss FROM points WHERE job = ? ORDER BY step", job_id)]

    def resume(self, job_id: str) -> None:
        """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
        self._requeue(job_id, anew=False)

    def retry(self, job_id: str) -> None:
        """Queue a failed or cancelled job again; it starts anew. The record of a diverged run is removed first."""
        self._requeue(job_id, anew=True)

    def _requeue(self, job_id: str, *, anew: bool) -> None:
        job = self.job(job_id)
        store = self.records(job.project)
        if job.state not in ("failed", "cancelled"):
            raise Conflict(f"Job {job_id!r} is {job.state}: only one that failed or was cancelled can be run again.")
        record = store.get(job.run)
        if record is not None and record.failure and not anew:
            raise Conflict(
                f"Job {job_id!r} did not fail by accident ({record.failure.rstrip('.')}): "
                "change its settings, or retry it from the start."
            )
        with self._write() as db:
            if db.execute("SELECT state FROM tasks WHERE id = ?", (job_id,)).fetchone()["state"] != job.state:
                return  # another process changed it first
            if record is not None and (path := store.path(job.key)) is not None and record.failure:
                path.unlink()
            db.execute(
                f"UPDATE tasks SET state = 'queued', queued = ?, anew = ?, {CLEAN} WHERE id = ?",
                (time.time(), anew, job_id),
            )
            if anew:
                db.execute("UPDATE tasks SET step = 0, loss = NULL WHERE id = ?", (job_id,))
                db.execute("DELETE FROM points WHERE job = ?", (job_id,))
