"""(IA)³: keys, values and inner activations are scaled by trained vectors."""

from __future__ import annotations

from typing import Any, Literal

from peftbook.memory import DecoderShape
from peftbook.memory.setup import IA3_TARGETS
from peftbook.methods.method import Look, Method, Preset


class IA3(Method):
    """Keys, values and the MLP's inner activations are scaled, element by element, by trained vectors that start at 1.

    Source: Liu et al. 2022, arXiv:2205.05638, section 3.3.
    """

    title = "(IA)³"
    family = "reparametrised"

    kind: Literal["ia3"] = "ia3"
    version: int = 1

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """(IA)³ through peft: outputs of k_proj and v_proj, and the input of down_proj, are scaled."""
        from peft import IA3Config, get_peft_model

        config = IA3Config(target_modules=list(IA3_TARGETS), feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
        return get_peft_model(model, config)

    def parameters(self, shape: DecoderShape) -> int:
        found = {name: shape.linears[name] for name in IA3_TARGETS if name in shape.linears}
        return shape.layers * sum(sides[name != "down_proj"] for name, sides in found.items())

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        return {"method": "ia3"}


PRESETS = (
    Preset(
        "ia3", IA3(), "Keys, values and inner activations are scaled by trained numbers, very few.",
        swept="benchmark.ia3", rate=0.0128, look=Look("(IA)³", "h"), place=8,
    ),
)  # fmt: skip
