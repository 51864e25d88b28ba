"""LoRA adapters as GGUF files, and adapters of every kind merged into their base.

llama.cpp scales the factors of a matrix by alpha / rank, with one alpha for all and the rank read off the tensor. So
rsLoRA's factor and patterns of ranks are written as the alpha, and where that is not enough the B, that give them.
Source: llama.cpp, convert_lora_to_gguf.py and src/llama-adapter.h.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from peftbook.core import specs
from peftbook.core.base_models import check_model, model_named
from peftbook.core.errors import InputError
from peftbook.scratch.codebooks import quantise_dense
from peftbook.training.models import Loaded
from peftbook.views.export import PLAIN_STARTS
from peftbook.views.export.gguf_model import (
    FILE_TYPES,
    Written,
    base_config,
    gguf_name,
    in_order,
    load_base,
    plain_name,
    write_file,
)

FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def adapter_folder(folder: Path) -> Path:
    """The folder of an adapter: this one, or `adapter` in what `peftbook train` wrote. Raises InputError for others."""
    for place in (folder, folder / "adapter"):
        if (place / "adapter_config.json").is_file():
            if not (place / "adapter_model.safetensors").is_file():
                raise InputError(
                    f"Adapter {str(place)!r} has no adapter_model.safetensors: save it as safetensors, pickle is never "
                    "loaded."
                )
            return place
    whole = any((place / "config.json").is_file() for place in (folder, folder / "adapter"))
    hint = (
        "a whole model, with its tokenizer, is named by --model"
        if whole
        else "name one that peft's save_pretrained wrote"
    )
    raise InputError(f"Folder {str(folder)!r} has no adapter_config.json: {hint}.")


def read_config(folder: Path) -> Any:
    """peft's configuration of an adapter. Raises InputError for one that peft cannot read."""
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"peft cannot read the adapter_config.json in {str(folder)!r} ({error}): save it again."
        ) from error


def base_of(folder: Path) -> specs.Model:
    """The model that an adapter names as its base, or the run that trained it. Raises InputError where it is not here
    or was changed since.
    """
    if (run := folder / "run.json").is_file():
        check_model(model := specs.Run.model_validate_json(run.read_text(encoding="utf-8")).model)
        return model
    config = read_config(folder)
    named = config.base_model_name_or_path
    named = f"{named}@{config.revision}" if named and config.revision else named
    if named:
        with contextlib.suppress(InputError):
            return model_named(named)
    raise InputError(
        f"The adapter in {str(folder)!r} names the base {named!r}, which is not here: name its base with --model."
    )


def merge(folder: Path, model: specs.Model, rounded: str = "") -> Loaded:
    """The base with what an adapter learned in its weights, summed in float32.

    rounded: the base's matrices are replaced by the values of this 4-bit type first, over which QLoRA trained.
    Raises InputError for an adapter that is no part of the weights, and for one of another model.
    """
    from peft import PeftModel

    config = read_config(folder)
    if config.is_prompt_learning:
        raise InputError(
            f"What {config.peft_type.value} trains stands before the text and is no part of the weights, so that GGUF "
            "has no place for it: serve it with peft, or train LoRA."
        )
    loaded = load_base(model)
    check_tied(loaded.model.config, read_tensors(folder))
    if rounded:
        with torch.no_grad():
            quantise_dense(loaded.model, rounded)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            tuned: Any = PeftModel.from_pretrained(loaded.model, str(folder))
        return Loaded(tuned.eval().merge_and_unload(), loaded.tokenizer)
    except (UserWarning, NotImplementedError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(
            f"Adapter {str(folder)!r} cannot be merged into {model.name!r} ({reason}): name its base with --model."
        ) from error


def write_adapter(folder: Path, target: Path, dtype: str, model: specs.Model) -> Written:
    """A LoRA adapter alone, to be served beside a GGUF file of its base; matrices in dtype.

    Raises InputError for an existing file, and for an adapter that llama.cpp could not compute with.
    """
    base = base_config(model)
    config = read_config(folder)
    check_adapter(config)
    tensors = read_tensors(folder)
    check_tied(base, tensors)
    factors = factors_of(tensors, config, base)
    alpha = max(factor.gamma * len(factor.A) for factor in factors.values()) or 1.0
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(f"LoRA for {plain_name(model)}")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, plain_name(model))
    if model.revision:
        writer.add_base_model_version(0, model.revision)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    return write_file(writer, target, adapter_tensors(factors, base, alpha), dtype)


class Factor(NamedTuple):
    """LoRA of one matrix, W + gamma B A: A is (rank, d_in), B is (d_out, rank)."""

    A: Tensor
    B: Tensor
    gamma: float


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """What peft saved. Raises InputError for a file that cannot be read."""
    file = folder / "adapter_model.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({error}): save the adapter again.") from None


def factors_of(tensors: Mapping[str, Tensor], config: Any, base: Any) -> dict[str, Factor]:
    """Matrix of the base → its factors and what peft multiplies them by. Raises InputError if they are of another base.

    peft says the scale itself, of a model without memory: it depends on rsLoRA and on patterns of ranks and alphas.
    """
    from peft import get_peft_model

    pairs: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.endswith(".base_layer.weight"):  # the base's own matrix, which peft saves beside factors of a head
            continue
        if (match := FACTOR.fullmatch(name)) is None:
            raise InputError(
                f"The adapter holds {name!r}, and a GGUF adapter holds factors of linear layers alone: add --merged."
            )
        pairs.setdefault(match[1], {})[match[2]] = value.float()
    config.init_lora_weights, config.base_model_name_or_path = False, None  # what peft would draw, and compare
    with torch.device("meta"):
        layers = dict(get_peft_model(AutoModelForCausalLM.from_config(base), config).get_base_model().named_modules())
    factors = {}
    for name, pair in pairs.items():
        layer: Any = layers.get(name)
        fits = pair.keys() == {"A", "B"} and hasattr(layer, "scaling")
        if not fits or any(pair[side].shape != getattr(layer, f"lora_{side}")["default"].weight.shape for side in "AB"):
            raise InputError(
                f"The adapter's {name!r} is no matrix of this base, or has another shape: name its base with --model."
            )
        if layer.lora_variant:
            kind = type(layer.lora_variant["default"]).__name__
            raise InputError(
                f"The adapter is more than factors ({kind}), which a GGUF adapter cannot be: add --merged."
            )
        factors[name] = Factor(pair["A"], pair["B"], layer.scaling["default"])
    if not factors:
        raise InputError("The adapter holds no tensors: train it first.")
    return factors


def adapter_tensors(factors: Mapping[str, Factor], base: Any, alpha: float) -> dict[str, Tensor]:
    """Names and values in the file; what a factor's scale differs from alpha / rank by is multiplied into its B."""
    tensors = {}
    for name, (A, B, gamma) in factors.items():
        place = gguf_name(f"{name}.weight", base)
        tensors[f"{place}.lora_a"] = A
        tensors[f"{place}.lora_b"] = in_order(f"{name}.weight", B, base) * (gamma * len(A) / alpha)
    return tensors


def check_adapter(config: Any) -> None:
    """Raises InputError for an adapter that is more than factors beside linear layers of the plain base."""
    kind = config.peft_type.value
    if config.is_prompt_learning:
        raise InputError(f"{kind} is no LoRA, and llama.cpp has no place for it: serve it with peft, or train LoRA.")
    if kind != "LORA":
        raise InputError(f"{kind} is no LoRA, which is all that a GGUF adapter can hold: add --merged.")
    if config.use_dora:
        raise InputError("DoRA's magnitudes have no place in a GGUF adapter: add --merged.")
    if config.modules_to_save:
        names = ", ".join(config.modules_to_save)
        raise InputError(f"The adapter replaces {names} (modules_to_save), a GGUF adapter cannot: add --merged.")
    if config.init_lora_weights not in PLAIN_STARTS:
        raise InputError(
            f"An adapter that starts at {config.init_lora_weights!r} takes its start out of the base, which a served "
            "base does not: add --merged, or convert it with peft's path_initial_model_for_weight_conversion."
        )
    if config.layer_replication:
        raise InputError(
            "The adapter repeats layers of its base (layer_replication), which a GGUF adapter cannot: add --merged."
        )


def check_tied(base: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raises InputError for factors of a head or an embedding where the two are one matrix in the file."""
    ends = [name for name in tensors if re.search(r"\.(lm_head|embed_tokens)\.lora_", name)]
    if base.tie_word_embeddings and ends:
        raise InputError(
            f"The adapter changes {ends[0]!r}, and embedding and head of this base are one matrix: untie them first."
        )
