"""The sizes of a decoder like Llama, and what sets the layers of other families apart from Llama's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peftbook.core.errors import InputError

# matrix → (inputs, outputs), each a product of symbols
Widths = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
WIDTHS: Widths = {
    "q_proj": (("h",), ("a", "d")), "k_proj": (("h",), ("g", "d")), "v_proj": (("h",), ("g", "d")),
    "o_proj": (("a", "d"), ("h",)), "gate_proj": (("h",), ("f",)), "up_proj": (("h",), ("f",)),
    "down_proj": (("f",), ("h",)),
}  # fmt: skip
ATTENTION = {name: WIDTHS[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
FUSED: Widths = {
    "qkv_proj": (("h",), ("c",)), "o_proj": WIDTHS["o_proj"], "gate_up_proj": (("h",), ("two", "f")),
    "down_proj": WIDTHS["down_proj"],
}  # fmt: skip
# fused matrix → those of other families that it holds
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

# The largest number of layers, and the largest of other sizes: no model comes near, and more would be walked for hours
MOST, MOST_WIDE = {"layers": 10_000}, 10**8
NO_SDPA = ("gemma2",)  # families that transformers refuses torch's fused attention, with or without caps
GEMMA = {"gains_in_fp32": True, "scaled_embedding": True, "tied": True}
# model_type in config.json → what sets the family's layer apart from Llama's
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "smollm3": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_norms": True},
    "gemma": GEMMA,
    "gemma2": GEMMA | {"layer_norms": 4, "capped_scores": True, "capped_logits": True},
    "gemma3_text": GEMMA | {"head_norms": True, "layer_norms": 4, "two_rotations": True},
    "ministral": {},
    "ministral3": {"scaled_queries": True},
    "mixtral": {"rescaled": True, "float32_shares": True},
    "qwen3_moe": {"head_norms": True, "rescaled": True},
    "phi3": {"fused": True},
    "olmo2": {"head_norms": True, "joint_norms": True, "norms_after": True, "float32_products": True},
}


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder: layers, width h, width f of the MLP, a heads of width d, g key and value heads, V tokens.

    tied: one matrix is both embedding and head.  qkv_bias, out_bias, mlp_bias: which linear layers have biases.
    head_norms: queries and keys are normalised a head.  layer_norms: norms of width h in a layer.
    gains_in_fp32: norms multiply with 1 + gain in float32.  scaled_embedding: the embedding is multiplied with √h.
    two_rotations: layers of sliding attention rotate by other angles (all three: Gemma).
    capped_scores, capped_logits: what attention's softmax, and what the loss gets, is c · tanh(x / c) (Gemma 2).
    joint_norms: queries and keys are normalised over all heads at once, not a head.  norms_after: a layer's two norms
    come after attention and MLP, not before.  float32_products: norms are multiplied with their gains, and queries and
    keys with cosines and sines, in float32 (all three: OLMo 2).
    fused: one matrix makes queries, keys and values, one the gate and its factor.  rotary: how much of a head's width
    is rotated, 0 for all (both: Phi 3 and 4).
    scaled_queries: queries are multiplied with a number that grows with the position (Ministral 3).
    experts: MLPs of width f in a layer, of which a token goes through `chosen`; 0 for one that all go through.
    rescaled: the shares of the chosen add up to 1.  float32_shares: they stay in float32 (Mixtral).
    window: tokens that a layer of sliding attention sees; sliding: whether each layer's attention slides.
    context: positions that the model was made for, 0 if unknown.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = False
    head_dim: int = 0
    family: str = "llama"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    layer_norms: int = 2
    gains_in_fp32: bool = False
    scaled_embedding: bool = False
    two_rotations: bool = False
    joint_norms: bool = False
    norms_after: bool = False
    float32_products: bool = False
    fused: bool = False
    rotary: int = 0
    scaled_queries: bool = False
    experts: int = 0
    chosen: int = 0
    rescaled: bool = False
    float32_shares: bool = False
    capped_scores: bool = False
    capped_logits: bool = False
    window: int = 0
    sliding: tuple[bool, ...] = ()
    context: int = 0

    def __post_init__(self):
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "vocab"):
            if not 1 <= getattr(self, name) <= MOST.get(name, MOST_WIDE):
                most = f"{MOST.get(name, MOST_WIDE):,}"
                raise InputError(f"{name} is {getattr(self, name)}: give a whole number from 1 to {most}.")
        if self.head_dim < 0 or self.window < 0 or self.context < 0:
            raise InputError(
                f"head_dim {self.head_dim}, window {self.window} and context {self.context} are none of them below 0."
            )
        if not self.head_dim:
            if self.hidden % self.heads:
                raise InputError(f"{self.heads} heads do not divide the width {self.hidden}: give head_dim.")
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        if not self.sliding:
            object.__setattr__(self, "sliding", (self.window > 0,) * self.layers)
        if len(self.sliding) != self.layers:
            raise InputError(f"{len(self.sliding)} kinds of layers are given for {self.layers} layers: give one each.")
        if self.heads % self.kv_heads:
            raise InputError(f"{self.kv_heads} key and value heads do not divide {self.heads} heads.")
        if self.experts and not 0 < self.chosen <= self.experts:
            raise InputError(f"A token goes through {self.chosen} of {self.experts} experts: give at least 1 of them.")

    @property
    def symbols(self) -> dict[str, int]:
        """The symbols of the byte model that the shape gives."""
        known = {
            "L": self.layers, "h": self.hidden, "f": self.ffn, "a": self.heads, "g": self.kv_heads,
            "d": self.head_dim, "V": self.vocab,
        }  # fmt: skip
        if self.fused:
            known |= {"c": (self.heads + 2 * self.kv_heads) * self.head_dim, "e": self.rotary or self.head_dim}
        if self.experts:
            known |= {"E": self.experts, "m": self.chosen}
        return known

    @property
    def kv_width(self) -> int:
        """Width of the keys and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def head_gains(self) -> int:
        """Gains in a layer's norms of queries and keys."""
        heads = self.heads + self.kv_heads if self.joint_norms else 2
        return heads * self.head_dim * self.head_norms

    @property
    def widths(self) -> Widths:
        """(inputs, outputs) of a layer's matrices, each as a product of symbols; experts are not among them."""
        if self.experts:
            return ATTENTION
        return FUSED if self.fused else WIDTHS

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices: seven, with two fused ones four, and four beside experts."""
        sizes = self.symbols | {"two": 2}
        return {
            name: (math.prod(sizes[one] for one in d_in), math.prod(sizes[one] for one in d_out))
            for name, (d_in, d_out) in self.widths.items()
        }

    def adapted(self, targets: Iterable[str]) -> tuple[str, ...]:
        """The layer's own matrices that targets name: a fused one by its name, or by those of all that it holds.

        Raises InputError for a part of a fused one, and for experts: peft adapts them, and their router, as parameters
        in three dimensions (utils/transformers_weight_conversion.py), which is not covered.
        """
        named, found = tuple(targets), []
        if self.experts and not set(named) <= set(ATTENTION):
            raise InputError("LoRA on experts is not covered: choose attention as targets, or some of its matrices.")
        for name in self.widths:
            parts = PARTS.get(name, (name,))
            if name in named or all(part in named for part in parts):
                found.append(name)
            elif part := next((part for part in parts if part in named), ""):
                raise InputError(f"{part} is a part of {name} here: choose {' and '.join(parts)} together, or neither.")
        return tuple(found)

    @property
    def biased(self) -> tuple[str, ...]:
        """The matrices that have a bias."""
        return (
            ("q_proj", "k_proj", "v_proj") * (self.qkv_bias)
            + ("o_proj",) * self.out_bias
            + ("gate_proj", "up_proj", "down_proj") * self.mlp_bias
        )

    @property
    def linear_parameters(self) -> int:
        """Weights of all matrices of the decoder's layers, biases left out."""
        return self.layers * sum(d_in * d_out for d_in, d_out in self.linears.values())

    @property
    def other_parameters(self) -> int:
        """Embedding, head, biases, the gains of the norms, and experts with their router."""
        biases = sum(self.linears[name][1] for name in self.biased)
        gains = self.layer_norms * self.hidden + self.head_gains
        experts = self.experts * self.hidden * (1 + 3 * self.ffn)  # each with a row of the router
        ends = (1 if self.tied else 2) * self.vocab * self.hidden + self.hidden
        return ends + self.layers * (gains + biases + experts)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.linear_parameters + self.other_parameters


def sliding_by_rule(family: str, layers: int, pattern: int = 6) -> tuple[bool, ...]:
    """Which layers slide by their family's own rule: of two of Gemma 2's the first, of six (`pattern`) of Gemma 3's the
    first five, of other families all."""
    every = {"gemma2": 2, "gemma3_text": pattern}.get(family, 0)
    return tuple(not every or (index + 1) % every > 0 for index in range(layers))


def unfused(targets: Iterable[str]) -> tuple[str, ...]:
    """Matrices by the names of what they hold: q_proj, k_proj and v_proj for qkv_proj. Each once."""
    return tuple(dict.fromkeys(part for name in targets for part in PARTS.get(name, (name,))))
