"""What a comparison consists of: measures, rows, pairs of rows, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.decision.own_metrics import Metric
from peftbook.evidence.stats import Interval
from peftbook.methods import Method
from peftbook.methods.untuned import Untuned
from peftbook.tasks import TaskExample

Kind = Literal[
    "clear",
    "cheapest of equals",
    "untuned is as good",
    "too few examples",
    "too few seeds",
    "nothing usable",
    "nothing to compare",
]


@dataclass(frozen=True)
class Measure:
    """A score that rows are compared by.

    column: the per-example list of records.  margin: differences below it do not matter, unless another one is given.
    sign: 1 where higher is better, −1 where lower is.  unit: of differences and of the margin.  usable: below it texts
    share so few words with their targets that nobody could use them.  share: whether it lies between 0 and 1.
    """

    name: str
    label: str
    column: str
    margin: float = 0.02
    sign: int = 1
    unit: str = ""
    usable: float = 0.0
    share: bool = False

    @classmethod
    def own(cls, metric: Metric) -> Measure:
        """The measure that a metric of the user's own is."""
        return cls(metric.name, metric.name, f"own {metric.name}", metric.margin, share=True)


MEASURES = {
    one.name: one
    for one in (
        Measure("rouge1", "ROUGE-1", "rouge1", usable=0.1, share=True),
        Measure("rouge2", "ROUGE-2", "rouge2", share=True),
        Measure("rougeL", "ROUGE-L", "rougeL", usable=0.1, share=True),
        Measure("bertscore_f1", "BERTScore F1", "bertscore_f1"),
        Measure("exact_match", "Exact match", "exact_match", share=True),
        Measure("perplexity", "Perplexity", "loss_nats", 0.05, -1, "nats per token"),  # compared through the loss
    )
}
COSTS = {
    "gigabyte_seconds": "training time × peak memory",
    "train_seconds": "training time",
    "peak_memory_bytes": "peak memory",
    "adapter_bytes": "size on disk",
    "trainable_parameters": "trained parameters",
}


@dataclass(frozen=True)
class Skewed(Interval):
    """An interval that is not even about its mean: exp of an interval of loss, or a share's, cut at 0 and 1.

    ends: of 95 %.
    """

    ends: tuple[float, float] = (math.nan, math.nan)

    @property
    def low(self) -> float:
        return self.ends[0]

    @property
    def high(self) -> float:
        return self.ends[1]


@dataclass(frozen=True)
class Row:
    """One model with one method, its seeds pooled.

    run: of the first seed.  seeds: empty for a method without randomness.  scores: by the name of the measure.
    against_untuned, against_leader: paired differences, this row minus the untuned model of its own or the row with the
    best mean, by the name of the measure; that of perplexity is in nats per token.
    may_be_best, beats_untuned: by the deciding measure, at the family-wise level; None where the row is not compared.
    adapter_bytes: what is stored for this row, the whole model for full fine-tuning.  train_seconds: mean over seeds.
    peak_memory_bytes: the largest.  model_parameters: of the model without what was added.  runs: keys of its records.
    failure: why the row is not compared; empty for one that is.  forgotten: loss on plain prose minus the untuned
    model's, nats per token; None where it was not measured.
    """

    label: str
    model: str
    method: Method
    run: specs.Run
    seeds: tuple[int, ...]
    scores: Mapping[str, Interval]
    trainable_parameters: int
    model_parameters: int
    adapter_bytes: int
    train_seconds: float
    peak_memory_bytes: int
    runs: tuple[str, ...]
    failure: str = ""
    against_untuned: Mapping[str, Interval] = field(default_factory=dict)
    against_leader: Mapping[str, Interval] = field(default_factory=dict)
    may_be_best: bool | None = None
    beats_untuned: bool | None = None
    forgotten: Interval | None = None

    @property
    def untuned(self) -> bool:
        """Whether nothing is trained."""
        return not self.method.trains

    @property
    def plain(self) -> bool:
        """Whether this is the model as it comes: what the others of its model are held against."""
        return self.method == Untuned()

    @property
    def gigabyte_seconds(self) -> float:
        """Training time × peak memory: for how long the training keeps how much of a machine, as it is often billed.

        Of the single costs, seconds alone would call full fine-tuning cheap wherever a step of it is as fast.
        """
        return self.train_seconds * self.peak_memory_bytes / 1e9

    def cost(self, name: str) -> float:
        """One of COSTS. Raises InputError for another name."""
        if name not in COSTS:
            raise InputError(f"Unknown cost {name!r}: choose one of {', '.join(COSTS)}.")
        return float(getattr(self, name))


@dataclass(frozen=True)
class Pair:
    """The paired differences of two rows, first − second, by the name of the measure (perplexity: nats per token).

    p: two-sided, of the deciding measure, not corrected.  detected: whether the worse of the two is thereby ruled out
    as the best row, at the family-wise level.
    """

    first: str
    second: str
    differences: Mapping[str, Interval]
    p: float = math.nan
    detected: bool = False

    def reversed(self) -> Pair:
        """second − first."""
        turned = {name: -one for name, one in self.differences.items()}
        return Pair(self.second, self.first, turned, self.p, self.detected)


@dataclass(frozen=True)
class Contrast:
    """A test example on which the rows differ, with each row's text and score by label. spread: best − worst."""

    example: TaskExample
    texts: Mapping[str, str]
    scores: Mapping[str, float]
    spread: float


@dataclass(frozen=True)
class Recommendation:
    """What to take, in words. headline: the answer, in one line.  lacks: what the rows lack to tell more, and how many
    would.  method: how it was decided and what it costs.

    row: None where nothing can be said; where the question is open, the best guess.  leader: the row with the best
    mean.  equals: labels of the rows that stand as equal to it.  loss: the most that the row may give up against them
    (95 %, one-sided), in the measure's unit.  examples, seeds: about how many would settle what is open, else None.
    """

    kind: Kind
    headline: str
    lacks: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    row: Row | None = None
    leader: Row | None = None
    equals: tuple[str, ...] = ()
    loss: float | None = None
    examples: int | None = None
    seeds: int | None = None

    @property
    def words(self) -> str:
        """All sentences."""
        return " ".join((self.headline, *self.lacks, *self.method))


@dataclass(frozen=True)
class Comparison:
    """All that is shown of a comparison. rows: best first, then those that are not compared.

    measure: what decides; measures: all at hand.  test_examples: behind the deciding measure.  seeds: of the row with
    most.  encoder: BERTScore's, in words.  hardware: of all runs.  copying, constant: the score of repeating the input,
    and of always giving the `commonest` target, or None where it is not known.  cautions: what the table cannot tell.
    metrics: those of the user's own.  test_rows: of the whole split.  leaked: how many of the examples are nearly
    training rows.  unseen: the comparison on the others alone, None where none leaks or none is left.
    """

    rows: tuple[Row, ...]
    measure: Measure
    pairs: tuple[Pair, ...]
    measures: tuple[Measure, ...]
    test_examples: int
    seeds: int
    margin: float
    level: float
    cost: str
    encoder: str
    hardware: tuple[str, ...]
    contrasts: tuple[Contrast, ...] = field(default=(), repr=False)
    recommendation: Recommendation = Recommendation("nothing to compare", "")
    copying: Interval | None = None
    constant: Interval | None = None
    commonest: str = ""
    cautions: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    test_rows: int = 0
    leaked: int = 0
    unseen: Comparison | None = field(default=None, repr=False)

    @property
    def leakage(self) -> str:
        """What leaks, and the answer without it, in words; empty where nothing does."""
        if not self.leaked:
            return ""
        words = f"Leakage: {self.leaked:,} of {self.test_examples:,} test inputs are nearly those of a training row"
        if self.unseen is None:
            return f"{words}, so no score here tells how a model does on new inputs."
        return f"{words}. On the other {self.unseen.test_examples:,}: {self.unseen.recommendation.headline}"

    @property
    def over_untuned(self) -> str:
        """Whether the row to take is shown to beat the untuned model, in words; empty where that is not asked."""
        row = self.recommendation.row
        if row is None or row.untuned or self.baseline(row) is None:
            return ""
        shown = "beats" if row.beats_untuned else "is not shown to beat"
        return f"{row.label} {shown} the untuned model on these rows."

    @property
    def without_adapter(self) -> str:
        """Where the row to take leaves a whole model, which row is the best that leaves an adapter; else nothing."""
        row = self.recommendation.row
        best = next((one for one in self.contest if not one.untuned and one.method.saved != "model"), None)
        if row is None or row.method.saved != "model" or best is None:
            return ""
        return f"{row.label} leaves a whole model. The best row that leaves an adapter is {best.label}."

    def without_leaks(self, row: Row) -> Interval | None:
        """A row's score in the deciding measure on the test inputs that do not leak; None where that is not known."""
        rows = () if self.unseen is None else self.unseen.rows
        return next((one.scores.get(self.measure.name) for one in rows if one.runs == row.runs), None)

    @property
    def decides(self) -> bool:
        """Whether every difference rests on enough seeds, and on enough groups where examples share one."""
        return all(one.differences[self.measure.name].decides for one in self.pairs)

    @property
    def contest(self) -> tuple[Row, ...]:
        """The rows that are compared, best mean first."""
        return tuple(row for row in self.rows if row.may_be_best is not None)

    def pair(self, first: str, second: str) -> Pair | None:
        """The pair of two labels, as first − second; None where they share no seed or one is not compared."""
        for one in self.pairs:
            if (one.first, one.second) == (first, second):
                return one
            if (one.second, one.first) == (first, second):
                return one.reversed()
        return None

    def gain(self, first: Row, second: Row) -> Interval | None:
        """How much better the first row is in the deciding measure: the difference, turned so that more is better."""
        pair = self.pair(first.label, second.label)
        if pair is None or self.measure.name not in pair.differences:
            return None
        one = pair.differences[self.measure.name]
        return one if self.measure.sign > 0 else -one

    def baseline(self, row: Row) -> Row | None:
        """The untuned row of the same model, if it is compared."""
        return next((one for one in self.contest if one.run.model == row.run.model and one.plain), None)

    def differences(self, n: int = 5) -> tuple[Contrast, ...]:
        """The test examples on which the contenders differ most, in the deciding measure; of each its first seed."""
        return self.contrasts[:n]
