"""Progress: what is left follows from what was counted, and a log shows life without filling up."""

from __future__ import annotations

import io
import re
import time

import pytest

from peftbook.core.progress import (
    LOG_SECONDS,
    WAIT_SECONDS,
    Display,
    Phase,
    Phases,
    StatusLine,
    describe_step,
    duration,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def heard(clock: Clock) -> tuple[Phases, list[Phase]]:
    """Phases by this clock, and what a listener heard of them."""
    told: list[Phase] = []
    return Phases(told.append, clock=clock), told


def test_the_time_left_is_that_of_the_rest_at_the_pace_so_far():
    """4 of 10 after 8 seconds: 12 seconds are left; at the end none is, and before the first count nobody knows."""
    clock = Clock()
    phases, told = heard(clock)
    more = phases.count("generating", 10)
    clock.now += 8
    more(4)
    clock.now += 12
    more(6)
    assert [(phase.done, phase.total, phase.seconds, phase.left) for phase in told] == [
        (0, 10, 0, None), (4, 10, 8, pytest.approx(12)), (10, 10, 20, 0)
    ]  # fmt: skip


def test_a_training_that_goes_on_from_a_checkpoint_is_timed_by_its_own_steps():
    """Steps that another process made cost this one no time: 1 s a step, not 1 s for 901."""
    clock = Clock()
    phases, told = heard(clock)
    phases("training")
    for step in (901, 902, 903):
        clock.now += 1
        phases("training", step, 1000)
    assert told[-1].left == pytest.approx(97) and told[-1].seconds == 3


def test_each_phase_has_a_clock_of_its_own():
    """Loading does not count towards the loss."""
    clock = Clock()
    phases, told = heard(clock)
    phases("loading")
    clock.now += 50
    phases.count("scoring loss", 4)(2)
    clock.now += 1
    phases("scoring loss", 3, 4)
    assert told[-1].seconds == 1 and told[-1].left < 2


def test_a_phase_in_words():
    """Name, count, what else there is, elapsed, left; nothing that nobody knows, and no time left at the end."""
    training = Phase("training", 12, 1400, 35.0, 80.0, describe_step(2.31, 900.0))
    assert ", ".join(training.words()) == (
        "training, step 12 of 1,400, 35 s so far, 1 min 20 s left, loss 2.310, 900 tokens/s"
    )
    assert training.later(10).words()[2:4] == ["45 s so far", "1 min 10 s left"]
    assert training.later(1000).words()[3] == "0 s left"
    assert Phase("loading", seconds=3.2).words() == ["loading the model", "3 s so far"]
    assert Phase("scoring loss", 0, 64).words() == ["scoring the loss", "0 of 64"]
    assert Phase("bertscore", 8, 8, 2.0, 0.0).words() == ["computing BERTScore", "8 of 8", "2 s so far"]
    assert describe_step(None, None) == "" and describe_step(None, 5.0) == "5 tokens/s"


def test_a_log_has_a_line_at_the_start_of_each_phase_and_one_now_and_then():
    """A thousand counts in a minute and a half are a handful of lines, each with the time of day."""
    clock, log = Clock(), io.StringIO()
    display = Display("lora seed 0", log, clock)
    phases = Phases(display, clock=clock)
    phases("loading")
    more = phases.count("scoring loss", 1000)
    for _ in range(1000):
        clock.now += 0.09
        more(1)
    lines = log.getvalue().splitlines()
    assert [line[2] + line[5] for line in lines] == ["::"] * 4
    assert [line[9:] for line in lines[:3]] == [
        "lora seed 0: loading the model",
        "lora seed 0: scoring the loss, 0 of 1,000",
        "lora seed 0: scoring the loss, 334 of 1,000, 30 s so far, 1 min left",
    ]


def test_a_line_of_a_log_has_an_end():
    """However many runs are computed at once, and however long their labels are."""
    log = io.StringIO()
    Display("x" * 1000, log, Clock())(Phase("loading"))
    (line,) = log.getvalue().splitlines()
    assert len(line) <= 150 and line.endswith("…")


def test_a_log_shows_life_while_nothing_is_counted(monkeypatch):
    """Half an hour of one batch is no silence: the thread goes on saying how long it has been."""
    monkeypatch.setattr("peftbook.core.progress.LOG_SECONDS", 0.5)
    log = io.StringIO()
    with Display("lora seed 0", log) as display:
        display(Phase("generating", 0, 64))
        deadline = time.monotonic() + 20
        while " s so far" not in log.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert re.search(r"generating answers, 0 of 64, \d+ s so far", log.getvalue()) and not display.thread.is_alive()


def test_where_somebody_waits_no_ten_seconds_are_silent():
    """However often something is counted, or never; a line that stays is a sign of life too."""
    clock, log = Clock(), io.StringIO()
    display = Display("Site", log, clock, log_seconds=WAIT_SECONDS)
    display(Phase("reading", 0, 9))
    gaps, last = [], clock.now
    for second in range(60):
        clock.now += 1
        before = log.tell()
        if second == 30:
            display.line.end("a warning")
        display.draw()
        if log.tell() > before:
            gaps, last = [*gaps, clock.now - last], clock.now
    assert max(gaps) <= 9 and len(gaps) < 10


def test_a_terminal_has_one_line_that_is_written_over_and_taken_away():
    """No line ends while a run goes on; what stays afterwards is nothing, or what was said to stay."""
    clock, screen = Clock(), Terminal()
    line = StatusLine(screen, clock)
    line.show("a long line of progress", "loading")
    clock.now += LOG_SECONDS
    line.show("a short one", "loading")
    assert "\n" not in screen.getvalue() and screen.getvalue().endswith("\ra short one".ljust(24))
    line.end("LoRA: done")
    assert screen.getvalue().endswith(" \rLoRA: done\n")


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_stream_that_nobody_reads_stops_no_run(error):
    """A log that was closed, or `| head`: the run goes on."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    with Display("lora seed 0", Closed()) as display:
        display(Phase("loading"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.21, "3.2 s"), (42.4, "42 s"), (59.6, "1 min"), (95, "1 min 35 s"), (4000, "1 h 6 min"), (None, "–")],
)
def test_a_length_of_time_has_its_two_largest_units(seconds, words):
    """Nobody plans by the seconds of an hour."""
    assert duration(seconds) == words
