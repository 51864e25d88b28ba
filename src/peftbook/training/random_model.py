"""Decoders with random weights in any shape of the byte model, ready to be trained as a set-up says.

Memory and time of a step depend on the shape alone, so that a shape of seven billion parameters can be measured without
its weights at hand.
"""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from peftbook.core.errors import InputError
from peftbook.memory import Configuration, DecoderShape, Setup, training_step
from peftbook.memory.setup import IA3_TARGETS
from peftbook.memory.shapes import as_config
from peftbook.training.forward import trainable_state
from peftbook.training.loop import autocast
from peftbook.training.models import keep_linear4bit_layout
from peftbook.training.products import TORCH_DTYPES

STD = 0.02
PADDED = 3  # positions at the end of the first row, where rows are padded
COUNTED = ("labels", "optimiser", "in_backward", "held", "wide_norms")  # what no record of the book varies


@dataclass
class Subject:
    """A model with its method and its optimiser."""

    model: Any
    optimizer: torch.optim.Optimizer
    setup: Setup

    @property
    def trained(self) -> list[Tensor]:
        """The trainable tensors."""
        return list(trainable_state(self.model).values())

    def loss(self, ids: Tensor) -> Tensor:
        """The loss of transformers' own forward pass: every position predicts the next. ids: (batch, tokens)."""
        mask = None
        if self.setup.padding:
            mask = torch.ones_like(ids)
            mask[0, -PADDED:] = 0
        with self.autocast(ids):
            return self.model(input_ids=ids, labels=ids, attention_mask=mask, use_cache=False).loss

    def autocast(self, ids: Tensor) -> contextlib.AbstractContextManager:
        """What the set-up says of matrix products."""
        return autocast("bf16" if self.setup.autocast else "fp32", ids.device.type)

    def step(self, ids: Tensor) -> float:
        """Forward, backward and optimiser; returns the seconds. Products are torch's unless the caller widens them."""
        began = time.perf_counter()
        self.loss(ids).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def subject(shape: DecoderShape, setup: Setup, seed: int) -> Subject:
    """A random model with the set-up's method, dtype, attention and optimiser, in training mode."""
    for name in COUNTED:
        if getattr(setup, name) != getattr(Setup, name):
            raise InputError(f"{name} {getattr(setup, name)!r} is counted, not run: leave it out.")
    check_fits(shape, setup)
    model = random_model(shape, setup, seed)
    torch.manual_seed(seed)
    tuned = with_method(model, shape, setup)
    if setup.method != "full":
        for name, value in trainable_state(tuned).items():
            dtype = setup.adapter_dtype
            if ".modules_to_save." in name:
                dtype = setup.saved_dtype or setup.dtype
            elif "lora_magnitude_vector" in name:
                dtype = setup.magnitude_dtype or dtype
            value.data = value.data.to(TORCH_DTYPES[dtype])
    if setup.checkpointing:
        model.activation_checkpointing_enable()
    tuned.train()
    return Subject(tuned, torch.optim.AdamW(trainable_state(tuned).values(), lr=1e-4, fused=True), setup)


def check_fits(shape: DecoderShape, setup: Setup) -> None:
    """Refuse a model whose weights alone do not fit: the system would end the process without a word."""
    terms = training_step(shape, setup).peak().terms
    needed = terms["weights"] + terms.get("quantisation constants", 0)
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"The weights take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            "give a smaller shape or a 4-bit base."
        )


def with_method(model: nn.Module, shape: DecoderShape, setup: Setup) -> Any:
    """The model with the parameters that the method trains; all others frozen."""
    import peft

    if setup.method == "full":
        return model.requires_grad_(True)
    configs: dict[str, Any] = {
        "lora": lambda: peft.LoraConfig(
            r=setup.rank,
            target_modules=list(shape.adapted(setup.targets)),
            lora_dropout=0.1 * setup.dropout,
            use_dora=setup.dora,
            modules_to_save=list(setup.saved) or None,
            task_type="CAUSAL_LM",
        ),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=setup.length, task_type="CAUSAL_LM"),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=setup.length, task_type="CAUSAL_LM"),
        "ia3": lambda: peft.IA3Config(
            target_modules=list(IA3_TARGETS),
            feedforward_modules=["down_proj"],
            modules_to_save=list(setup.saved) or None,
            task_type="CAUSAL_LM",
        ),
    }
    tuned = peft.get_peft_model(model, configs[setup.method]())
    if setup.freeze_a:
        for name, value in tuned.named_parameters():
            if ".lora_A." in name:
                value.requires_grad_(False)
                value.data = value.data.to(TORCH_DTYPES[setup.adapter_dtype])
    return tuned


def random_model(shape: DecoderShape, setup: Setup, seed: int) -> Any:
    """A frozen model with random weights, its decoder's linear layers quantised where the set-up says so.

    Tensors of one shape have equal values, so that each shape is drawn and quantised once; no more than one matrix is
    ever there in 16 bits beside a quantised model.
    """
    from transformers import AutoModelForCausalLM

    config, dtype = as_config(shape), TORCH_DTYPES[setup.dtype]
    config.dtype = dtype
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=setup.attention)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    torch.manual_seed(seed)
    if setup.quantised:
        quantise_linears(model.model, setup)
        setattr(model, f"is_loaded_in_{setup.bits}bit", True)  # what peft looks for
    fill(model)
    model.tie_weights()
    keep_linear4bit_layout(model)
    return model


def quantise_linears(model: nn.Module, setup: Setup) -> None:
    """Put a random quantised layer of bitsandbytes in the place of every linear layer."""
    if setup.quantised not in LINEARS:
        raise InputError(f"quantised {setup.quantised!r} is counted, not run: choose of {', '.join(LINEARS)}.")
    made: dict[torch.Size, Any] = {}
    for name, part in list(model.named_modules()):
        if not isinstance(part, nn.Linear):
            continue
        stored = LINEARS[setup.quantised](part, made, setup)
        if part.bias is not None:
            stored.bias = nn.Parameter(part.bias.data, requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, stored)


def four_bit_linear(part: nn.Linear, made: dict[torch.Size, Any], setup: Setup) -> Any:
    """A layer of the same size in 4 bits. made: the weights of each size, by then."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    options: dict[str, Any] = {"compress_statistics": setup.double, "quant_type": setup.quantised}
    size, bias = part.weight.shape, part.bias is not None
    with torch.device("meta"):
        stored: Any = Linear4bit(
            part.in_features, part.out_features, bias=bias, compute_dtype=torch.bfloat16, **options
        )
    if size not in made:
        values = torch.empty(size, dtype=torch.bfloat16).normal_(std=STD)
        made[size] = weight = Params4bit(values, requires_grad=False, **options).cpu()
    else:
        weight = copy.deepcopy(made[size])
    stored.weight, stored.quant_state = weight, weight.quant_state
    return stored


LINEARS = {"nf4": four_bit_linear, "fp4": four_bit_linear}


def fill(model: nn.Module) -> None:
    """Give every parameter without storage a frozen one: matrices N(0, STD²), vectors 1."""
    made: dict[torch.Size, Tensor] = {}
    tied = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    for part in model.modules():
        if hasattr(part, "scalar_embed_scale"):
            part.embed_scale = torch.tensor(part.scalar_embed_scale)
        for name, value in list(part.named_parameters(recurse=False)):
            if part is tied or not value.is_meta:
                continue
            fresh = made[value.shape].clone() if value.shape in made else torch.ones(value.shape, dtype=value.dtype)
            if value.dim() > 1 and value.shape not in made:
                fresh.normal_(std=STD)
            made.setdefault(value.shape, fresh)
            setattr(part, name, nn.Parameter(fresh, requires_grad=False))


def random_ids(shape: DecoderShape, setup: Setup, seed: int) -> Tensor:
    """Rows of random tokens, (batch, seq); the first three ids are left to padding and its kin."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, shape.vocab, (setup.batch, setup.seq), generator=generator)


def model_and_ids(configuration: Configuration, seed: int) -> tuple[Subject, Tensor]:
    """A configuration's random model, and a batch of random tokens for it."""
    shape, setup = configuration.shape, configuration.setup
    return subject(shape, setup, seed), random_ids(shape, setup, seed)
