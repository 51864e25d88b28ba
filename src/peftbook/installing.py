"""Installing: `pip install`, told of while it works: what is fetched, how many packages are in place, how long is left.

    PYTHONPATH=src python -m peftbook.installing -c constraints.txt -e '.[book]'

hands its words to pip. It runs before anything is installed and needs the standard library alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from peftbook.training.phases import Phases, waited_for

__all__ = ["install", "tell"]

COLLECTED = re.compile(r"Collecting ([\w.-]+)")
FETCHED = re.compile(r"\s*(?:Downloading|Using cached) (\S+?)-\d\S*\.(?:whl|tar\.gz|zip) \((.+)\)")
INSTALLED = re.compile(r"Installing collected packages: (.+)")
LAST = 30  # lines of pip's that are shown where it fails
LOOK_SECONDS = 0.5


def install(words: Sequence[str]) -> int:
    """Run `pip install` with these words and say how it stands; returns its status. Where it fails it is heard."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *words]
    last: deque[str] = deque(maxlen=LAST)
    with (
        waited_for("Packages", "asking what is needed") as phases,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            last.append(line)
            if total := tell(line, phases):
                count_installed(total, phases, pip)
    if pip.returncode:
        sys.stderr.writelines(last)
    return pip.returncode


def tell(line: str, phases: Phases) -> int:
    """Tell what a line of pip's says; how many packages it begins to install, 0 for any other line."""
    if found := INSTALLED.match(line):
        return len(found[1].split(", "))
    if found := FETCHED.match(line) or COLLECTED.match(line):
        phases("fetching", detail=", ".join(found.groups()))
    return 0


def count_installed(total: int, phases: Phases, pip: subprocess.Popen) -> None:
    """Until pip ends, which says nothing more: how many packages have come into the folder, the last one by name."""
    folder = Path(sysconfig.get_path("purelib"))
    before = set(folder.glob("*.dist-info"))
    while pip.poll() is None:
        new = set(folder.glob("*.dist-info")) - before
        newest = max(new, key=lambda path: path.stat().st_mtime).name.partition("-")[0] if new else ""
        phases("installing", min(len(new), total), total, newest)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(install(sys.argv[1:]))
