"""The installation tells what it does: from pip's lines, and from what has come into the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from peftbook import installing
from peftbook.training.phases import Phase, Phases

SRC = Path(__file__).resolve().parents[1] / "src"
LINES = """\
Obtaining file:///book
Collecting torch<2.15,>=2.9 (from peftbook==0.1.0)
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (29 kB)
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (190.2 MB)
  Using cached rouge_score-0.1.2.tar.gz (17 kB)
Requirement already satisfied: pip in ./lib
"""


def heard() -> tuple[Phases, list[Phase]]:
    """Phases, and what a listener hears of them."""
    told: list[Phase] = []
    return Phases(told.append), told


def test_what_is_fetched_is_told_with_its_size():
    """A file of metadata is no package, and what is there already no news."""
    phases, told = heard()
    assert not any(installing.tell(line, phases) for line in LINES.splitlines())
    assert [phase.detail for phase in told] == ["torch", "torch, 190.2 MB", "rouge_score, 17 kB"]
    assert installing.tell("Installing collected packages: mpmath, torch, peftbook\n", phases) == 3


def test_packages_are_counted_as_they_come(monkeypatch, tmp_path):
    """Not those that were there before; the last one by name, and never more than there are to come."""
    (tmp_path / "pip-24.0.dist-info").mkdir()
    monkeypatch.setattr(installing.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(installing, "LOOK_SECONDS", 0.0)
    coming = iter(["torch-2.13.0", "peft-0.21.2", "numpy-2.4.6"])

    def poll() -> int | None:
        if (name := next(coming, "")) == "":
            return 0
        (tmp_path / f"{name}.dist-info").mkdir()
        return None

    phases, told = heard()
    installing.count_installed(2, phases, SimpleNamespace(poll=poll))
    assert [(phase.done, phase.total) for phase in told] == [(1, 2), (2, 2), (2, 2)]
    assert told[0].detail == "torch"


def test_it_needs_no_package_and_says_why_pip_failed():
    """It runs before any is installed; pip's own words are heard and its status is kept."""
    words = ["--no-index", "--dry-run", "no-such-package-of-ours"]
    command = [sys.executable, "-S", "-c", "import peftbook.installing, sys; print(*sys.modules)"]
    loaded = subprocess.run(command, env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "psutil", "numpy", "pydantic"} & set(loaded.split())
    command = [sys.executable, "-m", "peftbook.installing", *words]
    result = subprocess.run(command, env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Packages: asking what is needed" in result.stderr and "No matching distribution" in result.stderr
