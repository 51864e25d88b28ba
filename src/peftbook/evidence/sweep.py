"""Sweeps of learning rates: the grid, how it grows, the order in which it is trained, its best rate.

A sweep determines its rates from the records at hand alone. Each rate is a trial of one or several runs on validation;
a grid whose best rate is an end is extended by one rate, until the best lies inside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from peftbook.core.records import Missing, Record
from peftbook.core.specs import Probe, Run

__all__ = [
    "CUT", "FINEST", "HIGHEST_RATE", "LOWEST_RATE", "Lookup", "Sweep", "best_of", "better_half", "extended", "grid",
    "interleave", "middle_first", "refined", "shortfall", "trials", "validation_loss",
]  # fmt: skip

LOWEST_RATE, HIGHEST_RATE = 1e-7, 10.0  # no grid is extended beyond these
FINEST = 1.5  # no grid is refined where neighbours are closer than this factor
CUT = 0.25  # of the training, after which a raced grid loses its worse half: `studies.racing` measures the cost

Spec = TypeVar("Spec", Run, Probe)
Item = TypeVar("Item")
Lookup = Callable[[Any], Record | None]  # of a run or a probe, as `Store.get`


def validation_loss(record: Record) -> float:
    """Validation loss of a record, infinite for a run that diverged."""
    loss = None if record.failure else record.measurements["loss_nats"]
    return math.inf if loss is None else float(loss)


def mean_loss(records: Sequence[Record]) -> float:
    """Mean validation loss of the records of a trial, infinite if a run diverged."""
    return math.fsum(map(validation_loss, records)) / len(records)


@dataclass(frozen=True)
class Sweep(Generic[Spec]):
    """Trials of one method over a grid of learning rates.

    make: the runs of a rate's trial, one a seed.  grid: the first rates, ascending.
    grow: from rate → loss of a complete grid to the next grid; the same rates end the sweep.  loss: of a trial.
    """

    make: Callable[[float], Sequence[Spec]]
    grid: Sequence[float]
    grow: Callable[[Mapping[float, float]], Sequence[float]]
    loss: Callable[[Sequence[Record]], float] = mean_loss

    def trial(self, rate: float, lookup: Lookup) -> float:
        """The validation loss of a rate. Raises Missing."""
        records = []
        for run in self.make(rate):
            if (record := lookup(run)) is None:
                raise Missing(run)
            records.append(record)
        return self.loss(records)

    def grids(self, lookup: Lookup) -> Iterator[dict[float, float]]:
        """Rate → validation loss, ascending, of the first grid and of each that grows from it. Raises Missing."""
        losses: dict[float, float] = {}
        rates = self.grid
        while list(rates) != list(losses):
            losses = {rate: losses[rate] if rate in losses else self.trial(rate, lookup) for rate in rates}
            yield losses
            rates = self.grow(losses)

    def rates(self, lookup: Lookup) -> list[float]:
        """The grid, grown as far as the records at hand determine."""
        rates = self.grid
        with suppress(Missing):
            for losses in self.grids(lookup):
                rates = self.grow(losses)
        return list(rates)

    def losses(self, lookup: Lookup) -> dict[float, float]:
        """Rate → validation loss over the whole grid, ascending. Raises Missing."""
        return [{}, *self.grids(lookup)][-1]

    def best(self, lookup: Lookup) -> float:
        """The rate with the lowest validation loss of the whole grid. Raises Missing."""
        return best_of(self.losses(lookup))

    def shortfall(self, lookup: Lookup) -> float:
        """By how much a finer grid might lower the loss. Raises Missing."""
        losses = self.losses(lookup)
        return shortfall(losses, best_of(losses))


def trials(sweeps: Iterable[Sweep[Spec]], lookup: Lookup) -> list[Spec]:
    """The runs of several sweeps: the middle of each grid first, sweeps in turn."""
    columns = [[sweep.make(rate) for rate in middle_first(sweep.rates(lookup))] for sweep in sweeps]
    return [run for runs in interleave(columns) for run in runs]


def interleave(columns: Iterable[Sequence[Item]]) -> list[Item]:
    """The first item of every column, then the second of those that have one, and so on."""
    missing = object()
    rows = itertools.zip_longest(*columns, fillvalue=missing)
    return [item for row in rows for item in row if item is not missing]  # type: ignore[misc]


# --- grids -------------------------------------------------------------------------------------------------------


def grid(low: float, factor: float, count: int) -> tuple[float, ...]:
    """`count` rates from `low`, each `factor` times the one before, to three significant digits."""
    return tuple(float(f"{low * factor**at:.3g}") for at in range(count))


def best_of(losses: Mapping[float, float]) -> float:
    """The rate with the lowest loss, the first of equals."""
    return min(losses, key=lambda rate: losses[rate])


def extended(losses: Mapping[float, float], factor: float) -> list[float]:
    """The rates, and one more beyond the best if that is an end, between LOWEST_RATE and HIGHEST_RATE."""
    rates, best = list(losses), best_of(losses)
    if best == rates[0] and best / factor >= LOWEST_RATE:
        return [*grid(best / factor, 1, 1), *rates]
    if best == rates[-1] and best * factor <= HIGHEST_RATE:
        return [*rates, *grid(best * factor, 1, 1)]
    return rates


def refined(losses: Mapping[float, float], bearable: float) -> list[float]:
    """The rates, and those halfway from the best to its neighbours if the grid falls short by more than `bearable`.

    Halfway is the geometric mean; neighbours within FINEST of the best get none.
    """
    rates, best = list(losses), best_of(losses)
    if shortfall(losses, best) <= bearable:
        return rates
    at = rates.index(best)
    near = [rate for rate in rates[max(0, at - 1) : at + 2] if max(rate / best, best / rate) > FINEST]
    return sorted({*rates, *(grid(math.sqrt(rate * best), 1, 1)[0] for rate in near)})


def middle_first(rates: Sequence[float]) -> list[float]:
    """The rates in order of their distance from the middle of the grid: a queue that is cut short has the best part."""
    middle = (len(rates) - 1) / 2
    return [rates[at] for at in sorted(range(len(rates)), key=lambda at: abs(at - middle))]


def better_half(losses: Mapping[float, float]) -> list[float]:
    """The rates with the lower losses, ascending: half of them, of an odd number one more. None that diverged."""
    finite = sorted((loss, rate) for rate, loss in losses.items() if math.isfinite(loss))
    return sorted(rate for _, rate in finite[: math.ceil(len(losses) / 2)])


def shortfall(losses: Mapping[float, float], best: float) -> float:
    """How much lower the loss of a finer grid might be: the least of a parabola through the best rate and its two
    neighbours in the logarithm of the rate, below the best. 0 where a neighbour is missing or diverged.
    """
    rates = sorted(losses)
    at = rates.index(best)
    near = rates[max(0, at - 1) : at + 2]
    values = np.array([losses[rate] for rate in near])
    if len(near) < 3 or not np.isfinite(values).all():
        return 0.0
    x = np.log(near) - math.log(best)
    a, b, c = np.polyfit(x, values, 2)
    return float(losses[best] - (c - b**2 / (4 * a))) if a > 0 else 0.0
