"""The best learning rate: is LoRA's ten times that of full fine-tuning, and does it depend on the rank?

Written before the runs. Full fine-tuning and LoRA of five ranks (alpha 32, all linear layers) at eight rates a factor
of 2 apart, extended at the edges, with one seed; then full and ranks 4, 16 and 64 again with two further seeds at the
rates within two steps of the best. The best rate of an arm and a seed is the vertex of a quadratic in the logarithm of
the rate, fitted to those points; ratios are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftbook import metrics, specs
from peftbook.records import Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.sweep import Arm, Comparison, as_quantity, decide

__all__ = ["LONG", "RANKS", "SEEDS", "SHORT", "STUDIES", "curve", "vertex"]

RANKS = (1, 4, 16, 64, 256)
REPLICATED = ("full", "r4", "r16", "r64")
SEEDS = (0, 10, 11)
WINDOW = 2  # grid steps on either side of the best that the quadratic is fitted to
RATIO = (5.0, 20.0)  # what "about ten times" allows
REGRET_MARGIN = 0.02  # nats per token


def arms(ranks: tuple[int, ...]) -> tuple[Arm, ...]:
    """Full fine-tuning and LoRA by rank. Above rank 192 the k and v projections cannot use all of it."""
    lora = tuple(Arm(f"r{rank}", f"LoRA, r = {rank}", specs.LoRA(rank=rank), rates(-2, 5), 2e-4) for rank in ranks)
    return (Arm("full", "Full fine-tuning", specs.Full(), rates(-5, 2), 5e-5), *lora)


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
    return [
        SHORT.sweep_run(SHORT.arm(name), rate, seed)
        for seed in SEEDS[1:] for name in REPLICATED for rate in window(SHORT, name, store)
    ]  # fmt: skip


def sweeps(comparison: Comparison, store: Store) -> list[Run]:
    """The first seed's grids."""
    return [run for run in comparison.runs(store) if run.evaluation.split == "validation"]


def short_runs(store: Store) -> list[Run]:
    """Grids, then replicas."""
    return sweeps(SHORT, store) + replicas(store)


def curve(comparison: Comparison, name: str, seed: int, store: Store) -> dict[float, float]:
    """Rate → validation loss of one arm and seed, for the records at hand."""
    arm, out = comparison.arm(name), {}
    for rate in comparison.rates(arm, store):
        record = store.get(comparison.sweep_run(arm, rate, seed))
        if record is not None and not record.failure:
            out[rate] = float(record.measurements["loss_nats"] or math.inf)
    return out


def vertex(curve: Mapping[float, float]) -> float | None:
    """The rate at the minimum of a least-squares quadratic in log rate; None where it does not open upwards.

    curve: rate → loss, at least three points. The vertex is held inside the range of the points.
    """
    if len(curve) < 3:
        return None
    x, y = np.log(list(curve)), np.array(list(curve.values()))
    a, b, _ = np.polyfit(x - x.mean(), y, 2)
    if a <= 0:
        return None
    return float(np.exp(np.clip(x.mean() - b / (2 * a), x.min(), x.max())))


def best_rates(name: str, store: Store) -> list[float] | None:
    """The vertex for each seed, or None until all are there."""
    points = window(SHORT, name, store)
    found = []
    for seed in SEEDS:
        losses = {rate: loss for rate, loss in curve(SHORT, name, seed, store).items() if rate in points}
        best = vertex(losses) if points and len(losses) == len(points) else None
        if best is None:
            return None
        found.append(best)
    return found


def keys(name: str, store: Store) -> tuple[str, ...]:
    """Keys of the runs behind an arm's vertex."""
    arm = SHORT.arm(name)
    return tuple(SHORT.sweep_run(arm, rate, seed).key for seed in SEEDS for rate in window(SHORT, name, store))


def log_ratio(first: str, second: str, store: Store) -> metrics.Interval | None:
    """log(best rate of first / of second), paired by seed."""
    one, two = best_rates(first, store), best_rates(second, store)
    if one is None or two is None:
        return None
    return metrics.mean_interval([[math.log(a / b)] for a, b in zip(one, two, strict=True)])


def regret(name: str, store: Store) -> metrics.Interval | None:
    """Loss at rank 4's best grid rate minus the loss at the arm's own best grid rate, by seed."""
    borrowed, own = (SHORT.best(SHORT.arm(one), store) for one in ("r4", name))
    if borrowed is None or own is None:
        return None
    rows = []
    for seed in SEEDS:
        losses = curve(SHORT, name, seed, store)
        if borrowed not in losses or own not in losses:
            return None
        rows.append([losses[borrowed] - losses[own]])
    return metrics.mean_interval(rows)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Best rates by arm (vertex, three seeds), ratios to full fine-tuning, regrets of reusing rank 4's rate."""
    out = {name: one for arm in SHORT.arms for name, one in SHORT.sweep_quantities(arm, store).items()}
    for name in REPLICATED:
        if (found := best_rates(name, store)) is not None:
            interval = metrics.mean_interval([[math.log(rate)] for rate in found])
            ends = (math.exp(value) for value in (interval.mean, interval.low, interval.high))
            mean, low, high = ends
            out[f"{name}_vertex"] = Quantity(mean, "", keys(name, store), low, high, len(SEEDS), digits=-2)
        if name == "full":
            continue
        if (ratio := log_ratio(name, "full", store)) is not None:
            mean, low, high = (math.exp(value) for value in (ratio.mean, ratio.low, ratio.high))
            runs = keys(name, store) + keys("full", store)
            out[f"{name}_over_full"] = Quantity(mean, "×", runs, low, high, len(SEEDS), digits=1)
        if name != "r4" and (cost := regret(name, store)) is not None:
            runs = keys(name, store) + keys("r4", store)
            out[f"{name}_regret"] = as_quantity(cost, "nats per token", runs, len(SEEDS))
    for name, one in LONG.sweep_quantities(LONG.arm("full"), store, "long_").items():
        out[name] = one
    for name, one in LONG.sweep_quantities(LONG.arm("r16"), store, "long_").items():
        out[name] = one
    return out


def ratio_verdict(store: Store) -> Verdict:
    """Is the best rate of LoRA (r = 16) between 5 and 20 times that of full fine-tuning?"""
    ratio = log_ratio("r16", "full", store)
    if ratio is None:
        return Verdict("not yet run", "The sweeps of full fine-tuning and LoRA are not all there.")
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
    if any(one is None for one in found.values()):
        return Verdict("not yet run", "The sweeps of ranks 4, 16 and 64 are not all there.")
    worst = max(found, key=lambda name: found[name].mean)  # type: ignore[union-attr]
    return decide(
        found[worst], 0.0, (-math.inf, REGRET_MARGIN), f"The loss of rank {worst[1:]} at rank 4's best rate minus that "
        "at its own", f"{worst}_regret", "nats per token",
    )  # fmt: skip


def long_ratio_verdict(store: Store) -> Verdict:
    """Is the ratio between 5 and 20 after about 400 steps too? One seed: no interval, so at most undecided."""
    best = {}
    for name in ("full", "r16"):
        losses = curve(LONG, name, SEEDS[0], store)
        points = {rate: losses[rate] for rate in window(LONG, name, store) if rate in losses}
        found = vertex(points)
        if found is None:
            return Verdict("not yet run", "The sweeps of 400 steps are not all there.")
        best[name] = found
    ratio = best["r16"] / best["full"]
    return Verdict(
        "undecided", f"After 400 steps the ratio is {ratio:.1f} with one seed, which has no interval.",
        ("long_r16_best_rate",),
    )  # fmt: skip


LIMITS = (
    "AdamW, constant rate after warm-up, batch 8, one model of hidden size 576, one easy task; the ratio is known to "
    "depend on the number of steps and the parametrisation."
)
STUDIES = {
    "learning_rate": Study(
        name="learning_rate",
        title="Is LoRA's best learning rate ten times that of full fine-tuning?",
        claim="The best learning rate of LoRA is about ten times that of full fine-tuning.",
        source="schulman2025, on the optimal learning rate",
        refuted_if=f"the 95 % interval of the ratio lies wholly outside {RATIO[0]:g} to {RATIO[1]:g}.",
        does_not_show=LIMITS,
        chapter="book/lora",
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
        chapter="book/lora",
        runs=short_runs,
        quantities=quantities,
        verdict=regret_verdict,
    ),
    "learning_rate_long": Study(
        name="learning_rate_long",
        title="The learning-rate ratio after 400 steps",
        claim="The ratio of best rates falls towards ten as training gets longer.",
        source="schulman2025, on the optimal learning rate",
        refuted_if=f"the 95 % interval of the ratio after 400 steps lies wholly outside {RATIO[0]:g} to {RATIO[1]:g}.",
        does_not_show=LIMITS,
        chapter="book/lora",
        runs=lambda store: sweeps(LONG, store),
        quantities=quantities,
        verdict=long_ratio_verdict,
    ),
}
