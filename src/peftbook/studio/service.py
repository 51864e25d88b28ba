"""Service: a systemd unit that keeps a studio running, and what a proxy in front of it must do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

UNIT = Path(__file__).parent / "templates" / "studio.service"


def unit(home: Path, port: int, options: Sequence[str]) -> str:
    """The unit of a studio with this home and port. options: further words of the command."""
    words = [sys.executable, "-m", "peftbook", "studio", "--home", str(home.absolute()), "--port", str(port), *options]
    return UNIT.read_text().format(command=quoted(words), port=port)


def quoted(words: Sequence[str]) -> str:
    """A command line of systemd's: its own signs % and $ are doubled. Source: systemd.service(5), COMMAND LINES."""
    return " ".join(shlex.quote(word).replace("%", "%%").replace("$", "$$") for word in words)
