"""The report of `peftbook doctor` for the studio's page, made by a child process once a day."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from peftbook.runtime.doctor import as_text, kept_examination, last_examination
from peftbook.studio.store import ray_nodes

DAY = 86_400.0


def start_examination() -> subprocess.Popen | None:
    """Start a child process that examines this machine, unless the last examination is less than a day old."""
    path = kept_examination()
    if path.is_file() and time.time() - path.stat().st_mtime < DAY:
        return None
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "peftbook.runtime.doctor"]
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def machine_words(home: Path | None = None) -> str:
    """The examination as text, or that it is running; and the cluster nodes of this home, if it has any."""
    found = last_examination()
    here = as_text(found) if found else "This machine is being examined: open this page again in half a minute."
    if home is None or (nodes := ray_nodes(home)) is None:
        return here
    lines = [node.words for node in nodes.nodes] or nodes.troubles
    return "\n".join([here, "", f"Jobs are computed on the nodes of the Ray cluster at {nodes.address}:", *lines])
