"""VeRA: random frozen matrices that all layers share, and trained scales between them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from peftbook.memory import TARGETS, DecoderShape
from peftbook.memory.architecture import unfused
from peftbook.methods.method import Look, Method, Preset, check_targets


class VeRA(Method):
    """h = W x + Λ_b B Λ_d A x with random frozen A and B shared by all layers; only the two diagonals are trained.

    Source: Kopiczko et al. 2023, arXiv:2310.11454, section 3.
    """

    title = "VeRA"
    family = "reparametrised"

    kind: Literal["vera"] = "vera"
    rank: int = Field(default=256, ge=1)
    targets: tuple[str, ...] = TARGETS
    version: int = 1

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """VeRA through peft; the seed also draws the shared random projections."""
        from peft import VeraConfig, get_peft_model

        check_targets(model, self.targets)
        config = VeraConfig(
            r=self.rank, target_modules=list(self.targets), projection_prng_key=seed, task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config)

    def parameters(self, shape: DecoderShape) -> int:
        return shape.layers * sum(self.rank + shape.linears[target][1] for target in shape.adapted(self.targets))

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        """As LoRA of its rank."""
        return {"method": "lora", "rank": self.rank, "targets": unfused(self.targets)}


PRESETS = (
    Preset(
        "vera", VeRA(), "Random matrices that all layers share are scaled by trained numbers: a small file.",
        swept="variants.vera", rate=0.0128, look=Look("VeRA", ">"), place=10,
    ),
)  # fmt: skip
