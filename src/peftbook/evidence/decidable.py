"""What would decide the open claims: how many more seeds of the same runs, and in how many core-hours."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from peftbook.core.records import Record, Store, load_record
from peftbook.evidence.planning import more_seeds, obstacle
from peftbook.evidence.results import core_seconds, study_quantities, study_verdict
from peftbook.studies import BLIND, NAMES

__all__ = ["AT_HAND", "OPEN", "Outlook", "outlook", "outlooks"]

OPEN = ("undecided", "direction only")
AT_HAND = 2.0  # core-hours that anybody has for a claim


@dataclass(frozen=True)
class Outlook:
    """What would decide an open claim.

    seeds: to add, so that the claim's rule decides four times in five if its estimate is the truth; None if no number
    does, and `why` says why.  likely: the outcome to expect.  core_hours: of the added runs, at the median duration
    of a seed's runs at hand; None if that is unknown.
    """

    study: str
    outcome: str
    seeds: int | None
    likely: str = ""
    core_hours: float | None = None
    why: str = ""

    def within(self, core_hours: float) -> bool:
        """Whether this many core-hours would decide the claim."""
        return self.core_hours is not None and self.core_hours <= core_hours


def outlooks(store: Store) -> list[Outlook]:
    """The outlooks of all open claims, in the order of worth."""
    return [outlook(name, store) for name in NAMES if study_verdict(name, store).outcome in OPEN]


def outlook(name: str, store: Store) -> Outlook:
    """The outlook of one study whose verdict is open."""
    verdict = study_verdict(name, store)
    if verdict.held:
        why = "nothing to see: control failed" if verdict.held == BLIND else f"not by seeds: {verdict.held}"
        return Outlook(name, verdict.outcome, None, why=why)
    plan = more_seeds(verdict.judged) if verdict.judged else None
    if plan is None:
        return Outlook(name, verdict.outcome, None, why=f"not by seeds: {obstacle(verdict.judged)}")
    quantities = study_quantities(name, store)
    keys = {key for one in verdict.quantities if one in quantities for key in quantities[one].runs}
    each = core_seconds_of_a_seed([load_record(path) for key in keys if (path := store.path(key)) is not None])
    return Outlook(name, verdict.outcome, *plan, None if each is None else plan[0] * each / 3600)


def core_seconds_of_a_seed(records: Sequence[Record]) -> float | None:
    """Core-seconds of all runs with one seed, the median over seeds; None if no record has a duration."""
    by_seed: dict[int, float] = defaultdict(float)
    for record in records:
        if (seconds := core_seconds(record)) is not None:
            by_seed[record.spec.seed] += seconds
    return statistics.median(by_seed.values()) if by_seed else None
