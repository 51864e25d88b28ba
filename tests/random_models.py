"""Random models in the set-ups that the byte model counts and no record of the book varies."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from peftbook.memory import DecoderShape, Setup
from peftbook.training import random_model
from peftbook.training.forward import causal_model, trainable_state
from peftbook.training.loop import frozen_linears_in


class Subject(random_model.Subject):
    """A model with its method and its optimiser, for any set-up."""

    def loss(self, ids: Tensor) -> Tensor:
        """With labels the loss of the book's loop, whose head sees no more than so many positions."""
        with int8_inputs_noted(self.model):
            return self.loss_of_labels(ids) if self.setup.labels else super().loss(ids)

    def loss_of_labels(self, ids: Tensor) -> Tensor:
        """The loss of the last positions, as many as the set-up has labels."""
        base = causal_model(self.model)
        at = torch.arange(ids.numel() - self.setup.labels, ids.numel())
        row, column = at // ids.shape[1], at % ids.shape[1]
        with self.autocast(ids):
            states = base.model(input_ids=ids, use_cache=False).last_hidden_state[row, column]
            logits = base.lm_head(states)
            if cap := getattr(base.config, "final_logit_softcapping", None):
                logits = cap * torch.tanh(logits / cap)
            return functional.cross_entropy(logits.float(), ids[row, column])


@contextlib.contextmanager
def int8_inputs_noted(model: nn.Module):
    """bitsandbytes holds the input of an int8 matrix without telling autograd: tell who watches what is kept."""
    watching = torch._C._autograd._top_saved_tensors_default_hooks(False)
    parts = [part for part in model.modules() if hasattr(getattr(part, "state", None), "SCB")]
    if watching is None or not parts:
        yield
        return
    in_hand = []

    def leave(module: nn.Module, given: Any, result: Tensor) -> None:
        node = result.grad_fn
        values = (getattr(node, "A", None), *getattr(node, "tensors", ()))
        in_hand.extend(watching[0](value) for value in values if isinstance(value, Tensor) and value.numel())

    hooks = [part.register_forward_hook(leave, prepend=True) for part in parts]
    yield
    for hook in hooks:
        hook.remove()
    model.in_hand = in_hand


def subject(shape: DecoderShape, setup: Setup, seed: int = 0) -> Subject:
    """A random model with the set-up's method, dtype, attention and optimiser, in training mode."""
    usual = {name: getattr(Setup, name) for name in random_model.COUNTED}
    with mock.patch.dict(random_model.LINEARS, int8=eight_bit_linear):
        tuned = random_model.subject(shape, replace(setup, **usual), seed).model
    for name, value in tuned.named_parameters():
        if setup.wide_norms and "norm" in name:
            value.data = value.data.float()
    trained = trainable_state(tuned)
    if setup.in_backward:
        for value in trained.values():
            value.register_post_accumulate_grad_hook(move_by(optimiser([value], setup)))
    made = Subject(tuned, optimiser(trained.values(), setup), setup)
    made.held = contextlib.ExitStack()
    if setup.held:
        made.held.enter_context(frozen_linears_in("bf16", tuned))
    return made


def move_by(own: torch.optim.Optimizer):
    """What moves a tensor when it has its gradient, and lets that go."""

    def move(_: Tensor) -> None:
        own.step()
        own.zero_grad(set_to_none=True)

    return move


def optimiser(trained: Iterable[Tensor], setup: Setup) -> torch.optim.Optimizer:
    """The optimiser over what is trained."""
    import bitsandbytes.optim as optim

    kinds = {
        "adamw": functools.partial(torch.optim.AdamW, fused=True),
        "adamw_foreach": functools.partial(torch.optim.AdamW, foreach=True),
        "sgd": torch.optim.SGD,
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    return kinds[setup.optimiser](trained, lr=1e-4)


def eight_bit_linear(part: nn.Linear, made: dict[torch.Size, Any], setup: Setup) -> Any:
    """A layer of the same size in 8 bits, with transformers' own threshold. made: the weights of each size, by then."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    size, bias = part.weight.shape, part.bias is not None
    with torch.device("meta"):
        stored: Any = Linear8bitLt(
            part.in_features, part.out_features, bias=bias, has_fp16_weights=False, threshold=6.0
        )
    if size not in made:
        values = torch.empty(size, dtype=torch.float16).normal_(std=random_model.STD)
        made[size] = Int8Params(values, requires_grad=False, has_fp16_weights=False).cpu()
    codes = made[size].data.clone()
    stored.weight = Int8Params(codes, requires_grad=False, CB=codes, SCB=made[size].SCB.clone())
    return stored
