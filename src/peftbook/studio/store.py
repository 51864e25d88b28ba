"""The store: projects with their files, and everything that web page, command line, worker and assistants share.

In the home: `studio.sqlite`, and for each project a folder `projects/<id>/` with `data.bin` (the bytes as uploaded),
`records/`, `adapters/<first digits of a run's key>/` and `checkpoints/`. Nothing else names a file: ids are random.
A project is here when its row is, and gone when its row is; files come before the row and go before it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbook.core import specs
from peftbook.core.errors import InputError, TooLarge, Unknown
from peftbook.core.exchange import files_of, receive_record
from peftbook.core.records import write_atomically
from peftbook.core.stamp import file_hash
from peftbook.decision.judging import Judgement
from peftbook.studio.database import clear_failures
from peftbook.studio.jobs import AtHand, Job
from peftbook.studio.settings import Reading
from peftbook.studio.tuning import is_trial
from peftbook.studio.worker_queue import WorkerQueue

if TYPE_CHECKING:
    from peftbook.methods import Method
    from peftbook.tasks import TaskData
    from peftbook.tasks.columns import Columns
    from peftbook.tasks.files import Split
    from peftbook.tasks.table import Caps, TextTable

ORPHAN_SECONDS = 3600.0  # after which a project folder without a row was left by a process that died
KEPT_SECONDS = 24 * 3600.0  # downloads
NAME_CHARS = 200
LOG_BYTES = 1_000_000
TRAINED_FILES = {  # by how a method is saved
    "peft": re.compile(r"adapter_config\.json|adapter_model\.safetensors"),
    "tensors": re.compile(r"trainable\.safetensors"),
    "model": re.compile(r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"),
}
AGAIN = "restore a backup, or train it again in a new project"
OPEN_SECONDS = 30.0  # a studio that is open says so more often
STARTED: list[subprocess.Popen] = []  # the workers that this process started; the home is their last argument


@dataclass(frozen=True)
class Project:
    """An upload and how it is read.

    created: seconds since 1970.  filename: as the browser gave it, to be shown and never opened.
    instruction: the user turn, with `{input}`.  sha256: of the uploaded bytes.
    """

    id: str
    name: str
    created: float
    filename: str
    columns: Columns
    split: Split
    instruction: str
    caps: Caps
    sha256: str

    @property
    def reading(self) -> Reading:
        """The options of a command that read the file in this way."""
        return Reading.of(self.columns, self.split, self.instruction)


class Studio(WorkerQueue):
    """The studio of a home: `PEFTBOOK_STUDIO`, or a folder of the user's data folder, unless one is given.

    Every method may be called from any thread and any process; each is one transaction or none. Raises InputError for
    an unknown id and for a disk that is full.
    """

    def create_project(
        self, name: str, content: bytes, filename: str, reading: Reading, caps: Caps | None = None
    ) -> Project:
        """Create a project of uploaded bytes, which are stored unchanged and read on demand.

        caps: what the upload may hold; the default ones without.
        """
        from peftbook.tasks.table import Caps

        caps = caps or Caps()
        if "{input}" not in (said := reading.instruction):
            raise InputError(f"The instruction {said!r} does not say where the input goes: put {{input}} in it.")
        if len(content) > caps.bytes:
            raise TooLarge(f"The file has {len(content):,} bytes, more than the cap of {caps.bytes:,}: cut it.")
        project = secrets.token_hex(8)
        row = (
            project, self._name(name), time.time(), filename[:NAME_CHARS], hashlib.sha256(content).hexdigest(),
            json.dumps(asdict(reading.columns)), json.dumps(asdict(reading.split)), said, json.dumps(asdict(caps)),
        )  # fmt: skip
        folder = self.home / "projects" / project
        try:
            with clear_failures(self.home):
                write_atomically(folder / "data.bin", content)
            with self._write() as db:
                db.execute("INSERT INTO projects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)", row)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.project(project)

    @staticmethod
    def _name(name: str) -> str:
        if not name.strip():
            raise InputError("A project needs a name: give one.")
        if control := re.search(r"[\x00-\x1f\x7f]", name := " ".join(name.split())[:NAME_CHARS]):
            raise InputError(f"The name {name!r} holds a control character, {control[0]!r}: leave it out.")
        return name

    def projects(self) -> list[Project]:
        """All projects, oldest first."""
        rows = self._rows("SELECT * FROM projects WHERE NOT removed ORDER BY created, rowid")
        return [project_of(row) for row in rows]

    def project(self, project_id: str) -> Project:
        row = self._row("SELECT * FROM projects WHERE id = ? AND NOT removed", project_id)
        if row is None:
            raise Unknown(f"There is no project {project_id!r}: it may have been deleted.")
        return project_of(row)

    def rename(self, project_id: str, name: str) -> None:
        with self._write() as db:
            self._check_project(db, project_id)
            db.execute("UPDATE projects SET name = ? WHERE id = ?", (self._name(name), project_id))

    def delete_project(self, project_id: str) -> None:
        """Delete a project with its jobs, records, adapters and files. It is gone from every list at once; if one of
        its jobs runs, the files go when the worker has stopped it, in about a second.
        """
        self.project(project_id)
        try:
            self._remove(project_id)
        except InputError:  # the disk is full: its files go first
            shutil.rmtree(self.home / "projects" / project_id, ignore_errors=True)
            self._remove(project_id)
        self.release()
        self.purge()

    def _remove(self, project_id: str) -> None:
        with self._write() as db:
            self._check_project(db, project_id)
            db.execute("UPDATE projects SET removed = 1 WHERE id = ?", (project_id,))
            self._cancel(db, "project", project_id)

    def purge(self) -> list[str]:
        """Delete files and rows of removed projects without running tasks; returns their ids."""
        rows = self._rows(
            "SELECT id FROM projects WHERE removed AND id NOT IN (SELECT project FROM tasks WHERE state = 'running')"
        )
        gone = []
        for row in rows:
            folder = self.home / "projects" / row["id"]
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                continue  # somebody reads a file: next time
            with self._write() as db:
                db.execute("DELETE FROM projects WHERE id = ?", (row["id"],))
            gone.append(row["id"])
        if gone:
            with contextlib.suppress(Exception):
                self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was deleted leaves the log too
        return gone

    def sweep(self) -> None:
        """Delete orphaned project folders (a process died between file and row), unfinished downloads, and downloads
        older than a day, which can be made again.
        """
        known, now = {row["id"] for row in self._rows("SELECT id FROM projects")}, time.time()
        for folder in (self.home / "projects").glob("*"):
            if folder.name not in known and now - folder.stat().st_mtime > ORPHAN_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            for path in (folder / "downloads").glob("*"):
                limit = ORPHAN_SECONDS if path.name.startswith(".") else KEPT_SECONDS
                if now - path.stat().st_mtime > limit:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def judge(self, project_id: str, said: Judgement) -> None:
        """Keep a judgement; what the rater said of the row before is replaced."""
        with self._write() as db:
            self._check_project(db, project_id)
            row = (project_id, *astuple(said))
            db.execute("INSERT OR REPLACE INTO judgements VALUES (?, ?, ?, ?, ?, ?)", row)

    def take_back(self, project_id: str, pair: tuple[str, str], rater: str) -> None:
        """Delete the last judgement that a rater gave of a pair of jobs, if there is one."""
        which = "project = ? AND first = ? AND second = ? AND rater = ?"
        with self._write() as db:
            last = f"SELECT max(rowid) FROM judgements WHERE {which}"
            db.execute(f"DELETE FROM judgements WHERE rowid = ({last})", (project_id, *pair, rater))

    def judgements(self, project_id: str) -> tuple[Judgement, ...]:
        """What people said of answers to the project's test rows, in the order in which they said it."""
        names = "first, second, example, rater, preferred"
        rows = self._rows(f"SELECT {names} FROM judgements WHERE project = ? ORDER BY rowid", project_id)
        return tuple(Judgement(*row) for row in rows)

    def content(self, project_id: str) -> bytes:
        """The project's upload, as it was sent. Raises InputError as `table` does."""
        return self._upload(project_id)[0].read_bytes()

    def table(self, project_id: str) -> TextTable:
        """The project's upload as rows and columns. Raises InputError if its bytes are not those that were uploaded."""
        return table_of(*self._upload(project_id))

    def task(self, project_id: str) -> TaskData:
        """The project's upload as a task, with its splits. Raises InputError as `table` does."""
        return task_of(*self._upload(project_id))

    def _upload(self, project_id: str) -> tuple[Path, Project]:
        """The project's file, whose bytes are those that were uploaded."""
        project, file = self.project(project_id), self.folder(project_id) / "data.bin"
        if file_hash(file) != project.sha256:
            raise InputError(
                f"{str(file.relative_to(self.home))!r} of project {project.name!r} is not the file that was uploaded: "
                "restore a backup, or make a new project of the file."
            )
        return file, project

    def _at_hand(self, project_id: str, runs: Sequence[specs.Run]) -> AtHand:
        """As in Jobs; results that another project of this home has for the same runs are copied first."""
        rows = self._rows("SELECT key, state FROM tasks WHERE project = ?", project_id)
        mine = {row["key"]: row["state"] for row in rows}
        for run in runs:
            if mine.get(run.key) not in ("queued", "running", "done"):
                self._borrow(project_id, run)
        return super()._at_hand(project_id, runs)

    def _borrow(self, project_id: str, run: specs.Run) -> None:
        """Copy a run's adapter, then its record, from another project that has both as they were written."""
        from peftbook.decision.forgetting import prose_probe

        row = self._row(
            "SELECT tasks.id FROM tasks JOIN projects ON projects.id = project AND NOT removed "
            "WHERE key = ? AND state = 'done' AND project != ?",
            run.key,
            project_id,
        )
        store = self.records(project_id)
        if row is None or run in store:
            return
        target = self.folder(project_id) / "adapters" / run.key[:12]
        with clear_failures(self.home), contextlib.suppress(InputError):  # something is damaged: computed again
            lender = self.job(row["id"])
            theirs = self.records(lender.project)
            if keeps_trained(run):
                work = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
                try:
                    shutil.copytree(self.adapter(lender), work, copy_function=link)
                    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was killed before its record
                    work.replace(target)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
            if files := files_of(theirs, prose_probe(run).key):
                receive_record(store, prose_probe(run).key, files)
            receive_record(store, run.key, files_of(theirs, run.key))

    def downloads(self, project_id: str) -> Path:
        """The project's folder of downloads."""
        folder = self.folder(project_id) / "downloads"
        with clear_failures(self.home):
            folder.mkdir(exist_ok=True)
        return folder

    def has_adapter(self, job: Job) -> bool:
        """Whether there is a folder with what a job trained."""
        return (self.folder(job.project) / "adapters" / job.key[:12]).is_dir()

    def adapter(self, job: Job) -> Path:
        """The folder with what a finished job trained, by the hashes in its record; the records of earlier versions
        have none, and their files need only be of the right kinds.

        Raises InputError where there is none, where a file was changed or is missing, and for files of other kinds.
        """
        folder, record = self.folder(job.project) / "adapters" / job.key[:12], self.records(job.project).get(job.run)
        if job.state != "done" or record is None or not folder.is_dir():
            raise InputError(f"Job {job.id!r} is {job.state} and has no trained weights here: run it, or {AGAIN}.")
        files = trained_files(folder, job.run.method)
        if record.provenance.get("trained_sha256", files) != files:
            raise InputError(f"The files in 'adapters/{folder.name}' are not those that job {job.id!r} wrote: {AGAIN}.")
        return folder


def trained_files(folder: Path, method: Method) -> dict[str, str | None]:
    """SHA-256 of the files of what a method trained, by their names. Raises InputError for other files than
    `save_trained` writes: with a tokenizer, a chat template or code beside them, loaders would do other things.
    """
    files = sorted(folder.iterdir())
    for file in files:
        if not TRAINED_FILES[method.saved].fullmatch(file.name) or file.is_symlink() or not file.is_file():
            raise InputError(
                f"{file.name!r} in 'adapters/{folder.name}' is neither weights nor configuration of {method.label}: "
                "remove it."
            )
    return {file.name: file_hash(file) for file in files}


def keeps_trained(run: specs.Run) -> bool:
    """Whether the trained weights of a run are stored: not of trials of a rate."""
    return run.budget is not None and not is_trial(run)


def link(source: str, target: str) -> None:
    """Hard-link a file, or copy it where the file system has no links; stored files are never edited."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def project_of(row) -> Project:
    """A project from its row in the database."""
    from peftbook.tasks.columns import Columns
    from peftbook.tasks.files import Split
    from peftbook.tasks.table import Caps

    split = json.loads(row["split"])
    return Project(
        **{name: row[name] for name in ("id", "name", "created", "filename", "instruction", "sha256")},
        columns=Columns(**json.loads(row["columns"])),
        split=Split(**(split | {"fractions": tuple(split["fractions"])})),
        caps=Caps(**json.loads(row["caps"])),
    )


@functools.lru_cache(4)
def table_of(file: Path, project: Project) -> TextTable:
    """A project's upload as rows and columns."""
    from peftbook.tasks.table import read_table

    return read_table(file.read_bytes(), project.filename, project.caps)


@functools.lru_cache(4)
def task_of(file: Path, project: Project) -> TaskData:
    """A project's upload as a task, with its splits."""
    from peftbook.tasks.files import task_from_table

    return task_from_table(table_of(file, project), project.columns, project.split, project.instruction)


def say_open(home: Path, address: str) -> None:
    """Record that a studio of this home is open at an address, so that its worker stays."""
    (home / "open").write_text(address)


def open_at(home: Path) -> str:
    """The address of the studio of this home that is open, by its last `say_open`; empty where none is."""
    path = home / "open"
    try:
        return path.read_text() if time.time() - path.stat().st_mtime < OPEN_SECONDS else ""
    except OSError:
        return ""


def start_worker(home: Path | str | None = None, *more: str) -> bool:
    """Start a worker that outlives this process, unless one is alive; returns whether one was started.

    more: options of its command, before the home.

    Cheap, so that a page may call it whenever it looks: a worker that was killed is back within seconds, and of two
    that start at once one ends. What it says goes to `worker.log` in the home.
    """
    studio = Studio(home)
    STARTED[:] = [process for process in STARTED if process.poll() is None]
    if any(process.args[-1] == str(studio.home) for process in STARTED):  # type: ignore[index]
        return False
    if any(worker.alive for worker in studio.workers()):
        return False
    log = studio.home / "worker.log"
    with clear_failures(studio.home):
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.unlink()
        with log.open("ab") as stream:
            command = [sys.executable, "-m", "peftbook.studio.worker", *more, "--home", str(studio.home)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
            STARTED.append(process)
    return True
