"""Shapes of decoders like Llama: read from a config.json, or by name from the table of `known_shapes`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.memory.architecture import FAMILIES, MOST, MOST_WIDE, DecoderShape, sliding_by_rule
from peftbook.memory.defaults import completed
from peftbook.memory.known_shapes import ALIASES, SHAPES
from peftbook.memory.names import cached_config, is_hub_id, nearest, plain_name

NOT_COVERED = {
    "gpt_oss": (
        "gpt-oss is not covered, as its experts come in MXFP4 and its attention has sinks: follow OpenAI's cookbook "
        "(TRL, bfloat16, a card of 80 GB) or Unsloth's, which packs its experts, or take qwen3-30b-a3b, which is "
        "covered."
    ),
}
SEEING = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # models that see → the family of their text part
# what of a shape stands under which name in its settings: in those of all families, and of some
NEEDED = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "ffn": "intermediate_size", "heads": "num_attention_heads",
    "vocab": "vocab_size",
}  # fmt: skip
EXPERTS = {
    "mixtral": {"experts": "num_local_experts", "chosen": "num_experts_per_tok"},
    "qwen3_moe": {"experts": "num_experts", "chosen": "num_experts_per_tok", "ffn": "moe_intermediate_size"},
}


def read_shape(source: str | Path) -> DecoderShape:
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
    if plain.startswith("gpt-oss"):
        raise InputError(NOT_COVERED["gpt_oss"])
    if is_hub_id(str(source)):
        where = str(source).partition("@")[0]
        raise InputError(
            f"The settings of {str(source)!r} are not on this machine{nearest(plain, SHAPES)}: save its config.json "
            f"(https://huggingface.co/{where}/raw/main/config.json) and pass that file, or run `hf download {where} "
            "config.json` once."
        )
    raise InputError(
        f"{str(source)!r} is neither a config.json, nor a folder with one, nor a known shape{nearest(plain, SHAPES)}: "
        f"choose one of {', '.join(SHAPES)}."
    )


def read_config(source: str | Path) -> Any:
    """The settings in a config.json, in the folder that holds one, or of a hub id in the local cache; None without.

    Raises InputError where the file is not JSON, or holds nothing.
    """
    found = settings_text(source)
    if found is None:
        return None
    name, text = found
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON ({error}): give the config.json of a model.") from error
    if settings is None:
        raise InputError(f"{name} holds null: give the config.json of a model.")
    return settings


def settings_text(source: str | Path) -> tuple[str, str] | None:
    """Where the settings of a model lie, and their text; None where there are none. Raises InputError for no text."""
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    found = path if path.is_file() else cached_config(str(source))
    if found is None:
        return None
    try:
        return str(found), found.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
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


def shape_from_config(config: Mapping[str, Any]) -> DecoderShape:
    """The shape that the settings in a config.json describe, with its family's defaults for what is left out.

    Raises InputError for a family that is not covered, and for settings that are none.
    """
    if not isinstance(config, Mapping):
        raise InputError("A config.json holds an object with a model's settings; this one does not.")
    family = config.get("model_type", "")
    if isinstance(config.get("text_config"), Mapping) and isinstance(family, str) and family in SEEING:
        config = {"model_type": SEEING[family]} | dict(config["text_config"])
        family = config["model_type"]
    if isinstance(family, str) and family in NOT_COVERED:
        raise InputError(NOT_COVERED[family])
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"model_type {family!r} is not covered: choose a model of {', '.join(FAMILIES)}.")
    if family in EXPERTS and "num_local_experts" in config:  # either name stands for the other
        config = {"num_experts": config["num_local_experts"]} | dict(config)
    config = completed(config, family)
    if missing := [key for key in NEEDED.values() if type(config.get(key)) is not int]:
        raise InputError(f"config.json gives no whole number for {', '.join(missing)}: give a model's whole settings.")
    for name, key in NEEDED.items():
        most = MOST.get(name, MOST_WIDE)
        if not 1 <= config[key] <= most:
            raise InputError(f"config.json gives {key} as {config[key]}: it is a whole number from 1 to {most:,}.")
    window = sliding_window(config, family)
    return DecoderShape(
        **({name: config[key] for name, key in NEEDED.items()} | traits_in(config, family)),
        kv_heads=whole_number(config, "num_key_value_heads") or config["num_attention_heads"],
        head_dim=whole_number(config, "head_dim") or (256 if family.startswith("gemma") else 0),
        family=family,
        window=window,
        sliding=tuple(sliding_layers(config, family, window)),
        context=whole_number(config, "max_position_embeddings"),
    )


def traits_in(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """What sets a model's layers apart: its family's traits, and what the settings say of biases, ties and caps."""
    traits, biases = dict(FAMILIES[family]), flag(config, "attention_bias")
    caps = {"capped_scores": "attn_logit_softcapping", "capped_logits": "final_logit_softcapping"}
    if family in EXPERTS:
        traits |= experts_in(config, family)
    if family == "phi3":
        traits["rotary"] = rotary_width(config)
    return traits | {
        "qkv_bias": traits.get("qkv_bias", False) or biases,
        "out_bias": biases,
        "mlp_bias": flag(config, "mlp_bias"),
        "tied": flag(config, "tie_word_embeddings", traits.get("tied", False)),
        **{name: config.get(key, 1.0) is not None for name, key in caps.items() if traits.get(name)},
    }


def experts_in(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """How many experts a layer has, and a token goes through. Raises InputError where only some layers have any."""
    keys = EXPERTS[family]
    if missing := [keys[name] for name in ("experts", "chosen") if not whole_number(config, keys[name])]:
        raise InputError(f"config.json gives no {', '.join(missing)}: give a model's whole settings.")
    if config.get("mlp_only_layers") or (whole_number(config, "decoder_sparse_step") or 1) != 1:
        raise InputError("Some of this model's layers have no experts, which is not covered: choose another model.")
    found: dict[str, Any] = {name: whole_number(config, keys[name]) for name in keys}
    if family == "qwen3_moe":
        found["rescaled"] = flag(config, "norm_topk_prob")
    return found


def rotary_width(config: Mapping[str, Any]) -> int:
    """How much of a head's width is rotated, 0 for all of it: as the settings of transformers 4 or 5 say it."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(said, Mapping):
        raise InputError(
            f"config.json gives rope_parameters or rope_scaling as {said!r}: it is an object, or not there."
        )
    share = said.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError(f"config.json gives partial_rotary_factor as {share!r}: it is a share of a head's width.")
    width = whole_number(config, "head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(width * share) if share < 1 else 0


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A setting that is true or false; the default where there is none. Raises InputError for anything else."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"config.json gives {key} as {value!r}: it is true or false.")
    return default if value is None else value


def whole_number(config: Mapping[str, Any], key: str) -> int:
    """A setting that is a whole number; 0 where there is none. Raises InputError for anything else."""
    value = config.get(key)
    if value is not None and (type(value) is not int or value < 0):
        raise InputError(f"config.json gives {key} as {value!r}: it is a whole number, not below 0.")
    return value or 0


def sliding_window(config: Mapping[str, Any], family: str) -> int:
    """Tokens that sliding attention sees; 0 where it is off."""
    if family in ("qwen2", "qwen3", "qwen3_moe", "smollm3") and not flag(config, "use_sliding_window"):
        return 0
    return whole_number(config, "sliding_window")


def sliding_layers(config: Mapping[str, Any], family: str, window: int) -> list[bool]:
    """Whether each layer's attention slides: as the settings list it, or by the family's own rule."""
    layers, listed = config["num_hidden_layers"], config.get("layer_types")
    kinds = ("sliding_attention", "full_attention")
    if listed is not None and (not isinstance(listed, list) or [*map(kinds.count, listed)] != [1] * layers):
        raise InputError(f"config.json gives layer_types that are not one of {' or '.join(kinds)} for each layer.")
    if not window:
        return [False] * layers
    if listed:
        return [kind == "sliding_attention" for kind in listed]
    if family.startswith("qwen"):
        return [index >= config.get("max_window_layers", 0) for index in range(layers)]
    return [*sliding_by_rule(family, layers, config.get("sliding_window_pattern") or 6)]


def as_config(shape: DecoderShape) -> Any:
    """transformers' configuration of a model of this shape."""
    from transformers import AutoConfig

    given: dict[str, Any] = {key: getattr(shape, name) for name, key in NEEDED.items()} | {
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied,
        "attention_bias": shape.out_bias,
        "sliding_window": shape.window or None,
    }
    if shape.context:
        given["max_position_embeddings"] = shape.context
    if shape.family in ("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "ministral"):
        given["layer_types"] = ["sliding_attention" if one else "full_attention" for one in shape.sliding]
        given["use_sliding_window"] = shape.window > 0
    if shape.mlp_bias:
        given["mlp_bias"] = True
    if shape.experts:
        given |= {key: getattr(shape, name) for name, key in EXPERTS[shape.family].items()}
    if shape.family == "qwen3_moe":
        given |= {"norm_topk_prob": shape.rescaled, "use_sliding_window": shape.window > 0}
    if shape.rotary:
        given["rope_parameters"] = {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": shape.rotary / shape.head_dim,
        }  # fmt: skip
    if shape.family == "gemma2":
        given["attn_logit_softcapping"] = 50.0 if shape.capped_scores else None
        given["final_logit_softcapping"] = 30.0 if shape.capped_logits else None
    return AutoConfig.for_model(shape.family, pad_token_id=0, bos_token_id=1, eos_token_id=2, **given)
