"""Tuned comparisons: every arm's learning rate is chosen on validation, then confirmed on fresh seeds.

The protocol, once for all studies. Each arm has a grid of learning rates. Every rate is trained with the sweep's seeds
and judged by its mean validation loss; an optimum at the edge of the grid extends the grid by one point until it lies
inside. The chosen rate is trained with fresh seeds, and only these runs see the test split. Seeds fix initialisation
and data order, so runs of different arms with one seed are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from peftbook import metrics, specs
from peftbook.methods import Method
from peftbook.records import Record, Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Verdict
from peftbook.tasks import task_spec

__all__ = ["Arm", "Comparison", "as_quantity", "decide", "grid", "holm", "length_ratio"]

LOWEST_RATE, HIGHEST_RATE = 1e-7, 10.0  # no grid is extended beyond these
SCORES = ("rouge1", "rouge2", "rougeL", "bertscore_f1", "exact_match", "execution_match")


def grid(low: float, factor: float, count: int) -> tuple[float, ...]:
    """`count` rates from `low`, each `factor` times the one before, to three significant digits."""
    return tuple(float(f"{low * factor**at:.3g}") for at in range(count))


@dataclass(frozen=True)
class Arm:
    """One contender. rates: its grid, ascending; empty for a method that is not trained.

    default: the rate that its paper or library starts from, if the grid is to show it.
    """

    name: str
    label: str
    method: Method
    rates: tuple[float, ...] = ()
    default: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Arms that share task, budget, seeds and test examples.

    tokens, batch_size: the budget of every run.  factor: the step by which a grid is extended; 0 never extends.
    sweep_examples: validation examples of a sweep run.  test_examples, generate: of a final run.
    train_examples: only the first so many training examples are used; 0 means all.
    """

    task: str
    tokens: int
    arms: tuple[Arm, ...]
    batch_size: int = 8
    factor: float = 2.0
    sweep_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (1, 2, 3)
    sweep_examples: int = 100
    test_examples: int = 200
    generate: int = 0
    max_new_tokens: int = 40
    train_examples: int = 0
    model: specs.Model = field(default_factory=specs.Model)

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def budget(self, rate: float) -> specs.Budget:
        """The shared budget at a learning rate."""
        return specs.Budget(
            tokens=self.tokens, batch_size=self.batch_size, learning_rate=rate, train_examples=self.train_examples
        )

    def sweep_run(self, arm: Arm, rate: float, seed: int) -> Run:
        """One point of an arm's grid: validation loss only."""
        return Run(
            model=self.model,
            task=task_spec(self.task),
            method=arm.method,
            budget=self.budget(rate),
            evaluation=specs.Evaluation(split="validation", n_loss=self.sweep_examples),
            seed=seed,
        )

    def loss(self, arm: Arm, rate: float, store: Store) -> float | None:
        """Mean validation loss of a rate over the sweep's seeds; infinite if a run diverged; None if one is missing."""
        records = [store.get(self.sweep_run(arm, rate, seed)) for seed in self.sweep_seeds]
        if any(record is None for record in records):
            return None
        return math.fsum(validation_loss(record) for record in records if record) / len(records)

    def rates(self, arm: Arm, store: Store) -> list[float]:
        """The arm's grid, extended as far as the records at hand tell."""
        rates = list(arm.rates)
        while rates and self.factor:
            losses = {rate: self.loss(arm, rate, store) for rate in rates}
            if any(loss is None for loss in losses.values()):
                break
            best = min(rates, key=lambda rate: losses[rate] or math.inf)
            if best == rates[0] and best / self.factor >= LOWEST_RATE:
                rates.insert(0, grid(best / self.factor, 1, 1)[0])
            elif best == rates[-1] and best * self.factor <= HIGHEST_RATE:
                rates.append(grid(best * self.factor, 1, 1)[0])
            else:
                break
        return rates

    def sweep(self, arm: Arm, store: Store) -> dict[float, float]:
        """Rate → validation loss, for the rates whose runs are all there, ascending."""
        found = {rate: self.loss(arm, rate, store) for rate in self.rates(arm, store)}
        return {rate: loss for rate, loss in found.items() if loss is not None}

    def best(self, arm: Arm, store: Store) -> float | None:
        """The rate with the lowest validation loss, once the whole grid is there."""
        found = self.sweep(arm, store)
        if not found or len(found) < len(self.rates(arm, store)):
            return None
        return min(found, key=lambda rate: found[rate])

    def best_rate(self, name: str, store: Store) -> float | None:
        """The same, of the arm of this name."""
        return self.best(self.arm(name), store)

    def final_run(self, arm: Arm, rate: float | None, seed: int) -> Run:
        """A run on the test split."""
        return Run(
            model=self.model,
            task=task_spec(self.task),
            method=arm.method,
            budget=None if rate is None else self.budget(rate),
            evaluation=specs.Evaluation(
                split="test",
                n_loss=self.test_examples,
                n_generate=self.generate,
                max_new_tokens=self.max_new_tokens,
                generation_dtype="bf16" if self.generate else "fp32",
            ),
            seed=seed,
        )

    def final_runs(self, arm: Arm, store: Store) -> list[Run]:
        """The arm's runs on fresh seeds at its chosen rate; empty until it is chosen.

        An untuned arm without examples in its prompt has no randomness and one run.
        """
        if not arm.rates:
            return [self.final_run(arm, None, seed) for seed in (self.seeds if arm.method.random else (0,))]
        rate = self.best(arm, store)
        return [] if rate is None else [self.final_run(arm, rate, seed) for seed in self.seeds]

    def runs(self, store: Store) -> list[Run]:
        """The sweeps, middle of each grid first and arms in turn; then the final runs, seed by seed."""
        grids = {arm.name: middle_first(self.rates(arm, store)) for arm in self.arms}
        runs = []
        for at in range(max(map(len, grids.values()), default=0)):
            for arm in self.arms:
                if at < len(grids[arm.name]):
                    runs += [self.sweep_run(arm, grids[arm.name][at], seed) for seed in self.sweep_seeds]
        finals = [self.final_runs(arm, store) for arm in self.arms]
        return runs + [arm[at] for at in range(len(self.seeds)) for arm in finals if at < len(arm)]

    def finals(self, name: str, store: Store) -> list[Record]:
        """The arm's final records in seed order; empty unless all are there."""
        wanted = self.final_runs(self.arm(name), store)
        found = [record for run in wanted if (record := store.get(run)) is not None and not record.failure]
        return found if wanted and len(found) == len(wanted) else []

    def table(self, name: str, column: str, store: Store) -> list[list[float]]:
        """(seeds, examples) scores, one row for a method without randomness; [] if incomplete."""
        return [[float(value) for value in record.per_example[column]] for record in self.finals(name, store)]

    def difference(self, first: str, second: str, column: str, store: Store) -> metrics.Interval | None:
        """first − second, paired over seeds and test examples; loss per label token. None if a record is missing.

        The one run of a method without randomness is set against every seed of the other.
        """
        one, two = (np.array(self.table(name, column, store)) for name in (first, second))
        if not one.size or not two.size:
            return None
        return interval_of((one - two).tolist(), self.weights(first, store) if column == "loss_nats" else None)

    def verdict(
        self,
        first: str,
        second: str,
        margin: float,
        claim: tuple[float, float],
        what: str,
        store: Store,
        prefix: str = "",
    ) -> Verdict:
        """The one rule applied to the test loss of `first` minus that of `second`; undecided where a run diverged."""
        found = self.difference(first, second, "loss_nats", store)
        if found is None:
            return self.unsettled(what, store, first, second)
        return decide(found, margin, claim, what, f"{prefix}{first}_minus_{second}_loss", "nats per token")

    def unsettled(self, what: str, store: Store, *names: str) -> Verdict:
        """Why these arms cannot be compared: final runs are missing, or they diverged."""
        failed, missing = [], False
        for name in names:
            runs = self.final_runs(self.arm(name), store)
            found = [store.get(run) for run in runs]
            missing |= not runs or any(record is None for record in found)
            failed += [f"{self.arm(name).label} with seed {one.spec.seed}" for one in found if one and one.failure]
        if missing:
            return Verdict("not yet run", f"{what}: the final runs are not all there.")
        return Verdict("undecided", f"{what}: diverged at the chosen rate: {', '.join(failed)}.")

    def bleu(self, name: str, store: Store) -> np.ndarray:
        """(1 + draws, seeds): corpus BLEU of the arm on the rows of `metrics.resamples`; empty if incomplete."""
        records = self.finals(name, store)
        if not records or "bleu_length" not in records[0].per_example:
            return np.zeros((0, 0))
        columns = [[record.per_example[column] for column in metrics.BLEU_STATISTICS] for record in records]
        statistics = np.array(columns, dtype=float).transpose(0, 2, 1)  # (seeds, examples, 10)
        examples = statistics.shape[1]
        counts = metrics.resample_counts(examples)
        return np.stack([metrics.bleu_of_sums(counts @ one) for one in statistics], axis=1)

    def bleu_difference(self, first: str, second: str, store: Store) -> metrics.Interval | None:
        """Corpus BLEU of `first` − that of `second`, paired over seeds and examples. None if a record is missing."""
        one, two = self.bleu(first, store), self.bleu(second, store)
        if not one.size or not two.size:
            return None
        return metrics.statistic_interval(one - two, len(self.finals(first, store)[0].per_example["bleu_length"]))

    def weights(self, name: str, store: Store) -> list[float]:
        """Label tokens of the test examples."""
        return [float(value) for value in self.finals(name, store)[0].per_example["label_tokens"]]

    def keys(self, store: Store, *names: str) -> tuple[str, ...]:
        """Keys of the final records of the arms."""
        return tuple(record.key for name in names for record in self.finals(name, store))

    def quantities(self, store: Store, prefix: str = "") -> dict[str, Quantity]:
        """For each arm: chosen and default rate, their validation losses, test scores with intervals, parameters."""
        out: dict[str, Quantity] = {}
        for arm in self.arms:
            out |= self.sweep_quantities(arm, store, prefix)
            if not (records := self.finals(arm.name, store)):
                continue
            keys = self.keys(store, arm.name)
            loss = interval_of(self.table(arm.name, "loss_nats", store), self.weights(arm.name, store))
            out[f"{prefix}{arm.name}_loss"] = as_quantity(loss, "nats per token", keys, len(records))
            for score in SCORES:
                if score in records[0].per_example:
                    interval = interval_of(self.table(arm.name, score, store))
                    out[f"{prefix}{arm.name}_{score}"] = as_quantity(interval, "", keys, len(records))
            if "bleu" in records[0].measurements:
                n = len(records[0].per_example["bleu_length"])
                interval = metrics.statistic_interval(self.bleu(arm.name, store), n)
                out[f"{prefix}{arm.name}_bleu"] = as_quantity(interval, "BLEU", keys, len(records), 1)
                ratios = [length_ratio(record) for record in records]
                out[f"{prefix}{arm.name}_length_ratio"] = Quantity(
                    math.fsum(ratios) / len(ratios), "", keys, min(ratios), max(ratios), len(ratios), n, 2,
                    note="words written over words of the nearest references; mean and range of the seeds",
                )  # fmt: skip
            if norms := [float(value) for record in records for value in record.curve.get("gradient_norm", [])]:
                share = 100 * sum(norm > self.budget(1.0).max_grad_norm for norm in norms) / len(norms)
                out[f"{prefix}{arm.name}_clipped_steps"] = Quantity(share, "%", keys, seeds=len(records), digits=0)
            trained = float(records[0].measurements["trainable_parameters"] or 0)
            out[f"{prefix}{arm.name}_parameters"] = Quantity(trained, "parameters", keys[:1], digits=0)
        return out

    def sweep_quantities(self, arm: Arm, store: Store, prefix: str = "") -> dict[str, Quantity]:
        """What the arm's sweep chose, with the number of runs it took."""
        best, found = self.best(arm, store), self.sweep(arm, store)
        if best is None:
            return {}
        seeds, name = len(self.sweep_seeds), f"{prefix}{arm.name}"
        keys = {rate: tuple(self.sweep_run(arm, rate, seed).key for seed in self.sweep_seeds) for rate in found}
        every = tuple(key for rate in found for key in keys[rate])
        out = {
            f"{name}_best_rate": Quantity(best, "", every, digits=-2, seeds=seeds),
            f"{name}_sweep_runs": Quantity(len(every), "runs", every, digits=0, seeds=seeds),
            f"{name}_best_validation_loss": Quantity(
                found[best], "nats per token", keys[best], seeds=seeds, n=self.sweep_examples, digits=3
            ),
        }
        out[f"{name}_tuning_shortfall"] = Quantity(
            shortfall(found, best), "nats per token", every, seeds=seeds, n=self.sweep_examples, digits=3,
            note="what a finer grid of rates might gain: parabola through the best rate and its neighbours",
        )  # fmt: skip
        if arm.default in found:
            out[f"{name}_default_rate"] = Quantity(arm.default, "", keys[arm.default], digits=-2, seeds=seeds)
            out[f"{name}_default_validation_loss"] = Quantity(
                found[arm.default], "nats per token", keys[arm.default], seeds=seeds, n=self.sweep_examples, digits=3
            )
        return out

    def paired(self, first: str, second: str, store: Store, prefix: str = "") -> dict[str, Quantity]:
        """The paired differences of two arms, loss and scores, as quantities `first_minus_second_<score>`."""
        out: dict[str, Quantity] = {}
        if not (records := self.finals(first, store)) or not self.finals(second, store):
            return out
        keys = self.keys(store, first, second)
        for column in ("loss_nats", *(score for score in SCORES if score in records[0].per_example)):
            interval = self.difference(first, second, column, store)
            if interval is not None:
                name = f"{prefix}{first}_minus_{second}_{'loss' if column == 'loss_nats' else column}"
                unit = "nats per token" if column == "loss_nats" else ""
                out[name] = as_quantity(interval, unit, keys, interval.seeds)
        if (interval := self.bleu_difference(first, second, store)) is not None:
            out[f"{prefix}{first}_minus_{second}_bleu"] = as_quantity(interval, "BLEU", keys, interval.seeds, 1)
        return out


def validation_loss(record: Record) -> float:
    """Validation loss of a record, infinite for a run that diverged."""
    return math.inf if record.failure else float(record.measurements["loss_nats"] or math.inf)


def length_ratio(record: Record) -> float:
    """Words written over words of the nearest references, over the whole test set; below 1 BLEU has its penalty."""
    written, wanted = (record.per_example[f"bleu_{name}"] for name in ("length", "reference_length"))
    return math.fsum(map(float, written)) / math.fsum(map(float, wanted))


def middle_first(rates: Sequence[float]) -> list[float]:
    """The rates in order of their distance from the middle of the grid: a queue that is cut short has the best part."""
    middle = (len(rates) - 1) / 2
    return [rates[at] for at in sorted(range(len(rates)), key=lambda at: abs(at - middle))]


def interval_of(rows: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> metrics.Interval:
    """The book's interval; over examples alone where there is one row, of a method without randomness."""
    return metrics.example_interval(rows[0], weights) if len(rows) == 1 else metrics.mean_interval(rows, weights)


def shortfall(found: Mapping[float, float], best: float) -> float:
    """How much lower the loss of a finer grid might be: the least of a parabola through the best rate and its two
    neighbours in the logarithm of the rate, below the best. 0 where a neighbour is missing or diverged.
    """
    rates = sorted(found)
    at = rates.index(best)
    near = rates[max(0, at - 1) : at + 2]
    losses = np.array([found[rate] for rate in near])
    if len(near) < 3 or not np.isfinite(losses).all():
        return 0.0
    x = np.log(near) - math.log(best)
    a, b, c = np.polyfit(x, losses, 2)
    return float(found[best] - (c - b**2 / (4 * a))) if a > 0 else 0.0


def as_quantity(interval: metrics.Interval, unit: str, keys: tuple[str, ...], seeds: int, digits: int = 3) -> Quantity:
    """An interval as a named quantity."""
    return Quantity(interval.mean, unit, keys, interval.low, interval.high, seeds, interval.examples, digits)


def decide(
    interval: metrics.Interval | None, margin: float, claim: tuple[float, float], what: str, quantity: str, unit: str
) -> Verdict:
    """The one rule applied to a difference, with its sentence."""
    if interval is None:
        return Verdict("not yet run", f"{what}: the final runs are not all there.")
    outcome = metrics.judge(interval, margin, claim)
    least = f"; this n could have seen {interval.half95:.3f}" if outcome == "undecided" else ""
    return Verdict(
        outcome,
        f"{what} is {interval.mean:+.3f} {unit} (95 % interval {interval.low:+.3f} to {interval.high:+.3f}; "
        f"claim {bounds(claim)}{f', margin {margin:g}' if margin else ''}{least}).",
        (quantity,),
    )


def bounds(claim: tuple[float, float]) -> str:
    """Where a claim puts a difference: `at most 0.05`, `at least 0`, `−1 to 1`."""
    low, high = (f"{end:g}" for end in claim)
    return (
        f"at most {high}" if math.isinf(claim[0]) else f"at least {low}" if math.isinf(claim[1]) else f"{low} to {high}"
    )


def holm(intervals: Mapping[str, metrics.Interval], level: float = 0.05) -> dict[str, bool]:
    """Which differences of a family are not zero, by Holm's step-down procedure at the family-wise level.

    p = 2 · P(T > |mean| / SE) with seeds − 1 degrees of freedom; the smallest p is held against level / m, the next
    against level / (m − 1), until one fails. Source: Holm 1979.
    """
    from scipy import stats

    p = {}
    for name, one in intervals.items():
        error = math.hypot(one.seed_se, one.example_se)
        p[name] = 2 * float(stats.t.sf(abs(one.mean) / error, max(one.seeds - 1, 1))) if error else float(not one.mean)
    found, open_ = dict.fromkeys(p, False), True
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        open_ = open_ and p[name] <= level / (len(p) - rank)
        found[name] = open_
    return found
