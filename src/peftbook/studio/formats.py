"""Numbers, sizes, times and texts in words, as pages, report and command line show them."""

from __future__ import annotations

import math
import time

from peftbook.core.progress import duration
from peftbook.evidence.results import format_value

SHOWN_CHARS = 280
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def clipped(text: str, chars: int = SHOWN_CHARS) -> str:
    """The start of a long text."""
    return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format_value(value, digits, unit)


def size(value: float | None) -> str:
    """A number of bytes."""
    return number(value, unit="bytes")


def time_range(seconds: float | None, spread: float = 1.0) -> str:
    """A time, or the range that it may take: `about 12 min`, `12 to 40 min`. spread: the factor up and down."""
    if seconds is None:
        return "–"
    if spread == 1:
        return f"about {duration(seconds)}"
    (low, small), (high, large) = map(rounded, (seconds / spread, seconds * spread))
    return f"{low}{f' {small}' * (small != large)} to {high} {large}"


def rounded(seconds: float) -> tuple[str, str]:
    """A time to two digits, and its unit."""
    unit, length = next((one for one in UNITS if seconds >= 1.5 * one[1]), UNITS[-1])
    return f"{float(f'{seconds / length:.2g}'):g}", unit


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
