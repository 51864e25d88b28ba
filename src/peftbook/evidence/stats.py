"""The one rule of uncertainty: intervals, p-values, families of comparisons, verdicts; numbers to numbers."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import scipy

from peftbook.core.errors import InputError

FEWEST_SEEDS, FEWEST_GROUPS = 3, 8  # below, an interval says a direction and decides nothing
FEWEST_EXAMPLES = 20  # below, the error itself is too rough to decide anything
FEWEST_DIFFERENT = 10  # examples on which two models differ, below which the error is too rough for an equivalence

RULE: list[Callable] = []  # the functions that make the rule, which the ledger of amendments watches


class LazyModule:
    """A module of scipy, imported at its first use: the import takes longer than most commands about results."""

    def __init__(self, name: str):
        self.name = name

    def __getattr__(self, function: str) -> Any:
        return getattr(getattr(scipy, self.name), function)


optimize, special = LazyModule("optimize"), LazyModule("special")
F = TypeVar("F", bound=Callable)
K = TypeVar("K", bound=Hashable)


def rule(function: F) -> F:
    """Mark a function as part of the rule."""
    RULE.append(function)
    return function


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided intervals and the standard errors behind them.

    half95, half90: half-widths.  seed_se: what other seeds would change, infinite where one seed of several is known.
    example_se: what other examples would change, or other groups where examples share one; infinite where a single one
    is known, 0 where nothing is random but the seeds.  seeds: 1 where nothing is random but the choice of examples.
    groups: how many groups the examples form; 0 where each stands for itself.
    freedom: degrees of freedom of `example_se`.  by_example: the 95 % interval if examples of a group were unrelated.
    choice_se: what the choice of learning rates adds, as `gain_of_best` of each.
    bias: by how much the mean may be off in either direction, which every half-width has on top.
    reach: how far from 0 the mean can be at most, 1 for a difference of shares; low and high go no farther.
    """

    mean: float
    half95: float
    half90: float
    seed_se: float
    example_se: float
    seeds: int
    examples: int
    groups: int = 0
    freedom: float = math.inf
    by_example: tuple[float, float] | None = None
    choice_se: float = 0.0
    bias: float = 0.0
    reach: float = math.inf

    @property
    def low(self) -> float:
        return max(self.mean - self.half95, -self.reach)

    @property
    def high(self) -> float:
        return min(self.mean + self.half95, self.reach)

    def __format__(self, spec: str) -> str:
        """The mean with the ends of the 95 % interval, each by the format: `+0.051 (+0.012 to +0.090)`."""
        mean, low, high = (format(value, spec) for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})" if spec else str(self)

    @property
    def exp(self) -> tuple[float, float, float]:
        """exp of the mean and of the ends of the 95 % interval: a ratio, if the mean is a logarithm."""
        return math.exp(self.mean), math.exp(self.low), math.exp(self.high)

    @property
    def standard_error(self) -> float:
        return math.hypot(self.seed_se, self.example_se, self.choice_se)

    @property
    @rule
    def decides(self) -> bool:
        """Whether it rests on enough: not on two seeds, nor on fewer than eight groups."""
        return (self.seeds == 1 or self.seeds >= FEWEST_SEEDS) and not 0 < self.groups < FEWEST_GROUPS

    def __neg__(self) -> Interval:
        ends = None if self.by_example is None else (-self.by_example[1], -self.by_example[0])
        return replace(self, mean=-self.mean, by_example=ends)

    @property
    def basis(self) -> str:
        """What it rests on: `4 groups`, else `3 seeds`."""
        return f"{self.groups} groups" if self.groups else f"{self.seeds} seed" + "s" * (self.seeds != 1)

    def half(self, level: float) -> float:
        """Half-width at 1 − level."""
        errors = self.seed_se, self.example_se, self.seeds - 1, self.freedom, self.choice_se
        return float(half_width(level, *errors)) + self.bias

    @classmethod
    def of(
        cls,
        mean: float,
        seed_se: float,
        example_se: float,
        seeds: int,
        examples: int,
        freedom: float | None = None,
        groups: int = 0,
    ) -> Interval:
        """The interval of the rule about a mean with these errors; freedom: examples − 1 unless given."""
        known = max(examples - 1, 1) if freedom is None else freedom
        bare = cls(mean, 0.0, 0.0, seed_se, example_se, seeds, examples, groups, known)
        return replace(bare, half95=bare.half(0.05), half90=bare.half(0.10))


# --- the rule --------------------------------------------------------------------------------------------------


def quantile(level: float, freedom: np.ndarray | float) -> np.ndarray:
    """The two-sided quantile of Student's t: |t| exceeds it with probability `level`; of the normal for ν = ∞."""
    return np.where(np.isinf(freedom), -special.ndtri(level / 2), -special.stdtrit(freedom, level / 2))


@rule
def standard_errors(per_seed: np.ndarray, deviations: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors of the mean over seeds, by the choice of seeds and of examples: (seed_se, example_se).

    per_seed: (…, n).  deviations: (…, replicates, n), how far each replicate of the examples moves each seed's value;
    `scale` times a sum of their squares is a variance.  The variance of the n values over n is σ_S²/n + σ_ε²/(nm), that
    of the replicates' mean σ_E²/m + σ_ε²/(nm). The interplay σ_ε²/(nm) is in both: it is estimated from how the seeds
    differ within a replicate, and taken out of the first, which is 0 where nothing is left.
    """
    seeds = per_seed.shape[-1]
    mean = deviations.mean(axis=-1, keepdims=True)
    example = scale * (mean[..., 0] ** 2).sum(axis=-1)
    if seeds == 1:
        return np.zeros_like(example), np.sqrt(example)
    both = scale * ((deviations - mean) ** 2).sum(axis=(-1, -2)) / (seeds * (seeds - 1))
    own = per_seed.var(axis=-1, ddof=1) / seeds - both
    return np.sqrt(np.maximum(own, 0.0)), np.sqrt(example)


@rule
def half_width(
    level: float,
    seed_se: np.ndarray | float,
    example_se: np.ndarray | float,
    seed_freedom: float,
    freedom: float,
    choice_se: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Half-width at 1 − level: each error with its own quantile, √((t_{n−1} · seed_se)² + (t_ν · example_se)² + …).

    Source: Banerjee 1960, who proves that two such errors are covered at least as often as the level says. The choice
    of rates, if there is one, has the normal quantile; the study `coverage` simulates how often all three are covered.
    """
    own = seed_se * quantile(level, seed_freedom) if seed_freedom else np.multiply(seed_se, 1.0)
    return np.hypot(np.hypot(own, example_se * quantile(level, freedom)), choice_se * quantile(level, math.inf))


@rule
def gain_of_best(distances: np.ndarray, rises: np.ndarray, noise: np.ndarray | float) -> np.ndarray:
    """Root mean square of what the best rate of all would gain on a chosen one, by a parabola through its neighbours.

    distances, rises: (2, …), of the neighbours below and above, in the logarithm of the rate and in loss.
    noise: standard error of the difference of the neighbours' losses.
    The vertex of ax² + bx lies b²/4a below 0. With b normal about what was seen, of variance v, the mean square of that
    is (b⁴ + 6b²v + 3v²)/16a². An a below what noise alone shows is taken to be that; a rise beyond nine times the other
    is a cliff and none of the valley.
    """
    left, right = distances
    fall, rise = np.minimum(rises, 9 * (np.min(rises, axis=0) + noise))
    span, uneven = left + right, left / right
    bend = np.maximum((fall / left + rise / right) / span, noise / (2 * left * right))
    slope = (rise * uneven - fall / uneven) / span
    variance = (noise / span) ** 2 * (uneven**2 + uneven**-2 - 1)
    square = slope**4 + 6 * slope**2 * variance + 3 * variance**2
    return np.sqrt(square) / np.maximum(4 * bend, np.finfo(float).tiny)


@rule
def rate_noise(spread: np.ndarray | float, seeds: int, example_se: np.ndarray | float) -> np.ndarray:
    """Standard error of the difference of two rates' losses in a sweep of so many seeds.

    spread: standard deviation of the loss between seeds, at one rate.  example_se: of the difference, by the examples.
    The difference of two rates with one seed has .65 of the variance that one rate has between seeds: pooled over 15
    pairs of neighbouring rates with three seeds each. Arms differ in it; the study `rate_choice` has the range.
    """
    return np.hypot(math.sqrt(0.65 / seeds) * spread, example_se)


@rule
def jackknife(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Deviations of Σ scores / Σ weights as each unit is left out, (…, units, n), and the scale of their squares.

    scores: (…, n, units ≥ 2).  weights: (units,).  Leaving out a unit of weight share w moves the ratio by −r/(1 − w),
    with r the unit's part of Σ (scores − ratio · weights) / Σ weights.
    """
    share, units = weights / weights.sum(), len(weights)
    ratio = scores.sum(axis=-1, keepdims=True) / weights.sum()
    moved = (ratio * share - scores / weights.sum()) / (1 - share)
    return np.swapaxes(moved, -1, -2), (units - 1) / units


@rule
def freedom_of(weights: np.ndarray) -> float:
    """Degrees of freedom of an error over units: the effective number of units less one, 1/Σw² − 1."""
    share = weights / weights.sum()
    return max(1 / float((share**2).sum()) - 1, 1.0)


@rule
def p_value(one: Interval) -> float:
    """Two-sided, of the hypothesis that the mean is zero: the level at which its interval touches zero."""
    if not 0 < one.standard_error < math.inf:
        return float(one.mean == 0 or one.standard_error != 0)  # also where it is no number
    if one.bias >= abs(one.mean):
        return 1.0

    def beyond(log_level: float) -> float:
        return one.half(math.exp(log_level)) - abs(one.mean)

    lowest = math.log(1e-12)
    return math.exp(optimize.brentq(beyond, lowest, 0.0)) if beyond(lowest) > 0 else 0.0


@rule
def judge(difference: Interval, margin: float, claim: tuple[float, float]) -> str:
    """Verdict on a claim about a difference.

    claim: the interval that the claim allows (−inf and inf are fine).  reproduced: the 95 % interval lies inside it, by
    the margin.  refuted: the 95 % interval lies wholly outside it, by the margin.  equivalent: the 90 % interval lies
    inside ±margin.  direction only: the 95 % interval lies on one side of the claim's edge, but the margin is not
    reached, or it rests on too few seeds or groups.  undecided: anything else. A claim whose edge is the margin already
    is judged with margin 0.
    """
    low, high = difference.low, difference.high
    if low >= claim[0] + margin and high <= claim[1] - margin:
        outcome = "reproduced"
    elif low > claim[1] + margin or high < claim[0] - margin:
        outcome = "refuted"
    elif abs(difference.mean) + difference.half90 <= margin:
        outcome = "equivalent"
    elif (low >= claim[0] and high <= claim[1]) or low > claim[1] or high < claim[0]:
        return "direction only"
    else:
        return "undecided"
    return outcome if difference.decides else "direction only"


@rule
def final_level(level: float, share: float) -> float:
    """The level of the second of two looks at growing data, so that both looks together err as often as `level` says.

    share: of the data, at the first look. That look has spent 2 − 2Φ(z/√share), z the two-sided quantile of `level`
    (O'Brien and Fleming's spending, which leaves nearly all to the end), and the second has the rest: of the standard
    normal path Z₁, Z₂ with correlation √share, P(|Z₁| < c₁, |Z₂| ≥ c₂) = level − spent is solved for c₂. Where only the
    seeds grew and not the examples, the looks are more alike than √share, and the level is on the safe side.
    Source: Lan and DeMets 1983.
    """
    first = -special.ndtri(level / 2) / math.sqrt(share)
    spent = 2 * special.ndtr(-first)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    path, density = first * nodes, first * weights * np.exp(-((first * nodes) ** 2) / 2) / math.sqrt(2 * math.pi)
    middle, spread = math.sqrt(share) * path, math.sqrt(1 - share)

    def beyond(last: float) -> float:
        missed = special.ndtr((middle - last) / spread) + special.ndtr((-last - middle) / spread)
        return float(density @ missed) + spent - level

    return float(2 * special.ndtr(-optimize.brentq(beyond, -special.ndtri(level / 2), 10.0)))


@rule
def together(outcomes: Collection[str]) -> str:
    """Verdict on a claim of several parts: refuted where one is, reproduced where all are, else undecided."""
    if "refuted" in outcomes:
        return "refuted"
    return "reproduced" if set(outcomes) == {"reproduced"} else "undecided"


@rule
def holm(p: Mapping[K, float], level: float = 0.05) -> dict[K, bool]:
    """Which hypotheses of a family are rejected, by Holm's step-down procedure at the family-wise level.

    p: by name.  The smallest is held against level / m, the next against level / (m − 1), until one fails.
    Source: Holm 1979.
    """
    order = sorted(p, key=lambda name: p[name])
    passed = [p[name] <= level / (len(p) - rank) for rank, name in enumerate(order)]
    count = passed.index(False) if False in passed else len(passed)
    return {name: order.index(name) < count for name in p}


# --- intervals -------------------------------------------------------------------------------------------------

Scores = Sequence[Sequence[float]] | np.ndarray
Groups = Sequence[Hashable]


def surely_above(found: Mapping[K, Interval], edge: float, level: float = 0.05) -> dict[K, bool]:
    """Which of several are above an edge, by Holm's procedure over all of them.

    One-sided, at half of the level: alone its whole 95 % interval lies above.
    """
    moved = {name: replace(one, mean=one.mean - edge) for name, one in found.items()}
    p = {name: p_value(one) / 2 if one.mean > 0 else 1.0 for name, one in moved.items()}
    return holm(p, level / 2)


def second_look(interval: Interval, share: float) -> Interval:
    """The interval at a second look, where the first saw a share of the seeds and did not decide.

    Its half-widths are those at `final_level`.
    """
    half95, half90 = map(interval.half, final_levels(share))
    return replace(interval, half95=half95, half90=half90)


@functools.lru_cache(maxsize=64)
def final_levels(share: float) -> tuple[float, float]:
    """`final_level` of 5 % and of 10 %."""
    return final_level(0.05, share), final_level(0.10, share)


def score_interval(scores: Scores, weights: Sequence[float] | None = None, groups: Groups = ()) -> Interval:
    """The interval of a mean over seeds and examples; of one row, where nothing is random, over examples alone.

    scores: (seeds, examples); for a paired comparison the differences.  weights: (examples,) or None; with weights the
    value of a seed is Σ scores / Σ weights (loss per label token: scores are summed nats, weights are label tokens).
    groups: (examples,) or empty; with groups the second error is over groups. For a single group that error is unknown:
    the interval is over examples, and decides nothing. Examples of weight 0 are ignored. Raises InputError for a table
    of another shape, for a score that is no number and for weights below zero.
    """
    table, weight = check_scores(scores, weights)
    if len(groups) not in (0, table.shape[1]):
        raise InputError(f"There are {len(groups)} groups for {table.shape[1]} examples: give one each.")
    if not (counts := weight > 0).all():
        table, weight = table[:, counts], weight[counts]
        groups = list(itertools.compress(groups, counts.tolist()))
    single = interval_over_units(table, weight, table.shape[1])
    if not (codes := group_codes(groups, table.shape[1])):
        return single
    member = np.eye(max(codes) + 1)[codes]
    if member.shape[1] == 1:
        return replace(single, groups=1)
    grouped = interval_over_units(table @ member, weight @ member, table.shape[1], groups=member.shape[1])
    return replace(grouped, mean=single.mean, by_example=(single.low, single.high))


def check_scores(scores: Scores, weights: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    """The table of scores and the weights of its columns. Raises InputError that says what is wrong with them."""
    table = np.array(scores, dtype=float, order="C")
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(f"Scores have shape {table.shape}: give a non-empty (seeds, examples) table.")
    weight = np.ones(table.shape[1]) if weights is None else np.asarray(weights, dtype=float)
    if weight.shape != table.shape[1:]:
        raise InputError(f"There are {weight.size} weights for {table.shape[1]} examples: give one each.")
    if not (np.isfinite(weight).all() and weight.min() >= 0 < weight.max()):
        raise InputError("Weights must be finite, none below 0 and one above it: give e.g. the counts of label tokens.")
    if not np.isfinite(table).all():
        seed, example = (int(at[0]) for at in np.nonzero(~np.isfinite(table)))
        value = table[seed, example]
        raise InputError(f"Score {example + 1} of seed {seed + 1} is {value}: an interval needs finite numbers.")
    return table, weight


@rule
def interval_over_units(scores: np.ndarray, weights: np.ndarray, examples: int, groups: int = 0) -> Interval:
    """The interval whose second error is over the columns of `scores`, (seeds, units); infinite over a single one."""
    per_seed = scores.sum(axis=1) / weights.sum()
    if len(weights) == 1:
        return replace(seed_interval(per_seed), example_se=math.inf, half95=math.inf, half90=math.inf, freedom=1.0)
    seed_se, example_se = (float(error) for error in standard_errors(per_seed, *jackknife(scores, weights)))
    freedom = freedom_of(weights)
    return Interval.of(float(per_seed.mean()), seed_se, example_se, len(per_seed), examples, freedom, groups)


def seed_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The interval of a mean over seeds where nothing else is random: mean ± t_{n−1} · s/√n, infinite for one seed."""
    table, _ = check_scores(np.asarray(values, dtype=float)[None], None)
    seeds = table.size
    seed_se = math.sqrt(table.var(ddof=1) / seeds) if seeds > 1 else math.inf
    return Interval.of(float(table.mean()), seed_se, 0.0, seeds, 1, math.inf)


def group_codes(groups: Groups, examples: int) -> list[int]:
    """The number of each example's group; an empty name is a group of its own. Empty where no two share one."""
    if len(groups) not in (0, examples):
        raise InputError(f"There are {len(groups)} groups for {examples} examples: give one each.")
    numbers: dict[Hashable, int] = {}
    codes = [numbers.setdefault((group,) if group != "" else at, len(numbers)) for at, group in enumerate(groups)]
    return codes if len(numbers) < examples else []


def mean_interval(scores: Scores, weights: Sequence[float] | None = None, groups: Groups = ()) -> Interval:
    """`score_interval` where seeds matter: with a single one, what others would change is unknown, and infinite."""
    found = score_interval(scores, weights, groups)
    if found.seeds > 1:
        return found
    return replace(found, half95=math.inf, half90=math.inf, seed_se=math.inf, by_example=None)


def example_interval(scores: Sequence[float], weights: Sequence[float] | None = None, groups: Groups = ()) -> Interval:
    """`score_interval` where nothing is random but the choice of examples. scores: (examples,)."""
    return score_interval([list(scores)], weights, groups)


def paired_interval(
    first: Scores, second: Scores, weights: Sequence[float] | None = None, groups: Groups = ()
) -> Interval:
    """The interval of first − second over shared seeds and shared examples: row i of both has the same seed."""
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != two.shape:
        raise InputError(f"Paired scores have shapes {one.shape} and {two.shape}: compare equal seeds and examples.")
    return mean_interval(one - two, weights, groups)


def with_bias(interval: Interval, bias: float) -> Interval:
    """The interval of an estimate that may be off by so much in either direction: both half-widths grow by |bias|."""
    half95, half90 = (half + abs(bias) for half in (interval.half95, interval.half90))
    return replace(interval, half95=half95, half90=half90, bias=interval.bias + abs(bias))


def with_choice(interval: Interval, *errors: float) -> Interval:
    """The interval of an estimate for which rates were chosen: each choice adds an error of its own."""
    wider = replace(interval, choice_se=math.hypot(interval.choice_se, *errors))
    return replace(wider, half95=wider.half(0.05), half90=wider.half(0.10))
