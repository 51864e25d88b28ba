"""Joined products: linear layers with one input as one product, LoRA's way up as some more columns of it.

A layer with LoRA computes y = W x + gamma B A x: one large product, two thin ones that wait for memory, a scaled copy
and a sum. With [W | gamma B] held side by side it is y = [W | gamma B] [x; A x], and its gradient g = [W | gamma B]^T
dy holds what goes back through W and what goes to A at once. Query, key and value, which have one input, are one
product, as are gate and up. The same sums are made, in another order (compare RunLoRA, Cherniuk et al. 2023,
arXiv:2312.03415, which chooses the order of the same products by their operations).

In a half-width type the matrices are copies of the float32 weights, as autocast makes them, and what is summed within a
product is rounded once and not at every step. There only layers with LoRA are computed so, each for itself: to take
apart what comes out of a product, and to put together what goes back, costs more than a product saves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftbook.training.forward import causal_model

__all__ = ["joined_products"]

ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of a block that see the same states


@dataclass(frozen=True)
class Part:
    """A linear layer as it is joined: frozen weight (d_out, d_in), A (r, d_in) and B (d_out, r), or neither, gamma."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None
    gamma: float

    @property
    def rank(self) -> int:
        """0 without LoRA."""
        return 0 if self.a is None else len(self.a)


class Joined:
    """Linear layers with one input, computed by the first of them that is called."""

    def __init__(self, parts: Sequence[Part], dtype: torch.dtype) -> None:
        self.parts, self.dtype = parts, dtype
        self.sizes = [len(part.weight) for part in parts]
        self.ranks = [part.rank for part in parts]
        self.width = parts[0].weight.shape[1]
        self.factors = [factor for part in parts if part.rank for factor in (part.a, part.b)]
        shape = sum(self.sizes), self.width + sum(self.ranks)
        self.weight = torch.zeros(shape, dtype=dtype)  # [W | gamma B], B in blocks
        for part, place in zip(parts, self.weights(), strict=True):
            place.copy_(part.weight.detach())
        self.down = torch.zeros(sum(self.ranks), self.width, dtype=dtype)  # A of all, one below the other
        biases = [
            torch.zeros(size) if part.bias is None else part.bias for part, size in zip(parts, self.sizes, strict=True)
        ]
        self.bias = torch.cat(biases).to(dtype) if any(part.bias is not None for part in parts) else None
        self.waiting: dict[int, Tensor] = {}
        self.input: Tensor | None = None
        self.copied = -1  # versions of A and B; -1 where they may have moved without counting

    def weights(self) -> Sequence[Tensor]:
        """W of every layer, in the place where it is joined."""
        return self.weight[:, : self.width].split(self.sizes)

    def refresh(self) -> None:
        """Copy A and B anew, if they may have changed: the optimiser's fused step does not count versions."""
        versions = sum(factor._version for factor in self.factors if factor is not None)
        if self.copied == versions and not torch.is_grad_enabled():
            return
        self.copied = -1 if torch.is_grad_enabled() else versions
        row = column = 0
        for part, size, rank in zip(self.parts, self.sizes, self.ranks, strict=True):
            if rank:
                at = self.width + column
                self.weight[row : row + size, at : at + rank] = part.gamma * part.b.detach()
                self.down[column : column + rank] = part.a.detach()
            row, column = row + size, column + rank

    def output(self, index: int, states: Tensor) -> Tensor:
        """What layer `index` makes of the states (..., d_in); the others' outputs wait until they are asked for."""
        if self.input is not states or index not in self.waiting:
            self.refresh()
            flat = Product.apply(states.reshape(-1, self.width), self, *self.factors)
            outputs = flat.view(*states.shape[:-1], -1).split(self.sizes, dim=-1)
            self.input, self.waiting = states, dict(enumerate(outputs))
        result = self.waiting.pop(index)
        if not self.waiting:
            self.input = None
        return result


class Product(torch.autograd.Function):
    """y = x W^T + gamma (x A^T) B^T of all joined layers: x (n, d_in) to (n, sum of d_out)."""

    @staticmethod
    def forward(ctx, x: Tensor, joined: Joined, *factors: Tensor) -> Tensor:
        ctx.joined, ctx.dtype = joined, x.dtype
        x = x.to(joined.dtype)
        if factors:
            longer = x.new_empty(len(x), joined.weight.shape[1])  # [x | A x]
            longer[:, : joined.width] = x
            if joined.dtype == torch.float32:
                torch.mm(x, joined.down.mT, out=longer[:, joined.width :])
            else:
                longer[:, joined.width :] = torch.mm(x, joined.down.mT)  # `out` would go past `widened_products`
            ctx.save_for_backward(longer)
        else:
            longer = x
        if joined.bias is not None:
            return torch.addmm(joined.bias, longer, joined.weight.mT)
        return torch.mm(longer, joined.weight.mT)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        joined = ctx.joined
        dy = dy.contiguous()
        grads = torch.mm(dy, joined.weight)  # [dy W | gamma dy B]
        if not joined.factors:
            return grads.to(ctx.dtype), None
        (longer,) = ctx.saved_tensors
        x, below = longer[:, : joined.width], grads[:, joined.width :]
        down = torch.mm(below.mT, x).float() if any(ctx.needs_input_grad[2::2]) else None
        factors: list[Tensor | None] = []
        row = column = 0
        for part, size, rank in zip(joined.parts, joined.sizes, joined.ranks, strict=True):
            if rank:
                its = slice(column, column + rank)
                at = slice(joined.width + column, joined.width + column + rank)
                up = torch.mm(dy[:, row : row + size].mT, longer[:, at]).float().mul_(part.gamma)
                factors += [None if down is None else down[its], up]
            row, column = row + size, column + rank
        if not ctx.needs_input_grad[0]:
            return None, None, *factors
        return torch.addmm(grads[:, : joined.width], below, joined.down).to(ctx.dtype), None, *factors


@contextlib.contextmanager
def joined_products(model: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Within it the frozen linear layers of this model are joined, with their LoRA, and computed in this type.

    A layer that is trained, not dense in float32 on the CPU or adapted otherwise than by plain LoRA stays as it is, as
    do layers without LoRA in a half-width type. In float32 the frozen weights lie in the joined ones meanwhile, and
    nowhere else; in a half-width type beside them.
    """
    changed: list[tuple[Part, Tensor]] = []
    try:
        for parts in joinable(causal_model(model), dtype):
            joined = Joined(parts, dtype)
            for index, (part, weight) in enumerate(zip(parts, joined.weights(), strict=True)):
                changed.append((part, weight if dtype == torch.float32 else part.weight.data))
                part.weight.data = weight
                part.module.forward = forward_of(joined, index)
        yield
    finally:
        for part, value in changed:
            del part.module.forward
            lone = dtype != torch.float32
            part.weight.data = value if lone else value.clone(memory_format=torch.contiguous_format)  # its own memory


def forward_of(joined: Joined, index: int):
    """The forward of a layer that is joined."""
    return lambda states: joined.output(index, states)


def joinable(base: nn.Module, dtype: torch.dtype) -> Iterator[list[Part]]:
    """The linear layers of every block, in float32 those with one input together."""
    for block in base.model.modules():
        children = dict(block.named_children())
        for names in ONE_INPUT if dtype == torch.float32 else ():
            found = (part_of(children[name]) for name in names if name in children)
            parts = [part for part in found if part is not None]
            if len(parts) == len(names):
                for name in names:
                    del children[name]
                yield parts
        for child in children.values():
            part = part_of(child)
            if part is not None and part.rank:
                yield [part]


def part_of(layer: nn.Module) -> Part | None:
    """A layer as it can be joined, or None."""
    from peft.tuners.lora import Linear as LoRALinear

    if type(layer) is nn.Linear:
        return Part(layer, layer.weight, layer.bias, None, None, 0.0) if is_frozen(layer) else None
    if type(layer) is not LoRALinear or layer.merged or layer.disable_adapters or layer.active_adapters != ["default"]:
        return None
    base: Any = layer.base_layer
    a, b = (cast(nn.Linear, factor["default"]) for factor in (layer.lora_A, layer.lora_B))
    plain = not layer.lora_variant and isinstance(layer.lora_dropout["default"], nn.Identity)
    dense = type(base) is nn.Linear and is_frozen(base) and a.bias is None and b.bias is None
    if not (plain and dense):
        return None
    return Part(layer, base.weight, base.bias, a.weight, b.weight, float(layer.scaling["default"]))


def is_frozen(layer: nn.Linear) -> bool:
    """Whether this layer is not trained and lies, in float32, on the CPU."""
    values = [layer.weight] + ([] if layer.bias is None else [layer.bias])
    return all(one.dtype == torch.float32 and one.device.type == "cpu" and not one.requires_grad for one in values)
