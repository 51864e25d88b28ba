"""Settings: how a file is read and what is trained on it, as options of `train` and `compare` and fields of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from peftbook.core import specs
from peftbook.core.base_models import model_named
from peftbook.core.errors import InputError
from peftbook.core.options import Bound, Option, listed
from peftbook.decision.own_metrics import Metric, read_metrics
from peftbook.evidence.stats import FEWEST_SEEDS
from peftbook.methods import presets
from peftbook.tasks.columns import Columns, guess_columns
from peftbook.tasks.files import NEAR_COPIES, NearCopies, Split
from peftbook.tasks.table import TextTable

NAMES = ", ".join(preset.name for preset in presets())
MOST_GENERATED = 200  # test examples
MOST_EPOCHS = 1000  # with so many passes the recipes' tokens are allowed on a file of three short rows


@dataclass(frozen=True)
class Reading:
    """Which columns of a file are what, how its rows are split, and what the model is told to do."""

    input: Annotated[str, Option("column that the model reads")]
    target: Annotated[str, Option("column that it should write")]
    group: Annotated[str | None, Option("column whose values a split never divides")] = None
    instruction: Annotated[str, Option("what to say to the model, with {input} in it")] = "{input}"
    instruction_column: Annotated[str | None, Option("column whose text stands before the input")] = None
    split_seed: Annotated[int, Option("by which rows are split", type=int)] = 0
    fractions: Annotated[
        tuple[float, float, float],
        Option("of the rows for train, validation and test", type=float, count=3, convert=tuple),
    ] = (0.8, 0.1, 0.1)
    first_rows: Annotated[int, Option(
        "usable rows that are split; the others came later and are for training alone; 0: all are split", type=int,
    )] = 0  # fmt: skip
    left_out: Annotated[str, Option("rows that are not used, by their numbers with commas")] = ""
    near_copies: Annotated[NearCopies, Option(
        "rows whose inputs nearly repeat each other: any split may have each, they stay together in one, or all but "
        "the first are left out", choices=NEAR_COPIES,
    )] = "any"  # fmt: skip

    @classmethod
    def of(cls, columns: Columns, split: Split, instruction: str) -> Reading:
        return cls(
            columns.input,
            columns.target,
            columns.group,
            instruction,
            columns.instruction,
            split.seed,
            split.fractions,
            split.first,
            split.left_out,
            split.near_copies,
        )

    @property
    def columns(self) -> Columns:
        return Columns(self.input, self.target, self.instruction_column, self.group)

    @property
    def split(self) -> Split:
        return Split(self.split_seed, self.fractions, self.first_rows, self.left_out, self.near_copies)


@dataclass(frozen=True)
class Guessed(Reading):
    """A reading whose columns are guessed where none is named."""

    input: Annotated[str, Option("column that the model reads", usual="guessed by names and lengths")] = ""
    target: Annotated[str, Option("column that it should write", usual="guessed by names and lengths")] = ""

    def on(self, table: TextTable) -> tuple[Reading, str]:
        """The reading of a table, and how the columns were guessed that are not named, in a sentence."""
        columns, why = self.columns, ""
        if not (self.input and self.target):
            guess, why = guess_columns(table)
            named = {name: value for name, value in asdict(columns).items() if value}
            columns = replace(guess, **named)
            if columns.instruction in (columns.input, columns.target):
                columns = replace(columns, instruction=self.instruction_column)
            why = f"{columns.input!r} is read, {columns.target!r} written. {why}"
            if table.turns:
                why = "The rows are chats: the turns are read, the last answer is written."
        return Reading.of(columns, self.split, self.instruction), why


@dataclass(frozen=True)
class Training:
    """What all runs on a file have in common; of no more than 1,000 test rows the loss is taken.

    dtype: the runs name the type itself, so that the same options elsewhere may be other runs.
    """

    tokens: Annotated[int, Option(
        "of training text that every method sees, 0: by epochs", "Training tokens",
        Bound("{} training tokens are chosen, where 0 stands for epochs", 0, specs.MOST_TOKENS),
    )] = 0  # fmt: skip
    epochs: Annotated[float, Option(
        "passes over the training rows, where tokens are 0", "Epochs",
        Bound("{} epochs are chosen", 0.01, MOST_EPOCHS, whole=False),
    )] = 3.0  # fmt: skip
    batch_size: Annotated[int, Option(
        "examples a step", "Batch size",
        Bound("A batch size of {} is chosen", 1, 512),  # larger ones are for pretraining
    )] = 8  # fmt: skip
    max_length: Annotated[int, Option(
        "tokens of a training row; commands leave longer rows out, the page cuts them", "Longest example",
        Bound("A longest example of {} tokens is chosen", 8, specs.MOST_LENGTH),
    )] = 512  # fmt: skip
    max_new_tokens: Annotated[int, Option(
        "tokens of a generated answer", "Longest answer",
        Bound("A longest answer of {} tokens is chosen", 1, 1024),  # as the try-out has it
    )] = 64  # fmt: skip
    test_examples: Annotated[int, Option(
        "answers generated and scored", "Test rows", Bound("{} test rows are chosen", 0, MOST_GENERATED),
    )] = MOST_GENERATED  # fmt: skip
    rank: Annotated[int | None, Option(
        "of LoRA and its kin, if not the method's own", "LoRA rank", Bound("A rank of {} is chosen", 1, 1024),
    )] = None  # fmt: skip
    prompt_length: Annotated[int | None, Option(
        "virtual tokens of a prompt, if not the method's own", "Prompt length",
        Bound("A prompt length of {} is chosen", 1, 1024),
    )] = None  # fmt: skip
    prefix_length: Annotated[int | None, Option(
        "virtual tokens of a prefix, if not the method's own", "Prefix length",
        Bound("A prefix length of {} is chosen", 1, 1024),
    )] = None  # fmt: skip
    platform: Annotated[Literal["cpu", "cuda"], Option("where it runs", "Runs on", choices=("cpu", "cuda"))] = "cpu"
    dtype: Annotated[str, Option(
        "to compute in, auto: the fastest here", "Computes in", choices=("auto", "fp32", "bf16", "fp16"),
    )] = "auto"  # fmt: skip
    weights: Annotated[Literal["fp32", "bf16"], Option(
        "of what is not trained: bf16 takes half the memory, and is computed in", "Weights in",
        choices=("fp32", "bf16"),
    )] = "fp32"  # fmt: skip
    checkpointing: Annotated[bool, Option(
        "keep only the input of each layer, and compute the rest again: far less memory, slower steps",
        "Checkpointing",
    )] = False  # fmt: skip


def models_named(text: str) -> tuple[specs.Model, ...]:
    """The models in a list with commas; a lambda in an annotation would not find these names."""
    return tuple(map(model_named, listed(text)))


def rates_named(texts: Sequence[str]) -> dict[str, float]:
    """Learning rates by method from `lora=4e-4` and the like. Raises InputError for another text."""
    rates = {}
    for text in texts:
        name, sign, value = text.rpartition("=")
        name = name.strip()
        try:
            rates[name if ":" in name else name.lower()] = float(value if sign else "")
        except ValueError:
            raise InputError(f"{text!r} is no learning rate of a method: write it as lora=4e-4.") from None
    return rates


@dataclass(frozen=True)
class Settings(Training):
    """What a plan of several methods is made of; the untuned model is always there.

    methods: names of presets.  learning_rates: by preset, in place of the book's.
    """

    seeds: Annotated[int, Option(
        "trainings of each method; one hides the luck of training", "Seeds", Bound("{} seeds are chosen", 1, 10),
    )] = FEWEST_SEEDS  # fmt: skip
    models: Annotated[tuple[specs.Model, ...], Option(
        f"{specs.EMBEDDED_MODEL}, {specs.SMALL_MODEL}, folders or hub ids, with commas", convert=models_named,
        usual=specs.EMBEDDED_MODEL,
    )] = (specs.Model(),)  # fmt: skip
    methods: Annotated[tuple[str, ...], Option(
        f"of {NAMES}, peft:NAME:argument=value, with commas", convert=listed, usual="untuned,fewshot,lora,prompt",
    )] = ("untuned", "fewshot", "lora", "prompt")  # fmt: skip
    learning_rates: Annotated[
        Mapping[str, float],
        Option(
            "of a method, instead of what the book's sweeps chose",
            "Learning rates",
            convert=rates_named,
            repeated=True,
            metavar="METHOD=RATE",
            flag="--learning-rate",
        ),
    ] = field(default_factory=dict)
    tune: Annotated[bool, Option(
        "race rates around each method's on the validation rows first, and take the best: about four trainings more",
        "Tune learning rates",
    )] = False  # fmt: skip


@dataclass(frozen=True)
class Single(Training):
    """What one training is made of: of the plan with the same settings, one method and one seed."""

    model: Annotated[
        specs.Model,
        Option(
            f"{specs.EMBEDDED_MODEL}, {specs.SMALL_MODEL}, a folder, or a hub id",
            convert=model_named,
            usual=specs.EMBEDDED_MODEL,
        ),
    ] = specs.Model()  # noqa: RUF009
    method: Annotated[str, Option(f"one of {NAMES}, or peft:NAME:argument=value")] = "lora"
    seed: Annotated[int, Option("of the training", type=int)] = 0
    learning_rate: Annotated[float | None, Option("if not what the book's sweeps chose", type=float)] = None

    @property
    def settings(self) -> Settings:
        """Those of a plan with this method alone."""
        rates = {} if self.learning_rate is None else {self.method: self.learning_rate}
        shared: dict[str, Any] = {name.name: getattr(self, name.name) for name in fields(Training)}
        return Settings(models=(self.model,), methods=(self.method,), learning_rates=rates, **shared)


@dataclass(frozen=True)
class Scoring:
    """Metrics of the user's own, computed from the texts that a run wrote; no run depends on them."""

    metrics: Annotated[tuple[Metric, ...], Option(
        "one of your own: label=regex:…, total=number:rel=0.01, order=json:fields=a,b, a file of several; again",
        convert=read_metrics, repeated=True, metavar="NAME=KIND:…", flag="--metric", usual="",
    )] = ()  # fmt: skip


@dataclass(frozen=True)
class Judging(Scoring):
    """What decides between the rows of a comparison."""

    measure: Annotated[str, Option("what decides, or the name of a metric of your own")] = "rougeL"
    margin: Annotated[float | None, Option(
        "differences below it do not matter, if not the measure's own", type=float,
    )] = None  # fmt: skip
