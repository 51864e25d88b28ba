"""A smaller plan: fewer seeds, test rows or training tokens, so that a plan of many hours ends within one."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from peftbook.core import specs
from peftbook.decision.recommendation import listed
from peftbook.runtime.resources import generation_batch
from peftbook.scratch.schedule import makespan
from peftbook.studio.preflight import Check
from peftbook.studio.settings import Settings
from peftbook.studio.tuning import is_trial

LONG_SECONDS = 3600.0  # of a plan that is offered a smaller one
AIM = 0.9  # of that time, as seconds are not quite proportional to tokens
SEEDS, TESTS = (3, 1), (50, 20)  # to go down to
WORTH_TOKENS, FEWEST_TOKENS = 10_000, 1000  # of training: as the page's quick look has; at the very least
# Field of the settings → its option of `peftbook compare`, one, many.
WORDS = {
    "tokens": ("--tokens", "training token", "training tokens"),
    "seeds": ("--seeds", "seed", "seeds"),
    "test_examples": ("--test-examples", "test row", "test rows"),
}


@dataclass(frozen=True)
class SmallerPlan:
    """Settings of a smaller plan, what differs in them, and about how many seconds it takes."""

    settings: Settings
    changes: dict[str, int]
    seconds: float

    @property
    def words(self) -> str:
        """`20,000 training tokens and 1 seed`."""
        said = [f"{value:,} {WORDS[name][1 + (value != 1)]}" for name, value in self.changes.items()]
        return listed(said)

    @property
    def options(self) -> str:
        """`--tokens 20000 --seeds 1`."""
        return " ".join(f"{WORDS[name][0]} {value}" for name, value in self.changes.items())


@dataclass(frozen=True)
class PlannedRun:
    """A run and its predicted seconds, of which those of training and generation scale with the plan."""

    run: specs.Run
    check: Check

    def seconds(self, tokens: int, tests: int) -> float:
        """With so many tokens, and so many test rows: their answers are written in batches."""
        budget, shots = self.run.budget, self.run.method.examples_shown
        before, batch = self.run.evaluation.n_generate, generation_batch(shots)
        trained = min(1.0, tokens / budget.tokens) if budget else 0.0
        written = min(1.0, -(-tests // batch) / -(-before // batch)) if before else 0.0
        fixed = (self.check.seconds or 0.0) - self.check.training_seconds - self.check.generation_seconds
        return fixed + trained * self.check.training_seconds + written * self.check.generation_seconds


def plan_seconds(checks: Sequence[Check]) -> float:
    """Until the last of the runs ends that can be run; 0 where the time of one of them is unknown."""
    known = [check.seconds for check in checks if check.fits]
    return 0.0 if None in known else at_once([check for check in checks if check.fits], filter(None, known))


def at_once(checks: Sequence[Check], seconds: Iterable[float]) -> float:
    """Until the last of the runs ends that take so many seconds and start in this order, as many at once as the checks
    say.
    """
    return makespan([[list(seconds)]], max((check.beside for check in checks), default=1))


def smaller_plan(
    settings: Settings, runs: Sequence[specs.Run], checks: Sequence[Check], limit: float = LONG_SECONDS
) -> SmallerPlan | None:
    """The plan that ends within the limit and gives up least; None where there is no need, or no way.

    runs, checks: of the settings. Test rows go before seeds, and both before training gets shorter than a quick look;
    where even that is too long, it gets as many tokens as there is time for.
    """
    if plan_seconds(checks) <= limit:
        return None
    parts = [PlannedRun(run, check) for run, check in zip(runs, checks, strict=True) if check.fits]
    tokens = max((part.run.budget.tokens for part in parts if part.run.budget), default=0)
    tests = max(part.run.evaluation.n_generate for part in parts)
    for seeds, rows in steps_down(int(settings.seeds), tests):
        kept = [part for part in parts if part.run.seed < seeds or is_trial(part.run)]
        most = rounded_down(tokens_within(kept, tokens, rows, AIM * limit), tokens)
        if most >= min(WORTH_TOKENS, tokens):
            break
    if most < min(FEWEST_TOKENS, tokens):
        return None
    wanted = {"tokens": (most, tokens), "seeds": (seeds, settings.seeds), "test_examples": (rows, tests)}
    changes = {name: new for name, (new, old) in wanted.items() if new != old}
    seconds = together(kept, most, rows)
    return SmallerPlan(replace(settings, **changes), changes, seconds)  # type: ignore[arg-type]


def together(parts: Sequence[PlannedRun], tokens: int, tests: int) -> float:
    """Seconds of all runs with so many tokens, and so many test rows."""
    return at_once([part.check for part in parts], (part.seconds(tokens, tests) for part in parts))


def steps_down(seeds: int, tests: int) -> Iterator[tuple[int, int]]:
    """Pairs of seeds and test rows, from those of the plan downwards."""
    for fewer in (seeds, *(one for one in SEEDS if one < seeds)):
        for rows in (tests, *(one for one in TESTS if one < tests)):
            yield fewer, rows


def tokens_within(parts: Sequence[PlannedRun], tokens: int, tests: int, limit: float) -> int:
    """How many training tokens there is time for, at most those of the plan; below 0 where there is none."""
    return bisect.bisect_right(range(tokens + 1), limit, key=lambda most: together(parts, most, tests)) - 1


def rounded_down(tokens: int, most: int) -> int:
    """To two digits, unless it is all there may be."""
    if tokens >= most or tokens < 10:
        return tokens
    unit = 10 ** (len(str(tokens)) - 2)
    return tokens // unit * unit
