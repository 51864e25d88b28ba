"""Tuning: the learning rate of each method is raced on the validation rows before the runs that are judged.

    openings      every rate of a grid around the preset's, trained up to a quarter (`sweep.CUT`); an optimum at the end
                  of the grid extends it
    whole runs    the better half of them goes on to the end, each from where its opening stopped
    finals        the rate with the lowest validation loss, with the seeds of the plan, on the test rows

A race has a seed that no final has, and no test row is seen before its rate is chosen. Which runs are wanted follows
from the records at hand and from nothing else, so that whoever asks, and whenever, is told the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Missing
from peftbook.decision.labels import label_runs, model_label, rate_words
from peftbook.evidence.sweep import CUT, HIGHEST_RATE, LOWEST_RATE, Lookup, Sweep, better_half, extended, grid

if TYPE_CHECKING:
    from peftbook.tasks import TaskData

FACTOR, RATES, MOST_RATES = 2.0, 5, 8  # between neighbours; of a grid at first, and at most
SEED = 1000  # of every race: no plan has as many seeds
MOST_ROWS = 200  # of the validation split


@dataclass(frozen=True)
class Tuning:
    """What a plan asks for whose rates are raced. finals: its runs at the presets' rates.  rows: of validation."""

    finals: tuple[specs.Run, ...]
    rows: int

    def text(self) -> str:
        return json.dumps({"finals": [run.canonical() for run in self.finals], "rows": self.rows})

    @classmethod
    def of(cls, task: TaskData, finals: Sequence[specs.Run]) -> Tuning:
        """Of the runs of a plan on a file. Raises InputError for a rate that no grid is made around."""
        for budget in (run.budget for run in finals if run.budget is not None):
            if not LOWEST_RATE <= budget.learning_rate <= HIGHEST_RATE:
                raise InputError(
                    f"Rates are raced around {budget.learning_rate:g}: start from one between {LOWEST_RATE:g} and "
                    f"{HIGHEST_RATE:g}, or do not tune."
                )
        return cls(tuple(finals), min(MOST_ROWS, len(task.splits["validation"])))

    @classmethod
    def read(cls, text: str) -> Tuning:
        kept = json.loads(text)
        return cls(tuple(map(specs.Run.model_validate_json, kept["finals"])), kept["rows"])

    @property
    def races(self) -> list[Race]:
        """One for each method on each model."""
        first = {name_of(run): run for run in reversed(self.finals) if run.budget}
        return [Race(run, self.rows) for run in reversed(first.values())]

    def runs(self, lookup: Lookup) -> list[specs.Run]:
        """All runs that are wanted as far as the records tell: the untuned, the races, the finals of what is chosen."""
        races = {race.name: race for race in self.races}
        rates = {name: race.chosen(lookup) for name, race in races.items()}
        finals = [
            at_rate(run, rate)
            for run in self.finals
            if run.budget is not None and (rate := rates[name_of(run)]) is not None
        ]
        untuned = [run for run in self.finals if run.budget is None]
        return [*untuned, *(run for race in races.values() for run in race.runs(lookup)), *finals]


def labels_of(runs: Sequence[specs.Run]) -> dict[str, str]:
    """What each run is called among these, by its key: a trial by its rate."""
    return dict(zip([run.key for run in runs], label_runs(runs, [trial_words(run) for run in runs]), strict=True))


def trial_words(run: specs.Run) -> str:
    """The rate of a trial; empty for other runs."""
    if run.budget is None or not is_trial(run):
        return ""
    return f"trial of rate {rate_words(run.budget.learning_rate)}" + ", its first quarter" * bool(run.budget.stop)


def name_of(run: specs.Run) -> str:
    """What is equal in all seeds of a method on a model."""
    return run.model_copy(update={"seed": SEED}).key


def at_rate(run: specs.Run, rate: float) -> specs.Run:
    assert run.budget is not None
    return run.model_copy(update={"budget": run.budget.model_copy(update={"learning_rate": rate})})


def is_trial(run: specs.Run) -> bool:
    """Whether a run is one of a race."""
    return run.evaluation.split == "validation" and run.seed == SEED


@dataclass(frozen=True)
class Race:
    """Between the rates of one method on one model. final: a run that is judged, at the rate to start from."""

    final: specs.Run
    rows: int

    @property
    def name(self) -> str:
        return name_of(self.final)

    def trial(self, rate: float, *, stop: float = 0.0) -> specs.Run:
        """A rate on the validation rows: the whole training, or its beginning."""
        scored = specs.Evaluation(split="validation", n_loss=self.rows)
        run = at_rate(self.final, rate).model_copy(update={"evaluation": scored, "seed": SEED})
        return run.model_copy(update={"budget": run.budget.model_copy(update={"stop": stop})})  # type: ignore[union-attr]

    def opening(self, rate: float) -> specs.Run:
        """A rate's training up to the cut."""
        return self.trial(rate, stop=CUT)

    def first_rates(self) -> list[float]:
        """The grid around the rate to start from."""
        assert self.final.budget is not None
        middle, start = RATES // 2, self.final.budget.learning_rate
        around = grid(start / FACTOR**middle, FACTOR, RATES)
        rates = [*around[:middle], start, *around[middle + 1 :]]  # the start as it is, not to three digits
        return [rate for rate in rates if LOWEST_RATE <= rate <= HIGHEST_RATE]

    @property
    def openings(self) -> Sweep[specs.Run]:
        """The grid, trained up to the cut."""
        return Sweep(lambda rate: [self.opening(rate)], self.first_rates(), wider)

    def rates(self, lookup: Lookup) -> list[float]:
        """The grid, extended as far as the openings at hand determine."""
        return self.openings.rates(lookup)

    def survivors(self, lookup: Lookup) -> list[float]:
        """The rates that go on to the end; none as long as an opening is missing."""
        with suppress(Missing):
            return better_half(self.openings.losses(lookup))
        return []

    def runs(self, lookup: Lookup) -> list[specs.Run]:
        """The openings, and the whole runs of those that go on."""
        return [*map(self.opening, self.rates(lookup)), *map(self.trial, self.survivors(lookup))]

    def ended(self, lookup: Lookup) -> bool:
        return all(lookup(run) is not None for run in self.runs(lookup))

    def losses(self, lookup: Lookup) -> dict[float, float]:
        """Rate → validation loss of those that went on to the end; empty as long as one is missing."""
        whole = Sweep(lambda rate: [self.trial(rate)], self.survivors(lookup), list)
        with suppress(Missing):
            return whole.losses(lookup)
        return {}

    def chosen(self, lookup: Lookup) -> float | None:
        """The rate with the lowest validation loss; None as long as a run is missing, and where all diverged."""
        losses = {rate: loss for rate, loss in self.losses(lookup).items() if math.isfinite(loss)}
        return min(losses, key=lambda rate: losses[rate], default=None)

    def may_train(self, lookup: Lookup) -> list[specs.Run]:
        """The whole runs that are still to come, or may be: those of all rates as long as the cut is not made."""
        on = self.survivors(lookup) or ([] if self.ended(lookup) else self.rates(lookup))
        return [run for run in map(self.trial, on) if lookup(run) is None]


def wider(losses: Mapping[float, float]) -> list[float]:
    """The next grid of a race: extended up to MOST_RATES, unless all rates diverged."""
    full = len(losses) >= MOST_RATES or not math.isfinite(min(losses.values()))
    return list(losses) if full else extended(losses, FACTOR)


def left_behind(tunings: Sequence[Tuning], lookup: Lookup) -> list[specs.Run]:
    """The whole runs that no race of these plans will train any more: their openings lost, or they are done."""
    races = [race for tuning in tunings for race in tuning.races]
    wanted = {run.key for race in races for run in race.may_train(lookup)}
    return [run for race in races for run in map(race.trial, race.rates(lookup)) if run.key not in wanted]


def likely_runs(tuning: Tuning, lookup: Lookup = lambda run: None) -> list[specs.Run]:
    """What a tuned plan will come to: as far as records tell, and else the middle of each grid goes on."""
    found = tuning.runs(lookup)
    for race in tuning.races:
        if race.survivors(lookup) or race.ended(lookup):
            continue
        rates = race.rates(lookup)
        most = math.ceil(len(rates) / 2)
        at = (len(rates) - most) // 2
        found += map(race.trial, rates[at : at + most])
    ended = {race.name for race in tuning.races if race.ended(lookup)}
    return found + [run for run in tuning.finals if run.budget is not None and name_of(run) not in ended]


def chosen_words(tuning: Tuning, lookup: Lookup) -> list[str]:
    """Which rate each method was given, and what that gained on the validation rows: a line for each ended race."""
    races = tuning.races
    several = len({race.final.model.name for race in races}) > 1
    ended = [race for race in races if race.ended(lookup)]
    return [f"{model_label(race.final.model.name)}, " * several + words_of(race, lookup) for race in ended]


def words_of(race: Race, lookup: Lookup) -> str:
    """A race that was run, in a line."""
    assert race.final.budget is not None
    rate, losses, start = race.chosen(lookup), race.losses(lookup), race.final.budget.learning_rate
    if rate is None:
        return f"{race.final.method.label}: no rate was chosen, as trials of it failed."
    rates = race.rates(lookup)
    known = f"validation loss {losses[rate]:.3f} on {race.rows} row{'s' * (race.rows > 1)}"
    if rate != start:
        known += f", {start:g} {start_words(race, lookup)}"
    end = {rates[-1]: ", the highest", rates[0]: ", the lowest"}.get(rate, "")
    return f"{race.final.method.label}: rate {rate:g} of {len(rates)}{end} ({known})."


def start_words(race: Race, lookup: Lookup) -> str:
    """What became of the rate that a race started from."""
    start = race.final.budget.learning_rate  # type: ignore[union-attr]
    loss = race.losses(lookup).get(start)
    if loss is None and (opening := lookup(race.opening(start))) is not None and not opening.failure:
        return "was behind at the cut"
    return f"has {loss:.3f}" if loss is not None and math.isfinite(loss) else "diverged"
