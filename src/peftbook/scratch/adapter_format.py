"""The adapter folder that peft reads and writes: adapter_model.safetensors beside adapter_config.json."""

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from peftbook.scratch.lora import LoRALinear, load_lora_state, lora_state, replace_module

PREFIX = "base_model.model."  # peft wraps the model twice: PeftModel.base_model (LoraModel) .model

# Each of these makes peft compute something other than h = W x + b + (alpha / r) B A x with the weights it finds.
UNSUPPORTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
    "use_rslora",
)


def export_lora(model: nn.Module, folder: Path, base_name: str = "") -> None:
    """Write the model's LoRA layers as a peft adapter.

    base_name: the base model's name or path, for the reader of the file. Raises ValueError without LoRA layers, or
    if they differ in rank or alpha.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    settings = {(layer.rank, layer.alpha) for layer in layers.values()}
    if len(settings) != 1:
        raise ValueError(f"one (rank, alpha) is needed for all LoRA layers, found {sorted(settings) or 'no layer'}.")
    ((rank, alpha),) = settings
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(layers),  # full names: a last part alone would also match layers that have no LoRA
        "base_model_name_or_path": base_name,
    }
    tensors = {f"{PREFIX}{name[:-1]}lora_{name[-1]}.weight": t.contiguous() for name, t in lora_state(model).items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(tensors, Path(folder) / "adapter_model.safetensors")


def load_lora(model: nn.Module, folder: Path) -> list[str]:
    """Freeze the model, put a peft LoRA adapter on its linear layers and return their full names.

    Raises ValueError if the adapter is not plain LoRA on linear layers of this model.
    """
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    state, others = {}, []
    for key, tensor in tensors.items():
        # "base_model.model.layers.0.q_proj.lora_A.weight" is A of "layers.0.q_proj"
        if match := re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", key):
            state[f"{match[1]}.{match[2]}"] = tensor
        else:
            others.append(key)
    _require_plain(config, others)
    names = sorted({key[:-2] for key in state})
    layers: dict = dict(model.named_modules())
    if missing := set(names) - layers.keys():
        raise ValueError(f"the model has no layer {sorted(missing)[0]}: the adapter belongs to another model.")
    model.requires_grad_(False)
    for name in names:
        replace_module(model, name, LoRALinear(layers[name], config["r"], config["lora_alpha"]))
    load_lora_state(model, state)
    return names


def _require_plain(config: dict, others: list[str]) -> None:
    if config["peft_type"] != "LORA" or config.get("bias", "none") != "none":
        raise ValueError(f"found peft_type {config['peft_type']}, bias {config.get('bias')}: need LORA, none.")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):  # PiSSA and others change W as well
        raise ValueError(f"init_lora_weights {config['init_lora_weights']} may need another base weight.")
    if used := [key for key in UNSUPPORTED if config.get(key)] + others:
        raise ValueError(f"the adapter uses {', '.join(used)}, which LoRALinear does not compute.")
