"""Backup: a whole studio as one file, taken while it runs, and put back where there is none.

A tar file with `manifest.json` first: the SHA-256 of every other member. Database first, files after: what ends in
between is finished again from its record. Downloads and checkpoints are left out: they are made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.studio.database import clear_failures

Names = Callable[[str], bool]  # whether a member of this name may be there
MANIFEST, DATABASE = "manifest.json", "studio.sqlite"
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
        members = {DATABASE: database, **{path.relative_to(home).as_posix(): path for path in files_of(home)}}
        pack(members, aside)
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
        copy.execute("UPDATE jobs SET child = 0 WHERE state = 'running'")
        copy.commit()
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("VACUUM")


def files_of(home: Path) -> Iterator[Path]:
    """What belongs to it beside the database, without what is half-written."""
    for path in files_under(home / "projects"):
        name = path.relative_to(home).as_posix()
        if KEPT.fullmatch(name) and "/." not in name:
            yield path
    yield from (home / name for name in LOOSE if (home / name).is_file())


def files_under(folder: Path) -> list[Path]:
    """All files in a folder and those in it, in order; one that is deleted meanwhile is passed over."""
    found = (Path(inner) / name for inner, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def pack(members: dict[str, Path], target: Path) -> None:
    """A tar file of files under these names; one that is gone by now was deleted and is left out."""
    digests: dict[str, str] = {}
    with contextlib.closing(tempfile.TemporaryFile(dir=target.parent)) as body:
        with tarfile.open(fileobj=body, mode="w") as archive:
            for name, path in members.items():
                with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
                    digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
                    stream.seek(0)
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = os.fstat(stream.fileno()).st_size, 0o600
                    archive.addfile(entry, stream)
        body.seek(0)
        with target.open("wb") as stream:
            stream.write(manifest_block(digests))
            shutil.copyfileobj(body, stream)
            stream.flush()
            os.fsync(stream.fileno())


def manifest_block(digests: dict[str, str]) -> bytes:
    """The member that stands first, as it lies in the file."""
    content = json.dumps(digests, indent=1).encode()
    entry = tarfile.TarInfo(MANIFEST)
    entry.size = len(content)
    return entry.tobuf() + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE)


def restore(source: Path, home: Path) -> None:
    """Make a studio of a backup, in a folder that is not there or empty; whole or not at all.

    Raises InputError for a file that is no backup, or that was changed, and for a folder with something in it.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise InputError(f"{str(home)!r} is not empty: restore into a new folder, nothing is overwritten.")
    if not source.is_file():
        raise InputError(f"{str(source)!r} is not a file: name a backup.")
    above = home.absolute().parent
    above.mkdir(parents=True, exist_ok=True)
    with clear_failures(above), tempfile.TemporaryDirectory(dir=above, prefix=".peftbook-") as work:
        try:
            if DATABASE not in unpack(source, Path(work), belongs):
                raise ValueError("it has no database")
        except ValueError:
            words = f"{str(source)!r} is no backup of a studio, or was changed: take another one."
            raise InputError(words) from None
        forget_lost(Path(work))
        if home.exists():
            home.rmdir()
        Path(work).replace(home)


def forget_lost(home: Path) -> None:
    """Remove the projects that were deleted between the moment of the database and that of their files."""
    with contextlib.closing(sqlite3.connect(home / DATABASE)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        for (project,) in db.execute("SELECT id FROM projects").fetchall():
            if not (home / "projects" / project / "data.bin").is_file():
                db.execute("DELETE FROM projects WHERE id = ?", (project,))
        db.commit()


def unpack(source: Path, folder: Path, is_ours: Names) -> set[str]:
    """Write the members of a file that `pack` wrote, each checked by name and content; their names.

    Raises ValueError for every other file: another name, a link, a hole, a member too many or too few, other bytes.
    """
    try:
        with tarfile.open(source, "r:") as archive:
            members = iter(archive)
            first = next(members)
            digests = json.load(archive.extractfile(first) or io.BytesIO()) if first.name == MANIFEST else {}
            found = {member.name: write_member(archive, member, folder, is_ours) for member in members}
    except (tarfile.TarError, StopIteration, EOFError, RecursionError) as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        if error.errno not in (None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL):
            raise  # the disk's fault
        raise ValueError(str(error)) from None
    if not found or found != digests:
        raise ValueError("its members are not those that it names")
    return {*found}


def belongs(name: str) -> bool:
    return name in (DATABASE, *LOOSE) or (KEPT.fullmatch(name) is not None and ".." not in name)


def write_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, is_ours: Callable[[str], bool]
) -> str:
    """Write one file and return its digest. Raises ValueError for what is none of ours."""
    plain = member.isreg() and not member.issparse() and is_ours(member.name)
    stream = archive.extractfile(member) if plain else None
    if stream is None:
        raise ValueError(member.name)
    path = folder / member.name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("xb") as target:
        shutil.copyfileobj(stream, target)
        target.flush()
        os.fsync(target.fileno())
    path.chmod(0o600)
    with path.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()
