"""Sweeps of learning rates: the grid, how it grows, the order in which it is trained, its best rate.

A sweep determines its rates from the records at hand alone. Each rate is a trial of one or several runs on validation;
a grid whose best rate is an end is extended by one rate, until the best lies inside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from peftbook.core.records import Missing, Record
from peftbook.core.specs import Probe, Run
from peftbook.evidence.stats import gain_of_best

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
    grow: from rate → loss of a whole grid the next grid; the same rates end the growth.  loss: of the trial's records.
    further: runs of more seeds, for the trials of the best rate and its neighbours. If they make another rate the best,
    its neighbours get them too.
    """

    make: Callable[[float], Sequence[Spec]]
    grid: Sequence[float]
    grow: Callable[[Mapping[float, float]], Sequence[float]]
    loss: Callable[[Sequence[Record]], float] = mean_loss
    further: Callable[[float], Sequence[Spec]] = lambda rate: ()

    def trial(self, runs: Sequence[Spec], lookup: Lookup) -> float:
        """The validation loss of a rate's runs. Raises Missing."""
        return self.loss(self.records(runs, lookup))

    @staticmethod
    def records(runs: Sequence[Spec], lookup: Lookup) -> list[Record]:
        """The records of these runs. Raises Missing."""
        records = []
        for run in runs:
            if (record := lookup(run)) is None:
                raise Missing(run)
            records.append(record)
        return records

    def plan(self, lookup: Lookup) -> dict[float, tuple[Spec, ...]]:
        """Rate → its runs, ascending, as far as the records at hand determine them."""
        runs: dict[float, tuple[Spec, ...]] = {rate: tuple(self.make(rate)) for rate in self.grid}
        losses: dict[float, float] = {}
        with suppress(Missing):
            while len(losses) < len(runs):
                losses = {rate: losses[rate] if rate in losses else self.trial(runs[rate], lookup) for rate in runs}
                runs = {rate: runs.get(rate) or tuple(self.make(rate)) for rate in self.grow(losses)}
                for near in neighbours(losses) if len(runs) == len(losses) else ():
                    if len(runs[near]) < len(trial := tuple(itertools.chain(self.make(near), self.further(near)))):
                        runs[near] = trial
                        del losses[near]
        return runs

    def rates(self, lookup: Lookup) -> list[float]:
        """The grid, grown as far as the records at hand determine."""
        return list(self.plan(lookup))

    def losses(self, lookup: Lookup) -> dict[float, float]:
        """Rate → validation loss over the whole grid, ascending. Raises Missing."""
        return {rate: self.trial(runs, lookup) for rate, runs in self.plan(lookup).items()}

    def best(self, lookup: Lookup) -> float:
        """The rate with the lowest validation loss of the whole grid. Raises Missing."""
        return best_of(self.losses(lookup))

    def choice_error(self, lookup: Lookup, noise: float) -> float:
        """Error of the chosen rate's loss as the least of all rates: `gain_of_best`. Raises Missing.

        noise: standard error of the difference of two losses.  A neighbour that is missing or diverged counts as one
        like the other.
        """
        losses = self.losses(lookup)
        best = best_of(losses)
        beside = [
            (abs(math.log(rate) - math.log(best)), losses[rate] - losses[best])
            for rate in neighbours(losses)
            if rate != best and math.isfinite(losses[rate])
        ]
        if not beside:
            return 0.0
        distances, rises = np.array([beside[0], beside[-1]]).T
        return float(gain_of_best(distances, rises, noise))


def trials(sweeps: Iterable[Sweep[Spec]], lookup: Lookup) -> list[Spec]:
    """The runs of several sweeps: the middle of each grid first, sweeps in turn."""
    columns = []
    for sweep in sweeps:
        plan = sweep.plan(lookup)
        columns.append([plan[rate] for rate in middle_first(list(plan))])
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


def neighbours(losses: Mapping[float, float]) -> list[float]:
    """The best rate and those next to it, ascending."""
    rates, best = list(losses), best_of(losses)
    at = rates.index(best)
    return rates[max(0, at - 1) : at + 2]


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
    near = [rate for rate in neighbours(losses) if max(rate / best, best / rate) > FINEST]
    return sorted({*rates, *(grid(math.sqrt(rate * best), 1, 1)[0] for rate in near)})


def grown(losses: Mapping[float, float], factor: float, bearable: float) -> list[float]:
    """The next grid: extended at an end, else refined where it falls short by more than `bearable`."""
    rates = extended(losses, factor)
    return refined(losses, bearable) if rates == list(losses) else rates


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
