"""What `peftbook doctor` says of this machine, for the studio's page: found by a process of its own, and kept a day."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from peftbook.training.doctor import Examination, as_text
from peftbook.training.precision import machine_file

__all__ = ["examine_apart", "machine_words"]

DAY = 86_400.0


def examination() -> Path:
    """The file that is kept."""
    return machine_file("doctor")


def examine_apart() -> subprocess.Popen | None:
    """Start a process that examines this machine, unless that was done within a day."""
    path = examination()
    if path.is_file() and time.time() - path.stat().st_mtime < DAY:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    command, quiet = [sys.executable, "-m", "peftbook.training.doctor", str(path)], subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def machine_words() -> str:
    """The examination as text; that it is under way where there is none yet."""
    try:
        return as_text(Examination(**json.loads(examination().read_text())))
    except (OSError, ValueError, TypeError):  # none yet, or of another version
        return "This machine is being examined: open this page again in half a minute."
