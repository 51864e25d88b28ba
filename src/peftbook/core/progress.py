"""Progress lines: what is being done, how far it is and how much longer it takes, on a terminal and in a log."""

from __future__ import annotations

import contextlib
import datetime
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TextIO

LOG_WIDTH = 140
LOG_SECONDS = 30.0  # between two lines of a log about one thing
WAIT_SECONDS = 7.0  # the same where somebody waits for a build
LIVE_SECONDS = 0.1  # between two updates of a line on a terminal
WORDS = {  # of the phases of a run that say more than their names
    "loading": "loading the model",
    "encoding": "encoding the examples",
    "scoring loss": "scoring the loss",
    "generating": "generating answers",
    "scoring texts": "scoring the answers",
    "bertscore": "computing BERTScore",
    "scoring prose": "scoring plain prose",
}


def duration(seconds: float | None) -> str:
    """A duration in its two largest units: `3.2 s`, `42 s`, `1 min 35 s`, `3 h 20 min`; `–` where it is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, below in (("d", 86400, "h"), ("h", 3600, "min"), ("min", 60, "s")):
        if whole >= length:
            rest = (whole % length) // {"h": 3600, "min": 60, "s": 1}[below]
            return f"{whole // length} {unit} {rest} {below}" if rest else f"{whole // length} {unit}"
    return f"{whole} s"


def running(seconds: float) -> str:
    """A duration that is still growing or shrinking: no tenths."""
    return f"{seconds:.0f} s" if seconds < 10 else duration(seconds)


@dataclass(frozen=True)
class Phase:
    """The state of one phase of a run or a build.

    name: a key of WORDS, or words of its own.  done, total: items, 0 of 0 where none are counted.  seconds: since it
    began.  left: seconds until it ends, None where that is unknown.  detail: more words.
    """

    name: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    left: float | None = None
    detail: str = ""

    def later(self, seconds: float) -> Phase:
        """The same phase some seconds after its last report."""
        left = None if self.left is None else max(0.0, self.left - seconds)
        return replace(self, seconds=self.seconds + seconds, left=left)

    def words(self) -> list[str]:
        """`training`, `step 12 of 40`, `35 s so far`, `1 min 20 s left`, `loss 2.310, 900 tokens/s`."""
        words = [WORDS.get(self.name, self.name)]
        if self.total:
            words.append(f"{'step ' if self.name == 'training' else ''}{self.done:,} of {self.total:,}")
        if self.seconds >= 1:
            words.append(f"{running(self.seconds)} so far")
        if self.left is not None and self.done < self.total:
            words.append(f"{running(self.left)} left")
        return [*words, self.detail] if self.detail else words


def describe_step(loss: float | None, tokens_per_second: float | None) -> str:
    """Loss and speed of a training step."""
    words = [] if loss is None else [f"loss {loss:.3f}"]
    return ", ".join([*words, f"{tokens_per_second:,.0f} tokens/s"] if tokens_per_second else words)


class Phases:
    """Reports the phases of a run to listeners, with the time since a phase began and the time left.

    The time left is that of the remaining items at the pace since the first report: a training that resumes from a
    checkpoint counts from there.
    """

    def __init__(self, *listeners: Callable[[Phase], None], clock: Callable[[], float] = time.monotonic):
        self.listeners, self.clock = listeners, clock
        self.name, self.began = "", 0.0
        self.first: tuple[float, int] | None = None

    def __call__(self, name: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """Begin a phase, or report on the current one."""
        now, left = self.clock(), None
        if name != self.name:
            self.name, self.began, self.first = name, now, None
        if total and self.first is None:
            self.first = now, done
        if self.first is not None and done > self.first[1]:
            left = (now - self.first[0]) / (done - self.first[1]) * (total - done)
        for listener in self.listeners:
            listener(Phase(name, done, total, now - self.began, left, detail))

    def count(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a phase of `total` items; returns what is called with the number of items that were completed."""
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            self(name, done, total)

        self(name, 0, total)
        return more


class StatusLine:
    """A status line: overwritten in place on a terminal, repeated with the time of day in a log.

    Errors of a stream that was closed are ignored, so that they stop no run.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, log_seconds: float | None = None):
        """log_seconds: between two lines of a log about one thing (default LOG_SECONDS)."""
        self.stream, self.clock = stream, clock
        self.live = stream.isatty()
        self.pause = LIVE_SECONDS if self.live else log_seconds or LOG_SECONDS
        self.about: Hashable = None
        self.drawn, self.written = 0, -math.inf

    def show(self, words: str, about: Hashable) -> None:
        """Show the words. about: their subject; a new subject is shown at once, the same one at most every `pause`."""
        now = self.clock()
        if about == self.about and now - self.written < self.pause:
            return
        self.about, self.written = about, now
        if not self.live:
            self._write(f"{time_of_day()} {words if len(words) <= LOG_WIDTH else words[: LOG_WIDTH - 1] + '…'}\n")
            return
        words = words[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + words.ljust(self.drawn))
        self.drawn = len(words)

    def end(self, words: str) -> None:
        """Write a permanent line."""
        self.clear()
        self.written = self.clock()
        self._write(f"{words}\n" if self.live else f"{time_of_day()} {words}\n")

    def clear(self) -> None:
        """Erase the line on a terminal."""
        if self.drawn:
            self._write("\r" + " " * self.drawn + "\r")
            self.drawn, self.written = 0, -math.inf

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


def time_of_day() -> str:
    """The time of day that begins each line of a log."""
    return f"{datetime.datetime.now():%H:%M:%S}"


class Display:
    """A listener that shows phases on a stream, and updates the time while nothing is reported."""

    def __init__(
        self, title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic, log_seconds: float | None = None
    ):
        self.title, self.clock = title, clock
        self.line = StatusLine(stream, clock, log_seconds)
        self.phase: Phase | None = None
        self.reported = 0.0
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._update, daemon=True)

    def __enter__(self) -> Display:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.line.clear()

    def __call__(self, phase: Phase) -> None:
        """Show a phase."""
        with self.lock:
            self.phase, self.reported = phase, self.clock()
            self.draw()

    def draw(self) -> None:
        """Show the last phase with the present time."""
        if self.phase is not None:
            now = self.phase.later(self.clock() - self.reported)
            self.line.show(f"{self.title}: {', '.join(now.words())}", self.phase.name)

    def _update(self) -> None:
        while not self.ended.wait(1.0):
            with self.lock:
                self.draw()


@contextlib.contextmanager
def show_progress(title: str, first: str) -> Iterator[Phases]:
    """Show progress on standard error inside the block: the first phase at once, then at least every ten seconds."""
    with Display(title, sys.stderr, log_seconds=WAIT_SECONDS) as display:
        phases = Phases(display)
        phases(first)
        yield phases
