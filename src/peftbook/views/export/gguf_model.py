"""A model as a GGUF file, which llama.cpp serves: of its architecture `llama`, that of Llama and Mistral.

llama.cpp turns neighbouring coordinates of a head together, transformers the two halves, so that the rows of query and
key matrices stand in another order there.
Source: llama.cpp, conversion/llama.py.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from peftbook.core import specs
from peftbook.core.base_models import in_folder
from peftbook.core.errors import InputError
from peftbook.core.folders import check_free
from peftbook.training.models import Loaded, check_reachable, load_model, resolve
from peftbook.training.products import TORCH_DTYPES
from peftbook.views.export.gguf_tokenizer import add_tokenizer

ARCHITECTURES = ("llama", "mistral")
ROPES = ("default", "linear", "llama3")
TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # what GGUF and safetensors call them
FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
CONVERTER = "llama.cpp's own convert_hf_to_gguf.py and convert_lora_to_gguf.py know more"


class Written(NamedTuple):
    """What a new file holds: so many tensors, in so many bytes."""

    tensors: int
    file_bytes: int


def base_config(model: specs.Model) -> Any:
    """A model's configuration, read alone. Raises InputError if there is none, or if it cannot be written here."""
    source, revision = resolve(model)
    check_reachable(model)
    try:
        config = AutoConfig.from_pretrained(source, **({"revision": revision} if revision else {}))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"Model {model.name!r} has no readable configuration ({reason}): check the name.") from None
    check_architecture(config, model.name)
    return config


def load_base(model: specs.Model) -> Loaded:
    """A model in float32, once its configuration says that it can be written. Raises InputError for others."""
    base_config(model)
    return load_model(model)


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


def write_file(writer: gguf.GGUFWriter, target: Path, tensors: Mapping[str, Tensor], dtype: str) -> Written:
    """Header and tensors, one after the other in memory, aside and renamed: nothing is left half-written."""
    types = {name: dtype if value.dim() > 1 else "fp32" for name, value in tensors.items()}
    for name, value in tensors.items():
        size, kind = value.numel() * TORCH_DTYPES[types[name]].itemsize, gguf.GGMLQuantizationType[TYPES[types[name]]]
        writer.add_tensor_info(name, value.shape, np.dtype(np.float32), size, raw_dtype=kind)
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


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file beside the target, which becomes it at the end. Raises InputError if there is one already."""
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
