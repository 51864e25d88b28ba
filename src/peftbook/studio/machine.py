"""The machine of a studio: its examination by `peftbook doctor`, and what prevents it from running jobs."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time

from peftbook.core.errors import InputError
from peftbook.runtime.doctor import as_text, kept_examination, last_examination
from peftbook.studio.store import Studio

DAY = 86_400.0
WAIT_SECONDS = 1.0  # so that a probe is answered before it counts as lost
ROOM_BYTES = 1_000_000_000  # for checkpoints and adapters of the next jobs


def start_examination() -> subprocess.Popen | None:
    """Start a child process that examines this machine, unless the last examination is less than a day old."""
    path = kept_examination()
    if path.is_file() and time.time() - path.stat().st_mtime < DAY:
        return None
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "peftbook", "doctor"]
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def machine_words() -> str:
    """The examination as text, or that it is running."""
    found = last_examination()
    return as_text(found) if found else "This machine is being examined: open this page again in half a minute."


def troubles(studio: Studio) -> list[str]:
    """The problems of database, worker and disk; waits at most a second for a lock."""
    try:
        with studio._waiting(WAIT_SECONDS), studio._write():
            pass
        workers = any(worker.alive for worker in studio.workers())
    except (sqlite3.Error, InputError) as error:
        return [f"The database cannot be written: {error}."]
    found = [] if workers else ["No worker is running: jobs wait until one starts."]
    if (free := shutil.disk_usage(studio.home).free) < ROOM_BYTES:
        found.append(f"The disk has {free:,} bytes left: free some space.")
    return found
