"""How many seeds and test examples a comparison needs, and how many more seeds a finished one, by `stats`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from peftbook.core.errors import InputError
from peftbook.evidence.stats import FEWEST_SEEDS, Interval, final_level, judge, optimize, quantile, special

POWER = 0.8  # of a comparison with the seeds and examples that are asked for
MOST_SEEDS, MOST_EXAMPLES = 100, 1_000_000


def settle(spread: Interval, margin: float, level: float) -> tuple[int, int]:
    """About how many test examples and seeds find a true difference of `margin` four times in five: (examples, seeds).

    The plan is for new seeds on a fresh test set and fulfils `found_with` ≤ margin. Seeds are added until they alone
    need at most √½ of the margin.
    spread: an interval of such a difference. Only its errors are used: planning by a difference that happened to be
    large would ask for too few examples.  level: one-sided.  Raises InputError where an error is not known.
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

    It is √((κ_{n−1} · seed_se)² + (κ_ν · example_se)²), κ of `findable`, where the squared errors fall as one over the
    numbers. Simulated with three seeds or five, 79 to 80 % are found where seeds are half of the error or more, 74 to
    79 % where they are a tenth, and with three seeds that all agree 69 %, since three values cannot show that they do.
    spread, level: as in `settle`.
    """
    return float(found_by([spread], np.array([examples]), seeds, level)[0])


def found_by(spreads: Sequence[Interval], examples: np.ndarray, seeds: int, level: float) -> np.ndarray:
    """`found_with` for several spreads, each with its own number of examples."""
    seed_se, example_se, old_seeds, old, freedom = np.array(
        [(one.seed_se, one.example_se, one.seeds, one.examples, one.freedom) for one in spreads]
    ).T
    seed_se, example_se = seed_se * np.sqrt(old_seeds / seeds), example_se * np.sqrt(old / examples)
    of_seeds = findable(level, seeds - 1.0) if seeds > 1 else 1.0
    return np.hypot(of_seeds * seed_se, findable(level, np.maximum(1.0, freedom * examples / old)) * example_se)


def findable(level: float, freedom: np.ndarray | float) -> np.ndarray:
    """κ_ν: so many standard errors from zero a difference is found four times in five, at a one-sided level.

    The noncentrality with which Student's t for ν degrees of freedom exceeds its quantile so often; z_{1−level} + z_0.8
    for ν = ∞. The estimated error varies, so that t + z_0.8 would not be enough: 74 % with three seeds.
    """
    bar = quantile(2 * level, freedom)
    exact = special.nctdtrinc(freedom, 1 - POWER, bar)
    return np.where(np.isinf(freedom), bar + quantile(2 * (1 - POWER), math.inf), exact)


def round_up(count: float) -> int:
    """Round up to two significant digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(count, 1))) - 1)
    return unit * math.ceil(count / unit - 1e-9)


# --- more seeds for a comparison at hand -------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a verdict, or a part of one, was decided on.

    inside: where the whole interval must lie to bear the claim out.  outside: beyond which it must lie to refute it.
    alike: half the width of the band around 0 in which a 90 % interval shows equivalence; 0 for no such band.
    level, refuting: significance levels of bearing out and of refuting, corrected for a family if there is one.
    """

    interval: Interval
    inside: tuple[float, float]
    outside: tuple[float, float]
    alike: float = 0.0
    level: float = 0.05
    refuting: float = 0.05

    @classmethod
    def of(
        cls, interval: Interval, margin: float, claim: tuple[float, float], level: float = 0.05, refuting: float = 0.05
    ) -> Judged:
        """The bounds that `stats.judge` applies."""
        low, high = claim
        return cls(interval, (low + margin, high - margin), (low - margin, high + margin), margin, level, refuting)

    def rooms(self, whole: bool) -> list[tuple[float, float, str]]:
        """(distance, level, outcome) of each edge that the estimate must clear.

        whole: whether the verdict rests on this alone; a part of a claim cannot be equivalent.
        """
        mean = self.interval.mean
        found = [
            (min(mean - self.inside[0], self.inside[1] - mean), self.level, "reproduced"),
            (max(mean - self.outside[1], self.outside[0] - mean), self.refuting, "refuted"),
        ]
        return found + [(self.alike - abs(mean), 2 * self.level, "equivalent")] * (whole and self.alike > 0)


def judge_claim(interval: Interval, margin: float, claim: tuple[float, float], count: int = 1) -> tuple[str, Judged]:
    """The outcome by `stats.judge`, and what it was decided on.

    count: number of parts of the claim. Any part may refute it, so refuting takes Bonferroni's level.
    """
    outcome = judge(interval, margin, claim)
    wider = replace(interval, half95=interval.half(0.05 / count)) if count > 1 else interval
    if outcome == "refuted" != judge(wider, margin, claim):
        outcome = "undecided"
    return outcome, Judged.of(interval, margin, claim, refuting=0.05 / count)


def more_seeds(parts: Sequence[Judged]) -> tuple[int, str] | None:
    """How many further seeds decide a claim four times in five if its estimates are the truth, and the outcome.

    Of several parts the first to be refuted refutes the claim; all must bear it out. None if no total up to MOST_SEEDS
    decides.
    """
    whole = len(parts) == 1
    needed = [{outcome: seeds_to(part, room, level) for room, level, outcome in part.rooms(whole)} for part in parts]
    plans = {"refuted": min(one["refuted"] for one in needed), "reproduced": max(one["reproduced"] for one in needed)}
    plans |= {"equivalent": needed[0]["equivalent"]} if "equivalent" in needed[0] else {}
    seeds, outcome = min((count, said) for said, count in plans.items())
    return None if math.isinf(seeds) else (int(seeds), outcome)


def seeds_to(part: Judged, room: float, level: float) -> float:
    """The fewest further seeds with which an edge that lies `room` from the estimate is cleared four times in five.

    half_n(level′) + z_0.8 · s · √k / n ≤ room  with n = n₀ + k seeds, of which n₀ are at hand, and s = seed_se · √n₀:
    the half-width of the rule for n seeds, and by how much the estimate will move when k are added. The test examples,
    the bias and the error of the examples stay the same; the part of that error that falls with seeds, their
    interaction, is not counted on. level′ is what `final_level` leaves after the look at n₀ seeds. 0 if the edge is
    already cleared, infinite if a total of MOST_SEEDS seeds does not clear it.
    """
    found, level = part.interval, level * spent(part.interval)
    if found.decides and found.half(level) <= room:
        return 0
    if not fits(found, room, level):
        return math.inf
    spread = found.seed_se * math.sqrt(found.seeds)
    for more in range(1, MOST_SEEDS - found.seeds + 1):
        seeds = found.seeds + more
        then = replace(found, seed_se=spread / math.sqrt(seeds), seeds=seeds)
        moves = float(quantile(2 * (1 - POWER), math.inf)) * spread * math.sqrt(more) / seeds
        first_look = then.half(level) + moves <= room  # which is cheaper to ask, and less than is asked
        if first_look and then.half(final_level(level, found.seeds / seeds)) + moves <= room:
            return more
    return math.inf


def eased(part: Judged, finer: bool, inputs: int) -> Judged:
    """What would be judged if the choice of rates were no error, or with so many test inputs (0: those there are).

    The error of inputs falls as one over the root of their number, unless they are in groups. What earlier looks have
    spent stays spent.
    """
    found, left = part.interval, spent(part.interval)
    share = inputs / found.examples if inputs and not found.groups else 1.0
    then = replace(
        found,
        bias=0.0 if finer else found.bias,
        choice_se=0.0 if finer else found.choice_se,
        example_se=found.example_se / math.sqrt(share),
        examples=round(found.examples * share),
        freedom=found.freedom * share,
    )
    return replace(part, interval=replace(then, half95=then.half(0.05 * left), half90=then.half(0.10 * left)))


def spent(found: Interval) -> float:
    """Share of the level that remains after an earlier look at fewer seeds; 1 for a first look."""
    if not 0 < found.half(0.05) < found.half95 < math.inf:
        return 1.0
    levels = math.log(1e-6), 0.0
    return math.exp(optimize.brentq(lambda log: found.half(0.05 * math.exp(log)) - found.half95, *levels))


def fits(found: Interval, room: float, level: float) -> bool:
    """Whether seeds can clear the edge: errors of test examples and grid, which do not fall, must leave room."""
    left = lasting(found)
    return found.seeds > 1 and left.decides and math.isfinite(found.standard_error) and left.half(level) < room


def lasting(found: Interval) -> Interval:
    """The interval with unlimited seeds: without their error."""
    return replace(found, seed_se=0.0, seeds=max(found.seeds, FEWEST_SEEDS))


def obstacle(parts: Sequence[Judged]) -> str:
    """Why `more_seeds` is None, in words that follow `not by seeds:`.

    About the part that is nearest to refuting, or else the part that keeps the claim from being borne out.
    """
    if not parts:
        return "its study does not say what it judged"
    intervals = [part.interval for part in parts]
    if all(one.seeds < 2 for one in intervals):
        return "nothing in it depends on a seed, but on texts and cases"
    if few := [one for one in intervals if not lasting(one).decides]:
        return f"{few[0].basis} decide nothing"
    widest = [(part, *max(part.rooms(len(parts) == 1))) for part in parts]
    refuting = [one for one in widest if one[3] == "refuted" and one[1] > 0]
    part, room, level, _ = (max if refuting else min)(refuting or widest, key=lambda one: one[1])
    rest = lasting(part.interval).half(level * spent(part.interval))
    if room <= 0:
        return "the estimate lies between what would bear it out and what would refute it"
    if part.interval.bias >= room:
        return f"grid or fit may move it by {part.interval.bias:.2g}, the edge is {room:.2g} away"
    if rest >= room:
        return f"without any spread of seeds ±{rest:.2g} are left, the edge is {room:.2g} away"
    return f"more than {MOST_SEEDS} seeds"
