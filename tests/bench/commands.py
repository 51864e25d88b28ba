"""How long a reader waits for a command: with its results kept from an earlier call (warm), and without (cold)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from peftbook.core.errors import InputError

__all__ = ["COMMANDS", "cli_bench", "table"]

COMMANDS: dict[str, tuple[str, ...]] = {
    "help": ("--help",),
    "fit": ("fit", "--model", "llama-3.1-8b", "--memory", "24GiB", "--method", "qlora", "--stack", "trl"),
    "status": ("status",),
    "claims": ("claims",),
}


def cli_bench(rounds: int = 3, commands: Mapping[str, Sequence[str]] = COMMANDS) -> list[dict[str, Any]]:
    """Wall seconds of each command, cold and warm, and how many starts of a bare Python that is.

    Every round has each of them once, so that a busy moment strikes all. Raises InputError where a command fails.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.setdefault(("python", "bare"), []).append(seconds(["-c", "pass"], folder))
            for name, words in commands.items():
                for state in ("cold", "warm"):
                    found.setdefault((name, state), []).append(seconds(["-m", "peftbook", *words], folder))
    bare = median(found["python", "bare"])
    return [
        {"command": name, "state": state, "seconds": median(times), "lowest": min(times), "highest": max(times),
         "times_bare": median(times) / bare}
        for (name, state), times in found.items()
    ]  # fmt: skip


def seconds(words: Sequence[str], results: str) -> float:
    """Of one call of this Python, which keeps what it compiles, as a reader's does, and results in that folder."""
    environment = {**os.environ, "PEFTBOOK_RESULTS": results}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise InputError(f"`{' '.join(words)}` failed with status {done.returncode}: {said}")
    return time.perf_counter() - began


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text: medians, ranges in brackets, and starts of a bare Python."""
    lines = [
        f"{row['command']:<8}{row['state']:<6}{row['seconds']:7.2f} s  [{row['lowest']:.2f}–{row['highest']:.2f}]"
        f"{row['times_bare']:7.1f} × python"
        for row in rows
    ]
    return "\n".join(lines)
