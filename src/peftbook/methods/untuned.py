"""No training: the model as it comes, with or without solved examples before the question."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from peftbook.memory import DecoderShape
from peftbook.methods.method import ROUNDED, Look, Method, Preset


class Untuned(Method):
    """The model as it comes, with `shots` solved training examples before the question (0 = none).

    quant: the 4-bit type that its linear layers are rounded to first (block 64, double quantisation); empty for none.
    """

    added: ClassVar[tuple[str, ...]] = ("quant",)
    title = "Untuned"
    trains = False
    efficient = False
    lighter = ""
    uncheckpointed = "there is no backward pass"

    kind: Literal["untuned"] = "untuned"
    shots: int = Field(default=0, ge=0)
    version: int = 1
    quant: Literal["", "nf4", "fp4", "int4", "nf2"] = ""

    @property
    def label(self) -> str:
        name = f"{self.shots} examples in the prompt" if self.shots else self.title
        return f"{name}, {self.quant}" if self.quant else name

    @property
    def examples_shown(self) -> int:
        return self.shots

    @property
    def unhalved(self) -> str:  # type: ignore[override]
        return ROUNDED if self.quant else ""

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """Freeze the model; where a 4-bit type is named, every decoder linear holds what its codes stand for."""
        from peftbook.scratch.codebooks import quantise_dense

        model.requires_grad_(False)
        return quantise_dense(model, self.quant) if self.quant else model

    def parameters(self, shape: DecoderShape) -> int:
        return 0

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        """As the smallest LoRA."""
        return {"method": "lora", "rank": 1, "targets": ("q_proj",)}


PRESETS = (
    Preset(
        "untuned", Untuned(), "The model as it comes: what every other method must beat.",
        look=Look("Untuned", "X", ":", "#66707b", "#a3aeb9"), place=0,
    ),
    Preset(
        "fewshot", Untuned(shots=5),
        "Nothing is trained: solved examples stand before each question, which makes answers slower.",
        look=Look("Five-shot", "v", (0, (1, 1)), "#a0427f", "#e3a3cb"), place=1,
    ),
)  # fmt: skip
