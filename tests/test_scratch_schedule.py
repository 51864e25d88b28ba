"""Schedules: the bounds hold, a driver limits, and simulated failures take what the formula says."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbook.scratch.schedule import best_interval, bounds, expected_seconds, makespan

SECONDS = st.floats(0.1, 100)
STUDIES = st.lists(st.lists(st.lists(SECONDS, min_size=1, max_size=5), min_size=1, max_size=3), min_size=1, max_size=4)


@given(STUDIES, st.integers(1, 12))
def test_a_schedule_lies_between_its_bounds(studies, workers):
    """Graham's bounds; one worker needs the sum, and so many workers as runs the longest chain."""
    low, high = bounds(studies, workers)
    assert low * (1 - 1e-9) <= makespan(studies, workers) <= high * (1 + 1e-9)
    total = sum(seconds for stages in studies for stage in stages for seconds in stage)
    assert makespan(studies, 1) == pytest.approx(total)
    assert makespan(studies, 60) == pytest.approx(bounds(studies, 10**9)[0])


@given(STUDIES, st.integers(1, 12))
def test_a_driver_starts_one_run_at_a_time(studies, workers):
    """With dispatch nothing ends sooner than so many dispatches and the shortest run, or than the lower bound.

    It may end sooner than without: a run that starts later can leave its worker to a longer one (Graham's anomaly).
    """
    every = [seconds for stages in studies for stage in stages for seconds in stage]
    span = makespan(studies, workers, dispatch=2.0)
    assert span >= bounds(studies, workers)[0] * (1 - 1e-9)
    assert span >= 2.0 * len(every) + min(every) - 1e-9


def test_a_later_start_can_end_sooner():
    """A case of the anomaly: 79 seconds with a driver that takes two for each run, 80 with one that takes none."""
    studies = [[[54.0], [9.0, 9.0, 17.0]], [[53.0], [10.0]]]
    assert makespan(studies, 3, dispatch=2.0) < makespan(studies, 3)


def test_failures_take_what_the_formula_says():
    """A simulation of runs that die at random and go on from their last checkpoint."""
    draw, work, interval, cost, between, restart = random.Random(0), 600.0, 60.0, 5.0, 120.0, 10.0

    def simulated() -> float:
        clock = done = 0.0
        while done < work:
            fails = draw.expovariate(1 / between)
            if fails < interval + cost:
                clock += fails + restart
            else:
                clock, done = clock + interval + cost, done + interval
        return clock

    mean = math.fsum(simulated() for _ in range(4000)) / 4000
    assert mean == pytest.approx(expected_seconds(work, interval, cost, between, restart), rel=0.03)


@pytest.mark.parametrize(("cost", "between"), [(1.0, 3600.0), (5.0, 86400.0)])
def test_the_best_interval_is_best(cost, between):
    """To first order: a search over intervals finds the same cost to within one in a thousand."""
    least = min(expected_seconds(1e4, 2.0**exponent, cost, between) for exponent in range(2, 17))
    assert expected_seconds(1e4, best_interval(cost, between), cost, between) <= least * 1.001
