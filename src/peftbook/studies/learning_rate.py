"""The best learning rate: is LoRA's ten times that of full fine-tuning, and does it depend on the rank?

Written before the runs. Full fine-tuning and LoRA of five ranks (alpha 32, all linear layers) at eight rates a factor
of 2 apart, extended at the edges, with one seed; then full and ranks 4, 16 and 64 again with two further seeds at the
rates within two steps of the best, ranks 16 and 64 also at rank 4's best. The best rate of an arm and a seed is the
vertex of a quadratic in the logarithm of the rate, fitted to the best rate and its neighbours; ratios are paired by
seed and by validation examples, which are drawn anew for the intervals. Regret is taken leave-one-out: a seed's own
best rate is chosen by the other seeds. After ten times the budget two further seeds are at the best rate, its
neighbours, and the rate that the short training chose.

Three rates are fitted, the window at which both trainings have all their seeds. How far a ratio moves when five are,
with the seeds that have them, is added to its interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from peftbook.core.records import Missing, Record, Store, Unusable
from peftbook.core.specs import Run
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import paired, table
from peftbook.evidence.planning import Judged, judge_claim
from peftbook.evidence.sweep import best_of, validation_loss
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.studies import Quantity, Verdict, margins, study
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison
from peftbook.tasks import split_groups

RANKS = (1, 4, 16, 64, 256)
REPLICATED = ("full", "r4", "r16", "r64")
SEEDS = (0, 10, 11)
WINDOW, WIDE_WINDOW = 1, 2  # grid steps on either side of the best that the quadratic is fitted to, and as a check
RATIO = (5.0, 20.0)  # what "about ten times" allows
REGRET_MARGIN = margins.LOSS
STEP = 2.0  # of the grid: how far fitted optima may be apart where the seeds choose the same rate of it
SAME = (-math.log(STEP), math.log(STEP))
FACTORS = {"quarter": 0.25, "fourfold": 4.0}  # wrong rates whose price is told


def arms(ranks: tuple[int, ...]) -> tuple[Arm, ...]:
    """Full fine-tuning and LoRA by rank. Above rank 192 the k and v projections cannot use all of it."""
    lora = tuple(Arm(f"r{rank}", f"LoRA, r = {rank}", LoRA(rank=rank), rates(-2, 5), 2e-4) for rank in ranks)
    return (Arm("full", "Full fine-tuning", Full(), rates(-5, 2), 5e-5), *lora)


SHORT = TunedComparison(task="e2e", tokens=E2E_TOKENS, arms=arms(RANKS), sweep_seeds=SEEDS[:1])
LONG = TunedComparison(task="e2e", tokens=340_000, arms=arms((16,)), sweep_seeds=SEEDS[:1])  # about 400 steps


def window(comparison: TunedComparison, name: str, store: Store, steps: int = WINDOW) -> list[float]:
    """The rates within `steps` of the arm's best with the first seed. Raises Missing until its grid is whole."""
    losses = comparison.tuning(comparison.arm(name)).losses(store.get)
    rates = list(losses)
    at = rates.index(best_of(losses))
    return rates[max(0, at - steps) : at + steps + 1]


def borrowed(store: Store) -> float:
    """Rank 4's best rate, which ranks 16 and 64 are tried with too. Raises Missing."""
    return SHORT.best_rate("r4", store)


def replicas(store: Store) -> list[Run]:
    """The further seeds, once the first one has shown where the minimum lies."""
    rates: dict[str, list[float]] = {name: [] for name in REPLICATED}
    for name in REPLICATED:
        with suppress(Missing):
            rates[name] = window(SHORT, name, store, WIDE_WINDOW)
            if name in ("r16", "r64") and borrowed(store) not in rates[name]:
                rates[name].append(borrowed(store))
    return [
        SHORT.sweep_run(SHORT.arm(name), rate, seed)
        for seed in SEEDS[1:]
        for name in REPLICATED
        for rate in rates[name]
    ]


def sweeps(comparison: TunedComparison, store: Store) -> list[Run]:
    """The first seed's grids."""
    return [run for run in comparison.runs(store) if run.evaluation.split == "validation"]


def short_runs(store: Store) -> list[Run]:
    """Grids, then replicas."""
    return sweeps(SHORT, store) + replicas(store)


def long_runs(store: Store) -> list[Run]:
    """The first seed's grids after the long budget; then the further seeds at the best rate, its neighbours, and the
    rate that the short training chose.
    """
    rates: dict[str, list[float]] = {}
    for arm in LONG.arms:
        with suppress(Missing):
            rates[arm.name] = window(LONG, arm.name, store)
            if (chosen := SHORT.best_rate(arm.name, store)) not in rates[arm.name]:
                rates[arm.name].append(chosen)
    replicas = [
        LONG.sweep_run(arm, rate, seed) for seed in SEEDS[1:] for arm in LONG.arms for rate in rates.get(arm.name, ())
    ]
    return sweeps(LONG, store) + replicas


def points(comparison: TunedComparison, name: str, seed: int, store: Store) -> dict[float, Record]:
    """Rate → record of one arm and seed, for the runs at hand that `learned`, ascending."""
    arm, wanted = comparison.arm(name), set(comparison.tuning(comparison.arm(name)).rates(store.get))
    if comparison is SHORT:
        with suppress(Missing):
            wanted.add(borrowed(store))
    found = {rate: store.get(comparison.sweep_run(arm, rate, seed)) for rate in sorted(wanted)}
    return {rate: record for rate, record in found.items() if record is not None and learned(record)}


def learned(record: Record) -> bool:
    """Whether a run neither diverged nor ended worse than the untuned model was on the first batch."""
    return not record.failure and validation_loss(record) < float(record.curve["train_loss_nats"][0])


def curve(comparison: TunedComparison, name: str, seed: int, store: Store) -> dict[float, float]:
    """Rate → validation loss of one arm and seed, for the runs at hand that `learned`."""
    return {rate: validation_loss(record) for rate, record in points(comparison, name, seed, store).items()}


def vertex(curve: Mapping[float, float]) -> float | None:
    """The rate at the minimum of a least-squares quadratic in log rate; None where it does not open upwards.

    curve: rate → loss, at least three points. The vertex is held inside the range of the points.
    """
    if len(curve) < 3:
        return None
    found = vertices(np.log(list(curve)), np.array([list(curve.values())]))[0]
    return None if math.isnan(found) else float(np.exp(found))


def vertices(x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """log rate at the minimum of the least-squares quadratic of each row, held inside the range of x; NaN if none.

    x: (rates,) logarithms.  losses: (rows, rates).
    """
    middle = x.mean()
    a, b, _ = np.polyfit(x - middle, losses.T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, np.clip(middle - b / (2 * a), x.min(), x.max()), np.nan)


def groups() -> tuple[str, ...]:
    """The restaurant of each validation example."""
    return split_groups("e2e", "validation", SHORT.sweep_examples)


def resampled(record: Record) -> np.ndarray:
    """Mean validation loss on the rows of `resampling.replicates`, (1 + replicates,)."""
    nats, tokens = (table([record], name)[0] for name in ("loss_nats", "label_tokens"))
    counts = resampling.replicates(len(nats), groups())
    return (counts @ nats) / (counts @ tokens)


def log_best(
    comparison: TunedComparison, name: str, seeds: tuple[int, ...], store: Store, steps: int = WINDOW
) -> np.ndarray:
    """log of the best rate, (1 + replicates, seeds), on rows of `resampling.replicates`, by the rates within `steps`.

    A run that has not `learned` is left out of the fit. Raises Missing until the runs are there, and Unusable where
    three are not left or the data themselves have no minimum.
    """
    inside, fits = window(comparison, name, store, steps), []
    for seed in seeds:
        found = {rate: record for rate, record in points(comparison, name, seed, store).items() if rate in inside}
        if len(found) >= 3:
            fits.append(vertices(np.log(list(found)), np.stack([resampled(one) for one in found.values()], axis=1)))
    if len(fits) < len(seeds) or np.isnan([fit[0] for fit in fits]).any():
        runs = [comparison.sweep_run(comparison.arm(name), rate, seed) for seed in seeds for rate in inside]
        raise Unusable(runs[0], f"{comparison.arm(name).label}: its sweeps have no minimum that a parabola finds.")
    return np.stack(fits, axis=1)


def keys(store: Store, *names: str) -> tuple[str, ...]:
    """Keys of the runs behind the vertices of arms, those that are there."""
    runs = [
        SHORT.sweep_run(SHORT.arm(name), rate, seed)
        for name in names
        for seed in SEEDS
        for rate in window(SHORT, name, store, WIDE_WINDOW)
    ]
    return tuple(run.key for run in runs if run in store)


def interval_of_logs(values: np.ndarray) -> stats.Interval:
    """Interval of a logarithm that `log_best` gave, or of a difference of two."""
    return resampling.statistic_interval(values, SHORT.sweep_examples, groups())


def log_ratio(first: str, second: str, store: Store, comparison: TunedComparison = SHORT) -> stats.Interval:
    """log(best rate of first / of second), paired by seed and examples. Raises Missing.

    How far the mean moves in the wide window is its bias; in the long training the first seed alone has that.
    """
    narrow = ratios(comparison, first, second, SEEDS, store)
    known = SEEDS if comparison is SHORT else SEEDS[:1]
    wide = ratios(comparison, first, second, known, store, WIDE_WINDOW)
    return stats.with_bias(interval_of_logs(narrow), float((wide[0] - narrow[0, : len(known)]).mean()))


def ratios(
    comparison: TunedComparison, first: str, second: str, seeds: tuple[int, ...], store: Store, steps: int = WINDOW
) -> np.ndarray:
    """`log_best` of the first arm less that of the second."""
    return log_best(comparison, first, seeds, store, steps) - log_best(comparison, second, seeds, store, steps)


def regret(name: str, store: Store) -> stats.Interval:
    """Loss at rank 4's best grid rate minus the loss at the arm's own best grid rate. Raises Missing."""
    return cost_of(borrowed(store), SHORT, name, window(SHORT, name, store, WIDE_WINDOW), store)


def cost_of_short(name: str, store: Store) -> stats.Interval:
    """After the long budget: loss at the rate that the short sweep of one seed chose minus that at the best rate.

    Raises Missing.
    """
    return cost_of(SHORT.best_rate(name, store), LONG, name, window(LONG, name, store), store)


def cost_of(
    given: float, comparison: TunedComparison, name: str, inside: Sequence[float], store: Store
) -> stats.Interval:
    """Loss at a given rate minus the loss at the arm's own best rate of those inside, by seed and example.

    A seed's own best is the rate with the lowest mean loss of the other seeds. A run at the given rate that diverged
    makes the cost infinite. Raises Missing, and Unusable where a seed diverged at its own best.
    """
    arm, pairs = comparison.arm(name), []
    losses = {seed: curve(comparison, name, seed, store) for seed in SEEDS}
    for seed in SEEDS:
        others = [losses[other] for other in SEEDS if other != seed]
        own = min(inside, key=lambda rate: math.fsum(loss.get(rate, math.inf) for loss in others))
        pair = store.need_all(comparison.sweep_run(arm, rate, seed) for rate in (given, own))
        if pair[0].failure:
            return stats.Interval(math.inf, 0.0, 0.0, 0.0, 0.0, len(SEEDS), comparison.sweep_examples)
        if pair[1].failure:
            raise Unusable(
                comparison.sweep_run(arm, own, seed), f"{arm.label} diverged with seed {seed} at its best rate."
            )
        pairs.append(pair)
    giving, owning = zip(*pairs, strict=True)
    return paired(giving, owning, "loss_nats", groups())


def log_moved(name: str, store: Store) -> stats.Interval:
    """log(best rate after the short budget / after the long), by seed and examples. Raises Missing.

    How far the long one moves in the wide window is known from the first seed, and added.
    """
    short, long = (log_best(one, name, SEEDS, store) for one in (SHORT, LONG))
    wide = log_best(LONG, name, SEEDS[:1], store, WIDE_WINDOW)
    return stats.with_bias(interval_of_logs(short - long), float(long[0, 0] - wide[0, 0]))


def wrong_rate(name: str, factor: float, store: Store) -> Quantity | None:
    """Validation loss at `factor` times the arm's best grid rate minus that at the best, with the first seed.

    None where that rate is not in the grid, or its run is not there or diverged. Raises Missing without the sweep.
    """
    arm = SHORT.arm(name)
    losses = SHORT.tuning(arm).losses(store.get)
    best = best_of(losses)
    found = [rate for rate in losses if math.isclose(rate, factor * best)]
    runs = [SHORT.sweep_run(arm, rate, SEEDS[0]) for rate in (*found, best)]
    records = [one for run in runs if (one := store.get(run)) is not None and not one.failure]
    if len(records) < 2:
        return None
    wrong, right = records
    keys = tuple(run.key for run in runs)
    return Quantity.of(paired([wrong], [right], "loss_nats", groups()), "nats per token", keys)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Best rates by arm (vertex, three seeds), ratios to full fine-tuning, regrets of reusing rank 4's rate."""
    out = {name: one for arm in SHORT.arms for name, one in SHORT.sweep_quantities(arm, store).items()}
    for name in REPLICATED:
        with suppress(Missing):
            best = interval_of_logs(log_best(SHORT, name, SEEDS, store))
            out[f"{name}_vertex"] = Quantity.ratio(best, keys(store, name), -2, unit="")
    for name in REPLICATED[1:]:
        with suppress(Missing):
            out[f"{name}_over_full"] = Quantity.ratio(log_ratio(name, "full", store), keys(store, name, "full"), 1)
    for name in REPLICATED[2:]:
        with suppress(Missing):
            out[f"{name}_over_r4"] = Quantity.ratio(log_ratio(name, "r4", store), keys(store, name, "r4"), 2)
    for name in REPLICATED[2:]:
        with suppress(Missing):
            cost = regret(name, store)
            if math.isfinite(cost.mean):
                out[f"{name}_regret"] = Quantity.of(cost, "nats per token", keys(store, name, "r4"))
    for name in ("full", "r16"):
        out |= LONG.sweep_quantities(LONG.arm(name), store, "long_")
        for word, factor in FACTORS.items():
            with suppress(Missing):
                if (price := wrong_rate(name, factor, store)) is not None:
                    out[f"{name}_{word}_cost"] = price
        with suppress(Missing):
            runs = tuple(run.key for run in long_runs(store) if run.method == LONG.arm(name).method)
            out[f"long_{name}_moved"] = Quantity.ratio(log_moved(name, store), runs, 2)
            if math.isfinite((cost := cost_of_short(name, store)).mean):
                out[f"long_{name}_short_rate_cost"] = Quantity.of(cost, "nats per token", runs)
    with suppress(Missing):
        runs = tuple(run.key for run in long_runs(store) if run in store)
        out["long_ratio"] = Quantity.ratio(log_ratio("r16", "full", store, LONG), runs, 1)
    return out


@contextmanager
def all_or_missing(runs: Sequence[Run], store: Store) -> Iterator[None]:
    """Inside, sweeps without a minimum are Unusable only once all of these runs are there; before, one is Missing."""
    try:
        yield
    except Unusable:
        store.need_all(runs)
        raise


@study("learning_rate", short_runs, quantities)
def ratio_verdict(store: Store) -> Verdict:
    """Is the best rate of LoRA (r = 16) between 5 and 20 times that of full fine-tuning?"""
    with all_or_missing(short_runs(store), store):
        ratio = log_ratio("r16", "full", store)
    return about_ten(ratio, "The", "r16_over_full")


def about_ten(ratio: stats.Interval, opening: str, quantity: str) -> Verdict:
    """Whether a ratio, given as its logarithm, lies between the ends of RATIO."""
    claim = (math.log(RATIO[0]), math.log(RATIO[1]))
    outcome, part = judge_claim(ratio, 0.0, claim)
    mean, low, high = ratio.exp
    return Verdict(
        outcome,
        f"{opening} best rate of LoRA (r = 16) is {mean:.1f} times that of full fine-tuning (95 % interval {low:.1f} "
        f"to {high:.1f}, {len(SEEDS)} seeds; the claim allows {RATIO[0]:g} to {RATIO[1]:g}).",
        (quantity,),
        (part,),
    )


def reuse(
    cost: stats.Interval, moved: Callable[[], stats.Interval], costs: str, same: str, names: tuple[str, str]
) -> tuple[str, str, str, Judged]:
    """Outcome, words, quantity and what was judged: does a rate that was chosen elsewhere cost less than the margin?

    Where every seed's best rate is the given one, the cost is 0 by construction and shows nothing: then the verdict is
    on how far the fitted optima are apart.

    moved: log ratio of the two fitted optima.  costs, same: what is said of either, with {} for its value.  names: the
    quantity of either.
    """
    if cost.half95 or cost.mean:
        outcome, part = judge_claim(cost, 0.0, (-math.inf, REGRET_MARGIN))
        ends = f"95 % interval {cost.low:+.3f} to {cost.high:+.3f}; margin {REGRET_MARGIN}"
        return outcome, f"{costs.format(f'{cost.mean:+.3f} nats per token')} ({ends})", names[0], part
    ratio = moved()
    outcome, part = judge_claim(ratio, 0.0, SAME)
    mean, low, high = ratio.exp
    ends = f"{low:.2f} to {high:.2f}; claim within a factor of {STEP:g}"
    return outcome, f"{same.format(f'{mean:.2f} times')} ({ends})", names[1], part


def reuse_verdict(reuses: Iterable[tuple[str, str, str, Judged]]) -> Verdict:
    """Does reusing rates cost less than the margin?"""
    outcomes, said, named, parts = zip(*reuses, strict=True)
    return Verdict(stats.together(outcomes), f"{'; '.join(said)}.", named, parts)


@study("learning_rate_by_rank", short_runs, quantities)
def regret_verdict(store: Store) -> Verdict:
    """Does reusing rank 4's rate at ranks 16 and 64 cost less than the margin?"""
    return reuse_verdict(
        reuse(
            regret(name, store),
            functools.partial(log_ratio, name, "r4", store),
            f"At rank {name[1:]} rank 4's best rate costs {{}} over its own",
            f"rank {name[1:]} has the same best rate of the grid, and the fitted optimum is {{}} rank 4's",
            (f"{name}_regret", f"{name}_over_r4"),
        )
        for name in REPLICATED[2:]
    )


@study("learning_rate_long", long_runs, quantities)
def long_ratio_verdict(store: Store) -> Verdict:
    """Is it so after about 400 steps too?"""
    with all_or_missing(long_runs(store), store):
        ratio = log_ratio("r16", "full", store, LONG)
    return about_ten(ratio, "After about 400 steps the", "long_ratio")


@study("short_tuning", long_runs, quantities)
def short_tuning_verdict(store: Store) -> Verdict:
    """Does a rate that was chosen in the short training cost less than the margin in the long one?"""
    with all_or_missing(long_runs(store), store):
        return reuse_verdict(
            [
                reuse(
                    cost_of_short(name, store),
                    functools.partial(log_moved, name, store),
                    f"{label}: at the rate that the short training chose the loss is {{}} from that at the best one",
                    f"{label}: both have the same best rate of the grid, and the fitted optimum after the short "
                    "training is {} the other",
                    (f"long_{name}_short_rate_cost", f"long_{name}_moved"),
                )
                for name, label in (("r16", "LoRA (r = 16)"), ("full", "Full fine-tuning"))
            ]
        )
