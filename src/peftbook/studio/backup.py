"""Backup: a whole studio as one zip file, taken while it runs, and put back where there is none.

Database first, files after: what ends in between is finished again from its record. Downloads and checkpoints are left
out: they are made again. Nothing is packed, so that a backup takes no more when it is put back.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.studio.database import clear_failures

DATABASE = "studio.sqlite"
LOOSE = ("token", "login.json")
KEPT = re.compile(r"projects/[0-9a-f]{16}/(?:data\.bin|metrics\.json|(?:records|adapters|starts)/[\w./-]+)", re.ASCII)


def back_up(home: Path, target: Path) -> int:
    """Write a studio into a new file, readable by its owner alone; its bytes. Raises InputError where there is none."""
    if not (home / DATABASE).is_file():
        raise InputError(f"There is no studio in {str(home)!r}: name its folder with --home.")
    if target.exists():
        raise InputError(f"{str(target)!r} exists: name a new file, no backup is overwritten.")
    with clear_failures(target.parent), tempfile.TemporaryDirectory(dir=target.absolute().parent) as work:
        database, aside = Path(work) / DATABASE, Path(work) / "backup"
        snapshot(home / DATABASE, database)
        with aside.open("wb") as stream:
            with zipfile.ZipFile(stream, "w", strict_timestamps=False) as archive:
                archive.write(database, DATABASE)
                for name in names_in(home):
                    with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                        archive.write(home / name, name)
            stream.flush()
            os.fsync(stream.fileno())
        aside.chmod(0o600)
        aside.replace(target)
    return target.stat().st_size


def snapshot(source: Path, target: Path) -> None:
    """The database as it is at one moment, whoever writes; without deleted projects and without workers."""
    with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA foreign_keys = ON")
        copy.execute("DELETE FROM projects WHERE removed")
        copy.execute("DELETE FROM workers")  # they and their children stay with the original
        (tasks,) = copy.execute(
            "SELECT name FROM sqlite_master WHERE name IN ('tasks', 'jobs')"
        ).fetchone()  # by schema
        copy.execute(f"UPDATE {tasks} SET child = 0 WHERE state = 'running'")
        copy.commit()
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("VACUUM")


def names_in(home: Path) -> Iterator[str]:
    """What belongs to a home beside the database, without what is half-written."""
    for folder, _, files in os.walk(home / "projects"):  # which passes over a folder that is deleted meanwhile
        for path in (Path(folder, file) for file in sorted(files)):
            name = path.relative_to(home).as_posix()
            if KEPT.fullmatch(name) and "/." not in name and path.is_file() and not path.is_symlink():
                yield name
    yield from (name for name in LOOSE if (home / name).is_file())


def restore(source: Path, home: Path) -> None:
    """Make a studio of a backup, in a folder that is not there or empty; whole or not at all.

    Raises InputError for a file that is no backup, or that was changed, and for a folder with something in it.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise InputError(f"{str(home)!r} is not empty: restore into a new folder, nothing is overwritten.")
    if not source.is_file():
        raise InputError(f"{str(source)!r} is not a file: name a backup.")
    if tarfile.is_tarfile(source):
        raise InputError(f"{str(source)!r} is a tar file, as older versions wrote: restore it with that version.")
    above = home.absolute().parent
    above.mkdir(parents=True, exist_ok=True)
    with clear_failures(above), tempfile.TemporaryDirectory(dir=above, prefix=".peftbook-") as work:
        try:
            unpack(source, Path(work))
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError):
            words = f"{str(source)!r} is no backup of a studio, or was changed: take another one."
            raise InputError(words) from None
        forget_lost(Path(work))
        if home.exists():
            home.rmdir()
        Path(work).replace(home)


def unpack(source: Path, folder: Path) -> None:
    """Write the members of a backup, whose hashes zipfile checks. Raises ValueError for a file with others."""
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or DATABASE not in names or len({*names}) < len(names) or not all(map(belongs, names)):
            raise ValueError("its members are not those of a backup")
        for name in names:
            path = Path(archive.extract(name, folder))
            path.chmod(0o600)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def belongs(name: str) -> bool:
    return name in (DATABASE, *LOOSE) or (KEPT.fullmatch(name) is not None and ".." not in name)


def forget_lost(home: Path) -> None:
    """Remove the projects that were deleted between the moment of the database and that of their files."""
    with contextlib.closing(sqlite3.connect(home / DATABASE)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        for (project,) in db.execute("SELECT id FROM projects").fetchall():
            if not (home / "projects" / project / "data.bin").is_file():
                db.execute("DELETE FROM projects WHERE id = ?", (project,))
        db.commit()
