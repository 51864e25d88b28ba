"""What every method is: a frozen spec that knows how it is applied, what it costs, how it is kept and how it looks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

from peftbook.core.canonical import Spec, build
from peftbook.core.errors import InputError
from peftbook.memory import DecoderShape

TRAINED_WEIGHTS = "the model's own weights are trained, and in bfloat16 most of their steps are rounded away"
ROUNDED = "a base that is rounded to 4 bits without bitsandbytes is rounded from float32"


class Look(NamedTuple):
    """How a method looks in every chart: short label, matplotlib's marker, line style, and its colour in each mode.

    Empty colours stand for the accent of the page.
    """

    label: str
    marker: str
    line: Any = "-"
    light: str = ""
    dark: str = ""


class Method(Spec):
    """A way to train a model, or to leave it as it is. A subclass is one method; its fields define a run.

    title: its name in full.  trains: whether there is something to train.  efficient: whether that is far less than
    all weights.  family: its branch of the tree of methods.  saved: as peft's adapter, as plain tensors by name, or as
    a whole model.  shares_base: whether the frozen weights stay what they were, so that several trained models may
    hold them once.  lighter: what needs less memory, for whoever runs out of it.  unmerged, unsharded: why what is
    trained cannot become part of the model's weights, and why devices cannot share its model (FSDP); empty if they can.
    unhalved, uncheckpointed: why its base cannot lie in bfloat16, and why its layers cannot be checkpointed.
    """

    title: ClassVar[str]
    trains: ClassVar[bool] = True
    efficient: ClassVar[bool] = True
    family: ClassVar[Literal["", "additive", "selective", "reparametrised"]] = ""
    saved: ClassVar[Literal["peft", "tensors", "model"]] = "peft"
    shares_base: ClassVar[bool] = True
    lighter: ClassVar[str] = "QLoRA"
    unmerged: ClassVar[str] = ""
    unsharded: ClassVar[str] = ""
    unhalved: ClassVar[str] = ""
    uncheckpointed: ClassVar[str] = ""

    kind: str

    @classmethod
    def from_words(cls, words: list[str]) -> Self:
        """From settings as words: `rank=8`. Raises InputError naming the bad one."""
        return build(cls, **parse(words))

    @property
    def full_kind(self) -> str:
        """Its kind, and of a collection the member: methods that differ in it differ in what they cost."""
        return self.kind

    @property
    def label(self) -> str:
        """This very one as a table names it: `LoRA`, `QLoRA + DoRA`, `5 examples in the prompt`."""
        return self.title

    @property
    def examples_shown(self) -> int:
        """Solved examples that stand before each question."""
        return 0

    @property
    def random(self) -> bool:
        """Whether a seed changes anything."""
        return self.trains or self.examples_shown > 0

    @property
    def packed(self) -> bool:
        """Whether bitsandbytes holds the frozen matrices in 4 bits."""
        return False

    def quantization(self, dtype: Any) -> Any:
        """transformers' configuration of a base loaded in 4 bits and computing in `dtype`; None if unquantised."""
        return None

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """Create the method's parameters and freeze all others. torch's generator is already seeded."""
        raise NotImplementedError

    def rate_factor(self, name: str) -> float:
        """Factor on the learning rate of the parameter with this name."""
        return 1.0

    def parameters(self, shape: DecoderShape) -> int:
        """Number of trained parameters on a decoder of this shape."""
        raise NotImplementedError

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        """The fields of `memory.Setup` from which the byte model counts a training step's bytes and operations.

        A method that the byte model does not know returns the fields of the most similar one that it knows.
        """
        raise NotImplementedError

    def sized(self, **sizes: int) -> Self:
        """The same method with new sizes (rank, prompt_length, prefix_length); sizes of 0 or that it lacks are ignored.

        The scale of an update does not change, so the learning rate still suits it.
        """
        return self

    def changed(self, **fields: Any) -> Self:
        """The same method with other fields. Raises InputError for invalid values."""
        return build(type(self), **(self.model_dump() | fields))

    @property
    def loading(self) -> str:
        """How to load the saved method: one sentence for a model card."""
        return "`PeftModel.from_pretrained(base, FOLDER)` loads it."

    def as_lora(self, model: Any) -> Any:
        """The tuned model with its method converted to LoRA; None if that says nothing new or is impossible."""
        return None


@dataclass(frozen=True)
class Preset:
    """A method as it is offered and compared.

    words: one sentence for whoever must choose.  swept: the study and the arm whose sweep chose its learning rate,
    like `benchmark.adapter`; empty where nothing is trained or nothing was swept.  rate: its learning rate where
    `swept` has none.  look: in charts; None for a variant that has no place in them.  place: where it stands in lists.
    """

    name: str
    method: Method
    words: str
    swept: str = ""
    rate: float = 0.0
    look: Look | None = None
    place: int = 100


def parse(words: list[str]) -> dict[str, Any]:
    """`name=value` words as fields; a value is JSON, or else a text. Raises InputError for a word without `=`."""
    fields: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise InputError(f"{word!r} is no setting of a method: write it as name=value.")
        try:
            fields[name] = json.loads(text)
        except ValueError:
            fields[name] = text
    return fields


def check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """Every target must name a linear layer: peft skips a name that matches nothing as long as another one does."""
    from torch import nn

    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if unknown or not targets:
        names = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise InputError(
            f"Targets {', '.join(unknown) or '()'} match no linear layer of this model: choose from {', '.join(names)}."
        )
