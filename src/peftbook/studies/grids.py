"""Grids of learning rates: how they are made, in which order trained, when cut, when they are fine enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = [
    "CUT",
    "FINEST",
    "HIGHEST_RATE",
    "LOWEST_RATE",
    "better_half",
    "extended",
    "grid",
    "halfway",
    "middle_first",
    "shortfall",
]

LOWEST_RATE, HIGHEST_RATE = 1e-7, 10.0  # no grid is extended beyond these
FINEST = 1.5  # and none refined where neighbours are closer
CUT = 0.25  # of the training, after which a raced grid loses its worse half: `studies.racing` has what that costs


def grid(low: float, factor: float, count: int) -> tuple[float, ...]:
    """`count` rates from `low`, each `factor` times the one before, to three significant digits."""
    return tuple(float(f"{low * factor**at:.3g}") for at in range(count))


def extended(rates: Sequence[float], best: float, factor: float) -> list[float]:
    """The rates, and one more beyond the best where that is an end, as far as LOWEST_RATE and HIGHEST_RATE go."""
    if best == rates[0] and best / factor >= LOWEST_RATE:
        return [*grid(best / factor, 1, 1), *rates]
    if best == rates[-1] and best * factor <= HIGHEST_RATE:
        return [*rates, *grid(best * factor, 1, 1)]
    return list(rates)


def middle_first(rates: Sequence[float]) -> list[float]:
    """The rates in order of their distance from the middle of the grid: a queue that is cut short has the best part."""
    middle = (len(rates) - 1) / 2
    return [rates[at] for at in sorted(range(len(rates)), key=lambda at: abs(at - middle))]


def better_half(losses: Mapping[float, float]) -> list[float]:
    """The rates with the lower losses, ascending: half of them, of an odd number one more. None that diverged."""
    finite = sorted((loss, rate) for rate, loss in losses.items() if math.isfinite(loss))
    return sorted(rate for _, rate in finite[: math.ceil(len(losses) / 2)])


def halfway(rates: Sequence[float], best: float) -> list[float]:
    """The geometric means of the best rate and its neighbours, unless these are within FINEST of it."""
    at = rates.index(best)
    near = [rate for rate in rates[max(0, at - 1) : at + 2] if max(rate / best, best / rate) > FINEST]
    return [grid(math.sqrt(rate * best), 1, 1)[0] for rate in near]


def shortfall(found: Mapping[float, float], best: float) -> float:
    """How much lower the loss of a finer grid might be: the least of a parabola through the best rate and its two
    neighbours in the logarithm of the rate, below the best. 0 where a neighbour is missing or diverged.
    """
    rates = sorted(found)
    at = rates.index(best)
    near = rates[max(0, at - 1) : at + 2]
    losses = np.array([found[rate] for rate in near])
    if len(near) < 3 or not np.isfinite(losses).all():
        return 0.0
    x = np.log(near) - math.log(best)
    a, b, c = np.polyfit(x, losses, 2)
    return float(found[best] - (c - b**2 / (4 * a))) if a > 0 else 0.0
