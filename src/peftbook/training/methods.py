"""Methods: from a loaded model and a spec to a model whose trainable parameters are exactly the method's."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from peftbook import specs
from peftbook.errors import InputError

__all__ = ["apply_method", "causal_model", "hidden_states", "trainable_state"]

COMMON_TOKENS = 5000


def apply_method(model: nn.Module, method: specs.Spec, seed: int, tokenizer=None) -> nn.Module:
    """Make the method's parameters and freeze everything else. The seed fixes their initial values."""
    torch.manual_seed(seed)
    if isinstance(method, specs.Untuned):
        return model.requires_grad_(False)
    if isinstance(method, specs.Full):
        return model.requires_grad_(True)
    if isinstance(method, specs.LoRA):
        return apply_lora(model, method)
    if isinstance(method, specs.PromptTuning):
        return apply_prompt(model, method, seed, tokenizer)
    raise InputError(f"Method {method!r} cannot be trained: choose one of {', '.join(specs.METHODS)}.")


def apply_lora(model: nn.Module, method: specs.LoRA) -> nn.Module:
    """LoRA through peft, on a dense or a 4-bit base; adapters in float32, the base frozen.

    peft's `prepare_model_for_kbit_training` is not used: it copies norms, embedding and head to float32 (they are
    float32 here already) and turns on gradient checkpointing, which no other arm has.
    """
    from peft import LoraConfig, get_peft_model

    check_targets(model, method)
    warn_if_rank_exceeds_width(model, method)
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]
        target_modules=list(method.targets),
        lora_dropout=method.dropout,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def check_targets(model: nn.Module, method: specs.LoRA) -> None:
    """Every target must name a linear layer: peft skips a name that matches nothing as long as another one does."""
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    unknown = [one for one in method.targets if not any(f".{name}".endswith(f".{one}") for name in layers)]
    if unknown or not method.targets:
        names = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise InputError(
            f"LoRA targets {', '.join(unknown) or '()'} match no linear layer of this model: "
            f"choose from {', '.join(names)}."
        )


def warn_if_rank_exceeds_width(model: nn.Module, method: specs.LoRA) -> None:
    """BA cannot have a rank above the layer's smaller side; the run is allowed, the reader is told."""
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


def apply_prompt(model: nn.Module, method: specs.PromptTuning, seed: int, tokenizer) -> nn.Module:
    """Prompt tuning through peft, with the initialisations of Lester et al. 2021, section 3.2, set here.

    random: U(−0.5, 0.5).  vocabulary: embeddings of tokens drawn from the 5,000 most common ones (the lowest ids of
    a byte-pair vocabulary, control tokens left out).  text: embeddings of `init_text`, repeated to the length.
    """
    from peft import PromptTuningConfig, PromptTuningInit, get_peft_model

    config = PromptTuningConfig(
        num_virtual_tokens=method.length, prompt_tuning_init=PromptTuningInit.RANDOM, task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config)
    encoders: Any = tuned.prompt_encoder
    weight = encoders["default"].embedding.weight
    table = model.get_input_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(seed)
    if method.init == "random":
        start = torch.rand(weight.shape, generator=generator) - 0.5
    elif method.init == "vocabulary":
        special = set(tokenizer.all_special_ids)
        common = [token for token in range(min(COMMON_TOKENS + len(special), len(table))) if token not in special]
        chosen = torch.randint(len(common), (method.length,), generator=generator)
        start = table[torch.tensor(common)[chosen]]
    else:
        ids = tokenizer.encode(method.init_text, add_special_tokens=False)
        if not ids:
            raise InputError("Prompt tuning with init = 'text' needs a non-empty init_text.")
        repeats = -(-method.length // len(ids))
        start = table[torch.tensor((ids * repeats)[: method.length])]
    with torch.no_grad():
        weight.copy_(start)
    return tuned


def causal_model(model: nn.Module) -> nn.Module:
    """The causal language model inside peft's wrapper (the model itself when there is none)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states (batch, tokens, d) at the real tokens; a soft prompt is prepended and its positions dropped.

    Right padding needs no mask: attention is causal, and the loss never looks at a padded position.
    """
    base = causal_model(model)
    soft = soft_prompt(model)
    if soft is None:
        return base.model(input_ids=input_ids, use_cache=False).last_hidden_state
    tokens = base.get_input_embeddings()(input_ids)
    prompt = soft.expand(len(input_ids), -1, -1)
    states = base.model(inputs_embeds=torch.cat([prompt, tokens], dim=1), use_cache=False).last_hidden_state
    return states[:, len(soft) :]


def soft_prompt(model: nn.Module) -> torch.Tensor | None:
    """The trained virtual tokens (length, d) of a prompt-tuned model, or None."""
    if not hasattr(model, "active_peft_config") or not model.active_peft_config.is_prompt_learning:
        return None
    encoders: Any = model.prompt_encoder
    return encoders[model.active_adapter].embedding.weight


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name → trainable tensor, in the model's order: what a checkpoint holds and the optimiser moves."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
