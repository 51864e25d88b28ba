"""A model with a method as the loop computes it: what was trained, hidden states, and what stands before every row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from peftbook.core.errors import InputError
from peftbook.methods import Method
from peftbook.methods.from_peft import CACHED

SHORT_TOKENS = 128
FUSED_TOKENS = 384  # of a packed row: above it fused attention, slower to go back through, which keeps no scores


def apply_method(model: nn.Module, method: Method, seed: int, tokenizer=None) -> nn.Module:
    """Make the method's parameters and freeze everything else. The seed fixes their initial values.

    Raises InputError where some of them would be trained in bfloat16, which rounds most of their steps away.
    """
    torch.manual_seed(seed)
    tuned = method.apply(model, seed, tokenizer)
    if method.trains and any(value.dtype == torch.bfloat16 for value in trainable_state(tuned).values()):
        raise InputError(f"{method.label} trains values in bfloat16 over weights of that type: choose weights 'fp32'.")
    return tuned


@contextlib.contextmanager
def checkpointed_layers(model: nn.Module) -> Iterator[None]:
    """Inside, training keeps only each decoder layer's input and recomputes the rest in the backward pass.

    The arithmetic is the same. Checkpointed layers take no cache, so tokens that all rows share run once per row.
    Raises InputError for a prefix and for a model without checkpointing.
    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    if prompt_method(model) in CACHED:
        raise InputError("transformers drops a prefix where layers are checkpointed: choose no checkpointing.")
    base: Any = causal_model(model)
    try:
        base.activation_checkpointing_enable()
    except ValueError as error:
        raise InputError(f"{str(error).rstrip('.')}: choose no checkpointing.") from error
    try:
        yield
    finally:
        base.activation_checkpointing_disable()
        base.disable_input_require_grads()


def is_checkpointed(model: nn.Module) -> bool:
    """Whether the next backward pass recomputes this model's layers.

    Reads the flag of the first module that has one: all are switched together, and transformers' own property asks
    every module.
    """
    base = causal_model(model)
    first = next((part for part in base.modules() if hasattr(part, "gradient_checkpointing")), None)
    return base.training and torch.is_grad_enabled() and bool(getattr(first, "gradient_checkpointing", False))


def causal_model(model: nn.Module) -> nn.Module:
    """The causal language model inside peft's wrapper (the model itself when there is none)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: nn.Module, input_ids: torch.Tensor, shared: int = 0) -> torch.Tensor:
    """Last hidden states (batch, tokens − shared, d) of the real tokens after the first `shared`.

    shared: leading ids that are the same in every row. They run once, at batch 1, and every row attends to their
    keys and values: attention is causal, so this changes nothing but the cost. Right padding needs no mask, because
    the loss never reads a padded position. Checkpointed layers share nothing, and a soft prompt precedes every row.
    """
    base = causal_model(model)
    choose_attention(base, input_ids)
    if is_checkpointed(model) and (soft := soft_prompt(model)) is not None:
        embedded = base.get_input_embeddings()(input_ids)
        before = soft[None].to(embedded.dtype).expand(len(input_ids), -1, -1)
        states = base.model(inputs_embeds=torch.cat([before, embedded], dim=1), use_cache=False).last_hidden_state
        return states[:, len(soft) :]
    cache = start_cache(model, input_ids[:1, :shared], len(input_ids))
    rest = input_ids[:, shared:]
    return base.model(input_ids=rest, cache=cache, use_cache=cache is not None).last_hidden_state


def start_cache(model: nn.Module, shared: torch.Tensor, rows: int) -> Any | None:
    """Keys and values of what stands before every row: the learned prefix or soft prompt, then the shared ids.

    shared: (1, tokens), may be empty. Returns a cache for `rows` rows, or None where nothing stands before them.
    """
    base, cache = causal_model(model), prefix_cache(model)
    soft = soft_prompt(model)
    if shared.shape[1] or soft is not None:
        embed = base.get_input_embeddings()
        parts = [] if soft is None else [soft[None].to(embed.weight.dtype)]
        parts.append(embed(shared))
        cache = base.model(inputs_embeds=torch.cat(parts, dim=1), cache=cache, use_cache=True).cache
    if cache is not None:
        cache.batch_repeat_interleave(rows)
    return cache


def prefix_cache(model: nn.Module) -> Any | None:
    """The trained keys and values before all layers as a cache of one row, or None for other methods."""
    if prompt_method(model) not in CACHED:
        return None
    from transformers import DynamicCache

    base: Any = causal_model(model)
    config, rows = base.config, virtual_rows(model).to(base.get_input_embeddings().weight.dtype)
    heads = config.num_key_value_heads
    layers = rows.view(len(rows), config.num_hidden_layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    cache = DynamicCache(config=config)
    for index, (keys, values) in enumerate(layers):
        cache.update(keys[None], values[None], index)
    return cache


def soft_prompt(model: nn.Module) -> torch.Tensor | None:
    """The trained virtual tokens (length, d) before the embedded text, or None for other methods."""
    name = prompt_method(model)
    return virtual_rows(model) if name and name not in CACHED else None


def prompt_method(model: Any) -> str:
    """peft's name of the method if it has virtual tokens, else empty."""
    config = getattr(model, "active_peft_config", None)
    return config.peft_type.value if config is not None and config.is_prompt_learning else ""


def virtual_rows(model: Any) -> torch.Tensor:
    """What peft's encoder of virtual tokens makes of them, a row each."""
    encoder = model.prompt_encoder["default"]
    tokens = model.prompt_tokens["default"][: model.active_peft_config.num_virtual_tokens]
    return encoder(tokens.to(encoder.embedding.weight.device)[None])[0]


def choose_attention(base: nn.Module, input_ids: torch.Tensor) -> None:
    """Plain attention for short rows on a CPU, where torch's fused kernel has a slow backward; else the fused one."""
    wanted = "eager" if input_ids.device.type == "cpu" and input_ids.shape[1] <= SHORT_TOKENS else "sdpa"
    if base.config._attn_implementation != wanted:
        base.set_attn_implementation(wanted)


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name → trainable tensor, in the model's order: what a checkpoint holds and the optimiser moves."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
