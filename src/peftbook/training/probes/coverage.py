"""How often intervals cover: simulated studies with errors of seeds, examples or groups, and of chosen rates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from peftbook.core import specs
from peftbook.evidence import stats
from peftbook.training.probes import Findings

LEVEL = 0.05
SMALLEST_GROUP = 12.0  # the largest group is so many times the smallest, as in the book's tasks
FOUND = 2.80  # an effect of so many true standard errors is found four times in five by 1.96 of them
AT_ONCE = 1_500_000  # scores
REACH = 4  # grid points on either side of the best


def simulated(probe: specs.Probe) -> Findings:
    """Coverage, power and width of every rule of RULES, cell by cell of a grid.

    settings: seeds; studies, of each cell; examples, groups (0: examples are unrelated), shares (the seeds' share of
    the variance of the mean), interplay (of the rest, the share that is seed × example), shapes ("normal", "skewed":
    examples are exponential, "all_skewed": seeds too).
    curve: of every cell its coordinates, and of every rule coverage, power against FOUND true errors, and the mean
    half-width over 1.96 true errors.
    """
    seeds, studies = probe.whole("seeds"), probe.whole("studies")
    axes = [probe.numbers(name) for name in ("examples", "groups", "shares", "interplay")]
    shapes = probe.words("shapes")
    curve: dict[str, list[float]] = {}
    for at, (shape, cell) in enumerate(itertools.product(shapes, itertools.product(*axes))):
        examples, groups, share, interplay = cell
        parts = [share, (1 - share) * (1 - interplay), (1 - share) * interplay]
        rng = np.random.default_rng((probe.seed, seeds, at))
        found = cell_rates(rng, seeds, group_sizes(int(examples), int(groups)), parts, shape, studies)
        place = {
            "shape": shapes.index(shape), "examples": examples, "groups": groups, "share": share, "interplay": interplay
        }  # fmt: skip
        for name, value in {**place, **found}.items():
            curve.setdefault(name, []).append(round(float(value), 4))
    return Findings(measurements={"cells": len(curve["share"]), "studies": studies}, curve=curve)


def group_sizes(examples: int, groups: int) -> np.ndarray:
    """Sizes of unequal groups, (groups,), largest first; ones where examples are unrelated."""
    if not groups:
        return np.ones(examples, dtype=int)
    wanted = np.exp(np.linspace(0, -math.log(SMALLEST_GROUP), groups))
    sizes = np.maximum(1, np.floor(examples * wanted / wanted.sum())).astype(int)
    sizes[0] += examples - sizes.sum()
    return sizes


def cell_rates(
    rng: np.random.Generator, seeds: int, sizes: np.ndarray, parts: list[float], shape: str, studies: int
) -> dict[str, float]:
    """Coverage, power and width of every rule over so many studies of one cell."""
    total: dict[str, float] = {}
    chunk = max(1, AT_ONCE // (seeds * int(sizes.sum())))
    for start in range(0, studies, chunk):
        scores = draw(rng, min(chunk, studies - start), seeds, sizes, parts, shape)
        mean = scores.mean(axis=(1, 2))
        for rule, half in half_widths(scores, sizes).items():
            rates = {"coverage": abs(mean) <= half, "power": abs(mean + FOUND) > half, "width": half / 1.96}
            for name, values in rates.items():
                total[f"{rule}_{name}"] = total.get(f"{rule}_{name}", 0.0) + float(values.sum())
    return {name: value / studies for name, value in total.items()}


def draw(
    rng: np.random.Generator, studies: int, seeds: int, sizes: np.ndarray, parts: list[float], shape: str
) -> np.ndarray:
    """(studies, seeds, examples) differences of true mean 0 whose mean has variance 1.

    parts: of that variance, what is due to seeds, to examples and to their interplay. Where examples share groups, half
    of the last two is the groups'.
    """
    examples, groups = int(sizes.sum()), len(sizes)
    kinds = (shape == "all_skewed", shape != "normal")

    def noise(variance: float, *size: int, skewed: bool = kinds[1]) -> np.ndarray:
        values = rng.standard_exponential(size) - 1 if skewed else rng.standard_normal(size)
        return math.sqrt(variance) * values

    of_seeds, of_examples, of_both = parts
    scores = noise(of_seeds * seeds, studies, seeds, 1, skewed=kinds[0])
    own = 1.0 if groups == examples else 0.5
    scores = scores + noise(own * of_examples * examples, studies, 1, examples)
    scores += noise(own * of_both * seeds * examples, studies, seeds, examples)
    if groups < examples:
        even = examples**2 / float((sizes**2).sum())  # as many equal groups would weigh as unevenly
        shared = noise(0.5 * of_examples * even, studies, 1, groups)
        shared = shared + noise(0.5 * of_both * seeds * even, studies, seeds, groups)
        scores += np.repeat(shared, sizes, axis=-1)
    return scores


def half_widths(scores: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Half-widths at 95 % by every rule, (studies,). Of `first_edition` examples are unrelated."""
    seeds, examples = scores.shape[1:]
    sums = np.add.reduceat(scores, np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=-1)
    errors = {
        name: Errors.of(values, weights)
        for name, values, weights in (("single", scores, np.ones(examples)), ("grouped", sums, sizes.astype(float)))
    }
    return {
        name: rule(errors["single" if name == "first_edition" else "grouped"], seeds) for name, rule in RULES.items()
    }


@dataclass(frozen=True)
class Errors:
    """Estimated variances of a mean, (studies,): of seeds as they scatter, of seeds alone, of examples or groups."""

    scatter: np.ndarray
    seeds: np.ndarray
    examples: np.ndarray
    freedom: float

    @classmethod
    def of(cls, scores: np.ndarray, weights: np.ndarray) -> Errors:
        """scores: (studies, seeds, units), summed over a unit.  weights: (units,)."""
        per_seed = scores.sum(axis=-1) / weights.sum()
        seed_se, example_se = stats.standard_errors(per_seed, *stats.jackknife(scores, weights))
        scatter = per_seed.var(axis=-1, ddof=1) / per_seed.shape[-1]
        return cls(scatter, seed_se**2, example_se**2, stats.freedom_of(weights))


def students(errors: Errors, seeds: int) -> np.ndarray:
    """One quantile for both errors, t(n − 1); the interplay is counted twice."""
    return stats.quantile(LEVEL, seeds - 1) * np.sqrt(errors.scatter + errors.examples)


def satterthwaite(of_seeds: np.ndarray, errors: Errors, seeds: int) -> np.ndarray:
    """One quantile, with the degrees of freedom of Satterthwaite 1946: ν = (a + b)² / (a²/(n − 1) + b²/ν_b)."""
    both = of_seeds + errors.examples
    freedom = both**2 / (of_seeds**2 / (seeds - 1) + errors.examples**2 / errors.freedom)
    return stats.quantile(LEVEL, freedom) * np.sqrt(both)


def cochran(errors: Errors, seeds: int) -> np.ndarray:
    """The mean of both quantiles, weighted by the variances. Source: Cochran and Cox 1950."""
    quantiles = stats.quantile(LEVEL, seeds - 1), stats.quantile(LEVEL, errors.freedom)
    both = errors.seeds + errors.examples
    return (quantiles[0] * errors.seeds + quantiles[1] * errors.examples) / np.sqrt(both)


RULES: Mapping[str, Callable[[Errors, int], np.ndarray]] = {
    "first_edition": students,
    "satterthwaite": lambda errors, seeds: satterthwaite(errors.scatter, errors, seeds),
    "satterthwaite_once": lambda errors, seeds: satterthwaite(errors.seeds, errors, seeds),
    "cochran": cochran,
    "own_quantiles": lambda errors, seeds: stats.half_width(
        LEVEL, np.sqrt(errors.seeds), np.sqrt(errors.examples), seeds - 1, errors.freedom
    ),
}


# --- the whole procedure, with the choice of rates ---------------------------------------------------------------


def tuned(probe: specs.Probe) -> Findings:
    """Coverage where two methods are compared at rates that a sweep of each chose, cell by cell of a grid.

    The unit of loss is the standard deviation of one method at one rate between seeds. Losses are parabolas in the
    logarithm of the rate whose best lies anywhere between two rates of the grid.
    settings: seeds, examples, of the final runs; studies, of each cell; sweep_seeds; steps, of the grid, in doublings;
    shares (the final seeds' share of the variance of the mean); alike (of the noise of a method's run beside what its
    seed does to all, the share that both methods have); valleys ("apart": the best rates of the two methods are drawn
    independently, "shared": they are one); bends, per squared doubling, one drawn for each method;
    contrast, the variance of the difference of two rates with one seed; example_se of that difference.
    curve: of every cell its coordinates, coverage of the difference at the best rates of both grids and at the best
    rates of all, without and with the choice of rates, and the mean half-width with it over that without.
    """
    seeds, studies = probe.whole("seeds"), probe.whole("studies")
    names, valleys = ("sweep_seeds", "steps", "shares", "alike"), probe.words("valleys")
    curve: dict[str, list[float]] = {}
    for at, (valley, cell) in enumerate(itertools.product(valleys, itertools.product(*map(probe.numbers, names)))):
        rng = np.random.default_rng((probe.seed, seeds, at))
        found = tuned_rates(rng, probe, seeds, studies, valley, *cell)
        place = {"valley": valleys.index(valley), **dict(zip(names, cell, strict=True))}
        for name, value in {**place, **found}.items():
            curve.setdefault(name, []).append(round(float(value), 4))
    return Findings(measurements={"cells": len(curve["shares"]), "studies": studies}, curve=curve)


def tuned_rates(
    rng: np.random.Generator, probe: specs.Probe, seeds: int, studies: int, valley: str, sweep_seeds: float,
    step: float, share: float, alike: float,
) -> dict[str, float]:  # fmt: skip
    """The coverages and the width of one cell."""
    (contrast,), (example_se,), (examples,) = map(probe.numbers, ("contrast", "example_se", "examples"))
    own = contrast / 2  # of a run, beside what its seed does to all rates and both methods

    def noise(*size: int) -> np.ndarray:
        """Of two methods, (2, studies, …), with variance 1 each."""
        both, each = rng.standard_normal((studies, *size)), rng.standard_normal((2, studies, *size))
        return math.sqrt(alike) * both + math.sqrt(1 - alike) * each

    effects = math.sqrt(own) * noise(seeds)
    parts = [0.0, 0.75 * (1 - share), 0.25 * (1 - share)]
    sizes = group_sizes(int(examples), 0)
    scores = math.sqrt(2 * own * (1 - alike) / seeds / share) * draw(rng, studies, seeds, sizes, parts, "normal")
    scores += (effects[0] - effects[1])[..., None]
    spreads = (effects + math.sqrt(1 - own) * rng.standard_normal((studies, seeds))).std(axis=-1, ddof=1)
    best = rng.uniform(-step / 2, step / 2, (2, studies, 1))
    best = best if valley == "apart" else best[[0, 0]]
    losses = rng.choice(probe.numbers("bends"), (2, studies, 1)) * (step * np.arange(-REACH, REACH + 1) - best) ** 2
    of_examples = example_se / math.sqrt(2) * rng.standard_normal(losses.shape)
    seen = losses + math.sqrt(own / sweep_seeds) * noise(losses.shape[-1]) + of_examples
    reached, errors_of_choice = choices(losses, seen, step, stats.rate_noise(spreads, int(sweep_seeds), example_se))
    choice_se = np.hypot(*errors_of_choice)

    errors = Errors.of(scores, np.ones(len(sizes)))
    both = np.sqrt(errors.seeds), np.sqrt(errors.examples), seeds - 1, errors.freedom
    halves = {"plain": stats.half_width(LEVEL, *both), "choice": stats.half_width(LEVEL, *both, choice_se)}
    regrets = {"grid": reached - losses.min(axis=-1), "all": reached}
    misses = {truth: scores.mean(axis=(1, 2)) + one - two for truth, (one, two) in regrets.items()}
    rates = {f"{rule}_{truth}": abs(miss) <= half for rule, half in halves.items() for truth, miss in misses.items()}
    width = halves["choice"].mean() / halves["plain"].mean()
    return {name: float(covered.mean()) for name, covered in rates.items()} | {"width": float(width)}


def choices(losses: np.ndarray, seen: np.ndarray, step: float, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each rate that was chosen and the error of its choice.

    losses, seen: true ones and those of the sweep, (…, rates), of which the outer ones are not chosen.
    """
    chosen = seen[..., 1:-1].argmin(axis=-1, keepdims=True) + 1
    low, best, high = (np.take_along_axis(seen, chosen + side, axis=-1)[..., 0] for side in (-1, 0, 1))
    rises = np.maximum(np.stack([low, high]) - best, 0)
    errors = stats.gain_of_best(np.full((2, 1, 1), step), rises, noise)
    return np.take_along_axis(losses, chosen, axis=-1)[..., 0], errors
