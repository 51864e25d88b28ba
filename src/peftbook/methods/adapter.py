"""Bottleneck adapters: a small network after attention and after the MLP of every layer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from peftbook.memory import DecoderShape
from peftbook.methods.method import Look, Method, Preset


class Adapter(Method):
    """h + W_up gelu(W_down h) after the attention and after the MLP of every layer, before the residual sum.

    `width` is the bottleneck. W_up starts at zero. Source: Houlsby et al. 2019, arXiv:1902.00751, section 2.1.
    """

    title = "Bottleneck adapter"
    family = "additive"
    saved = "tensors"
    unhalved = "the adapters compute in float32"
    unmerged = "the adapter's nonlinearity stands between its weights and the model's"

    kind: Literal["adapter"] = "adapter"
    width: int = Field(default=64, ge=1)
    version: int = 1

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        from peftbook.scratch.adapter import add_adapters

        return add_adapters(model.requires_grad_(False), self.width)

    def parameters(self, shape: DecoderShape) -> int:
        """Two adapters a layer, each 2 · width · hidden weights, width + hidden biases."""
        return 2 * shape.layers * (2 * self.width * shape.hidden + self.width + shape.hidden)

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        """As LoRA of its width after attention and MLP."""
        return {"method": "lora", "rank": self.width, "targets": ("o_proj", "down_proj")}

    @property
    def loading(self) -> str:
        return (
            "Bottleneck adapters, by name, in `trainable.safetensors`: call `peftbook.scratch.adapter.add_adapters"
            f"(base, {self.width})`, then copy the tensors into the result."
        )


PRESETS = (
    Preset(
        "adapter", Adapter(), "Small networks after attention and MLP are trained; they cannot be merged.",
        swept="benchmark.adapter", rate=8e-4, look=Look("Adapter", "P"), place=7,
    ),
)  # fmt: skip
