"""Norm gains: only the gains of the normalisation layers are trained."""

from __future__ import annotations

from typing import Any, Literal

from peftbook.core.errors import InputError
from peftbook.memory import DecoderShape
from peftbook.methods.method import TRAINED_WEIGHTS, Look, Method, Preset


class NormTuning(Method):
    """Only the gains of the normalisation layers are trained (a Llama has no biases, so BitFit has nothing to train).

    Source: Zhao et al. 2023, arXiv:2312.11420.
    """

    title = "Norm gains"
    family = "selective"
    saved = "tensors"
    unhalved = TRAINED_WEIGHTS

    kind: Literal["norm"] = "norm"
    version: int = 1

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """Train the gains of all RMSNorm or LayerNorm modules and nothing else."""
        norms = [part for part in model.requires_grad_(False).modules() if type(part).__name__.endswith("Norm")]
        if not norms:
            raise InputError("This model has no normalisation layers with trained gains: choose another method.")
        for part in norms:
            part.requires_grad_(True)
        return model

    def parameters(self, shape: DecoderShape) -> int:
        return (shape.layer_norms * shape.layers + 1) * shape.hidden + shape.layers * shape.head_gains

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        """As (IA)³."""
        return {"method": "ia3"}

    @property
    def loading(self) -> str:
        return "Gains of the normalisation layers, by name, in `trainable.safetensors`: copy them into the base."


PRESETS = (
    Preset(
        "norm", NormTuning(), "Only the gains of the normalisation layers are trained, very few.",
        swept="benchmark.norm", rate=3.2e-3, look=Look("Norm gains", "p"), place=9,
    ),
)  # fmt: skip
