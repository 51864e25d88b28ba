"""The best learning rate: is LoRA's ten times that of full fine-tuning, and does it depend on the rank?

Written before the runs. Full fine-tuning and LoRA of five ranks (alpha 32, all linear layers) at eight rates a factor
of 2 apart, extended at the edges, with one seed; then full and ranks 4, 16 and 64 again with two further seeds at the
rates within two steps of the best, ranks 16 and 64 also at rank 4's best. The best rate of an arm and a seed is the
vertex of a quadratic in the logarithm of the rate, fitted to those points; ratios are paired by seed and by validation
examples, which are drawn anew for the intervals. Regret is taken leave-one-out: a seed's own best rate is chosen by the
other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from peftbook import metrics
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.records import Record, Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.sweep import Arm, Comparison, as_quantity, decide, validation_loss

__all__ = ["LONG", "RANKS", "SEEDS", "SHORT", "STUDIES", "curve", "vertex"]

RANKS = (1, 4, 16, 64, 256)
REPLICATED = ("full", "r4", "r16", "r64")
SEEDS = (0, 10, 11)
WINDOW = 2  # grid steps on either side of the best that the quadratic is fitted to
RATIO = (5.0, 20.0)  # what "about ten times" allows
REGRET_MARGIN = 0.02  # nats per token
FACTORS = {"quarter": 0.25, "fourfold": 4.0}  # wrong rates whose price is told


def arms(ranks: tuple[int, ...]) -> tuple[Arm, ...]:
    """Full fine-tuning and LoRA by rank. Above rank 192 the k and v projections cannot use all of it."""
    lora = tuple(Arm(f"r{rank}", f"LoRA, r = {rank}", LoRA(rank=rank), rates(-2, 5), 2e-4) for rank in ranks)
    return (Arm("full", "Full fine-tuning", Full(), rates(-5, 2), 5e-5), *lora)


SHORT = Comparison(task="e2e", tokens=E2E_TOKENS, arms=arms(RANKS), sweep_seeds=SEEDS[:1])
LONG = Comparison(task="e2e", tokens=340_000, arms=arms((16,)), sweep_seeds=SEEDS[:1])  # about 400 steps


def window(comparison: Comparison, name: str, store: Store) -> list[float]:
    """The rates within WINDOW steps of the arm's best with the first seed; empty until its grid is complete."""
    arm = comparison.arm(name)
    best, grid = comparison.best(arm, store), comparison.rates(arm, store)
    if best is None:
        return []
    at = grid.index(best)
    return grid[max(0, at - WINDOW) : at + WINDOW + 1]


def replicas(store: Store) -> list[Run]:
    """The further seeds, once the first one has shown where the minimum lies."""
    borrowed = SHORT.best(SHORT.arm("r4"), store)
    rates = {name: window(SHORT, name, store) for name in REPLICATED}
    for name in ("r16", "r64"):
        if rates[name] and borrowed is not None and borrowed not in rates[name]:
            rates[name].append(borrowed)
    return [
        SHORT.sweep_run(SHORT.arm(name), rate, seed)
        for seed in SEEDS[1:]
        for name in REPLICATED
        for rate in rates[name]
    ]


def sweeps(comparison: Comparison, store: Store) -> list[Run]:
    """The first seed's grids."""
    return [run for run in comparison.runs(store) if run.evaluation.split == "validation"]


def short_runs(store: Store) -> list[Run]:
    """Grids, then replicas."""
    return sweeps(SHORT, store) + replicas(store)


def points(comparison: Comparison, name: str, seed: int, store: Store) -> dict[float, Record]:
    """Rate → record of one arm and seed, for the runs at hand that `learned`, ascending."""
    arm, wanted = comparison.arm(name), set(comparison.rates(comparison.arm(name), store))
    if comparison is SHORT and (borrowed := SHORT.best(SHORT.arm("r4"), store)) is not None:
        wanted.add(borrowed)
    found = {rate: store.get(comparison.sweep_run(arm, rate, seed)) for rate in sorted(wanted)}
    return {rate: record for rate, record in found.items() if record is not None and learned(record)}


def learned(record: Record) -> bool:
    """Whether a run neither diverged nor ended worse than the untuned model was on the first batch."""
    return not record.failure and validation_loss(record) < float(record.curve["train_loss_nats"][0])


def curve(comparison: Comparison, name: str, seed: int, store: Store) -> dict[float, float]:
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


def resampled(record: Record) -> np.ndarray:
    """Mean validation loss on the rows of `metrics.resamples`, (1 + draws,)."""
    nats, tokens = (np.array(record.per_example[name], dtype=float) for name in ("loss_nats", "label_tokens"))
    counts = metrics.resample_counts(len(nats))
    return (counts @ nats) / (counts @ tokens)


def log_best(comparison: Comparison, name: str, seeds: tuple[int, ...], store: Store) -> np.ndarray | None:
    """log of the best rate, (1 + draws, seeds), on the rows of `metrics.resamples`; None until the runs are there.

    A run that has not `learned` is left out of the fit. Also None where the data themselves have no minimum.
    """
    inside = window(comparison, name, store)
    columns = []
    for seed in seeds:
        found = {rate: one for rate, one in points(comparison, name, seed, store).items() if rate in inside}
        if len(found) < 3:
            return None
        columns.append(vertices(np.log(list(found)), np.stack([resampled(one) for one in found.values()], axis=1)))
    values = np.stack(columns, axis=1)
    return None if np.isnan(values[0]).any() else values


def keys(name: str, store: Store) -> tuple[str, ...]:
    """Keys of the runs behind an arm's vertex, those that are there."""
    arm = SHORT.arm(name)
    runs = [SHORT.sweep_run(arm, rate, seed) for seed in SEEDS for rate in window(SHORT, name, store)]
    return tuple(run.key for run in runs if run in store)


def interval_of_logs(values: np.ndarray | None) -> metrics.Interval | None:
    """Interval of a logarithm that `log_best` gave, or of a difference of two."""
    return None if values is None else metrics.statistic_interval(values, SHORT.sweep_examples)


def log_ratio(
    first: str, second: str, store: Store, comparison: Comparison = SHORT, seeds: tuple[int, ...] = SEEDS
) -> metrics.Interval | None:
    """log(best rate of first / of second), paired by seed and examples; with one seed over examples alone."""
    one, two = (log_best(comparison, name, seeds, store) for name in (first, second))
    return interval_of_logs(None if one is None or two is None else one - two)


def regret(name: str, store: Store) -> metrics.Interval | None:
    """Loss at rank 4's best grid rate minus the loss at the arm's own best grid rate, by seed and example.

    A seed's own best is the rate with the lowest mean loss of the other seeds. A diverged run at either rate makes it
    infinite.
    """
    borrowed = SHORT.best(SHORT.arm("r4"), store)
    inside = window(SHORT, name, store)
    if borrowed is None or not inside:
        return None
    arm, rows, tokens = SHORT.arm(name), [], []
    losses = {seed: curve(SHORT, name, seed, store) for seed in SEEDS}
    for seed in SEEDS:
        others = [losses[one] for one in SEEDS if one != seed]
        own = min(inside, key=lambda rate: math.fsum(one.get(rate, math.inf) for one in others))
        records = [store.get(SHORT.sweep_run(arm, rate, seed)) for rate in (borrowed, own)]
        if any(one is None for one in records):
            return None
        if any(one.failure for one in records if one):
            return metrics.Interval(math.inf, 0.0, 0.0, 0.0, 0.0, len(SEEDS), SHORT.sweep_examples)
        first, second = (np.array(one.per_example["loss_nats"], dtype=float) for one in records if one)
        tokens = [float(value) for one in records[:1] if one for value in one.per_example["label_tokens"]]
        rows.append((first - second).tolist())
    return metrics.mean_interval(rows, tokens)


def wrong_rate(name: str, factor: float, store: Store) -> Quantity | None:
    """Validation loss at `factor` times the arm's best grid rate minus that at the best, with the first seed.

    None where that rate is not in the grid, or its run is not there or diverged.
    """
    arm = SHORT.arm(name)
    if (best := SHORT.best(arm, store)) is None:
        return None
    found = [rate for rate in SHORT.rates(arm, store) if math.isclose(rate, factor * best)]
    runs = [SHORT.sweep_run(arm, rate, SEEDS[0]) for rate in (*found, best)]
    records = [one for run in runs if (one := store.get(run)) is not None and not one.failure]
    if len(records) < 2:
        return None
    wrong, right = ([float(value) for value in one.per_example["loss_nats"]] for one in records)
    tokens = [float(value) for value in records[0].per_example["label_tokens"]]
    cost = metrics.example_interval([one - two for one, two in zip(wrong, right, strict=True)], tokens)
    return as_quantity(cost, "nats per token", tuple(run.key for run in runs), 1)


def as_ratio(logs: metrics.Interval, unit: str, runs: tuple[str, ...], digits: int, note: str = "") -> Quantity:
    """An interval of logarithms as a quantity of ratios or rates."""
    mean, low, high = (math.exp(value) for value in (logs.mean, logs.low, logs.high))
    return Quantity(mean, unit, runs, low, high, logs.seeds, logs.examples, digits, note)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Best rates by arm (vertex, three seeds), ratios to full fine-tuning, regrets of reusing rank 4's rate."""
    out = {name: one for arm in SHORT.arms for name, one in SHORT.sweep_quantities(arm, store).items()}
    for name in REPLICATED:
        if (best := interval_of_logs(log_best(SHORT, name, SEEDS, store))) is not None:
            out[f"{name}_vertex"] = as_ratio(best, "", keys(name, store), -2)
        if name == "full":
            continue
        if (ratio := log_ratio(name, "full", store)) is not None:
            out[f"{name}_over_full"] = as_ratio(ratio, "×", keys(name, store) + keys("full", store), 1)
        if name != "r4" and (cost := regret(name, store)) is not None and math.isfinite(cost.mean):
            out[f"{name}_regret"] = as_quantity(cost, "nats per token", keys(name, store) + keys("r4", store), 3)
    for name in ("full", "r16"):
        out |= LONG.sweep_quantities(LONG.arm(name), store, "long_")
        for word, factor in FACTORS.items():
            if (price := wrong_rate(name, factor, store)) is not None:
                out[f"{name}_{word}_cost"] = price
    if (ratio := log_ratio("r16", "full", store, LONG, SEEDS[:1])) is not None:
        runs = tuple(run.key for run in sweeps(LONG, store))
        out["long_ratio"] = as_ratio(ratio, "×", runs, 1, "one seed: interval over examples alone")
    return out


def unsettled(runs: Sequence[Run], store: Store, what: str) -> Verdict:
    """Why a number is not there: runs are missing, or those at hand have no minimum."""
    if any(run not in store for run in runs):
        return Verdict("not yet run", f"{what} are not all there.")
    return Verdict("undecided", f"{what} have no minimum inside their grid that a parabola finds.")


def ratio_verdict(store: Store) -> Verdict:
    """Is the best rate of LoRA (r = 16) between 5 and 20 times that of full fine-tuning?"""
    ratio = log_ratio("r16", "full", store)
    if ratio is None:
        return unsettled(short_runs(store), store, "The sweeps of full fine-tuning and LoRA")
    outcome = metrics.judge(ratio, 0.0, (math.log(RATIO[0]), math.log(RATIO[1])))
    mean, low, high = (math.exp(value) for value in (ratio.mean, ratio.low, ratio.high))
    return Verdict(
        outcome,
        f"The best rate of LoRA (r = 16) is {mean:.1f} times that of full fine-tuning (95 % interval {low:.1f} to "
        f"{high:.1f}, {len(SEEDS)} seeds; the claim allows {RATIO[0]:g} to {RATIO[1]:g}).",
        ("r16_over_full",),
    )


def regret_verdict(store: Store) -> Verdict:
    """Does reusing rank 4's rate at ranks 16 and 64 cost less than the margin?"""
    found = {name: regret(name, store) for name in ("r16", "r64")}
    costs = {name: one for name, one in found.items() if one is not None}
    if len(costs) < len(found):
        return unsettled(short_runs(store), store, "The sweeps of ranks 4, 16 and 64")
    worst = max(costs, key=lambda name: costs[name].mean)
    if not costs[worst].mean and not costs[worst].half95:
        return Verdict("reproduced", "Ranks 4, 16 and 64 have the same best rate on a grid a factor of 2 apart.")
    return decide(
        costs[worst], 0.0, (-math.inf, REGRET_MARGIN), f"The loss of rank {worst[1:]} at rank 4's best rate minus that "
        "at its own", f"{worst}_regret", "nats per token",
    )  # fmt: skip


def long_ratio_verdict(store: Store) -> Verdict:
    """The ratio after about 400 steps beside that after the short budget: one seed, so nothing is decided."""
    ratio = log_ratio("r16", "full", store, LONG, SEEDS[:1])
    if ratio is None:
        return unsettled(sweeps(LONG, store), store, "The sweeps of 400 steps")
    mean, low, high = (math.exp(value) for value in (ratio.mean, ratio.low, ratio.high))
    short = log_ratio("r16", "full", store)
    beside = f"; after the short budget it is {math.exp(short.mean):.1f}" if short else ""
    said = f"After about 400 steps the ratio is {mean:.1f} (95 % interval over examples {low:.1f} to {high:.1f})"
    return Verdict("measured", f"{said}, with one seed{beside}.", ("long_ratio",))


LIMITS = (
    "AdamW, constant rate after warm-up, batch 8, one model of hidden size 576, one easy task; the ratio is known to "
    "depend on the number of steps and the parametrisation. Gradients are clipped at norm 1, which meets full "
    "fine-tuning in nearly every step and LoRA in some. "
    "A run that ended worse than the untuned model is left out of the fits. That rule came after the records: it takes "
    "out one run, of rank 4 at its highest rate, which had flattened that arm's parabola, and none of full fine-tuning "
    "or rank 16. Above its optimum LoRA's loss rises faster than a parabola."
)
STUDIES = {
    "learning_rate": Study(
        name="learning_rate",
        title="Is LoRA's best learning rate ten times that of full fine-tuning?",
        claim="The best learning rate of LoRA is about ten times that of full fine-tuning.",
        source="schulman2025, on the optimal learning rate",
        refuted_if=f"the 95 % interval of the ratio lies wholly outside {RATIO[0]:g} to {RATIO[1]:g}.",
        does_not_show=LIMITS,
        chapter="book/lora-practice",
        runs=short_runs,
        quantities=quantities,
        verdict=ratio_verdict,
    ),
    "learning_rate_by_rank": Study(
        name="learning_rate_by_rank",
        title="Does the best learning rate depend on the rank?",
        claim="With alpha fixed, the best learning rate of LoRA hardly depends on the rank.",
        source="schulman2025, on the optimal learning rate",
        refuted_if=f"reusing rank 4's best rate at rank 16 or 64 costs more than {REGRET_MARGIN} nats per token "
        "(the whole 95 % interval beyond the margin).",
        does_not_show=LIMITS + " Ranks 4 to 64; ranks 1 and 256 have one seed.",
        chapter="book/lora-practice",
        runs=short_runs,
        quantities=quantities,
        verdict=regret_verdict,
    ),
    "learning_rate_long": Study(
        name="learning_rate_long",
        title="The learning-rate ratio after 400 steps",
        claim="The ratio of best rates is about fifteen in short trainings and ten in long ones.",
        source="schulman2025, on the optimal learning rate",
        refuted_if="nothing: with one seed the ratio after about 400 steps is measured, not decided.",
        does_not_show=LIMITS,
        chapter="book/lora-practice",
        runs=lambda store: sweeps(LONG, store),
        quantities=quantities,
        verdict=long_ratio_verdict,
    ),
}
