"""Shared by all tests: where the repository is, the built site, and what to do where a browser is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {
    "browser": (
        lambda: os.environ.get("PEFTBOOK_CHROMIUM") or shutil.which("chromium"),
        "Chromium: `apt-get install chromium`, or set PEFTBOOK_CHROMIUM to one",
    ),
    "epubcheck": (lambda: shutil.which("epubcheck"), "EPUBCheck 5: Java, and a command `epubcheck` for its jar"),
    "office": (lambda: shutil.which("soffice"), "LibreOffice: `apt-get install libreoffice-impress poppler-utils`"),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and say so, the tests whose program this machine lacks."""
    for marker, (find, _) in NEEDS.items():
        left_out = [item for item in items if item.get_closest_marker(marker)] if not find() else []
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
            config.stash.setdefault(MISSING, {})[marker] = len(left_out)


MISSING = pytest.StashKey[dict[str, int]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out and how to get what it needs."""
    for marker, count in config.stash.get(MISSING, {}).items():
        terminalreporter.write_line(f"LEFT OUT: {count} tests need {NEEDS[marker][1]}.", yellow=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    found = NEEDS["browser"][0]()
    assert found is not None
    return found


@pytest.fixture(scope="session")
def built_site() -> Path:
    """The HTML site: the one at hand if it was built from these sources without a warning, else built now."""
    from peftbook.site.freshness import is_fresh

    site = ROOT / "_build" / "html"
    if not is_fresh(site, ROOT):
        command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "--all", "-W", "-n", "--keep-going"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return site
