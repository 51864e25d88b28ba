"""Uploads that are not projects yet: files under random names, each with its metadata as JSON.

In the home: `drafts/<id>` and `drafts/<id>.json`. An upload of announced length can be sent in parts, to any process
that serves the home. Incomplete uploads expire after an hour, complete ones after a day.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbook.core.errors import Conflict, InputError, TooLarge, Unknown
from peftbook.core.records import write_atomically
from peftbook.studio.database import clear_failures

if TYPE_CHECKING:
    from peftbook.tasks.table import Caps, TextTable

KEPT, FRESH_SECONDS = 12, 600.0
KEPT_SECONDS = 24 * 3600.0
CUT_SECONDS = 3600.0
ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Upload:
    """An upload. filename: as the browser gave it, to be shown and never opened.  bytes: its announced length, None
    for one of unknown length that has not ended.
    """

    id: str
    filename: str
    path: Path
    created: float
    bytes: int | None

    @property
    def offset(self) -> int:
        return self.path.stat().st_size

    @property
    def whole(self) -> bool:
        return self.bytes == self.offset


def plain_name(name: str) -> str:
    """A file's name without folders and unprintable characters: shown, never opened."""
    name = re.split(r"[/\\]", name)[-1]
    return "".join(letter for letter in name if letter.isprintable())[:200]


class UploadStore:
    """The uploads of a home. Raises Unknown for an id that does not exist or has expired."""

    def __init__(self, home: Path, caps: Caps):
        self.home, self.caps = home, caps
        self.folder = home / "drafts"
        self._locks: dict[str, threading.Lock] = {}  # of uploads that are being written
        with clear_failures(home):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for upload in self.all():
            if upload.bytes is None:  # interrupted, of unknown length: it cannot be continued
                self.drop(upload.id)
        self.sweep()

    def new(self, filename: str, size: int | None = None) -> Upload:
        """Create an upload; of too many the oldest is deleted, unless that came just now. Raises TooLarge beyond the
        cap, Conflict where so many came just now.
        """
        if size is not None and size > self.caps.bytes:
            raise self.too_large()
        self.sweep()
        for oldest in self.all()[: 1 - KEPT]:
            if time.time() - oldest.created < FRESH_SECONDS:
                raise Conflict(f"There are {KEPT} uploads of the last minutes already: make projects of them first.")
            self.drop(oldest.id)
        upload = Upload(name := secrets.token_hex(8), filename[:200], self.folder / name, time.time(), size)
        with clear_failures(self.home):
            upload.path.touch(mode=0o600)
            self._note(upload)
        return upload

    def too_large(self) -> TooLarge:
        words = f"The file has more than {self.caps.bytes:,} bytes, the cap"
        return TooLarge(f"{words}: cut it, or start the studio with --max-bytes.")

    def _note(self, upload: Upload) -> None:
        said = {"filename": upload.filename, "created": upload.created, "bytes": upload.bytes}
        write_atomically(upload.path.with_suffix(".json"), json.dumps(said).encode())

    def all(self) -> list[Upload]:
        """All uploads, oldest first."""
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(Unknown):
                found.append(self.get(path.stem))
        return sorted(found, key=lambda upload: upload.created)

    def get(self, upload_id: str) -> Upload:
        """The upload of an id; no name from outside reaches the disk."""
        if ID.fullmatch(upload_id):
            path = self.folder / upload_id
            with contextlib.suppress(OSError, ValueError, TypeError):
                upload = Upload(upload_id, path=path, **json.loads(path.with_suffix(".json").read_text()))
                if upload.offset >= 0:
                    return upload
        raise Unknown("This upload is no longer at hand: choose the file again.")

    @contextlib.contextmanager
    def receiving(self, upload_id: str, offset: int = 0) -> Iterator[Callable[[bytes], None]]:
        """A context with a function that appends bytes; bytes written before an interruption are kept.

        Raises Conflict for another offset than the length so far, and while another request writes; TooLarge for more
        bytes than announced.
        """
        upload = self.get(upload_id)
        with self.alone(upload.id), clear_failures(self.home), upload.path.open("r+b", buffering=0) as stream:
            if offset != (here := upload.offset):
                raise Conflict(f"Of this upload {here:,} bytes are here, not {offset:,}: go on with offset={here}.")
            stream.seek(here)

            def write(block: bytes) -> None:
                if stream.tell() + len(block) > (self.caps.bytes if upload.bytes is None else upload.bytes):
                    stream.truncate(here)
                    if upload.bytes is None:
                        raise self.too_large()
                    raise TooLarge(f"More came than the {upload.bytes:,} bytes that were announced: send it anew.")
                stream.write(block)

            yield write

    @contextlib.contextmanager
    def alone(self, upload_id: str) -> Iterator[None]:
        """A context for one request at a time. Raises Conflict for another."""
        lock = self._locks.setdefault(upload_id, threading.Lock())
        if not lock.acquire(blocking=False):
            raise Conflict("Another request is at work on this upload: wait until it has ended.")
        try:
            yield
        finally:
            lock.release()

    def end(self, upload_id: str) -> Upload:
        """Mark an upload of unknown length as complete."""
        upload = self.get(upload_id)
        ended = Upload(upload.id, upload.filename, upload.path, upload.created, upload.offset)
        self._note(ended)
        return ended

    def whole(self, upload_id: str) -> Upload:
        """A complete upload. Raises Conflict for an incomplete one."""
        upload = self.get(upload_id)
        if not upload.whole:
            said = "" if upload.bytes is None else f" of {upload.bytes:,}"
            raise Conflict(f"Of this upload {upload.offset:,}{said} bytes are here: send the rest first.")
        return upload

    def table(self, upload_id: str) -> TextTable:
        """Read a complete upload as a table. Raises Conflict for an incomplete one, InputError for no table."""
        return _table(self.whole(upload_id), self.caps)

    def drop(self, upload_id: str) -> None:
        with contextlib.suppress(InputError):
            upload = self.get(upload_id)
            upload.path.with_suffix(".json").unlink(missing_ok=True)
            upload.path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete expired uploads and files without metadata."""
        now = time.time()
        for upload in self.all():
            if now - upload.path.stat().st_mtime > (KEPT_SECONDS if upload.whole else CUT_SECONDS):
                self.drop(upload.id)
        for path in self.folder.iterdir():
            if path.is_dir():  # of the first studio, which had a folder for each of its processes
                shutil.rmtree(path, ignore_errors=True)
            elif not path.with_suffix(".json").exists() and now - path.stat().st_mtime > CUT_SECONDS:
                path.unlink(missing_ok=True)


@functools.lru_cache(4)
def _table(upload: Upload, caps: Caps) -> TextTable:
    from peftbook.tasks.table import read_table

    return read_table(upload.path.read_bytes(), upload.filename, caps)
