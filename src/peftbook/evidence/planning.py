"""How many seeds and test examples a comparison needs, by the rule of `stats`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from peftbook.errors import InputError
from peftbook.evidence.stats import FEWEST_SEEDS, Interval, half_width, optimize, quantile

__all__ = ["MOST_EXAMPLES", "MOST_SEEDS", "found_by", "found_with", "round_up", "settle"]

POWER = 0.8  # of a comparison with the seeds and examples that are asked for
MOST_SEEDS, MOST_EXAMPLES = 100, 1_000_000


def settle(spread: Interval, margin: float, level: float) -> tuple[int, int]:
    """About how many test examples and seeds find a true difference of `margin` four times in five: (examples, seeds).

    spread: an interval of such a difference, of which only the errors are used; what it was is no part of a plan, since
    a difference that happened to be large would ask for too little.  level: one-sided.  What is asked for is
    half_width(2 · level) + z_0.8 · error ≤ margin, with squared errors that go with one over the numbers; seeds are
    added until theirs alone leave half of what is wanted. The plan is for new seeds on a fresh test set. Raises
    InputError where an error is not known.
    """
    if not math.isfinite(spread.standard_error):
        raise InputError(
            f"With {spread.seeds} seed{'s' * (spread.seeds > 1)} and {spread.examples} test "
            f"example{'s' * (spread.examples > 1)} the spread is not known: measure two of each before planning."
        )

    def beyond(examples: float, seeds: int) -> float:
        return found_with(spread, examples, seeds, level) - margin

    seeds = spread.seeds if spread.seeds == 1 else max(spread.seeds, FEWEST_SEEDS)
    while 1 < seeds < MOST_SEEDS and beyond(math.inf, seeds) > (math.sqrt(0.5) - 1) * margin:
        seeds += 1
    if beyond(spread.examples, seeds) <= 0:
        return spread.examples, seeds
    if beyond(MOST_EXAMPLES, seeds) > 0:
        return MOST_EXAMPLES, seeds
    return round_up(optimize.brentq(beyond, spread.examples, MOST_EXAMPLES, args=(seeds,))), seeds


def found_with(spread: Interval, examples: float, seeds: int, level: float) -> float:
    """The true difference that so many test examples and seeds find four times in five.

    spread, level: as of `settle`.  half_width(2 · level) + z_0.8 · error, with squared errors that go with one over the
    numbers.
    """
    return float(found_by([spread], np.array([examples]), seeds, level)[0])


def found_by(spreads: Sequence[Interval], examples: np.ndarray, seeds: int, level: float) -> np.ndarray:
    """`found_with` of several spreads, each with its own number of examples."""
    seed_se, example_se, old_seeds, old, freedom = np.array(
        [(one.seed_se, one.example_se, one.seeds, one.examples, one.freedom) for one in spreads]
    ).T
    seed_se, example_se = seed_se * np.sqrt(old_seeds / seeds), example_se * np.sqrt(old / examples)
    half = half_width(2 * level, seed_se, example_se, seeds - 1, np.maximum(1.0, freedom * examples / old))
    return half + quantile(2 * (1 - POWER), math.inf) * np.hypot(seed_se, example_se)


def round_up(count: float) -> int:
    """Up to two significant digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(count, 1))) - 1)
    return unit * math.ceil(count / unit - 1e-9)
