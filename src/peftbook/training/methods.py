"""Methods: from a loaded model and a spec to a model whose trainable parameters are exactly the method's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from peftbook import specs
from peftbook.errors import InputError
from peftbook.scratch.adapter import add_adapters

__all__ = ["apply_method", "causal_model", "hidden_states", "rate_factor", "start_cache", "trainable_state"]

COMMON_TOKENS = 5000
SHORT_TOKENS = 128


def apply_method(model: nn.Module, method: specs.Spec, seed: int, tokenizer=None) -> nn.Module:
    """Make the method's parameters and freeze everything else. The seed fixes their initial values."""
    torch.manual_seed(seed)
    if isinstance(method, specs.Untuned):
        return apply_untuned(model, method)
    if isinstance(method, specs.Full):
        return model.requires_grad_(True)
    if isinstance(method, specs.LoRA):
        return apply_lora(model, method)
    if isinstance(method, specs.PromptTuning):
        return apply_prompt(model, method, seed, tokenizer)
    if isinstance(method, specs.Prefix):
        return apply_prefix(model, method, seed, tokenizer)
    if isinstance(method, specs.Adapter):
        return add_adapters(model.requires_grad_(False), method.width)
    if isinstance(method, specs.IA3):
        return apply_ia3(model)
    if isinstance(method, specs.NormTuning):
        return train_norms(model)
    if isinstance(method, specs.VeRA):
        return apply_vera(model, method, seed)
    raise InputError(f"Method {method!r} cannot be trained: choose one of {', '.join(specs.METHODS)}.")


def apply_untuned(model: nn.Module, method: specs.Untuned) -> nn.Module:
    """Freeze the model; where a 4-bit type is named, every decoder linear holds what its codes stand for."""
    from peftbook.training.quantise import quantise_dense

    model.requires_grad_(False)
    return quantise_dense(model, method.quant) if method.quant else model


def apply_lora(model: nn.Module, method: specs.LoRA) -> nn.Module:
    """LoRA through peft, on a dense or a 4-bit base; adapters in float32, the base frozen.

    peft's `prepare_model_for_kbit_training` is not used: it copies norms, embedding and head to float32 (they are
    float32 here already) and turns on gradient checkpointing, which no other arm has.
    """
    from peft import LoraConfig, get_peft_model

    from peftbook.training.quantise import init_corrected, quantised_by_bitsandbytes, set_lora

    check_targets(model, method)
    warn_if_rank_exceeds_width(model, method)
    starts: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {}
    init = method.init if method.init in ("pissa", "olora") else True
    if isinstance(method, specs.QLoRA) and not quantised_by_bitsandbytes(method):
        starts, init = init_corrected(model, method), True
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]
        target_modules=list(method.targets),
        lora_dropout=method.dropout,
        use_rslora=method.scaling == "rank_stabilized",
        use_dora=method.dora,
        init_lora_weights=init,
        layers_to_transform=list(method.layers) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    set_lora(tuned, starts)
    if method.freeze_a:
        for name, value in tuned.named_parameters():
            if ".lora_A." in name:
                value.requires_grad_(False)
    return tuned


def rate_factor(method: specs.Spec, name: str) -> float:
    """What multiplies the learning rate of the parameter with this name: LoRA+'s ratio for B, else 1."""
    return method.b_rate_ratio if isinstance(method, specs.LoRA) and ".lora_B." in name else 1.0


def apply_vera(model: nn.Module, method: specs.VeRA, seed: int) -> nn.Module:
    """VeRA through peft; the seed also draws the shared random projections."""
    from peft import VeraConfig, get_peft_model

    check_targets(model, method)
    config = VeraConfig(
        r=method.rank, target_modules=list(method.targets), projection_prng_key=seed, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def apply_ia3(model: nn.Module) -> nn.Module:
    """(IA)³ through peft: outputs of k_proj and v_proj, and the input of down_proj, are scaled."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def train_norms(model: nn.Module) -> nn.Module:
    """Train the gains of all RMSNorm or LayerNorm modules and nothing else."""
    model.requires_grad_(False)
    found = [part for part in model.modules() if type(part).__name__.endswith("Norm")]
    if not found:
        raise InputError("This model has no normalisation layers with trained gains: choose another method.")
    for part in found:
        part.requires_grad_(True)
    return model


def check_targets(model: nn.Module, method: specs.LoRA | specs.VeRA) -> None:
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
    weight = virtual_tokens(tuned)
    table = model.get_input_embeddings().weight.detach()
    if method.init == "random":
        start = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    elif method.init == "vocabulary":
        start = table[common_tokens(tokenizer, len(table), method.length, seed)]
    else:
        ids = tokenizer.encode(method.init_text, add_special_tokens=False)
        if not ids:
            raise InputError("Prompt tuning with init = 'text' needs a non-empty init_text.")
        repeats = -(-method.length // len(ids))
        start = table[torch.tensor((ids * repeats)[: method.length])]
    with torch.no_grad():
        weight.copy_(start)
    return tuned


def apply_prefix(model: nn.Module, method: specs.Prefix, seed: int, tokenizer) -> nn.Module:
    """Prefix tuning through peft; keys and values start as those of `length` common tokens in the frozen model.

    peft starts them at N(0, 1), which is far from anything the model has seen; Li and Liang 2021, section 7.4, find
    that real activations start better.
    """
    from peft import PrefixTuningConfig, get_peft_model

    size, base = model.get_input_embeddings().num_embeddings, cast(Any, model)
    ids = common_tokens(tokenizer, size, method.length, seed)
    with torch.no_grad():
        cache = base.model(input_ids=ids[None].to(base.device), use_cache=True).cache
    config = PrefixTuningConfig(num_virtual_tokens=method.length, prefix_projection=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    rows = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
    with torch.no_grad():
        virtual_tokens(tuned).copy_(torch.cat(rows, dim=1))  # (length, layers · 2 · kv heads · head width)
    return tuned


def common_tokens(tokenizer, vocabulary: int, count: int, seed: int) -> torch.Tensor:
    """`count` ids drawn from the 5,000 lowest ones that are not control tokens, (count,)."""
    special = set(tokenizer.all_special_ids)
    common = [token for token in range(min(COMMON_TOKENS + len(special), vocabulary)) if token not in special]
    chosen = torch.randint(len(common), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(common)[chosen]


def causal_model(model: nn.Module) -> nn.Module:
    """The causal language model inside peft's wrapper (the model itself when there is none)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: nn.Module, input_ids: torch.Tensor, shared: int = 0) -> torch.Tensor:
    """Last hidden states (batch, tokens − shared, d) of the real tokens after the first `shared`.

    shared: leading ids that are the same in every row. They run once, at batch 1, and every row attends to their
    keys and values: attention is causal, so this changes nothing but the cost. Right padding needs no mask, because
    the loss never looks at a padded position.
    """
    base = causal_model(model)
    choose_attention(base, input_ids)
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
    """The trained keys and values of prefix tuning as a cache of one row, or None for other methods."""
    if peft_type(model) != "PREFIX_TUNING":
        return None
    from transformers import DynamicCache

    config: Any = causal_model(model).config
    heads = config.num_key_value_heads
    weight = virtual_tokens(model)
    layers = weight.view(len(weight), config.num_hidden_layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    cache = DynamicCache(config=config)
    for index, (keys, values) in enumerate(layers):
        cache.update(keys[None], values[None], index)
    return cache


def choose_attention(base: nn.Module, input_ids: torch.Tensor) -> None:
    """Plain attention for short rows on a CPU, where torch's fused kernel has a slow backward; else the fused one."""
    wanted = "eager" if input_ids.device.type == "cpu" and input_ids.shape[1] <= SHORT_TOKENS else "sdpa"
    if base.config._attn_implementation != wanted:
        base.set_attn_implementation(wanted)


def peft_type(model: nn.Module) -> str:
    """peft's name of the active method, empty for a model that peft did not wrap."""
    return str(model.active_peft_config.peft_type.value) if hasattr(model, "active_peft_config") else ""


def virtual_tokens(model: nn.Module) -> torch.Tensor:
    """The trained tensor of prompt or prefix tuning, one row for each virtual token."""
    encoders: Any = model.prompt_encoder
    return encoders["default"].embedding.weight


def soft_prompt(model: nn.Module) -> torch.Tensor | None:
    """The trained virtual tokens (length, d) of a prompt-tuned model, or None."""
    return virtual_tokens(model) if peft_type(model) == "PROMPT_TUNING" else None


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name → trainable tensor, in the model's order: what a checkpoint holds and the optimiser moves."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
