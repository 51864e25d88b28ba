"""How long many runs take on many workers, and how often a run should write a checkpoint."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

Stages = Sequence[Sequence[float]]  # of a study: the seconds of each run, stage by stage


def makespan(studies: Sequence[Stages], workers: int, dispatch: float = 0.0) -> float:
    """Seconds until the last run ends when a free worker takes the first run that may start (list scheduling).

    studies: in order of worth; a stage starts once the study's stage before has ended.
    dispatch: seconds that the one driver spends on each run before it starts.
    """
    later = [iter(stages) for stages in studies]
    ready: list[tuple[int, int, float]] = []  # study, order of arrival, seconds
    running: list[tuple[float, int]] = []  # end, study
    arrivals, left = itertools.count(), [0] * len(studies)

    def open_stage(study: int) -> None:
        for seconds in next(later[study], ()):
            heapq.heappush(ready, (study, next(arrivals), seconds))
            left[study] += 1

    for study in range(len(studies)):
        open_stage(study)
    now = driver = 0.0
    while ready or running:
        while ready and len(running) < workers:
            study, _, seconds = heapq.heappop(ready)
            driver = max(now, driver) + dispatch
            heapq.heappush(running, (driver + seconds, study))
        now, study = heapq.heappop(running)
        left[study] -= 1
        if not left[study]:
            open_stage(study)
    return now


def bounds(studies: Sequence[Stages], workers: int) -> tuple[float, float]:
    """Between what the makespan without dispatch lies: max(S/W, C) and S/W + (1 − 1/W) C.

    S: seconds of all runs.  C: of the longest chain, a run of each stage.
    Source: Graham 1966, Bounds for certain multiprocessing anomalies, Bell System Technical Journal 45.
    """
    total = math.fsum(seconds for stages in studies for stage in stages for seconds in stage)
    chain = max(math.fsum(max(stage, default=0.0) for stage in stages) for stages in studies)
    return max(total / workers, chain), total / workers + (1 - 1 / workers) * chain


def expected_seconds(work: float, interval: float, cost: float, between_failures: float, restart: float = 0.0) -> float:
    """Expected seconds for `work` seconds of training with a checkpoint of `cost` seconds after every `interval`.

    Failures come at random, one in `between_failures` seconds on average; each throws away what the last checkpoint
    does not hold and takes `restart` seconds:  E = (work / interval) · (M + R) · (exp((τ + c) / M) − 1).
    """
    segments = work / interval
    return segments * (between_failures + restart) * math.expm1((interval + cost) / between_failures)


def best_interval(cost: float, between_failures: float) -> float:
    """Seconds between checkpoints that lose least, to first order: √(2 c M).

    Source: Young 1974, A first order approximation to the optimum checkpoint interval, CACM 17.
    """
    return math.sqrt(2 * cost * between_failures)
