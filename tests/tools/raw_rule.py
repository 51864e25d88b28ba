"""Records as raw JSON, found by what their specs say, and the rule of `book/measuring.md`; nothing of the package.

Another implementation on purpose: errors come from leaving out one unit after the other, the level of a second look
from a sum over the first one's path, parabolas from divided differences.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm, t

FOLDER = Path(__file__).parents[2] / "src" / "peftbook" / "records"
INF = math.inf
Raw = Mapping[str, Any]  # a record, or its spec, as JSON has it

# --- records, found by what they say of themselves -------------------------------------------------------------


@functools.cache
def every_record() -> list[Raw]:
    """All records of the repository."""
    return [json.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))]


def agrees(spec: Any, wanted: Any) -> bool:
    """Whether a spec has what is wanted of it: the fields that are named, of a method all fields."""
    if not isinstance(wanted, Mapping):
        return spec == wanted
    return isinstance(spec, Mapping) and all(
        spec.get(name) == value if name == "method" else agrees(spec.get(name), value) for name, value in wanted.items()
    )


def one(**wanted: object) -> Raw:
    """The record whose spec agrees; there must be exactly one."""
    matching = [record for record in every_record() if agrees(record["spec"], wanted)]
    assert len(matching) == 1, f"{len(matching)} records agree with {wanted}"
    return matching[0]


def probe(measure: str, seed: int = 0, model: str = "smollm2-135m-instruct", **settings: object) -> Raw:
    """The record of a measurement that has these settings."""
    return one(measure=measure, seed=seed, model={"name": model}, settings=settings)


ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
FULL = {"kind": "full", "version": 1}


def lora(rank: int = 16, alpha: float = 32.0, targets: Sequence[str] = (*ATTENTION, *MLP)) -> Raw:
    return {"kind": "lora", "rank": rank, "alpha": alpha, "dropout": 0.0, "targets": list(targets), "version": 1}


def prompt(length: int = 20, init: str = "vocabulary", text: str = "") -> Raw:
    return {"kind": "prompt", "length": length, "init": init, "init_text": text, "version": 1}


def rates(lowest: float, factor: float, count: int) -> list[float]:
    """A grid of learning rates, which specs hold to three digits."""
    return [float(f"{lowest * factor**at:.3g}") for at in range(count)]


@dataclass(frozen=True)
class Setting:
    """What the runs of a comparison share. refined: the gain from which a grid is refined; 0: never."""

    task: str
    tokens: int
    factor: float
    validated: int = 100
    tested: int = 200
    generated: int = 0
    examples: int | None = None
    seeds: tuple[int, ...] = (1, 2, 3)
    refined: float = 0.0
    model: str = "smollm2-135m-instruct"

    def run(self, method: Raw, rate: float | None, seed: int, **evaluation: object) -> Raw:
        budget = rate and {"learning_rate": rate, "tokens": self.tokens, "train_examples": self.examples}
        return one(
            task={"name": self.task}, model={"name": self.model}, method=method, budget=budget, seed=seed,
            evaluation=evaluation, purpose="quality", dtype="bf16", platform="cpu",
        )  # fmt: skip

    def sweep(self, method: Raw, rate: float, seed: int = 0) -> Raw:
        return self.run(method, rate, seed, split="validation", n_loss=self.validated, n_generate=0)

    def grid(self, method: Raw, declared: Iterable[float]) -> dict[float, float]:
        """Rate → validation loss; extended at its ends, and refined while it is too coarse."""
        return refined(lambda rate: loss(self.sweep(method, rate)), declared, self.factor, self.refined)

    def choice(self, method: Raw, declared: Iterable[float] = (), groups: Sequence[str] = ()) -> float:
        """What the choice of the rate adds to the error of the final loss. groups: of the validation examples."""
        if not declared:
            return 0.0
        losses = self.grid(method, declared)
        beside = best_and_beside(losses)
        lower, upper = ([self.sweep(method, rate)] for rate in (beside[0], beside[-1]))
        return choice(losses, sweep_noise(self.finals(method, declared), lower, upper, groups=groups))

    def finals(self, method: Raw, declared: Iterable[float] = ()) -> list[Raw]:
        """The test runs of every seed, at the rate with the lowest validation loss."""
        losses = self.grid(method, declared) if declared else {}
        best = min(losses, key=losses.__getitem__) if losses else None
        return [
            self.run(method, best, seed, split="test", n_loss=self.tested, n_generate=self.generated)
            for seed in self.seeds
        ]


def sweep_noise(
    finals: Sequence[Raw],
    lower: Sequence[Raw],
    upper: Sequence[Raw],
    name: str = "loss_nats",
    groups: Sequence[str] = (),
) -> float:
    """Of the difference of two rates: by a sweep's examples or, if that is more, their groups; and .65 of how a final
    score varies between seeds.
    """
    tokens = [column(records, "label_tokens")[0] if name == "loss_nats" else None for records in (lower, finals)]
    apart = column(upper, name) - column(lower, name)
    beside = max(over_examples(apart, tokens[0], units).unit_se for units in ((), groups))
    final = over_examples(column(finals, name), tokens[1])
    return math.hypot(beside, final.seed_se * math.sqrt(0.65 * len(finals) / len(lower)))


def extended(measured: Callable[[float], float], declared: Iterable[float], factor: float) -> dict[float, float]:
    """Rate → what was measured, less being better; one more rate while the best is an end and none is above 10."""
    losses = {rate: measured(rate) for rate in declared}
    while (best := min(losses, key=losses.__getitem__)) in (min(losses), max(losses)):
        further = best * factor if best == max(losses) else best / factor
        if further > 10:
            break
        further = float(f"{further:.3g}")
        losses[further] = measured(further)
    return dict(sorted(losses.items()))


def refined(
    measured: Callable[[float], float], declared: Iterable[float], factor: float, bearable: float
) -> dict[float, float]:
    """`extended`; while a finer grid might gain too much, the rates halfway from the best one to its neighbours too."""
    losses = extended(measured, declared, factor)
    while bearable and finer_grid(losses, bearable):
        tried = sorted(losses)
        at = tried.index(min(losses, key=losses.__getitem__))
        between = [math.sqrt(near * tried[at]) for near in tried[at - 1 : at + 2 : 2]
                   if max(near, tried[at]) > 1.5 * min(near, tried[at])]  # fmt: skip
        if not between:
            break
        losses |= {(rate := float(f"{one:.3g}")): measured(rate) for one in between}
    return dict(sorted(losses.items()))


def best_and_beside(losses: Mapping[float, float]) -> list[float]:
    """The best rate and those beside it at which nothing diverged, ascending."""
    tried = sorted(losses)
    at = tried.index(min(tried, key=losses.__getitem__))
    return [rate for rate in tried[max(0, at - 1) : at + 2] if losses[rate] < INF]


def loss(record: Raw) -> float:
    return INF if record["failure"] else record["measurements"]["loss_nats"]


def column(records: Sequence[Raw], name: str) -> np.ndarray:
    """(records, examples) of a score."""
    return np.array([record["per_example"][name] for record in records], dtype=float)


def finer_grid(losses: Mapping[float, float], bearable: float) -> float:
    """How far the vertex of the parabola through the best rate and its neighbours lies below it, if that is a lot."""
    tried = sorted(losses)
    at = tried.index(min(losses, key=losses.__getitem__))
    if not 0 < at < len(tried) - 1:
        return 0.0
    x, y = np.log(tried[at - 1 : at + 2]), np.array([losses[rate] for rate in tried[at - 1 : at + 2]])
    if not np.isfinite(y).all():
        return 0.0
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bend = (right - left) / (x[2] - x[0])  # Newton's form: y₁ + slope · h + bend · h² around the best rate
    slope = left + bend * (x[1] - x[0])
    gain = slope**2 / (4 * bend)
    return float(gain) if gain > bearable else 0.0


def choice(losses: Mapping[float, float], noise: float) -> float:
    """Root mean square of what a parabola's vertex gains on the best rate. noise: of the difference of two losses.

    The mean over the slopes that such noise could have made is a sum over 20 nodes, exact for a power of four.
    """
    best = min(losses, key=losses.__getitem__)
    beside = [
        (abs(math.log(rate / best)), losses[rate] - losses[best]) for rate in best_and_beside(losses) if rate != best
    ]
    if not beside:
        return 0.0
    (left, fall), (right, rise) = beside[0], beside[-1]
    fall, rise = (min(one, 9 * (min(fall, rise) + noise)) for one in (fall, rise))
    bend = max((fall / left + rise / right) / (left + right), noise / (2 * left * right))
    # Lagrange's weights of the losses in the slope at the middle; each loss has half of the difference's variance.
    span = left + right
    of_slope = np.array([-right / left / span, 1 / left - 1 / right, left / right / span])
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    slopes = of_slope @ [fall, 0, rise] + noise / math.sqrt(2) * np.linalg.norm(of_slope) * nodes
    return math.sqrt(float(weights @ (slopes**2 / (4 * bend)) ** 2) / math.sqrt(2 * math.pi))


# --- the rule --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean, what other seeds and other examples would change of it, and what else widens its interval."""

    mean: float
    seed_se: float
    unit_se: float
    seeds: int
    freedom: float
    groups: int = 0
    first_look: float = 0.0  # share of the seeds that had been looked at before
    choice: float = 0.0  # error of the rates, which were chosen
    bias: float = 0.0

    def half(self, level: float = 0.05) -> float:
        level = second_level(level, self.first_look) if self.first_look else level
        own = t.ppf(1 - level / 2, self.seeds - 1) * self.seed_se if self.seeds > 1 else 0.0
        units = t.ppf(1 - level / 2, self.freedom) * self.unit_se if self.unit_se else 0.0
        return float(math.hypot(own, units, norm.isf(level / 2) * self.choice)) + self.bias

    @property
    def ends(self) -> tuple[float, float, float]:
        """Mean, low and high end at 95 %."""
        return self.mean, self.mean - self.half(), self.mean + self.half()


def spread(per_seed: np.ndarray, moved: np.ndarray, scale: float, freedom: float, groups: int = 0) -> Interval:
    """per_seed: (n,). moved: (replicates, n), how far each replicate of the examples moves each seed's value."""
    n, by_unit = len(per_seed), moved.mean(axis=1, keepdims=True)
    unit_variance = scale * float((by_unit**2).sum())
    seed_variance = 0.0
    if n > 1:
        interplay = scale * float(((moved - by_unit) ** 2).sum()) / (n * (n - 1))
        seed_variance = max(0.0, per_seed.var(ddof=1) / n - interplay)
    return Interval(per_seed.mean(), math.sqrt(seed_variance), math.sqrt(unit_variance), n, freedom, groups)


def over_examples(table: np.ndarray, weights: np.ndarray | None = None, groups: Sequence[str] = ()) -> Interval:
    """Σ scores / Σ weights of (seeds, examples), its second error from leaving out each example, or each group."""
    weights = np.ones(table.shape[1]) if weights is None else weights
    return over_statistic(lambda counted: table @ counted / (weights @ counted), weights, groups)


def over_statistic(
    value: Callable[[np.ndarray], np.ndarray], weights: np.ndarray, groups: Sequence[str] = ()
) -> Interval:
    """Of what the examples that count, (examples,) of 0 and 1, make: (seeds,). Each is left out, or each group."""
    unit = units_of(groups, len(weights))
    per_seed = value(np.ones(len(weights)))
    moved = np.array([value(kept) - per_seed for kept in leaving_out(unit)])
    return spread(per_seed, moved, (len(moved) - 1) / len(moved), evenness(unit, weights), len(moved) if groups else 0)


def units_of(groups: Sequence[str], count: int) -> np.ndarray:
    """The number of each example's group, or of the example."""
    return np.unique(groups, return_inverse=True)[1] if len(groups) else np.arange(count)


def leaving_out(unit: np.ndarray) -> list[np.ndarray]:
    """Which examples count as each unit is left out."""
    return [(unit != left_out).astype(float) for left_out in range(unit.max() + 1)]


def evenness(unit: np.ndarray, weights: np.ndarray) -> float:
    """Degrees of freedom of units that weigh so unevenly."""
    share = np.bincount(unit, weights) / weights.sum()
    return max(1.0, float(1 / (share**2).sum() - 1))


def over_seeds(values: Sequence[float]) -> Interval:
    return Interval(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)), 0, len(values), INF)


@functools.cache
def second_level(level: float, share: float) -> float:
    """What O'Brien and Fleming leave to a second look, after one at so large a share of the data."""
    first = norm.isf(level / 2) / math.sqrt(share)
    path = np.linspace(-first, first, 20_001)

    def errs(bar: float) -> float:
        """The chance that the first look is passed and the second is not."""
        along, across = math.sqrt(share) * path, math.sqrt(1 - share)
        missed = norm.sf((bar - along) / across) + norm.cdf((-bar - along) / across)
        return float(np.trapezoid(norm.pdf(path) * missed, path))

    low, high = norm.isf(level / 2), 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * norm.sf(first) + errs(middle) > level else (low, middle)
    return 2 * float(norm.sf(low))


def verdict_of(interval: Interval, margin: float, low: float, high: float) -> str:
    """On the claim that a difference lies between low and high."""
    mean, least, most = interval.ends
    if least >= low + margin and most <= high - margin:
        outcome = "reproduced"
    elif least > high + margin or most < low - margin:
        outcome = "refuted"
    elif abs(mean) + interval.half(0.10) <= margin:
        outcome = "equivalent"
    elif (least >= low and most <= high) or least > high or most < low:
        return "direction only"
    else:
        return "undecided"
    return "direction only" if interval.seeds == 2 or 0 < interval.groups < 8 else outcome


def of_parts(outcomes: Iterable[str]) -> str:
    parts = set(outcomes)
    return "refuted" if "refuted" in parts else "reproduced" if parts == {"reproduced"} else "undecided"
