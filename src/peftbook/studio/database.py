"""The studio's database: one SQLite file in WAL mode, a connection for each thread, short transactions."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError, Unknown
from peftbook.core.folders import check_writable

SCHEMA = 8  # what versions lacked: 1 sessions, 2 phase_began, 3 tokens, 4 tuning, 5 scopes, 6 one table, 7 judgements
PATIENCE_SECONDS = 30.0  # for another process's transaction; ours take milliseconds
TABLES = """
CREATE TABLE IF NOT EXISTS projects (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, created REAL NOT NULL, filename TEXT NOT NULL, sha256 TEXT NOT NULL,
    columns TEXT NOT NULL, split TEXT NOT NULL, instruction TEXT NOT NULL, caps TEXT NOT NULL,
    removed INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS plans (
    id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, name TEXT NOT NULL,
    created REAL NOT NULL, tuning TEXT NOT NULL DEFAULT '', measure TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, key TEXT NOT NULL, payload TEXT NOT NULL,
    label TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    queued REAL NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL,
    phase TEXT NOT NULL DEFAULT '', phase_done INTEGER NOT NULL DEFAULT 0, phase_total INTEGER NOT NULL DEFAULT 0,
    phase_began REAL,
    step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, loss REAL, tokens_per_second REAL,
    seconds_left REAL, error TEXT NOT NULL DEFAULT '', wanted TEXT NOT NULL DEFAULT '',
    anew INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '',
    child INTEGER NOT NULL DEFAULT 0, child_identity TEXT NOT NULL DEFAULT '', kind TEXT NOT NULL DEFAULT 'run',
    text TEXT NOT NULL DEFAULT '', result TEXT NOT NULL DEFAULT 'null',
    UNIQUE (project, key)
) STRICT;
CREATE INDEX IF NOT EXISTS tasks_by_state ON tasks (state, queued);
CREATE TABLE IF NOT EXISTS plan_jobs (
    plan TEXT NOT NULL REFERENCES plans ON DELETE CASCADE, position INTEGER NOT NULL,
    job TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE, cached INTEGER NOT NULL,
    PRIMARY KEY (plan, job)
) STRICT;
CREATE INDEX IF NOT EXISTS plans_of_job ON plan_jobs (job);
CREATE TABLE IF NOT EXISTS points (
    job TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE, step INTEGER NOT NULL, loss REAL NOT NULL,
    PRIMARY KEY (job, step)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS judgements (
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, first TEXT NOT NULL, second TEXT NOT NULL,
    example TEXT NOT NULL, rater TEXT NOT NULL, preferred REAL NOT NULL,
    PRIMARY KEY (project, first, second, example, rater)
) STRICT;
CREATE TABLE IF NOT EXISTS workers (
    id TEXT PRIMARY KEY, pid INTEGER NOT NULL, identity TEXT NOT NULL, host TEXT NOT NULL, started REAL NOT NULL,
    beat REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS sessions (
    cookie TEXT PRIMARY KEY, token TEXT NOT NULL, until REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
    token TEXT PRIMARY KEY, name TEXT NOT NULL, owner TEXT NOT NULL, scope TEXT NOT NULL, created REAL NOT NULL
) STRICT;
"""  # of cookies and tokens the hashes; owner: that of the owner's token under which another was created
JOBS_TO_TASKS = """
ALTER TABLE jobs RENAME TO tasks;
ALTER TABLE tasks RENAME COLUMN run TO payload;
ALTER TABLE tasks ADD COLUMN kind TEXT NOT NULL DEFAULT 'run';
ALTER TABLE tasks ADD COLUMN text TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN result TEXT NOT NULL DEFAULT 'null';
DROP INDEX jobs_by_state;
DROP TABLE requests
"""  # of schema 6 and before; what was asked then nobody waits for


def default_home() -> Path:
    """`PEFTBOOK_STUDIO`, or a folder of the user's data folder."""
    if folder := os.environ.get("PEFTBOOK_STUDIO"):
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_data_dir("peftbook")) / "studio"


@contextlib.contextmanager
def clear_failures(home: Path) -> Iterator[None]:
    """Turn a full or read-only disk into InputError, one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR):
            raise
        raise InputError(refusal(home, error.errno)) from None
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise InputError(refusal(home, errno.ENOSPC)) from None
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise InputError(refusal(home, errno.EACCES)) from None
        raise


def refusal(home: Path, code: int) -> str:
    """What a disk refuses, in a sentence."""
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {str(home)!r} is full: free some space, then try again."
    return f"{str(home)!r} cannot be written: give another folder with PEFTBOOK_STUDIO, or mend its permissions."


def close_to_others(home: Path) -> None:
    """Take from others what they may do in a home that stood before, and say so on standard error. Raises InputError
    for a folder with other files, which is not ours to close.
    """
    found = home.stat()
    if os.name != "posix" or not found.st_mode & 0o077:
        return
    if found.st_uid != os.getuid() or (any(home.iterdir()) and not (home / "studio.sqlite").is_file()):
        raise InputError(
            f"Others can read {str(home)!r}, which holds other files or is not yours: name a folder of its own."
        )
    with clear_failures(home):
        home.chmod(0o700)
    print(f"Others could read {str(home)!r}: now its owner alone can.", file=sys.stderr, flush=True)


class Database:
    """The file `studio.sqlite` in a home that is made when it is missing.

    Every thread, and every process after a fork, has a connection of its own. Raises InputError for a home that
    cannot be written and for a file of another version.

    durable: what was written outlives a power cut; without, the last words before one may be lost (and nothing else).
    """

    def __init__(self, home: Path | str | None = None, *, durable: bool = True):
        self.home = (Path(home) if home is not None else default_home()).expanduser().absolute()
        self.durable = durable
        self._local = threading.local()
        if not self.home.exists():
            check_writable(self.home)
        else:
            close_to_others(self.home)
        with clear_failures(self.home):
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._prepare()

    def _prepare(self) -> None:
        """Make the tables that are missing, or check their version; two processes may do so at once."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                version = self._connection().execute("PRAGMA user_version").fetchone()[0]
                if version < SCHEMA:
                    self._connection().execute("PRAGMA journal_mode = WAL")
                    with self._write() as db:
                        if columns_of(db, "jobs"):
                            for statement in JOBS_TO_TASKS.split(";"):
                                db.execute(statement)
                        if "password" in columns_of(db, "tokens"):
                            db.execute("ALTER TABLE tokens RENAME TO tokens_7")
                        if "password" in columns_of(db, "sessions"):
                            db.execute("DROP TABLE sessions")  # a link begins another
                        for statement in TABLES.split(";"):
                            db.execute(statement)
                        if columns := columns_of(db, "tokens_7"):
                            scope = "scope" if "scope" in columns else "'write'"
                            moved = (
                                f"SELECT token, label, password, {scope}, created FROM tokens_7 WHERE name = 'owner'"
                            )
                            db.execute(f"INSERT INTO tokens {moved}")
                            db.execute("DROP TABLE tokens_7")
                        if "phase_began" not in columns_of(db, "tasks"):
                            db.execute("ALTER TABLE tasks ADD COLUMN phase_began REAL")
                        if "tuning" not in columns_of(db, "plans"):
                            db.execute("ALTER TABLE plans ADD COLUMN tuning TEXT NOT NULL DEFAULT ''")
                        if "measure" not in columns_of(db, "plans"):
                            db.execute("ALTER TABLE plans ADD COLUMN measure TEXT NOT NULL DEFAULT ''")
                        db.execute(f"PRAGMA user_version = {SCHEMA}")
                    version = SCHEMA
                break
            except sqlite3.OperationalError as error:  # the change to WAL does not wait for others by itself
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            except sqlite3.DatabaseError as error:
                raise InputError(
                    f"{str(self.home / 'studio.sqlite')!r} is no studio database ({error}): move it away."
                ) from None
        if version != SCHEMA:
            raise InputError(
                f"The studio in {str(self.home)!r} has version {version}, this program reads {SCHEMA}: "
                "use the peftbook that made it, or give another folder with PEFTBOOK_STUDIO."
            )

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if getattr(self._local, "pid", None) != os.getpid():
            path = self.home / "studio.sqlite"
            db = sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA foreign_keys = ON")
            db.execute(f"PRAGMA synchronous = {'FULL' if self.durable else 'NORMAL'}")
            db.execute("PRAGMA secure_delete = ON")  # a deleted project leaves nothing behind
            self._local.connection, self._local.pid = db, os.getpid()
        return self._local.connection

    def close(self) -> None:
        """Close this thread's connection; the next call opens another."""
        if getattr(self._local, "pid", None) == os.getpid():
            self._local.connection.close()
            self._local.pid = None

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        return self._connection().execute(query, values).fetchall()

    def _row(self, query: str, *values: Any) -> sqlite3.Row | None:
        return self._connection().execute(query, values).fetchone()

    @staticmethod
    def _check_project(db: sqlite3.Connection, project_id: str) -> None:
        """Raises InputError for a project that is none, or no longer."""
        if db.execute("SELECT 1 FROM projects WHERE id = ? AND NOT removed", (project_id,)).fetchone() is None:
            raise Unknown(f"There is no project {project_id!r}: it may have been deleted.")

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that has the file to itself from its start: all of it happens, or nothing."""
        db = self._connection()
        with clear_failures(self.home):
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def check_writable(self, seconds: float) -> None:
        """Write nothing, waiting at most so long for a lock. Raises what stands in the way."""
        db = self._connection()
        db.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")
        try:
            with self._write():
                pass
        finally:
            db.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE_SECONDS:.0f}")


def columns_of(db: sqlite3.Connection, table: str) -> list[str]:
    """The names of a table's columns; none of a table that is not there."""
    return [row["name"] for row in db.execute(f"PRAGMA table_info({table})")]
