"""Numbers, sizes, times and texts in words, as pages, report and command line show them."""

from __future__ import annotations

import math
import time

from peftbook.evidence.results import format_value

SHOWN_CHARS = 280


def clipped(text: str, chars: int = SHOWN_CHARS) -> str:
    """The start of a long text."""
    return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format_value(value, digits, unit)


def size(value: float | None) -> str:
    """A number of bytes."""
    return number(value, unit="bytes")


def ago(when: float) -> str:
    """The time since then."""
    seconds = max(0.0, time.time() - when)
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    day = time.localtime(when)
    return f"{day.tm_mday} {time.strftime('%B %Y', day)}"


def typeset(words: str) -> str:
    """Our own words: no line break before %."""
    return words.replace(" %", "\N{NO-BREAK SPACE}%")
