"""The machine of a studio: its examination by `peftbook doctor`, its nodes, and what prevents it from running jobs."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.runtime.doctor import as_text, kept_examination, last_examination
from peftbook.studio.store import Studio, ray_nodes

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


def machine_words(home: Path | None = None) -> str:
    """The examination as text, or that it is running; and the cluster nodes of this home, if it has any."""
    found = last_examination()
    here = as_text(found) if found else "This machine is being examined: open this page again in half a minute."
    if home is None or (nodes := ray_nodes(home)) is None:
        return here
    lines = [node.words for node in nodes.nodes] or nodes.troubles
    return "\n".join([here, "", f"Jobs are computed on the nodes of the Ray cluster at {nodes.address}:", *lines])


def troubles(studio: Studio) -> list[str]:
    """The problems of database, worker, cluster nodes and disk; waits at most a second for a lock."""
    try:
        studio.check_writable(WAIT_SECONDS)
        workers = any(worker.alive for worker in studio.workers())
    except (sqlite3.Error, InputError) as error:
        return [f"The database cannot be written: {error}."]
    found = [] if workers else ["No worker is running: jobs wait until one starts."]
    if (cluster := ray_nodes(studio.home)) is not None:
        found += cluster.troubles
    if (free := shutil.disk_usage(studio.home).free) < ROOM_BYTES:
        found.append(f"The disk has {free:,} bytes left: free some space.")
    return found


def nodes(studio: Studio) -> list[str]:
    """The nodes that compute the jobs, a line each; none where they are computed on this machine."""
    cluster = ray_nodes(studio.home)
    return [] if cluster is None else [node.words for node in cluster.nodes]
