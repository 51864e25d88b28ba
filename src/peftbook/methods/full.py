"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from typing import Any, Literal

from peftbook.memory import DecoderShape
from peftbook.methods.method import TRAINED_WEIGHTS, Look, Method, Preset


class Full(Method):
    """Every weight is trained."""

    title = "Full fine-tuning"
    efficient = False
    saved = "model"
    shares_base = False
    lighter = "LoRA instead of full fine-tuning"
    unhalved = TRAINED_WEIGHTS

    kind: Literal["full"] = "full"
    version: int = 1

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        return model.requires_grad_(True)

    def parameters(self, shape: DecoderShape) -> int:
        return shape.parameters

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        return {"method": "full"}


PRESETS = (
    Preset(
        "full", Full(), "Every weight is trained: most memory, and a whole model to store.",
        swept="methods.full", rate=5e-5, look=Look("Full", "s", "-", "#1f2933", "#dde2e7"), place=2,
    ),
)  # fmt: skip
