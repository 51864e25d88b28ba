"""What would decide the open claims: seeds, a finer grid, unused test inputs or a control that works; and until then
the bound that each gives.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peftbook.core.records import Record, Store, load_record
from peftbook.core.specs import Run
from peftbook.evidence.planning import Judged, eased, more_seeds, obstacle
from peftbook.evidence.results import Claim, claims, core_seconds, format_value
from peftbook.studies import BLIND
from peftbook.tasks import size_of_test

OPEN = ("undecided", "direction only")
AT_HAND = 2.0  # core-hours that anybody has for a claim
FINER = "a finer grid"


@dataclass(frozen=True)
class Outlook:
    """What would decide an open claim.

    seeds: to add, so that the claim's rule decides four times in five if its estimate is the truth; None if no number
    does, and `why` says why.  likely: the outcome to expect.  beside: what is needed beside the seeds, `a finer grid`
    or `all 630 test inputs`.  core_hours: of the final runs that are new, at the median duration of a seed's runs at
    hand; a finer grid and other inputs make all of them new. None if that is unknown.  bound: what the claim says now.
    """

    study: str
    outcome: str
    seeds: int | None
    likely: str = ""
    core_hours: float | None = None
    why: str = ""
    beside: tuple[str, ...] = ()
    bound: str = ""

    def within(self, core_hours: float) -> bool:
        """Whether this many core-hours would decide the claim."""
        return self.core_hours is not None and self.core_hours <= core_hours

    @property
    def plan(self) -> str:
        """What would decide it, in words."""
        if self.seeds is None:
            return self.why
        more = [f"{self.seeds} more seed{'s' * (self.seeds != 1)}"] if self.seeds or not self.beside else []
        hours = "?" if self.core_hours is None else f"{self.core_hours:.1f}"
        return f"{' and '.join([*self.beside, *more])}, {hours} core-hours: {self.likely}"


def outlooks(store: Store) -> list[Outlook]:
    """The outlooks of all open claims, in the order of worth."""
    return [outlook(claim, store) for claim in claims(store) if claim.verdict.outcome in OPEN]


def outlook(claim: Claim, store: Store) -> Outlook:
    """The outlook of one claim whose verdict is open: of the plans that decide it the one with the fewest new runs."""
    verdict, judged = claim.verdict, claim.verdict.judged
    about = (claim.study.name, verdict.outcome)
    if claim.study.others:
        return Outlook(*about, None, why="runs of others: none can be added", bound=bound(claim))
    if verdict.held == BLIND:
        judged = (verdict.control,) if verdict.control else ()
    if not judged or (verdict.held and not verdict.control):
        why = "control failed: other runs than these would have to show a difference" if verdict.held == BLIND else ""
        return Outlook(*about, None, why=why or f"not by seeds: {verdict.held or obstacle(judged)}", bound=bound(claim))
    keys = dict.fromkeys(claim.effect.runs) if claim.effect else {}
    records = [load_record(path) for key in keys if (path := store.path(key)) is not None]
    plans = sorted(plans_for(judged, unused_inputs(records)), key=lambda plan: plan[0])
    if not plans:
        return Outlook(*about, None, why=f"not by seeds: {obstacle(judged)}", bound=bound(claim))
    runs, seeds, likely, beside = plans[0]
    each = core_seconds_of_a_seed(records)
    hours = None if each is None else runs * each / 3600
    likely = f"its control {'works' if likely == 'reproduced' else 'fails'}" if verdict.control else likely
    return Outlook(*about, seeds, likely, hours, beside=beside, bound=bound(claim))


def plans_for(judged: Sequence[Judged], inputs: int) -> Iterator[tuple[int, int, str, tuple[str, ...]]]:
    """(seeds whose runs are new, seeds to add, outcome, what beside) of each plan that decides, by what it takes.

    inputs: how many test inputs there are, if these are more than were used; else 0.
    """
    coarse = any(part.interval.bias or part.interval.choice_se for part in judged)
    for finer, among in itertools.product((False, True)[: 1 + coarse], (0, inputs)[: 1 + (inputs > 0)]):
        found = more_seeds([eased(part, finer, among) for part in judged])
        if found is not None:
            beside = (FINER,) * finer + (f"all {among} test inputs",) * (among > 0)
            yield found[0] + judged[0].interval.seeds * bool(beside), *found, beside


def unused_inputs(records: Sequence[Record]) -> int:
    """How many test inputs the task of these runs has, if they were tested on fewer; else 0."""
    specs = [record.spec for record in records]
    if not specs or not all(isinstance(spec, Run) and spec.evaluation.split == "test" for spec in specs):
        return 0
    most = max(spec.evaluation.n_loss for spec in specs if isinstance(spec, Run))
    sizes = {size_of_test(spec.task.name) for spec in specs if isinstance(spec, Run)}
    return min(sizes) if min(sizes) > most else 0


def core_seconds_of_a_seed(records: Sequence[Record]) -> float | None:
    """Core-seconds of all runs with one seed, the median over seeds; None if no record has a duration."""
    by_seed: dict[int, float] = defaultdict(float)
    for record in records:
        if (seconds := core_seconds(record)) is not None:
            by_seed[record.spec.seed] += seconds
    return statistics.median(by_seed.values()) if by_seed else None


# --- the bound -------------------------------------------------------------------------------------------------


def bound(claim: Claim) -> str:
    """What an open claim says nevertheless, in one sentence by its interval; empty for one that is decided."""
    effect, verdict = claim.effect, claim.verdict
    if verdict.outcome not in OPEN:
        return ""
    if verdict.held or effect is None or effect.low is None or effect.high is None:
        return f"It gives no bound: {verdict.held or 'what decides has no interval'}."
    even, unit = (1.0, " times") if effect.unit == "×" else (0.0, effect.unit and f" {effect.unit}")
    ends = " to ".join(format_value(end, effect.digits) for end in (effect.low, effect.high)) + unit
    sure = "above" if effect.low > even else "below" if effect.high < even else ""
    return f"Bound: {verdict.what or claim.name.replace('_', ' ')} is {ends}{f', surely {sure} {even:g}' * bool(sure)}."
