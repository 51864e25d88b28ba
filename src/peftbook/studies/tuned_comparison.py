"""Tuned comparisons: every arm's learning rate is chosen on validation, then confirmed on fresh seeds.

The protocol, once for all studies. Each arm has a grid of learning rates. Every rate is trained with the sweep's seeds
and judged by its mean validation loss; an optimum at the edge of the grid extends the grid by one point until it lies
inside. The chosen rate is trained with fresh seeds, and only these runs see the test split. Seeds fix initialisation
and data order, so runs of different arms with one seed are paired.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store, Unusable
from peftbook.core.specs import Run
from peftbook.core.tracking import untracked
from peftbook.evidence import comparison, stats
from peftbook.evidence.planning import judge_claim
from peftbook.evidence.sweep import Lookup, Sweep, best_of, extended, grown, interleave, shortfall, trials
from peftbook.methods import Method
from peftbook.studies import Quantity, Verdict, available
from peftbook.studies.standard import training
from peftbook.tasks import split_groups, test_groups

SHARES = ("rouge1", "rouge2", "rougeL", "bertscore_f1", "exact_match", "execution_match")
SCORES = {  # score → column of the records, unit, decimals
    "loss": ("loss_nats", "nats per token", 3),
    **{name: (name, "", 3) for name in SHARES},
    "bleu": ("bleu", "BLEU", 1),
}
COUNTED = tuple(name for name in SHARES if name != "bertscore_f1")  # of words or answers: 0 to 1, differences −1 to 1
FINER = "what a finer grid of rates might gain: parabola through the best rate and its neighbours"
ANY = (-math.inf, math.inf)
FURTHER = (10, 11)  # seeds of no final run, with which a sweep asks its best rate and the neighbours again
Claim = tuple[float, float]  # the ends between which a claim puts a difference


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
class TunedComparison:
    """Arms that share task, budget, seeds and test examples.

    tokens, batch_size: the budget of every run.  factor: the step by which a grid is extended.
    bearable: by how much a finer grid might lower an arm's validation loss (`shortfall`) before the arm gets the two
    rates halfway to the neighbours of its best one, and again, down to FINEST; 0 never asks.
    further: seeds with which every sweep trains its best rate and the neighbours too, beside its own.
    sweep_examples: validation examples of a sweep run.  test_examples, generate: of a final run.
    first_look: how many of the seeds had been looked at before the others were added; 0: their number was fixed before.
    train_examples: only the first so many training examples are used; 0 means all.  dtype: of every run's arithmetic.
    """

    task: str
    tokens: int
    arms: tuple[Arm, ...]
    batch_size: int = 8
    factor: float = 2.0
    bearable: float = 0.0
    sweep_seeds: tuple[int, ...] = (0,)
    further: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    first_look: int = 0
    sweep_examples: int = 100
    test_examples: int = 200
    generate: int = 0
    max_new_tokens: int = 40
    train_examples: int = 0
    dtype: Literal["bf16", "fp32"] = "bf16"
    model: specs.Model = field(default_factory=specs.Model)

    @property
    def refine(self) -> bool:
        """Whether a grid is refined where it is too coarse."""
        return self.bearable > 0

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def run(self, arm: Arm, rate: float | None, seed: int, **evaluation: Any) -> Run:
        """A run of an arm with what all arms share."""
        budget = {"batch_size": self.batch_size, "train_examples": self.train_examples}
        shared = {"model": self.model, "dtype": self.dtype, **budget, **evaluation}
        return training(self.task, arm.method, self.tokens, rate, seed, **shared)

    def sweep_run(self, arm: Arm, rate: float, seed: int) -> Run:
        """One point of an arm's grid: validation loss only."""
        return self.run(arm, rate, seed, split="validation", n_loss=self.sweep_examples)

    def tuning(self, arm: Arm, further: Sequence[int] | None = None) -> Sweep[Run]:
        """The sweep that chooses the arm's rate.  further: in place of the comparison's."""

        def runs_of(seeds: Sequence[int], rate: float) -> list[Run]:
            return [self.sweep_run(arm, rate, seed) for seed in seeds]

        make, more = (
            functools.partial(runs_of, seeds)
            for seeds in (self.sweep_seeds, self.further if further is None else further)
        )
        return Sweep(make, arm.rates, self.grown, further=more)

    def grown(self, losses: Mapping[float, float]) -> list[float]:
        """The next grid: extended at an end, else refined where it is too coarse."""
        return grown(losses, self.factor, self.bearable) if self.refine else extended(losses, self.factor)

    def best_rate(self, name: str, store: Store) -> float:
        """The rate of the arm's grid with the lowest validation loss. Raises Missing."""
        return self.tuning(self.arm(name)).best(store.get)

    def final_run(self, arm: Arm, rate: float | None, seed: int) -> Run:
        """A run on the test split."""
        decoded = "bf16" if self.generate else "fp32"
        asked = {"n_generate": self.generate, "max_new_tokens": self.max_new_tokens, "generation_dtype": decoded}
        return self.run(arm, rate, seed, split="test", n_loss=self.test_examples, **asked)

    def final_runs(self, arm: Arm, store: Store) -> list[Run]:
        """The arm's runs on fresh seeds at its chosen rate. Raises Missing until it is chosen.

        An untuned arm without examples in its prompt has no randomness and one run.
        """
        if not arm.rates:
            return [self.final_run(arm, None, seed) for seed in (self.seeds if arm.method.random else (0,))]
        with untracked():
            rate = self.tuning(arm).best(store.get)
        return [self.final_run(arm, rate, seed) for seed in self.seeds]

    def runs(self, store: Store) -> list[Run]:
        """The sweeps, middle of each grid first and arms in turn; then the final runs, seed by seed."""
        finals = available(lambda arm: self.final_runs(arm, store), self.arms)
        return trials(map(self.tuning, self.arms), store.get) + interleave(finals)

    def finals(self, name: str, store: Store) -> list[Record]:
        """The arm's final records in seed order. Raises Missing where one is not there, Unusable where one diverged."""
        return self.finals_of((name,), store)[name]

    def finals_of(self, names: tuple[str, ...], store: Store) -> dict[str, list[Record]]:
        """The final records of these arms. Raises Missing where one is not there, Unusable where one diverged."""
        found = {name: store.need_all(self.final_runs(self.arm(name), store)) for name in names}
        if failed := [(name, record) for name, records in found.items() for record in records if record.failure]:
            said = ", ".join(f"{self.arm(name).label} with seed {record.spec.seed}" for name, record in failed)
            raise Unusable(failed[0][1].spec, f"Diverged at the chosen rate: {said}.")
        return found

    def difference(self, first: str, second: str, column: str, store: Store) -> stats.Interval:
        """first − second, paired over seeds and test examples; of losses, with the choice of rates. Raises Missing."""
        records = self.finals_of((first, second), store)
        found = comparison.paired(records[first], records[second], column, self.groups(records[first][0]))
        if column == "loss_nats":  # which is what rates are chosen by
            found = stats.with_choice(found, *(self.choice_error(name, store) for name in (first, second)))
        return stats.second_look(found, self.first_look / len(self.seeds)) if self.first_look else found

    def by_rate(self, first: str, second: str, store: Store) -> dict[float, float]:
        """Rate → validation loss of first minus second, of the rates that both sweeps have. Raises Missing."""
        one, two = (self.tuning(self.arm(name)).losses(store.get) for name in (first, second))
        return {rate: one[rate] - two[rate] for rate in one if rate in two}

    def choice_error(self, name: str, store: Store) -> float:
        """What the choice of the arm's rate adds to the error of its loss; 0 if it has none. Raises Missing."""
        arm = self.arm(name)
        if not arm.rates:
            return 0.0
        finals = self.finals(name, store)
        with untracked():
            groups = split_groups(self.task, "validation", self.sweep_examples)
            return comparison.choice_error(self.tuning(arm), finals, "loss_nats", store.get, groups)

    def verdict(
        self,
        first: str,
        second: str,
        margin: float,
        claim: Claim,
        what: str,
        store: Store,
        prefix: str = "",
    ) -> Verdict:
        """The one rule applied to the test loss of `first` minus that of `second`. Raises Missing."""
        found = self.difference(first, second, "loss_nats", store)
        return decide(found, margin, claim, what, f"{prefix}{first}_minus_{second}_loss", "nats per token")

    def differing(self, names: Sequence[str], second: str, store: Store, unit: str, note: str = "") -> Quantity:
        """How many of the arms differ from the second in test loss, by Holm's procedure at 5 %. Raises Missing."""
        family = {name: stats.p_value(self.difference(name, second, "loss_nats", store)) for name in names}
        keys, count = self.keys(store, second, *names), sum(stats.holm(family).values())
        return Quantity(count, f"of {len(names)} {unit}", keys, seeds=len(self.seeds), digits=0, note=note)

    def groups(self, record: Record) -> tuple[str, ...]:
        """What the test examples of a final record share."""
        assert isinstance(record.spec, Run)
        tested = record.spec.evaluation
        return test_groups(self.task, tested.skip + tested.n_loss)[tested.skip :]

    def keys(self, store: Store, *names: str) -> tuple[str, ...]:
        """Keys of the final records of the arms."""
        return comparison.keys_of(*(self.finals(name, store) for name in names))

    def quantities(self, store: Store, pairs: Iterable[tuple[str, str]] = (), prefix: str = "") -> dict[str, Quantity]:
        """Each arm's rates and their validation losses, its test scores and parameters; differences of the pairs."""
        out: dict[str, Quantity] = {}
        for arm in self.arms:
            out |= self.sweep_quantities(arm, store, prefix)
            with suppress(Missing):
                out |= self.final_quantities(f"{prefix}{arm.name}", self.finals(arm.name, store))
        for first, second in pairs:
            out |= self.paired(first, second, store, prefix)
        return out

    def final_quantities(self, name: str, records: Sequence[Record]) -> dict[str, Quantity]:
        """What an arm's final records tell: test scores with intervals, clipped steps, parameters."""
        first, keys = records[0], comparison.keys_of(records)
        out = score_quantities(
            name, records, functools.partial(comparison.score, records, groups=self.groups(first)), keys
        )
        if f"{name}_bleu" in out:
            ratios, n = [length_ratio(record) for record in records], len(first.per_example["bleu_length"])
            note = "words written over words of the nearest references; mean and range of the seeds"
            middle = Quantity.middle(ratios, "", keys, note, seeds=len(ratios), n=n)
            out[f"{name}_length_ratio"] = replace(middle, value=math.fsum(ratios) / len(ratios))
        if (share := self.clipped_share(records)) is not None:
            out[f"{name}_clipped_steps"] = Quantity(share, "%", keys, seeds=len(records), digits=0)
        trained = float(first.measurements["trainable_parameters"] or 0)
        out[f"{name}_parameters"] = Quantity(trained, "parameters", keys[:1], digits=0)
        return out

    def clipped_share(self, records: Sequence[Record]) -> float | None:
        """Of the steps of these records those with clipped gradients, in percent; None if they have no norms."""
        norms = [float(value) for record in records for value in record.curve.get("gradient_norm", [])]
        clipped = sum(norm > specs.Budget.model_fields["max_grad_norm"].default for norm in norms)
        return 100 * clipped / len(norms) if norms else None

    def sweep_quantities(self, arm: Arm, store: Store, prefix: str = "") -> dict[str, Quantity]:
        """What the arm's sweep chose, with the number of runs it took; empty until all of them are there."""
        sweep, name = self.tuning(arm), f"{prefix}{arm.name}"
        losses: dict[float, float] = {}
        with suppress(Missing):
            losses = sweep.losses(store.get)
        if not losses:
            return {}
        nats: dict[str, Any] = {"unit": "nats per token", "n": self.sweep_examples, "digits": 3}
        seeds, best = len(self.sweep_seeds) + len(self.further), best_of(losses)
        each = functools.partial(Quantity, seeds=seeds)
        keys = {rate: tuple(run.key for run in runs) for rate, runs in sweep.plan(store.get).items()}
        out = tuning_quantities(sweep, store.get, seeds, f"{name}_", **nats, note=FINER)
        out |= {
            f"{name}_best_validation_loss": each(losses[best], runs=keys[best], **nats),
            f"{name}_tuning_shortfall": out.pop(f"{name}_tuning_shortfall"),
        }
        if arm.default is not None and arm.default in losses:
            out[f"{name}_default_rate"] = each(arm.default, "", keys[arm.default], digits=-2)
            out[f"{name}_default_validation_loss"] = each(losses[arm.default], runs=keys[arm.default], **nats)
        return out

    def paired(self, first: str, second: str, store: Store, prefix: str = "") -> dict[str, Quantity]:
        """The paired differences of two arms, loss and scores, as quantities `first_minus_second_<score>`.

        Empty until all of their final records are there.
        """
        with suppress(Missing):
            records = self.finals_of((first, second), store)
            return score_quantities(
                f"{prefix}{first}_minus_{second}",
                records[first],
                lambda column: self.difference(first, second, column, store),
                comparison.keys_of(*records.values()),
                least=-1.0,
            )
        return {}


def runs_of(*comparisons: TunedComparison) -> Callable[[Store], list[Run]]:
    """The runs of these comparisons, in their order and each once."""
    return lambda store: list({run.key: run for one in comparisons for run in one.runs(store)}.values())


def score_quantities(
    name: str,
    records: Sequence[Record],
    interval: Callable[[str], stats.Interval],
    keys: tuple[str, ...],
    least: float = 0.0,
) -> dict[str, Quantity]:
    """What `interval` makes of each score that the records have, as quantities `name_<score>`.

    interval: of a column.  least: the lower end of a share, −1 of a difference of two.
    """
    return {
        f"{name}_{score}": Quantity.of(
            interval(column), unit, keys, digits, among=(least, 1) if score in COUNTED else ANY
        )
        for score, (column, unit, digits) in SCORES.items()
        if comparison.has_column(records, column)
    }


def tuning_quantities(
    sweep: Sweep, lookup: Lookup, seeds: int, prefix: str = "", **shortfall_words: Any
) -> dict[str, Quantity]:
    """`best_rate`, `sweep_runs` and `tuning_shortfall` of a sweep. Raises Missing.

    shortfall_words: unit and so on of the last.
    """
    losses = sweep.losses(lookup)
    best, keys = best_of(losses), tuple(run.key for runs in sweep.plan(lookup).values() for run in runs)
    return {
        f"{prefix}best_rate": Quantity(best, "", keys, seeds=seeds, digits=-2),
        f"{prefix}sweep_runs": Quantity(len(keys), "runs", keys, seeds=seeds, digits=0),
        f"{prefix}tuning_shortfall": Quantity(shortfall(losses, best), runs=keys, seeds=seeds, **shortfall_words),
    }


def length_ratio(record: Record) -> float:
    """Words written over words of the nearest references, over the whole test set; below 1 BLEU has its penalty."""
    written, wanted = (record.per_example[f"bleu_{name}"] for name in ("length", "reference_length"))
    return math.fsum(map(float, written)) / math.fsum(map(float, wanted))


def decide(interval: stats.Interval, margin: float, claim: Claim, what: str, quantity: str, unit: str) -> Verdict:
    """The one rule applied to a difference, with its sentence."""
    outcome, part = judge_claim(interval, margin, claim)
    reason = ""
    if outcome == "undecided":
        reason = f"; {half_width_of(interval)}"
    elif outcome == "direction only":
        kept = interval.low >= claim[0] and interval.high <= claim[1]
        short = f"the margin is not reached: {half_width_of(interval)}"
        reason = f"; {'with' if kept else 'against'} the claim, but "
        reason += short if interval.decides else f"{interval.basis} decide nothing"
    if outcome != "refuted" and not margin and against(interval, claim):
        reason += f"; surely {'above' if interval.low > 0 else 'below'} 0, and the claim holds the margin"
    return Verdict(
        outcome,
        f"{what} is {interval.mean:+.3f} {unit} (95 % interval {interval.low:+.3f} to {interval.high:+.3f}; "
        f"claim {bounds(claim)}{f', margin {margin:g}' if margin else ''}{reason}).",
        (quantity,),
        (part,),
        what=what,
    )


def against(interval: stats.Interval, claim: Claim) -> bool:
    """Whether a difference is surely on the side of 0 that a claim allows only by the margin at its edge."""
    low, high = claim
    return (interval.low > 0 and 0 < high < math.inf) or (interval.high < 0 and -math.inf < low < 0)


def half_width_of(interval: stats.Interval) -> str:
    """How wide the interval is, and what of it no further seed or example takes away."""
    chosen = f"; the choice of rates alone makes {1.96 * interval.choice_se:.3f}" if interval.choice_se else ""
    return f"its half-width is {interval.half95:.3f}{chosen}"


def bounds(claim: Claim) -> str:
    """Where a claim puts a difference: `at most 0.05`, `at least 0`, `−1 to 1`."""
    low, high = (f"{end:g}" for end in claim)
    return (
        f"at most {high}" if math.isinf(claim[0]) else f"at least {low}" if math.isinf(claim[1]) else f"{low} to {high}"
    )
