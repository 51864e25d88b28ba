"""How early does a sweep of learning rates know its best rate? What a race saves, and what it costs.

No new run: every sweep at hand of at least FEWEST rates and STEPS steps, whose rates saw the same batches in the same
order, is raced over its own records. A rate's score at a cut is its mean training loss over the last third of the steps
up to there, as a record has no validation loss midway; each batch is new to the model, so that it stands in for one.
What is kept to the end is judged by the validation loss of its record, as the whole sweep was. Sweeps that pass over
few examples again and again are left out, as their training loss is of what they have seen.

Only the cut is raced: each sweep has the grid that its whole runs led to, while `compare` and the studio extend a grid
by its openings. And each is within its first epoch, so that what overfits after the cut is not seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.core.tracking import record_reads, untracked
from peftbook.evidence.sweep import CUT, better_half, validation_loss
from peftbook.studies import Quantity, Verdict, rank, study

FEWEST, STEPS = 4, 20  # rates and steps of a sweep, below which there is nothing to race
WINDOW = 1 / 3  # of the steps up to a cut, whose mean loss is the score there
CUTS = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "three_quarters": 3 / 4, "end": 1.0}
HALVING = (1 / 8, 1 / 4, 1 / 2)  # successive halving: the better half at each, until one is left


@dataclass(frozen=True, eq=False)
class RecordedSweep:
    """One grid with one seed. rates: ascending.  losses: on validation.  curves: training loss, (rates, steps)."""

    rates: tuple[float, ...]
    losses: np.ndarray
    curves: np.ndarray
    keys: tuple[str, ...]

    @property
    def best(self) -> float:
        """The rate that the whole sweep chooses."""
        return self.rates[int(self.losses.argmin())]

    def loss(self, rate: float) -> float:
        """Its validation loss, nats per token."""
        return float(self.losses[self.rates.index(rate)])

    def scores(self, share: float) -> dict[float, float]:
        """Rate → mean training loss shortly before this share of the steps, infinite of one that diverged."""
        end = max(1, round(share * self.curves.shape[1]))
        first = end - max(1, round(WINDOW * end))
        return dict(zip(self.rates, self.curves[:, first:end].mean(axis=1).tolist(), strict=True))


@dataclass(frozen=True)
class Raced:
    """What a race chose. trained: steps over those of the whole sweep.  cost: validation loss above the best's."""

    rate: float
    trained: float
    cost: float


def sweeps(store: Store) -> list[RecordedSweep]:
    """Every sweep at hand, in the order of their runs' keys. Raises Missing where there is none."""
    groups: dict[str, dict[float, Record]] = {}
    with untracked():  # of what is looked through, the sweeps alone are behind a number
        records = list(store.all())
    for record in records:
        run = record.spec
        if isinstance(run, specs.Run) and is_swept(run) and run.platform == (store.platform or "cpu"):
            groups.setdefault(without_rate(run), {})[run.budget.learning_rate] = record  # type: ignore[union-attr]
    found = [sweep_of(group) for group in groups.values() if len(group) >= FEWEST]
    kept = sorted((one for one in found if one.curves.shape[1] >= STEPS), key=lambda one: one.keys)
    if not kept:
        arm = rank.COMPARISON.arms[0]
        raise Missing(rank.COMPARISON.sweep_run(arm, arm.rates[0], rank.COMPARISON.sweep_seeds[0]))
    record_reads(key for one in kept for key in one.keys)
    return kept


def is_swept(run: specs.Run) -> bool:
    """Whether a run may be one of a sweep whose batches are all new."""
    whole = run.budget is not None and not run.budget.train_examples and not run.budget.stop
    return whole and run.purpose == "quality" and run.evaluation.split == "validation"


def without_rate(run: specs.Run) -> str:
    """What all runs of a sweep have in common."""
    return run.model_copy(update={"budget": run.budget.model_copy(update={"learning_rate": 1.0})}).key  # type: ignore[union-attr]


def sweep_of(group: Mapping[float, Record]) -> RecordedSweep:
    """A sweep from its records; after a run diverged its loss is infinite."""
    rates = tuple(sorted(group))
    records = [group[rate] for rate in rates]
    curves = [record.curve.get("train_loss_nats", []) for record in records]
    steps = max(map(len, curves))
    losses = list(map(validation_loss, records))
    rows = [[*curve, *[math.inf] * (steps - len(curve))] for curve in curves]
    return RecordedSweep(rates, np.array(losses), np.array(rows), tuple(record.key for record in records))


def race(sweep: RecordedSweep, cuts: Sequence[float]) -> Raced:
    """Drop the worse half at each cut, until one rate is left; else the best of those that reach the end."""
    left, trained, before = list(sweep.rates), 0.0, 0.0
    for share in cuts:
        trained, before = trained + len(left) * (share - before), share
        scores = sweep.scores(share)
        left = better_half({rate: scores[rate] for rate in left})
        if len(left) == 1:
            break
    else:
        trained += len(left) * (1 - before)
    rate = min(left, key=sweep.loss)
    return Raced(rate, trained / len(sweep.rates), sweep.loss(rate) - sweep.loss(sweep.best))


def places(found: Sequence[RecordedSweep], share: float) -> tuple[int, int]:
    """In how many sweeps the best rate is first at a cut, and in how many it is in the half that goes on."""
    scores = [one.scores(share) for one in found]
    first = sum(min(score, key=lambda rate: score[rate]) == one.best for one, score in zip(found, scores, strict=True))
    return first, sum(one.best in better_half(score) for one, score in zip(found, scores, strict=True))


def sweep_quantities(found: Sequence[RecordedSweep]) -> Iterator[tuple[str, float, str, int, str]]:
    """Name, value, unit, digits and note of each quantity."""
    count = len(found)
    yield "sweeps", count, "sweeps", 0, ""
    yield "runs", sum(len(one.rates) for one in found), "runs", 0, ""
    for name, share in CUTS.items():
        first, half = places(found, share)
        yield f"{name}_first", 100 * first / count, "%", 0, f"{first} of {count} sweeps"
        yield f"{name}_better_half", 100 * half / count, "%", 0, f"{half} of {count} sweeps"
    leaders = [min(scores, key=scores.__getitem__) / one.best for one in found for scores in [one.scores(CUT)]]
    wrong = [ratio for ratio in leaders if ratio != 1]
    high = sum(ratio > 1 for ratio in wrong)
    yield "quarter_too_high", 100 * high / max(1, len(wrong)), "%", 0, f"{high} of {len(wrong)} wrong leaders"
    for name, cuts in (("cut", (CUT,)), ("halving", HALVING)):
        raced = [race(one, cuts) for one in found]
        other = sum(one.rate != sweep.best for one, sweep in zip(raced, found, strict=True))
        yield f"{name}_saved", 100 * float(np.mean([1 - one.trained for one in raced])), "%", 0, "of the steps"
        yield f"{name}_other", 100 * other / count, "%", 0, f"{other} of {count} sweeps"
        yield f"{name}_cost", float(np.mean([one.cost for one in raced])), "nats per token", 3, "mean over all sweeps"


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Counts over the sweeps at hand: they are all there are, and no sample of others."""
    found = sweeps(store)
    keys = tuple(key for one in found for key in one.keys)
    make = functools.partial(Quantity, runs=keys, n=len(found))
    return {
        name: make(value, unit, digits=digits, note=note) for name, value, unit, digits, note in sweep_quantities(found)
    }


def runs(store: Store) -> list[specs.Run | specs.Probe]:
    """Those of the sweeps at hand, of which it asks for none; without any, the first of another study's."""
    try:
        with untracked():
            known = {key for one in sweeps(store) for key in one.keys}
            return [record.spec for record in store.all() if record.key in known]
    except Missing as missing:
        return [missing.run]


@study("racing", runs, quantities)
def verdict(store: Store) -> Verdict:
    """No claim of a paper: the study measures what cutting sweeps costs."""
    found = quantities(store)
    one, many = ({name: found[f"{way}_{name}"].value for name in ("saved", "other")} for way in ("cut", "halving"))
    return Verdict(
        "measured",
        f"One cut at a quarter saves {one['saved']:.0f} % of the steps and chooses another rate in "
        f"{one['other']:.0f} % of the sweeps; halving down to one rate saves {many['saved']:.0f} % and does so in "
        f"{many['other']:.0f} %.",
        ("cut_saved", "cut_other", "halving_saved", "halving_other"),
    )
