"""Archive: one project as one file that another studio takes in: its data, plans, runs, records and adapters.

A tar file as a backup is one: `manifest.json` first, with the SHA-256 of every other member; `project.json` has the
rows of the database. The project keeps its id. What waited or ran when it was saved is cancelled where it is taken in,
and can be resumed there.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from peftbook.core import specs
from peftbook.core.errors import Conflict, InputError, TooLarge
from peftbook.core.exchange import receive_record
from peftbook.core.records import Record, Store
from peftbook.decision.forgetting import prose_probe
from peftbook.decision.own_metrics import read_metrics
from peftbook.studio.backup import files_under, pack, unpack
from peftbook.studio.database import clear_failures, columns_of
from peftbook.studio.jobs import parse_run
from peftbook.studio.project_metrics import FILE as METRICS
from peftbook.studio.store import Project, Studio, keeps_trained, project_of
from peftbook.studio.tuning import Tuning
from peftbook.studio.uploads import plain_name
from peftbook.tasks.files import task_from_table
from peftbook.tasks.table import Caps, read_table

DATA, ROWS = "data.bin", "project.json"
MEMBER = re.compile(
    r"data\.bin|metrics\.json|project\.json|records/[0-9a-f]{12}(?:\.texts\.json\.gz|\.json)|"
    r"adapters/[0-9a-f]{12}/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.(?:json|jinja|safetensors)"
)
MOST_FILES = 20_000
ID = re.compile(r"[0-9a-f]{16}")
TEXT_CHARS = 20_000  # of a name, a label or an error; what is read by no person may be longer
UNREAD = ("run", "tuning", "instruction", "split", "columns", "caps")
OWN = {  # columns of the machine that computes
    "projects": ("removed",),
    "jobs": ("number", "wanted", "anew", "deaths", "worker", "child", "child_identity"),
}
StoredRow = dict[str, str | int | float | None]


class Rows(BaseModel):
    """What stands of a project in the database, table by table."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    projects: list[StoredRow] = Field(min_length=1, max_length=1)
    plans: list[StoredRow]
    jobs: list[StoredRow]
    plan_jobs: list[StoredRow]
    points: list[StoredRow]


TABLES = {  # in the order in which they are filled, with what is a project's of each
    "projects": "id = ?",
    "plans": "project = ? ORDER BY created, rowid",
    "jobs": "project = ? ORDER BY number",
    "plan_jobs": "job IN (SELECT id FROM jobs WHERE project = ?) ORDER BY plan, position",
    "points": "job IN (SELECT id FROM jobs WHERE project = ?) ORDER BY job, step",
}


# --- saving ----------------------------------------------------------------------------------------------------


def save_project(studio: Studio, project_id: str) -> Path:
    """Write a project into a file among its downloads; the same content is the same file. Raises Unknown for none."""
    project = studio.project(project_id)
    folder, downloads = studio.folder(project.id), studio.downloads(project.id)
    with clear_failures(studio.home), tempfile.TemporaryDirectory(dir=downloads, prefix=".project-") as work:
        rows, aside = Path(work) / ROWS, Path(work) / "archive"
        rows.write_text(rows_of(studio, project.id).model_dump_json(indent=1))
        files = (path for path in files_under(folder) if MEMBER.fullmatch(path.relative_to(folder).as_posix()))
        pack({ROWS: rows, **{path.relative_to(folder).as_posix(): path for path in files}}, aside)
        with aside.open("rb") as stream:
            name = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
        return aside.replace(downloads / f"project-{name}.tar")


def save_named(studio: Studio, wanted: str, target: Path) -> int:
    """Write the project of an id, or of a name that only it has, into a new file; its bytes."""
    projects = studio.projects()
    found = [one.id for one in projects if wanted in (one.id, one.name)]
    if len(found) != 1:
        named = ", ".join(f"{one.id} ({one.name})" for one in projects) or "none"
        raise InputError(f"{len(found)} projects are called {wanted!r}: name one by its id; there are {named}.")
    if target.exists():
        raise InputError(f"{str(target)!r} exists: name a new file, no project is overwritten.")
    aside = target.with_name(f".{target.name}.part")
    with clear_failures(target.absolute().parent):
        try:
            shutil.copyfile(save_project(studio, found[0]), aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    return target.stat().st_size


def rows_of(studio: Studio, project_id: str) -> Rows:
    """The rows of a project at one moment."""
    db = studio._connection()
    db.execute("BEGIN")
    try:
        return Rows.model_validate(
            {
                table: [
                    {name: row[name] for name in moved(db, table)}
                    for row in db.execute(f"SELECT * FROM {table} WHERE {mine}", (project_id,))
                ]
                for table, mine in TABLES.items()
            }
        )
    finally:
        db.execute("COMMIT")


def moved(db: sqlite3.Connection, table: str) -> list[str]:
    """The columns of a table that travel."""
    return [name for name in columns_of(db, table) if name not in OWN.get(table, ())]


# --- taking in -------------------------------------------------------------------------------------------------


def load_project(studio: Studio, source: Path, caps: Caps) -> Project:
    """Take in a project that a studio saved: all of it or nothing. caps: those of this studio's uploads.

    Raises InputError for a file that is none or was changed, Conflict for a project that is here, TooLarge for data
    beyond the caps.
    """
    projects = studio.home / "projects"
    with clear_failures(studio.home):
        projects.mkdir(exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=projects, prefix=".taken-in-") as folder:
            work = Path(folder)
            rows, project = opened(source, work, caps)
            store_project(studio, project, rows, work / "made")
    return studio.project(project.id)


def damaged() -> InputError:
    return InputError("This file is no saved project of a studio, or was changed: save the project again.")


def opened(source: Path, work: Path, caps: Caps) -> tuple[Rows, Project]:
    """What is in a file, each part held against the others, and in `work / "made"` the folder of the project."""
    sent, made, count = work / "sent", work / "made", itertools.count(1)
    try:
        names = unpack(source, sent, lambda name: next(count) <= MOST_FILES and MEMBER.fullmatch(name) is not None)
        rows = Rows.model_validate_json((sent / ROWS).read_bytes())
        project = check_project(rows, sent / DATA, caps)
        made.mkdir()
        (sent / DATA).replace(made / DATA)
        expected = {ROWS, DATA, *(name for row in rows.jobs for name in files_of(row, names, sent, made))}
        if names - {METRICS} != expected:
            raise ValueError("there are files of no run")
        if METRICS in names:
            read_metrics(json.loads((sent / METRICS).read_bytes()), files=False)
            (sent / METRICS).replace(made / METRICS)
        if (sent / "adapters").is_dir():
            (sent / "adapters").replace(made / "adapters")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError):
        raise damaged() from None
    return rows, project


def check_project(rows: Rows, data: Path, caps: Caps) -> Project:
    """The project, if its rows and its data are what they say. Raises ValueError, or InputError with a sentence."""
    (row,) = rows.projects
    row |= {"name": Studio._name(str(row["name"])), "filename": plain_name(str(row["filename"]))}
    project = project_of(row)
    for name, most in asdict(caps).items():
        if (theirs := int(asdict(project.caps)[name])) > most:
            what = name.replace("_", "-")
            words = f"The project's file may hold {theirs:,} {name.replace('_', ' ')} where it was saved, here {most:,}"
            raise TooLarge(f"{words}: start this studio with --max-{what} {theirs}.")
    content = data.read_bytes()
    task = task_from_table(
        read_table(content, project.filename, project.caps), project.columns, project.split, project.instruction
    )
    jobs, plans = ({str(one["id"]) for one in some} for some in (rows.jobs, rows.plans))
    runs = [(parse_run(str(one["run"])), one["key"]) for one in rows.jobs]
    texts = [one for some in (rows.projects, rows.plans, rows.jobs) for row in some for one in row.items()]
    for plan in rows.plans:
        if plan["tuning"]:
            Tuning.read(str(plan["tuning"]))
    if not all(
        [
            hashlib.sha256(content).hexdigest() == project.sha256,
            all(ID.fullmatch(one) for one in (project.id, *jobs, *plans)),
            all(one["project"] == project.id for one in (*rows.plans, *rows.jobs)),
            all(one["job"] in jobs for one in (*rows.plan_jobs, *rows.points)),
            all(one["plan"] in plans for one in rows.plan_jobs),
            all(run.key == key and run.task.data_sha256 == task.data_sha256 for run, key in runs),
            all(len(str(value)) <= TEXT_CHARS for name, value in texts if name not in UNREAD),
        ]
    ):
        raise ValueError("the rows do not fit together")
    return project


def files_of(job: StoredRow, names: Collection[str], sent: Path, made: Path) -> set[str]:
    """The files of a job; its records are held against their hashes, and kept. Its state is one that can be here."""
    run = parse_run(str(job["run"]))
    record, found = received(run.key, names, sent, made)
    done = record is not None and not record.failure
    if job["state"] == "done" and not done:
        raise ValueError(f"the record of run {run.key} is missing")
    if job["state"] in ("queued", "running"):
        job["state"] = "done" if done else "cancelled"
    if done and keeps_trained(run):
        found |= {name for name in names if name.startswith(f"adapters/{run.key[:12]}/")}
    if run.start:
        before, more = received(run.start, names, sent, made)
        found |= more
        if before is not None and isinstance(before.spec, specs.Run):
            found |= received(prose_probe(before.spec).key, names, sent, made)[1]
    return found | received(prose_probe(run).key, names, sent, made)[1]


def received(key: str, names: Collection[str], sent: Path, made: Path) -> tuple[Record | None, set[str]]:
    """The record of a key, kept, if there is one, and the names of its files."""
    found = {name for name in names if name.startswith(f"records/{key[:12]}.")}
    content = {Path(name).name: (sent / name).read_bytes() for name in found}
    return (receive_record(Store(made / "records"), key, content) if found else None), found


def store_project(studio: Studio, project: Project, rows: Rows, made: Path) -> None:
    """Files before the row, as for an upload. Raises Conflict where there is such a project."""
    target = studio.home / "projects" / project.id
    here = Conflict(f"Project {project.name!r} is here already, with the same id: open it, or delete it first.")
    if target.exists() or studio._row("SELECT 1 FROM projects WHERE id = ?", project.id) is not None:
        raise here
    try:
        made.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise here from None  # another request took it in meanwhile
    try:
        with studio._write() as db:
            for table in TABLES:
                insert(db, table, getattr(rows, table))
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | OverflowError):
            raise damaged() from None
        raise


def insert(db: sqlite3.Connection, table: str, rows: Sequence[StoredRow]) -> None:
    """Rows into a table, whose own rules say what their values may be. Raises InputError for columns that it lacks."""
    for row in rows:
        if not row.keys() <= set(moved(db, table)):
            raise damaged()
        marks = ", ".join("?" * len(row))
        db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", [*row.values()])
