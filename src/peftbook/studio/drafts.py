"""Uploads that are no project yet: bytes on disk under random names, forgotten when they are used or after a day."""

from __future__ import annotations

import functools
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbook.errors import InputError

if TYPE_CHECKING:
    from peftbook.tasks.table import Caps, Table

KEPT = 12
KEPT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Draft:
    """An upload. filename: as the browser gave it, to be shown and never opened."""

    id: str
    filename: str
    path: Path
    created: float


class Drafts:
    """Of one web process, which removes them when it ends; what a killed one left is removed after a day."""

    def __init__(self, home: Path, caps: Caps):
        self.caps, self._lock, self._known = caps, threading.Lock(), {}  # type: ignore[var-annotated]
        folder = home / "drafts"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.iterdir():
            if time.time() - left.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        self._folder = tempfile.TemporaryDirectory(dir=folder)

    def new(self, filename: str) -> Draft:
        """A place for an upload; the oldest one gives way."""
        name = secrets.token_hex(8)
        draft = Draft(name, filename[:200], Path(self._folder.name) / name, time.time())
        with self._lock:
            while len(self._known) >= KEPT:
                self._known.pop(next(iter(self._known))).path.unlink(missing_ok=True)
            self._known[name] = draft
        return draft

    def get(self, draft_id: str) -> Draft:
        """Raises InputError for one that is gone."""
        with self._lock:
            draft = self._known.get(draft_id)
        if draft is None or not draft.path.exists():
            raise InputError("This upload is no longer at hand: choose the file again.")
        return draft

    def table(self, draft_id: str) -> Table:
        """What is in it. Raises InputError for a file that is no table."""
        return _table(self.get(draft_id), self.caps)

    def drop(self, draft_id: str) -> None:
        """Forget one."""
        with self._lock:
            draft = self._known.pop(draft_id, None)
        if draft is not None:
            draft.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Forget all."""
        self._folder.cleanup()


@functools.lru_cache(4)
def _table(draft: Draft, caps: Caps) -> Table:
    from peftbook.tasks.table import read_table

    return read_table(draft.path.read_bytes(), draft.filename, caps)
