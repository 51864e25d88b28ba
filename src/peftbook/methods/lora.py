"""LoRA and its kin on a dense base: small matrices beside the weights are trained."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftbook.memory import TARGETS, DecoderShape
from peftbook.memory.architecture import unfused
from peftbook.methods.method import Look, Method, Preset, check_targets

INITS = {"pissa": "PiSSA", "olora": "OLoRA", "loftq": "LoftQ"}


class LoRA(Method):
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
    title = "LoRA"
    family = "reparametrised"

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    targets: tuple[str, ...] = TARGETS
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

    @property
    def label(self) -> str:
        """The variants by their names, joined; plain LoRA's only where there is none."""
        variants = (
            ("rsLoRA", self.scaling == "rank_stabilized"),
            ("DoRA", self.dora),
            ("LoRA-FA", self.freeze_a),
            ("LoRA+", self.b_rate_ratio != 1),
            (INITS.get(self.init, ""), self.init in INITS),
        )
        kin = [name for name, used in variants if used]
        return " + ".join(kin if kin and self.kind == "lora" else [self.title, *kin])

    @property
    def gamma(self) -> float:
        """What multiplies B A."""
        return self.alpha / (self.rank**0.5 if self.scaling == "rank_stabilized" else self.rank)

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """LoRA through peft; adapters in float32, the base frozen.

        peft's `prepare_model_for_kbit_training` is not used: it copies norms, embedding and head to float32 (they are
        float32 here already) and turns on gradient checkpointing, which no other arm has.
        """
        from peft import LoraConfig, get_peft_model

        check_targets(model, self.targets)
        warn_if_rank_exceeds_width(model, self)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=list(self.targets),
            lora_dropout=self.dropout,
            use_rslora=self.scaling == "rank_stabilized",
            use_dora=self.dora,
            init_lora_weights=self.init if self.init in ("pissa", "olora") else True,
            layers_to_transform=list(self.layers) or None,
            bias="none",
            task_type="CAUSAL_LM",
        )
        tuned = get_peft_model(model, config)
        if self.freeze_a:
            for name, value in tuned.named_parameters():
                if ".lora_A." in name:
                    value.requires_grad_(False)
        return tuned

    def rate_factor(self, name: str) -> float:
        return self.b_rate_ratio if ".lora_B." in name else 1.0

    def parameters(self, shape: DecoderShape) -> int:
        """r (d_in + d_out) for each adapted matrix; DoRA's magnitudes add d_out, a frozen A takes r d_in off."""
        sides = [shape.linears[target] for target in shape.adapted(self.targets)]
        each = sum(self.rank * ((not self.freeze_a) * d_in + d_out) + self.dora * d_out for d_in, d_out in sides)
        return (len(self.layers) or shape.layers) * each

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        return {
            "method": "lora",
            "rank": self.rank,
            "targets": unfused(self.targets),
            "dropout": self.dropout > 0,
            "freeze_a": self.freeze_a,
            "dora": self.dora,
        }

    def sized(self, **sizes: int) -> Self:
        rank = sizes.get("rank") or self.rank
        kept = rank / self.rank if self.scaling == "standard" else 1.0
        return self.changed(rank=rank, alpha=self.alpha * kept)


def warn_if_rank_exceeds_width(model: Any, method: LoRA) -> None:
    """BA cannot have a rank above the layer's smaller side; the run is allowed, the reader is told."""
    from torch import nn

    widths = [
        min(part.in_features, part.out_features)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in method.targets
    ]
    if widths and method.rank > min(widths):
        warnings.warn(
            f"LoRA rank {method.rank} is above the smallest adapted width {min(widths)}: "
            f"the effective rank there is {min(widths)}.",
            stacklevel=2,
        )


PRESETS = (
    Preset(
        "lora", LoRA(), "Small matrices beside every weight matrix are trained: the one to try first.",
        swept="methods.lora", rate=2e-4, look=Look("LoRA", "o", "-", "#0069a8", "#62b8ec"), place=3,
    ),
    Preset(
        "rslora", LoRA(alpha=8, scaling="rank_stabilized"),
        "LoRA divided by the root of its rank: like LoRA at the usual rank, with a rate that holds at others.",
        swept="methods.lora", rate=2e-4,
    ),
    Preset(
        "dora", LoRA(dora=True), "LoRA that learns size and direction of the weights apart; slower steps.",
        swept="variants.dora", rate=8e-4,
    ),
    Preset(
        "pissa", LoRA(init="pissa"), "LoRA that starts at the weights' main directions and freezes the rest.",
        swept="variants.pissa", rate=2e-4,
    ),
    Preset(
        "olora", LoRA(init="olora"), "LoRA that starts at orthogonal directions of the weights.",
        swept="variants.olora", rate=2e-4,
    ),
    Preset(
        "lora+", LoRA(b_rate_ratio=16), "LoRA whose second matrix learns faster than its first.",
        swept="variants.plus16", rate=2e-4,
    ),
    Preset(
        "lora-fa", LoRA(freeze_a=True), "LoRA of which only the second matrix is trained: less memory.",
        swept="variants.frozen_a", rate=3.2e-3,
    ),
)  # fmt: skip
