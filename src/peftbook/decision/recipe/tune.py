"""Tune: run a recipe's scripts one after the other, from where they were stopped."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.decision.recipe.folder import SCRIPTS, SETTINGS

RESULTS = "## Results\n"  # of the model card
NOT_YET = "`python evaluate.py`"  # with which that section begins until they are there


def tune(folder: Path, devices: int = 1, report_to: str = "none") -> tuple[int, str]:
    """Train where there is no adapter yet, score where there are no results; the status, and the last words.

    Raises InputError for a folder that is no recipe's.
    """
    if missing := next(
        (name for name in (SETTINGS, "requirements.txt", *SCRIPTS) if not (folder / name).is_file()), ""
    ):
        raise InputError(f"{str(folder)!r} has no {missing}: name a folder that `peftbook recipe --out` wrote.")
    needed = re.findall(r"^[\w-]+", (folder / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if lacking := next((name for name in needed if find_spec(name) is None), ""):
        raise InputError(f"{lacking} is not installed: pip install -r {folder / 'requirements.txt'}")
    ran = False
    for command in commands(folder, devices, report_to):
        ran = True
        if status := subprocess.run(command, cwd=folder).returncode:
            script = next(word for word in command if word in SCRIPTS)
            return status, f"peftbook: {script} ended with status {status}; the same command goes on from there."
    card = folder / "adapter" / "README.md"
    words = f"The adapter and its model card: {card}. To try it: peftbook chat {card.parent}"
    return 0, words if ran else f"{results_in(card)}\n\n{words}"  # evaluate.py has printed them itself


def commands(folder: Path, devices: int, report_to: str) -> Iterator[list[str]]:
    """What is left to run, each looked for when the one before it has ended."""
    adapter = folder / "adapter"
    if not adapter.exists():
        stopped = any(folder.glob("adapter-checkpoints/checkpoint-*/trainer_state.json"))
        python = [sys.executable]
        if devices > 1:
            python += ["-m", "accelerate.commands.launch", "--num_processes", str(devices)]
        yield [*python, "train.py", "--report-to", report_to, *["--resume"] * stopped]
    if results_in(adapter / "README.md").startswith(NOT_YET):
        yield [sys.executable, "evaluate.py"]


def results_in(card: Path) -> str:
    """The results in a model card, or the words in their place."""
    if not card.is_file():
        return NOT_YET
    return card.read_text(encoding="utf-8").partition(RESULTS)[2].strip()
