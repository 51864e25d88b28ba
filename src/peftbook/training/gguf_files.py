"""Models and LoRA adapters as GGUF files, which llama.cpp serves: its architecture `llama`, that of Llama and Mistral.

Two things differ from the files of transformers and peft. llama.cpp turns neighbouring coordinates of a head together,
transformers the two halves, so that the rows of query and key matrices are put in another order. And llama.cpp scales
every matrix of an adapter by alpha / rank with one alpha for all, so that rsLoRA's factor and patterns of ranks are
written as the alpha that gives their factor.
Source: llama.cpp, conversion/llama.py, convert_lora_to_gguf.py and src/llama-adapter.h.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from peftbook import specs
from peftbook.base_models import in_folder, model_named
from peftbook.errors import InputError
from peftbook.scratch.codebooks import quantise_dense
from peftbook.training.gguf_tokenizer import add_tokenizer
from peftbook.training.models import Loaded, load_model, resolve
from peftbook.training.products import TORCH_DTYPES

__all__ = ["Written", "adapter_folder", "base_of", "check_new", "merge", "write_adapter", "write_model"]

ARCHITECTURES = ("llama", "mistral")
ROPES = ("default", "linear", "llama3")
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # peft's others move what they start at out of the base
RAW_TYPES = {
    "fp32": gguf.GGMLQuantizationType.F32,
    "fp16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}
FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
CONVERTER = "llama.cpp's own convert_hf_to_gguf.py and convert_lora_to_gguf.py know more"
FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


class Written(NamedTuple):
    """What a new file holds: so many tensors, in so many bytes."""

    tensors: int
    file_bytes: int


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
    hint = "a whole model is named by --model" if whole else "name one that peft's save_pretrained wrote"
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
    """The model that an adapter names as its base. Raises InputError where it is not here."""
    named = read_config(folder).base_model_name_or_path
    try:
        return model_named(named or "")
    except (InputError, IndexError):
        raise InputError(
            f"The adapter in {str(folder)!r} names the base {named!r}, which is not here: name its base with --model."
        ) from None


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
    loaded = load_model(model)
    check_architecture(loaded.model.config, model.name)
    check_tied(loaded.model.config, config.target_modules or ())
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


def write_model(loaded: Loaded, target: Path, dtype: str, model: specs.Model) -> Written:
    """A whole model with its tokenizer and chat template; matrices in dtype, norms in float32.

    Raises InputError for an existing file, for a model of another architecture, and for values that dtype cannot hold.
    """
    config: Any = loaded.model.config
    check_architecture(config, model.name)
    writer = gguf.GGUFWriter(None, "llama")
    describe_model(writer, config, model, dtype)
    add_tokenizer(writer, loaded.tokenizer, config.vocab_size)
    return write_file(writer, target, model_tensors(loaded.model), dtype)


def write_adapter(folder: Path, target: Path, dtype: str, model: specs.Model) -> Written:
    """A LoRA adapter alone, to be served beside a GGUF file of its base; matrices in dtype.

    Raises InputError for an existing file, and for an adapter that llama.cpp could not compute with.
    """
    source, revision = resolve(model)
    try:
        base = AutoConfig.from_pretrained(source, **({"revision": revision} if revision else {}))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"Model {model.name!r} has no readable configuration ({reason}): check the name.") from None
    check_architecture(base, model.name)
    config = read_config(folder)
    check_adapter(config)
    check_tied(base, config.target_modules)
    factors = read_factors(folder, config, base)
    alpha = max(factor.gamma * len(factor.A) for factor in factors.values())
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


def read_factors(folder: Path, config: Any, base: Any) -> dict[str, Factor]:
    """Matrix of the base → its factors and what peft multiplies them by. Raises InputError if they are of another base.

    peft says the scale itself, of a model without memory: it depends on rsLoRA and on patterns of ranks and alphas.
    """
    from peft import get_peft_model

    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        found = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{str(folder / 'adapter_model.safetensors')!r} cannot be read ({error}): save it again."
        ) from None
    for name, value in found.items():
        if name.endswith(".base_layer.weight"):  # the base's own matrix, which peft saves beside factors of a head
            continue
        if (match := FACTOR.fullmatch(name)) is None:
            raise InputError(
                f"The adapter holds {name!r}, and a GGUF adapter holds factors of linear layers alone: add --merged."
            )
        tensors.setdefault(match[1], {})[match[2]] = value.float()
    config.init_lora_weights, config.base_model_name_or_path = False, None  # what peft would draw, and compare
    with torch.device("meta"):
        layers = dict(get_peft_model(AutoModelForCausalLM.from_config(base), config).get_base_model().named_modules())
    factors = {}
    for name, pair in tensors.items():
        layer: Any = layers.get(name)
        fits = pair.keys() == {"A", "B"} and hasattr(layer, "scaling")
        if not fits or any(pair[side].shape != getattr(layer, f"lora_{side}")["default"].weight.shape for side in "AB"):
            raise InputError(
                f"The adapter's {name!r} is no matrix of this base, or has another shape: name its base with --model."
            )
        factors[name] = Factor(pair["A"], pair["B"], layer.scaling["default"])
    if not factors:
        raise InputError(f"The adapter in {str(folder)!r} holds no tensors: train it first.")
    return factors


def adapter_tensors(factors: Mapping[str, Factor], base: Any, alpha: float) -> dict[str, Tensor]:
    """Names and values in the file; what a factor's scale differs from alpha / rank by is multiplied into its B."""
    tensors = {}
    for name, (A, B, gamma) in factors.items():
        place = gguf_name(f"{name}.weight", base)
        tensors[f"{place}.lora_a"] = A
        tensors[f"{place}.lora_b"] = in_order(f"{name}.weight", B, base) * (gamma * len(A) / alpha)
    return tensors


def model_tensors(model: Any) -> dict[str, Tensor]:
    """Names and values in the file; a head that is the embedding is not repeated.

    Positions that are not turned at the plain rates have their divisors in `rope_freqs.weight`.
    """
    state, config = model.state_dict(), model.config
    if state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr():
        del state["lm_head.weight"]
    tensors = {gguf_name(name, config): in_order(name, value, config) for name, value in state.items()}
    width, theta = config.head_dim, config.rope_parameters["rope_theta"]
    plain = 1 / theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    divisors = plain / model.model.rotary_emb.inv_freq.double()
    if not torch.allclose(divisors, torch.ones_like(divisors), rtol=1e-5):
        tensors["rope_freqs.weight"] = divisors.float()
    return tensors


def gguf_name(name: str, config: Any) -> str:
    """What llama.cpp calls a tensor of transformers. Raises InputError for one that its llama has not."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found = names.get_name(name, try_suffixes=(".weight",))
    if found is None:
        raise InputError(f"Tensor {name!r} is none of llama.cpp's architecture llama: {CONVERTER}.")
    return found


def in_order(name: str, value: Tensor, config: Any) -> Tensor:
    """The rows of a query or key matrix as llama.cpp wants them; other tensors as they are."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    return interleaved(value, heads[part]) if part in heads else value


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows 0, 1, …, d − 1 of each head as 0, d/2, 1, d/2 + 1, …: coordinates that are turned together lie together."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def describe_model(writer: gguf.GGUFWriter, config: Any, model: specs.Model, dtype: str) -> None:
    """The shape and what else llama.cpp must know. A window of attention is the longest context."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(plain_name(model))
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(config.max_position_embeddings, getattr(config, "sliding_window", None) or math.inf))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def plain_name(model: specs.Model) -> str:
    """A model's name without the folders of this machine."""
    return Path(model.name).name if in_folder(model) else model.name


def check_architecture(config: Any, name: str) -> None:
    """Raises InputError for a model that is not llama.cpp's llama as it is written here."""
    what = ""
    if config.model_type not in ARCHITECTURES:
        what = f"is of architecture {config.model_type!r}, not {' or '.join(ARCHITECTURES)}"
    elif (rope := config.rope_parameters["rope_type"]) not in ROPES:
        what = f"turns positions by {rope!r}, not by {', '.join(ROPES)}"
    elif getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        what = "has biases"
    elif config.hidden_act != "silu":
        what = f"has the activation {config.hidden_act!r}, not 'silu'"
    if what:
        raise InputError(f"Model {name!r} {what}, and is not exported here: {CONVERTER}.")


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


def check_tied(base: Any, targets: Any) -> None:
    """Raises InputError for factors of a head or an embedding where the two are one matrix in the file."""
    ends = ({targets} if isinstance(targets, str) else set(targets)) & {"lm_head", "embed_tokens"}
    if base.tie_word_embeddings and ends:
        raise InputError(
            f"The adapter changes {ends.pop()!r}, and embedding and head of this base are one matrix: untie them first."
        )


def write_file(writer: gguf.GGUFWriter, target: Path, tensors: Mapping[str, Tensor], dtype: str) -> Written:
    """Header and tensors, one after the other in memory, aside and renamed: nothing is left half-written."""
    types = {name: dtype if value.dim() > 1 else "fp32" for name, value in tensors.items()}
    for name, value in tensors.items():
        size = value.numel() * TORCH_DTYPES[types[name]].itemsize
        writer.add_tensor_info(name, value.shape, np.dtype(np.float32), size, raw_dtype=RAW_TYPES[types[name]])
    with new_file(target) as aside, contextlib.closing(writer):
        writer.open_output_file(aside)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, value in tensors.items():
            writer.write_tensor_data(as_array(name, value, types[name]))
    return Written(len(tensors), target.stat().st_size)


def as_array(name: str, value: Tensor, dtype: str) -> np.ndarray:
    """Values as they lie in a file; bfloat16, which numpy lacks, as its bits. Raises InputError if one is too large."""
    cast = value.detach().to(TORCH_DTYPES[dtype]).contiguous()
    if not torch.isfinite(cast).all():
        raise InputError(f"Tensor {name!r} holds a value that {dtype} cannot: choose --dtype bf16 or fp32.")
    return (cast.view(torch.int16) if dtype == "bf16" else cast).numpy()


def check_new(target: Path) -> None:
    """Raises InputError for a file that exists, before anything is loaded for it."""
    if target.exists():
        raise InputError(f"File {str(target)!r} exists: name a new one, results are never overwritten.")


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file beside the target, which becomes it at the end. Raises InputError if there is one already."""
    check_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
