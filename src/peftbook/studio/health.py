"""Health of a studio: what prevents it from running jobs, a sentence each."""

from __future__ import annotations

import shutil
import sqlite3

from peftbook.core.errors import InputError
from peftbook.studio.store import Studio, ray_nodes

WAIT_SECONDS = 1.0  # so that a probe is answered before it counts as lost
ROOM_BYTES = 1_000_000_000  # for checkpoints and adapters of the next jobs


def troubles(studio: Studio) -> list[str]:
    """The problems of database, worker, cluster nodes and disk; waits at most a second for a lock."""
    try:
        with studio._waiting(WAIT_SECONDS), studio._write():
            pass
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
