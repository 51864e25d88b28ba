"""What `peftbook doctor` says of this machine, for the studio's page: found by a process of its own, once a day."""

from __future__ import annotations

import subprocess
import sys
import time

from peftbook.training.doctor import as_text, kept_examination, last_examination

DAY = 86_400.0


def examine_apart() -> subprocess.Popen | None:
    """Start a process that examines this machine, unless that was done within a day."""
    path = kept_examination()
    if path.is_file() and time.time() - path.stat().st_mtime < DAY:
        return None
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "peftbook.training.doctor"]
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def machine_words() -> str:
    """The examination as text; that it is under way where there is none yet."""
    found = last_examination()
    return as_text(found) if found else "This machine is being examined: open this page again in half a minute."
