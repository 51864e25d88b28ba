"""Stamps: small files that hold the hash of the inputs of an output, so that it is made again only if they change."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

CLOCK_TICK = 0.05  # seconds by which a file's time may lag behind the clock


def inputs_hash(files: Iterable[Path | str], *texts: str, root: Path | None = None) -> str:
    """SHA-256 over names and contents of files, in the order of their names, and over texts.

    root: makes the names relative to this folder, so that a copy of the folder has the same hash.
    """
    total = hashlib.sha256()
    for name in sorted(set(map(str, files))):
        total.update(f"{os.path.relpath(name, root) if root else name}\0{file_hash(name) or ''}\n".encode())
    for text in texts:
        total.update(f"{hashlib.sha256(text.encode()).hexdigest()}\n".encode())
    return total.hexdigest()


def file_hash(path: Path | str) -> str | None:
    """SHA-256 of a file, or of the names of the records and modules in a folder; None if neither exists."""
    try:
        state = os.stat(path)  # noqa: PTH116 — a command asks for thousands
        if stat.S_ISDIR(state.st_mode):
            names = sorted(entry.name for pattern in ("*.json", "*.py") for entry in Path(path).glob(pattern))
            return hashlib.sha256("\n".join(names).encode()).hexdigest()
        return _content_hash(str(path), state.st_ctime_ns, state.st_size, state.st_ino)
    except OSError:
        return None


@lru_cache(maxsize=8192)
def _content_hash(path: str, *state: int) -> str:
    """`state` differs when the file has changed, whatever date it was given."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_fresh(stamp: Path, inputs: str) -> bool:
    """Whether a stamp holds this hash of the inputs."""
    return stamp.is_file() and stamp.read_text() == inputs


def write_stamp(stamp: Path, inputs: str) -> None:
    """Write a stamp, after its output is made."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(inputs)


def changed_since(moment: float, files: Iterable[Path | str]) -> bool:
    """Whether one of these files may have been written after a moment, seconds since the epoch."""
    for file in files:
        with suppress(OSError):
            if os.stat(file).st_ctime >= moment - CLOCK_TICK:  # noqa: PTH116 — a command asks for thousands
                return True
    return False


def add_checksum(body: str) -> bytes:
    """The text, preceded by a line with its SHA-256."""
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode()


def verified_body(data: bytes) -> bytes | None:
    """The text after the first line if that line is its SHA-256, else None."""
    digest, _, body = data.partition(b"\n")
    return body if hashlib.sha256(body).hexdigest().encode() == digest else None
