"""QLoRA: LoRA over a base whose linear layers are held in four bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from peftbook.core.errors import InputError
from peftbook.memory import DecoderShape
from peftbook.methods.lora import LoRA
from peftbook.methods.method import ROUNDED, Look, Preset

if TYPE_CHECKING:
    from torch import Tensor

ALTERNATIONS = 5  # Li et al. 2023, section 4.1: T = 5
BLOCK = 64


class QLoRA(LoRA):
    """LoRA over a base whose linear layers are stored in 4 bits, block 64, as bitsandbytes does.

    `int4` is symmetric round-to-nearest onto the 15 levels −7 … 7, `nf2` NormalFloat with two bits. bitsandbytes has
    neither: the base is then dense and holds the dequantised values, which computes the same function without the
    memory.
    rounded: False is a control for a corrected start. The adapter starts at the same factors, but the base keeps what
    they leave of it, W − γBA, unrounded, so that the model starts as the dense one: the start without the error.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """

    added: ClassVar[tuple[str, ...]] = (*LoRA.added, "rounded")
    title = "QLoRA"
    shares_base = False
    lighter = ""

    kind: Literal["qlora"] = "qlora"  # type: ignore[assignment]
    quant: Literal["nf4", "fp4", "int4", "nf2"] = "nf4"
    double_quant: bool = True
    rounded: bool = True

    @model_validator(mode="after")
    def _an_unrounded_base_needs_a_start(self):
        if not self.rounded and self.init == "kaiming":
            raise ValueError("rounded = False with a plain start is LoRA on the dense base: use lora")
        return self

    @property
    def packed(self) -> bool:
        """bitsandbytes has no other types and no corrected starts: the base is then dense, with dequantised values."""
        return self.quant in ("nf4", "fp4") and self.init == "kaiming"

    @property
    def unhalved(self) -> str:  # type: ignore[override]
        return "" if self.packed else ROUNDED

    def quantization(self, dtype: Any) -> Any:
        """4-bit type and double quantisation stated, never left to defaults."""
        if not self.packed:
            return None
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """LoRA on a 4-bit base as it was loaded, or on one that is rounded here and may have a corrected start."""
        if self.packed:
            return super().apply(model, seed, tokenizer)
        starts = init_corrected(model, self)
        plain: Any = LoRA(**self.model_dump(exclude={"kind", "quant", "double_quant", "init", "rounded"}))
        tuned = plain.apply(model, seed, tokenizer)
        set_lora(tuned, starts)
        return tuned

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        packed = {"quantised": self.quant, "double": self.double_quant} if self.quant in ("nf4", "fp4") else {}
        return super().setup(shape) | packed

    @property
    def loading(self) -> str:
        corrected = f", with the start {self.init!r}" if self.init != "kaiming" else ""
        return (
            f"{super().loading} The base has its linear layers in {self.quant} (block 64, double quantisation: "
            f"{self.double_quant}){corrected}; on another base it computes something else."
        )


def top_singular(w: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of w with this rank as a product B A: B = U √S, (d_out, rank), A = √S Vᵀ, (rank, d_in)."""
    import torch

    U, S, Vt = torch.linalg.svd(w, full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vt[:rank]


def init_corrected(model: Any, method: QLoRA) -> dict[str, tuple[Tensor, Tensor]]:
    """Quantise the base in place and return a start (A, B) of LoRA for every target, with W ≈ Q + γ B A.

    kaiming: no starts; the base is quantised as it is.
    loftq: from B A = 0, five times Q = quantised(W − γBA) and γBA = rank-r SVD of W − Q.
        Source: Li et al. 2023, arXiv:2310.08659, Algorithm 1.
    pissa: γBA = rank-r SVD of W, then Q = quantised(W − γBA): the residual alone is quantised (QPiSSA).
        Source: Meng et al. 2024, arXiv:2404.02948, section 4.
    Where the method is not `rounded`, the base is W − γBA in its own type, and layers without a start stay as they are.
    A is (r, d_in), B is (d_out, r), both float32; γ is the method's scaling, so √γ is taken off each factor.
    Raises InputError for an initialisation that has no form for a quantised base, or that DoRA would undo.
    """
    import torch

    from peftbook.scratch.codebooks import linear_layers, round_trip

    if method.init not in ("kaiming", "loftq", "pissa"):
        raise InputError(f"init = {method.init!r} has no form for a 4-bit base: use 'kaiming', 'loftq' or 'pissa'.")
    if method.dora and method.init != "kaiming":
        raise InputError(f"init = {method.init!r} does not set DoRA's magnitudes: use dora = False or init 'kaiming'.")
    starts = {}
    for name, part in linear_layers(model).items():
        w = part.weight.detach().clone()
        if not method.rounded and not is_adapted(name, method):
            continue
        if method.init == "kaiming" or not is_adapted(name, method):
            part.weight.data.copy_(round_trip(w, method.quant, BLOCK, method.double_quant))
            continue
        product = torch.zeros_like(w)
        if method.init == "pissa":
            B, A = top_singular(w, method.rank)
            product = B @ A
        for _ in range(ALTERNATIONS if method.init == "loftq" else 1):
            stored = round_trip(w - product, method.quant, BLOCK, method.double_quant)
            if method.init == "loftq":
                B, A = top_singular(w - stored, method.rank)
                product = B @ A
        part.weight.data.copy_(stored if method.rounded else w - product)
        starts[name] = (A / method.gamma**0.5, B / method.gamma**0.5)
    return starts


def is_adapted(name: str, method: LoRA) -> bool:
    """Whether a linear layer of this name gets an adapter."""
    if not any(f".{name}".endswith(f".{target}") for target in method.targets):
        return False
    return not method.layers or any(part.isdigit() and int(part) in method.layers for part in name.split("."))


def set_lora(tuned: Any, starts: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Give the adapters of a peft model their starting values, by the names their layers have in the base model."""
    layers: Any = dict(tuned.get_base_model().named_modules())
    for name, (A, B) in starts.items():
        layers[name].lora_A["default"].weight.data.copy_(A)
        layers[name].lora_B["default"].weight.data.copy_(B)


PRESETS = (
    Preset(
        "qlora", QLoRA(), "LoRA over weights in four bits: far less memory for large models, but slower steps.",
        swept="methods.qlora", rate=2e-4, look=Look("QLoRA", "D", (0, (4, 1.5)), "#b84a00", "#f39a56"), place=4,
    ),
)  # fmt: skip
