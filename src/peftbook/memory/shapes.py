"""Shapes of decoders like Llama: read from a config.json, or by name from a table.

The sizes in the table are those of the published config.json files; the test holds their parameter counts against
the published ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbook.errors import InputError
from peftbook.memory.names import cached_config, nearest, plain_name

__all__ = ["FAMILIES", "SHAPES", "Shape", "as_config", "quantised_in", "read_config", "read_shape", "shape_from_config"]

# model_type in config.json → what sets the family's layer apart from Llama's
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "smollm3": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_norms": True},
    "gemma": {"gains_in_fp32": True, "scaled_embedding": True, "tied": True},
    "gemma3_text": {
        "gains_in_fp32": True,
        "scaled_embedding": True,
        "head_norms": True,
        "layer_norms": 4,
        "two_rotations": True,
        "tied": True,
    },
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder: layers, width h, width f of the MLP, a heads of width d, g key and value heads, V tokens.

    tied: one matrix is both embedding and head.  qkv_bias, out_bias, mlp_bias: which linear layers have biases.
    head_norms: queries and keys are normalised a head.  layer_norms: norms of width h in a layer.
    gains_in_fp32: norms multiply with 1 + gain in float32.  scaled_embedding: the embedding is multiplied with √h.
    two_rotations: layers of sliding attention rotate by other angles (all three: Gemma).
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
    window: int = 0
    sliding: tuple[bool, ...] = ()
    context: int = 0

    def __post_init__(self):
        for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "vocab"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give a whole number of at least 1.")
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

    @property
    def symbols(self) -> dict[str, int]:
        """The symbols of the byte model that the shape gives."""
        return {
            "L": self.layers, "h": self.hidden, "f": self.ffn, "a": self.heads, "g": self.kv_heads,
            "d": self.head_dim, "V": self.vocab,
        }  # fmt: skip

    @property
    def kv_width(self) -> int:
        """Width of the keys and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's seven matrices."""
        h, q, kv, f = self.hidden, self.heads * self.head_dim, self.kv_width, self.ffn
        return {
            "q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h),
        }  # fmt: skip

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
        """Embedding, head, biases and the gains of the norms."""
        biases = sum(self.linears[name][1] for name in self.biased)
        gains = self.layer_norms * self.hidden + 2 * self.head_dim * self.head_norms
        return (1 if self.tied else 2) * self.vocab * self.hidden + self.layers * (gains + biases) + self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.linear_parameters + self.other_parameters


def read_shape(source: str | Path) -> Shape:
    """A shape by its name in the table or its id on the hub, or from a config.json or the folder that holds one.

    Raises InputError if there is neither, or if the file is not the settings of a decoder like Llama.
    """
    if (name := str(source).lower()) in SHAPES:
        return SHAPES[name]
    if (config := read_config(source)) is not None:
        return shape_from_config(config)
    plain = plain_name(str(source))
    if (plain := ALIASES.get(plain, plain)) in SHAPES:
        return SHAPES[plain]
    raise InputError(
        f"{str(source)!r} is neither a config.json, nor a folder with one, nor a known shape{nearest(plain, SHAPES)}: "
        f"choose one of {', '.join(SHAPES)}."
    )


def read_config(source: str | Path) -> Any:
    """The settings in a config.json, in the folder that holds one, or of a hub id in the local cache; None without.

    Raises InputError where the file is not JSON.
    """
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    found = path if path.is_file() else cached_config(str(source))
    if found is None:
        return None
    try:
        return json.loads(found.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{found} is not JSON ({error}): give the config.json of a model.") from error


def quantised_in(config: Any) -> dict[str, Any]:
    """What the settings of a quantised model say of its base, as fields of a set-up; empty for one in 16 or 32 bits.

    Raises InputError for a quantisation that the byte model does not cover.
    """
    said = config.get("quantization_config") if isinstance(config, Mapping) else None
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise InputError(f"quantization_config is {said!r}: it holds an object with settings, or is not there.")
    kind, four, eight = said.get("quant_method", "bitsandbytes"), said.get("load_in_4bit"), said.get("load_in_8bit")
    whole = sorted({str(name) for name in said.get("llm_int8_skip_modules") or ()} - {"lm_head"})
    refused = ""
    if kind != "bitsandbytes":
        refused = repr(kind)
    elif eight is True and said.get("llm_int8_has_fp16_weight") is True:
        refused = "8 bits that are rounded anew from 16 in every pass"
    elif (four is True or eight is True) and whole:
        refused = f"that {', '.join(whole)} stay whole"
    if refused:
        raise InputError(f"quantization_config says {refused}, which is not covered: give the model before that.")
    if eight is True:
        return {"quantised": "int8"}
    if four is not True:
        return {}
    quantised = str(said.get("bnb_4bit_quant_type", "fp4"))
    return {"quantised": quantised, "double": said.get("bnb_4bit_use_double_quant") is True}


def shape_from_config(config: Mapping[str, Any]) -> Shape:
    """The shape that the settings in a config.json describe. Raises InputError for a family that is not covered."""
    if not isinstance(config, Mapping):
        raise InputError("A config.json holds an object with a model's settings; this one does not.")
    if isinstance(config.get("text_config"), Mapping) and config.get("model_type") == "gemma3":
        config = config["text_config"]
    family = config.get("model_type", "")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"model_type {family!r} is not covered: choose a model of {', '.join(FAMILIES)}.")
    needed = {
        "layers": "num_hidden_layers", "hidden": "hidden_size", "ffn": "intermediate_size",
        "heads": "num_attention_heads", "vocab": "vocab_size",
    }  # fmt: skip
    if missing := [key for key in needed.values() if type(config.get(key)) is not int]:
        raise InputError(f"config.json gives no whole number for {', '.join(missing)}: give a model's whole settings.")
    sizes = {name: config[key] for name, key in needed.items()}
    traits = dict(FAMILIES[family])
    biases = bool(config.get("attention_bias"))
    traits["qkv_bias"] = traits.get("qkv_bias", False) or biases
    window = sliding_window(config, family)
    return Shape(
        **sizes,
        **(traits | {"tied": bool(config.get("tie_word_embeddings", traits.get("tied", False)))}),
        kv_heads=config.get("num_key_value_heads") or sizes["heads"],
        head_dim=config.get("head_dim") or (256 if family.startswith("gemma") else 0),
        family=family,
        out_bias=biases,
        mlp_bias=bool(config.get("mlp_bias")),
        window=window,
        sliding=tuple(sliding_layers(config, family, window)),
        context=config.get("max_position_embeddings") or 0,
    )


def sliding_window(config: Mapping[str, Any], family: str) -> int:
    """Tokens that sliding attention sees; 0 where it is off."""
    if family in ("qwen2", "qwen3", "smollm3") and not config.get("use_sliding_window"):
        return 0
    return config.get("sliding_window") or 0


def sliding_layers(config: Mapping[str, Any], family: str, window: int) -> list[bool]:
    """Whether each layer's attention slides: as the settings list it, or by the family's own rule."""
    layers = config["num_hidden_layers"]
    if not window:
        return [False] * layers
    if listed := config.get("layer_types"):
        return [kind == "sliding_attention" for kind in listed]
    if family == "gemma3_text":
        pattern = config.get("sliding_window_pattern") or 6
        return [(index + 1) % pattern > 0 for index in range(layers)]
    first = config.get("max_window_layers", 0) if family.startswith("qwen") else 0
    return [index >= first for index in range(layers)]


def llama(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, **traits: Any) -> Shape:
    """A shape of Llama's family."""
    return Shape(layers, hidden, ffn, heads, kv_heads, vocab, **traits)


def family(name: str, *sizes: int, **traits: Any) -> Shape:
    """A shape of another family."""
    return llama(*sizes, **(FAMILIES[name] | {"family": name} | traits))


SHAPES: dict[str, Shape] = {
    "smollm2-135m": llama(30, 576, 1536, 9, 3, 49152, tied=True, context=8192),
    "smollm2-360m": llama(32, 960, 2560, 15, 5, 49152, tied=True, context=8192),
    "smollm2-1.7b": llama(24, 2048, 8192, 32, 32, 49152, tied=True, context=8192),
    "smollm3-3b": family("smollm3", 36, 2048, 11008, 16, 4, 128256, tied=True, context=65536),
    "llama-2-7b": llama(32, 4096, 11008, 32, 32, 32000, context=4096),
    "llama-2-13b": llama(40, 5120, 13824, 40, 40, 32000, context=4096),
    "llama-2-70b": llama(80, 8192, 28672, 64, 8, 32000, context=4096),
    "llama-3-8b": llama(32, 4096, 14336, 32, 8, 128256, context=8192),
    "llama-3-70b": llama(80, 8192, 28672, 64, 8, 128256, context=8192),
    "llama-3.1-8b": llama(32, 4096, 14336, 32, 8, 128256, context=131072),
    "llama-3.1-70b": llama(80, 8192, 28672, 64, 8, 128256, context=131072),
    "llama-3.2-1b": llama(16, 2048, 8192, 32, 8, 128256, tied=True, context=131072),
    "llama-3.2-3b": llama(28, 3072, 8192, 24, 8, 128256, tied=True, context=131072),
    "mistral-7b": family("mistral", 32, 4096, 14336, 32, 8, 32000, context=32768, window=4096),
    "mistral-7b-v0.3": family("mistral", 32, 4096, 14336, 32, 8, 32768, context=32768),
    "qwen2.5-0.5b": family("qwen2", 24, 896, 4864, 14, 2, 151936, tied=True, context=32768),
    "qwen2.5-1.5b": family("qwen2", 28, 1536, 8960, 12, 2, 151936, tied=True, context=32768),
    "qwen2.5-3b": family("qwen2", 36, 2048, 11008, 16, 2, 151936, tied=True, context=32768),
    "qwen2.5-7b": family("qwen2", 28, 3584, 18944, 28, 4, 152064, context=131072),
    "qwen2.5-14b": family("qwen2", 48, 5120, 13824, 40, 8, 152064, context=131072),
    "qwen2.5-32b": family("qwen2", 64, 5120, 27648, 40, 8, 152064, context=131072),
    "qwen3-0.6b": family("qwen3", 28, 1024, 3072, 16, 8, 151936, tied=True, head_dim=128, context=40960),
    "qwen3-1.7b": family("qwen3", 28, 2048, 6144, 16, 8, 151936, tied=True, head_dim=128, context=40960),
    "qwen3-4b": family("qwen3", 36, 2560, 9728, 32, 8, 151936, tied=True, head_dim=128, context=40960),
    "qwen3-8b": family("qwen3", 36, 4096, 12288, 32, 8, 151936, head_dim=128, context=40960),
    "qwen3-14b": family("qwen3", 40, 5120, 17408, 40, 8, 151936, head_dim=128, context=40960),
    "qwen3-32b": family("qwen3", 64, 5120, 25600, 64, 8, 151936, head_dim=128, context=40960),
    "gemma-2b": family("gemma", 18, 2048, 16384, 8, 1, 256000, head_dim=256, context=8192),
    "gemma-7b": family("gemma", 28, 3072, 24576, 16, 16, 256000, head_dim=256, context=8192),
    "gemma-3-1b": family(
        "gemma3_text", 26, 1152, 6912, 4, 1, 262144, head_dim=256, context=32768, window=512,
        sliding=tuple((index + 1) % 6 > 0 for index in range(26)),
    ),
}  # fmt: skip
ALIASES = {"llama-3.3-70b": "llama-3.1-70b", "mistral-7b-v0.1": "mistral-7b"}


def as_config(shape: Shape) -> Any:
    """transformers' configuration of a model of this shape."""
    from transformers import AutoConfig

    given: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "attention_bias": shape.out_bias,
        "sliding_window": shape.window or None,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if shape.context:
        given["max_position_embeddings"] = shape.context
    if shape.family in ("qwen2", "qwen3", "gemma3_text", "smollm3"):
        given["layer_types"] = ["sliding_attention" if one else "full_attention" for one in shape.sliding]
        given["use_sliding_window"] = shape.window > 0
    if shape.mlp_bias:
        given["mlp_bias"] = True
    return AutoConfig.for_model(shape.family, **given)
