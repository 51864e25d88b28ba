"""Phases: what a run is doing, how far it is, since when and how much longer, on a terminal and in a log."""

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

__all__ = ["Display", "Line", "Phase", "Phases", "describe_step", "span", "waited_for"]

LOG_SECONDS = 30.0  # between two lines of a log about one thing
WAIT_SECONDS = 7.0  # the same where somebody waits for an installation or a build, to whom ten of silence seem long
LIVE_SECONDS = 0.1  # between two drawings of a line on a terminal
SAID = {
    "measuring": "measuring",
    "placing": "waiting for a node with room",
    "loading": "loading the model",
    "encoding": "encoding the examples",
    "training": "training",
    "scoring loss": "scoring the loss",
    "generating": "generating answers",
    "scoring texts": "scoring the answers",
    "bertscore": "computing BERTScore",
    "saving": "saving",
    "scoring prose": "scoring plain prose",
}


def span(seconds: float | None) -> str:
    """A length of time in its two largest units."""
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
    """A length of time that is still growing or shrinking: no tenths."""
    return f"{seconds:.0f} s" if seconds < 10 else span(seconds)


@dataclass(frozen=True)
class Phase:
    """A part of a run, where it stands.

    name: a key of SAID.  done, total: what is counted, 0 of 0 where nothing is.  seconds: since it began.
    left: seconds until it ends, None where nobody knows.  detail: what else there is to say.
    """

    name: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    left: float | None = None
    detail: str = ""

    def later(self, seconds: float) -> Phase:
        """The same phase so many seconds after it was last heard of."""
        left = None if self.left is None else max(0.0, self.left - seconds)
        return replace(self, seconds=self.seconds + seconds, left=left)

    def words(self) -> list[str]:
        """`training`, `step 12 of 40`, `35 s so far`, `1 min 20 s left`, `loss 2.310, 900 tokens/s`."""
        words = [SAID.get(self.name, self.name)]
        if self.total:
            words.append(f"{'step ' if self.name == 'training' else ''}{self.done:,} of {self.total:,}")
        if self.seconds >= 1:
            words.append(f"{running(self.seconds)} so far")
        if self.left is not None and self.done < self.total:
            words.append(f"{running(self.left)} left")
        return [*words, self.detail] if self.detail else words


def describe_step(loss: float | None, tokens_per_second: float | None) -> str:
    """What there is to say about a step of training, beside its number."""
    told = [] if loss is None else [f"loss {loss:.3f}"]
    return ", ".join([*told, f"{tokens_per_second:,.0f} tokens/s"] if tokens_per_second else told)


class Phases:
    """Told where a run stands, tells its listeners, with the time since a phase began and the time that it has left.

    The time left is that of what is still to be counted, at the pace since the first count: a training that goes on
    from a checkpoint counts from there.
    """

    def __init__(self, *listeners: Callable[[Phase], None], clock: Callable[[], float] = time.monotonic):
        self.listeners, self.clock = listeners, clock
        self.name, self.began = "", 0.0
        self.first: tuple[float, int] | None = None

    def __call__(self, name: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """Another phase, or more of the one that is under way."""
        now, left = self.clock(), None
        if name != self.name:
            self.name, self.began, self.first = name, now, None
        if total and self.first is None:
            self.first = now, done
        if self.first is not None and done > self.first[1]:
            left = (now - self.first[0]) / (done - self.first[1]) * (total - done)
        for tell in self.listeners:
            tell(Phase(name, done, total, now - self.began, left, detail))

    def count(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a phase of so many; what is returned is told how many more are done."""
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            self(name, done, total)

        self(name, 0, total)
        return more


class Line:
    """A line about what is under way, on a stream: written over on a terminal, in a log one at a time with the clock.

    A stream that nobody reads any more is not written to: who waits for nothing stops no run.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, log_seconds: float | None = None):
        """log_seconds: between two lines of a log about one thing, if not LOG_SECONDS."""
        self.stream, self.clock = stream, clock
        self.live = stream.isatty()
        self.pause = LIVE_SECONDS if self.live else log_seconds or LOG_SECONDS
        self.about: Hashable = None
        self.drawn, self.written = 0, -math.inf

    def show(self, words: str, about: Hashable) -> None:
        """Say how it stands; about: what makes this another thing than the last, which is said at once."""
        now = self.clock()
        if about == self.about and now - self.written < self.pause:
            return
        self.about, self.written = about, now
        if not self.live:
            self._write(f"{stamp()} {words}\n")
            return
        words = words[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + words.ljust(self.drawn))
        self.drawn = len(words)

    def end(self, words: str) -> None:
        """Say what stays: a whole line, after which a log needs no other for a while."""
        self.clear()
        self.written = self.clock()
        self._write(f"{words}\n" if self.live else f"{stamp()} {words}\n")

    def clear(self) -> None:
        """Take the line away from the terminal."""
        if self.drawn:
            self._write("\r" + " " * self.drawn + "\r")
            self.drawn, self.written = 0, -math.inf

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


def stamp() -> str:
    """The time of day, as it stands before each line of a log."""
    return f"{datetime.datetime.now():%H:%M:%S}"


class Display:
    """A listener that shows the phases of a run on a stream, and goes on showing the time while nothing is counted."""

    def __init__(
        self, title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic, log_seconds: float | None = None
    ):  # fmt: skip
        self.title, self.clock = title, clock
        self.line = Line(stream, clock, log_seconds)
        self.phase: Phase | None = None
        self.told = 0.0
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Display:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.line.clear()

    def __call__(self, phase: Phase) -> None:
        """The phase as it stands now."""
        with self.lock:
            self.phase, self.told = phase, self.clock()
            self.draw()

    def draw(self) -> None:
        """Show what was heard last, as it is by now."""
        if self.phase is not None:
            now = self.phase.later(self.clock() - self.told)
            self.line.show(f"{self.title}: {', '.join(now.words())}", self.phase.name)

    def _go_on(self) -> None:
        while not self.ended.wait(1.0):
            with self.lock:
                self.draw()


@contextlib.contextmanager
def waited_for(title: str, doing: str) -> Iterator[Phases]:
    """Within it somebody waits: what is done is said at once, and how it stands at least every ten seconds."""
    with Display(title, sys.stderr, log_seconds=WAIT_SECONDS) as display:
        phases = Phases(display)
        phases(doing)
        yield phases
