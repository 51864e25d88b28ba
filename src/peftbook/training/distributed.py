"""One run on several processes: who takes which examples, what is summed, where the weights lie.

`ddp`: every process holds the whole model. `fsdp`: every process holds its share of every weight, and a decoder layer
is whole only while it computes. Like the micro-batch this changes memory and speed, never what is computed: the loss
of a step stays the mean over all label tokens of its batch, so results agree up to the order of sums (and up to
dropout: each process draws the masks of its own examples).

Source: Zhao et al. 2023, PyTorch FSDP, arXiv:2304.11277; the shards are those of `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import datetime
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from peftbook.core.errors import InputError
from peftbook.training.forward import causal_model

T = TypeVar("T")
CPU = torch.device("cpu")
PATIENCE = datetime.timedelta(hours=6)  # the first process scores texts while the others wait


@dataclass(frozen=True)
class Processes:
    """The processes that compute one run together, seen from one of them: the one with this rank, of `count`."""

    rank: int = 0
    count: int = 1
    strategy: str = ""
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes: checkpoint, adapter, record."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share of the weights."""
        return self.strategy == "fsdp"

    def portions(self, batch: Sequence[T], micro_batch: int | None = None) -> list[tuple[list[T], int]]:
        """This process's part of a batch, in micro-batches, each with its weight in the loss: 1, or 0 if borrowed.

        The examples are dealt out in turn, so that neighbours in length go to different processes. Every process gets
        equally many micro-batches, because with shards all must compute at once; where examples run out it computes
        the first of the batch and counts it as nothing.
        """
        own = batch[self.rank :: self.count]
        most = -(-len(batch) // self.count)  # what the first process has
        size = micro_batch or most
        parts = [list(own[at : at + size]) for at in range(0, most, size)]
        return [(part, 1) if part else (list(batch[:1]), 0) for part in parts]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes, in float64."""
        return self._reduced(values, distributed.ReduceOp.SUM) if self.count > 1 else list(values)

    def largest(self, value: float) -> float:
        """The largest of the processes' values."""
        return self._reduced([value], distributed.ReduceOp.MAX)[0] if self.count > 1 else value

    def _reduced(self, values: Iterable[float], operation) -> list[float]:
        numbers = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        distributed.all_reduce(numbers, operation)
        return numbers.tolist()

    def sum_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace every gradient by its sum over the processes; shards are summed by FSDP itself, during backward."""
        if self.count == 1 or self.sharded:
            return
        pending = [distributed.all_reduce(one.grad, async_op=True) for one in parameters if one.grad is not None]
        for work in pending:
            work.wait()

    def agree(self, work: Callable[[], T]) -> T:
        """work(), refused by all processes if it is refused on one: else the others would wait for it forever."""
        result, said = None, ""
        try:
            result = work()
        except InputError as error:
            said = str(error)
        sentences = [said] * self.count
        if self.count > 1:
            distributed.all_gather_object(sentences, said)
        if any(sentences):
            raise InputError(next(filter(None, sentences)))
        return result  # type: ignore[return-value]


ALONE = Processes()


def join(strategy: str, platform: str) -> Processes:
    """Meet the other processes of this launch, by the variables that accelerate's or torch's launcher has set."""
    from accelerate import PartialState

    state = PartialState(cpu=platform == "cpu", timeout=PATIENCE)
    if state.num_processes == 1:
        return ALONE
    return Processes(state.process_index, state.num_processes, strategy, state.device)


# ---- shards


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds a share of each weight only."""
    return isinstance(model, FSDPModule)


def gathered(model: nn.Module, work: Callable[..., T], *arguments: Any) -> T:
    """work(model, *arguments), within which FSDP gathers what it needs of a sharded model."""
    if not is_sharded(model):
        return work(model, *arguments)
    root: Any = model
    return root.perform(lambda: work(model, *arguments))


def shard(model: nn.Module, processes: Processes) -> None:
    """Spread every weight over the processes, in place: a group for each decoder layer, one for the rest.

    Weights move to this process's device a group at a time, so the whole model never lies there. Gradients are summed,
    not averaged: the loss is divided by the labels of the whole batch.
    """
    root: Any = model
    base: Any = causal_model(model)
    expose_4bit_weights(model, processes.device)
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums
    root.perform = types.MethodType(lambda self, work: work(), model)
    register_fsdp_forward_method(model, "perform")


def expose_4bit_weights(model: nn.Module, device: torch.device) -> None:
    """Turn bitsandbytes' 4-bit weights into plain bytes, which FSDP can cut.

    `Linear4bit.forward` puts the quantisation state, which stays whole on every device, back onto the gathered bytes.
    """
    import bitsandbytes

    layers: list[Any] = [part for part in model.modules() if isinstance(part, bitsandbytes.nn.Linear4bit)]
    for part in layers:
        part.quant_state = part.weight.quant_state
        part.quant_state.to(device)
        part.weight = nn.Parameter(part.weight.data.as_subclass(torch.Tensor), requires_grad=False)


def freeze_in_bf16(model: nn.Module) -> None:
    """Hold frozen dense decoder weights in bfloat16: half the bytes to keep and to send, the same arithmetic.

    Autocast would make these copies in every forward pass and keep all of them, whole, until the backward pass.
    """
    for part in causal_model(model).model.modules():
        if isinstance(part, nn.Linear) and part.weight.dtype == torch.float32 and not part.weight.requires_grad:
            part.weight.data = part.weight.data.bfloat16()


def full_tensor(value: torch.Tensor) -> torch.Tensor:
    """A tensor with its shards from all processes, each of which must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share_like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor laid out as `other` is: this process's share where that is sharded."""
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def saved_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that `save_pretrained` chooses from, whole: of a model that peft wrapped those of the adapter."""
    prefix = model.base_model.prefix if hasattr(model, "active_peft_config") else ""
    return {name: full_tensor(value) for name, value in model.state_dict().items() if prefix in name}
