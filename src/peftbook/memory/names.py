"""What people call models, matrices, optimisers and attention, and what each is called here.

A model goes by its name in the table of shapes, by an id of the hub (`meta-llama/Llama-3.1-8B-Instruct`), whose owner
and endings do not change its sizes, or by an id whose settings lie in the local cache of the hub.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.memory.setup import METHODS, OPTIMISERS, TARGETS

METHOD_NAMES = {  # and LoRA's variants, see `variant`
    **{name: name for name in METHODS},
    "qlora": "lora",
    "dora": "lora",
    "lora_fa": "lora",
    "lora-fa": "lora",
}
ENDINGS = frozenset(
    {"bnb", "4bit", "unsloth", "instruct", "chat", "it", "base", "hf", "pt", "2507", "thinking", "sft", "dpo"}
)
OPTIMISER_NAMES = {  # transformers' (`OptimizerNames`) and ours
    **{name: name for name in OPTIMISERS},
    "adamw_torch": "adamw_foreach",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
}
ATTENTION = {  # fused kernels keep the same tensors: queries, keys, values, the result and a number a row and head
    "sdpa": "sdpa",
    "flash_attention_2": "flash_attention_2",
    "flash_attention_3": "flash_attention_2",
    "eager": "eager",
}
TARGET_WORDS = {
    "all": TARGETS,
    "all-linear": TARGETS,
    "attention": TARGETS[:4],
    "mlp": TARGETS[4:],
    "qv": ("q_proj", "v_proj"),
}


def meant(what: str, name: str, known: Mapping[str, str]) -> str:
    """What a name stands for. Raises InputError that has the nearest one."""
    if name.lower() in known:
        return known[name.lower()]
    raise InputError(f"{what} {name!r} is not known{nearest(name, known)}: choose one of {', '.join(known)}.")


def variant(name: str) -> dict[str, Any]:
    """The fields of a set-up that make LoRA the variant of this name."""
    return {"dora": name.lower() == "dora", "freeze_a": name.lower() in ("lora_fa", "lora-fa")}


def nearest(name: str, known: Iterable[str]) -> str:
    """`, the nearest name is …`, or nothing where none is near."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f", the nearest name is {near[0]!r}" if near else ""


def plain_name(name: str) -> str:
    """A model's name as the table of shapes has it: no owner, no endings such as `-Instruct` and `-bnb-4bit`.

    Llama's own ids say `Llama-3.1-8B`, `Meta-Llama-3-8B` and `Llama-2-7b-chat-hf`.
    """
    plain = name.lower().partition("@")[0].rpartition("/")[2].replace("_", "-").removeprefix("meta-")
    plain = re.sub(r"^(llama|gemma)(?=\d)", r"\1-", plain)
    return "-".join(part for part in plain.split("-") if part not in ENDINGS)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of an id of the hub: owner/model, with a revision after @ if it has one."""
    return re.fullmatch(r"[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+(@[a-zA-Z0-9_.-]+)?", name) is not None


def cached_config(name: str) -> Path | None:
    """The settings of a model of the hub that an earlier download left on this machine."""
    if not is_hub_id(name) or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = name.partition("@")
    try:
        found = try_to_load_from_cache(name, "config.json", **({"revision": revision} if revision else {}))
    except ValueError:  # no id that the hub would take
        return None
    return Path(found) if isinstance(found, str) else None
