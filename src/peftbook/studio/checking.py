"""A check of a plan under way in the assistant: a moment's work at a time, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from peftbook.errors import InputError
from peftbook.studio.preflight import Check

MOMENT_SECONDS = 0.05  # of work before the texts have their turn
CHECK_SECONDS = 180.0  # a file of 55 MB and two models take one minute beside a training
PAUSE_SECONDS = 0.5  # between two looks whether anybody still waits


@dataclass
class Checking:
    """One check of a plan under way. result: the checks so far, as dictionaries."""

    request: str
    steps: Iterator[Check | None]
    began: float = field(default_factory=time.monotonic)
    result: list[dict] = field(default_factory=list)
    ended: bool = False
    said: float = -1e9
    pause = PAUSE_SECONDS

    def advance(self) -> None:
        """A moment's work, or the end. Raises InputError when it has taken too long."""
        until = time.monotonic() + MOMENT_SECONDS
        for check in self.steps:
            if check is not None:
                self.result.append(asdict(check))
            if (now := time.monotonic()) > self.began + CHECK_SECONDS:
                raise InputError(
                    f"The check was ended after {CHECK_SECONDS / 60:.0f} minutes: choose fewer models or methods, or "
                    "check again when this machine does less."
                )
            if now > until:
                return
        self.ended = True

    def text(self) -> str:
        return ""
