"""The training loop: one linear story, the same for every method."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from peftbook.core import specs
from peftbook.core.errors import Diverged, InputError
from peftbook.core.records import write_atomically
from peftbook.training.distributed import ALONE, Processes, full_tensor, gathered, is_sharded, share_like
from peftbook.training.encode import Encoded, batch_plan, shared_prefix, sorted_batches
from peftbook.training.forward import (
    causal_model,
    checkpointed_layers,
    hidden_states,
    is_checkpointed,
    trainable_state,
)
from peftbook.training.packed import is_packed, label_states, packed_rows
from peftbook.training.products import TORCH_DTYPES, half_products

LEAST_SCALE = 1.0  # of an fp16 loss: gradients that overflow without being scaled up have diverged
CHECKPOINT_SECONDS = 60.0  # between checkpoints, unless PEFTBOOK_CHECKPOINT_SECONDS says otherwise


@dataclass(frozen=True)
class Progress:
    """What there is to say after each step."""

    step: int
    steps: int
    loss: float
    tokens: int
    tokens_per_second: float


@dataclass
class Trained:
    """What training left behind, beside the trained model itself."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    tokens: int = 0
    label_tokens: int = 0
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    resumed_from: int = 0  # the step of the checkpoint that it went on from

    def curve(self) -> dict[str, list[float]]:
        """Loss and gradient norm by step, as records have them."""
        return {
            "train_loss_nats": [round(value, 6) for value in self.losses],
            "gradient_norm": [round(value, 6) for value in self.gradient_norms],
        }


def autocast(dtype: str, platform: str):
    """Autocast to bfloat16 or float16 over float32 master weights, or plain float32."""
    if dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast("cuda" if platform == "cuda" else "cpu", dtype=TORCH_DTYPES[dtype])


def arithmetic(model: nn.Module, dtype: str, platform: str):
    """Autocast over weights in float32; a model whose weights are in bfloat16 computes in the types of its tensors."""
    weights = causal_model(model).get_input_embeddings().weight.dtype
    return autocast(dtype if weights == torch.float32 else "fp32", platform)


def pad(examples: list[Encoded], pad_id: int, device: torch.device) -> torch.Tensor:
    """Right-padded ids, (batch, longest)."""
    width = max(len(example.ids) for example in examples)
    rows = [list(example.ids) + [pad_id] * (width - len(example.ids)) for example in examples]
    return torch.tensor(rows, device=device)


def label_losses(model: nn.Module, examples: list[Encoded], pad_id: int) -> tuple[torch.Tensor, list[int]]:
    """Negative log-likelihood in nats of every label token, (labels,), and the count of labels of each example.

    The head runs only where there is a label: at SmolLM2's vocabulary of 49,152 the logits of all positions would
    cost more memory than the weights. What the examples share at their start (template, instruction) runs once,
    unless the model is sharded: FSDP lets go of a layer before the gradients of what is shared come to it; or its
    layers are checkpointed, which then take no cache.
    """
    base = causal_model(model)
    counts = [example.label_tokens for example in examples]
    if is_packed(model):
        states, labels = label_states(model, examples)
        return functional.cross_entropy(base.lm_head(states).float(), labels, reduction="none"), counts
    device = base.get_input_embeddings().weight.device
    ids = pad(examples, pad_id, device)
    shared = 0 if is_sharded(model) or is_checkpointed(model) else shared_prefix(examples)
    rows = [row for row, example in enumerate(examples) for _ in range(example.label_tokens)]
    columns = [at for example in examples for at in range(example.start, len(example.ids))]
    row, column = torch.tensor(rows, device=device), torch.tensor(columns, device=device)
    states = hidden_states(model, ids, shared)[row, column - 1 - shared]  # (labels, d)
    logits = base.lm_head(states).float()  # (labels, V)
    nats = functional.cross_entropy(logits, ids[row, column], reduction="none")
    return nats, counts


@contextlib.contextmanager
def frozen_linears_in(dtype: str, model: nn.Module) -> Iterator[None]:
    """Hold frozen dense linear weights as the half-width copies that autocast would make again in every forward pass.

    The arithmetic is the same bit by bit. The float32 weights come back afterwards, for merging and generation. Shards
    stay as they are.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    if dtype != "fp32" and not is_sharded(model):
        for part in causal_model(model).model.modules():
            if isinstance(part, nn.Linear) and part.weight.dtype == torch.float32 and not part.weight.requires_grad:
                kept.append((part.weight, part.weight.data))
                part.weight.data = part.weight.data.to(TORCH_DTYPES[dtype])
    try:
        yield
    finally:
        for weight, value in kept:
            weight.data = value


@contextlib.contextmanager
def frozen_head_in(dtype: str, model: nn.Module) -> Iterator[None]:
    """Hold a half-width copy of a frozen head, which autocast would make again for every batch and every new token.

    The arithmetic is the same bit by bit. The weight itself stays: an embedding may be tied to it. So do shards. May be
    nested.
    """
    head: Any = causal_model(model).lm_head
    dense = type(head) is nn.Linear and head.weight.dtype == torch.float32
    if dtype == "fp32" or not dense or head.weight.requires_grad or is_sharded(model) or "forward" in vars(head):
        yield
        return
    held, bias = head.weight.detach().to(TORCH_DTYPES[dtype]), head.bias
    head.forward = lambda states: functional.linear(states, held, bias)
    try:
        yield
    finally:
        del head.forward


@contextlib.contextmanager
def reordered(model: nn.Module, dtype: str) -> Iterator[None]:
    """Compute a model on a CPU without padding inside the block, in a half type with a copy of the head; not shards.

    The sums are the same in another order: losses and gradients agree to some units in the last place of the compute
    type, which shows in the half types.
    """
    if is_sharded(model):
        yield
        return
    with packed_rows(model), frozen_head_in(dtype, model):
        yield


def order_of(run: specs.Run, model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The order of sums of a run: one of its own where that may be, else that of padded rows."""
    return reordered(model, run.dtype) if run.packed else contextlib.nullcontext()


def learning_rate(budget: specs.Budget, step: int, steps: int) -> float:
    """Linear warm-up over the first `warmup` of the steps, then constant."""
    warm = max(1, round(budget.warmup * steps))
    return budget.learning_rate * min(1.0, (step + 1) / warm)


def steps_until(budget: specs.Budget, tokens: Sequence[int]) -> int:
    """How many of the steps are trained, by the tokens of each: all, or up to the one that reaches `stop` of them."""
    if not budget.stop:
        return len(tokens)
    return next(at for at, seen in enumerate(itertools.accumulate(tokens), start=1) if seen >= budget.trained_tokens)


def checkpoint_seconds() -> float:
    """Seconds between checkpoints: `PEFTBOOK_CHECKPOINT_SECONDS`, or a minute. Raises InputError if it is no number."""
    text = os.environ.get("PEFTBOOK_CHECKPOINT_SECONDS", "")
    try:
        return float(text or CHECKPOINT_SECONDS)
    except ValueError:
        raise InputError(f"PEFTBOOK_CHECKPOINT_SECONDS is {text!r}: give a number of seconds, or unset it.") from None


def train(
    model: nn.Module,
    data: list[Encoded],
    budget: specs.Budget,
    *,
    seed: int,
    pad_id: int,
    dtype: str = "bf16",
    platform: str = "cpu",
    micro_batch: int | None = None,
    checkpointing: bool = False,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
    rate_factor: Callable[[str], float] = lambda name: 1.0,
    processes: Processes = ALONE,
    plan: Sequence[Sequence[int]] = (),
) -> Trained:
    """Train the model's trainable parameters with AdamW; returns the curve and what it cost.

    The loss of a step is the mean over all label tokens of its batch, whatever the micro-batch and however many
    `processes` share the batch (each of which calls this). With `checkpoint`, the state is written there every
    `checkpoint_seconds` and a later call with the same arguments goes on from it: on CPU the result is bit-equal to an
    uninterrupted run of as many processes, since it goes on with the threads that it had. `rate_factor` multiplies the
    learning rate of a parameter, by its name. `checkpointing` runs each layer again in the backward pass, see
    `checkpointed_layers`. `plan` has the indices of each batch; without it, they are those of `batch_plan`.
    A budget that stops early leaves its last state in `checkpoint`, from which the whole training goes on.
    In fp16 the loss is scaled before the backward pass, and a step whose gradients overflow is left out and lowers the
    scale (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). Raises Diverged if the loss is not finite.
    """
    plan = plan or batch_plan([len(example.ids) for example in data], budget.batch_size, budget.tokens, seed)
    parameters = trainable_state(model)
    groups: dict[float, list[torch.Tensor]] = {}
    for name, value in parameters.items():
        groups.setdefault(rate_factor(name), []).append(value)
    optimizer = torch.optim.AdamW(
        [{"params": values, "factor": factor} for factor, values in groups.items()],
        lr=budget.learning_rate,
        weight_decay=budget.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(platform, enabled=dtype == "fp16")
    result = Trained()
    end = steps_until(budget, [sum(len(data[index].ids) for index in batch) for batch in plan])
    first = result.resumed_from = resume(checkpoint, parameters, optimizer, scaler, result, end) if checkpoint else 0
    pause = checkpoint_seconds()
    # torch's own writes down its callers, for the devices that it has not met yet
    seeded = torch.default_generator.manual_seed if platform == "cpu" else torch.manual_seed
    model.train()
    saved = time.monotonic()
    layers = checkpointed_layers(model) if checkpointing else contextlib.nullcontext()
    with half_products(platform), frozen_linears_in(dtype, model), layers:
        for step in range(first, end):
            began = time.monotonic()
            seeded(1_000_003 * seed + step + 500_000_003 * processes.rank)  # for dropout, if any
            batch = [data[index] for index in plan[step]]
            labels = sum(example.label_tokens for example in batch)
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * learning_rate(budget, step, len(plan))
            loss = 0.0
            for examples, weight in processes.portions(batch, micro_batch):
                with arithmetic(model, dtype, platform):
                    nats, _ = gathered(model, label_losses, examples, pad_id)
                part = weight * nats.sum() / labels
                scaler.scale(part).backward()
                loss += part.item()
            late = processes.first and time.monotonic() - saved > pause
            loss, due = processes.sum(loss, late)
            processes.sum_gradients(parameters.values())
            scaler.unscale_(optimizer)
            norm = full_tensor(nn.utils.clip_grad_norm_(parameters.values(), budget.max_grad_norm)).item()
            overflown = scaler.is_enabled() and not math.isfinite(norm) and scaler.get_scale() > LEAST_SCALE
            if not math.isfinite(loss) or not (math.isfinite(norm) or overflown):
                raise Diverged(f"Training diverged at step {step + 1} (loss {loss}): lower the learning rate.")
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            result.losses.append(loss)
            result.gradient_norms.append(0.0 if overflown else norm)  # of what the step went by
            result.tokens += sum(len(example.ids) for example in batch)
            result.label_tokens += labels
            result.step_seconds.append(time.monotonic() - began)
            result.seconds += result.step_seconds[-1]
            if on_step:
                on_step(Progress(step + 1, end, loss, result.tokens, result.tokens / result.seconds))
            if checkpoint and (due or step + 1 == end) and step + 1 < len(plan):
                place = checkpoint if processes.first else None
                save_checkpoint(place, parameters, optimizer, scaler, result, step + 1)
                saved = time.monotonic()
    model.eval()
    return result


def save_checkpoint(folder: Path | None, parameters: dict, optimizer, scaler, result: Trained, step: int) -> None:
    """Parameters and Adam's moments as safetensors, the rest as JSON; the JSON is written last and names the step.

    Whole tensors, however many processes there are, so that any number of them goes on from the file. folder: None
    where another process writes: this one gives its shards.
    """
    tensors = {f"parameter.{name}": full_tensor(value.detach()) for name, value in parameters.items()}
    for name, value in parameters.items():
        for part, moment in optimizer.state[value].items():
            tensors[f"{part}.{name}"] = full_tensor(moment)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"state-{step}.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, state)
    with state.open("rb") as stream:
        os.fsync(stream.fileno())  # what names the file may not outlive a power cut without it
    progress = {"step": step, "scale": scaler.state_dict(), "threads": torch.get_num_threads(), **vars(result)}
    write_atomically(folder / "progress.json", json.dumps(progress).encode())
    for old in folder.glob("state-*.safetensors"):
        if old.name != f"state-{step}.safetensors":
            old.unlink()


def saved_threads(folder: Path) -> int:
    """The threads of the training that left a checkpoint; without one, those that torch has."""
    path, here = folder / "progress.json", torch.get_num_threads()
    return json.loads(path.read_text()).get("threads", here) if path.is_file() else here


def resume(folder: Path, parameters: dict, optimizer, scaler, result: Trained, end: int) -> int:
    """Load a checkpoint into parameters, optimiser and curve; returns the step to go on from (0 without one).

    One beyond `end`, where training stops, is the whole run's and is left alone.
    From here on torch has as many threads as it had there: with others it would add in another order.
    """
    if not (folder / "progress.json").is_file():
        return 0
    progress = json.loads((folder / "progress.json").read_text())
    step = progress.pop("step")
    if step > end:
        return 0
    scaler.load_state_dict(progress.pop("scale", {}))
    torch.set_num_threads(progress.pop("threads", torch.get_num_threads()))
    vars(result).update(progress)
    with safe_open(folder / f"state-{step}.safetensors", framework="pt") as file, torch.no_grad():
        for name, value in parameters.items():
            value.copy_(share_like(file.get_tensor(f"parameter.{name}"), value))
            optimizer.state[value] = {
                part: share_like(file.get_tensor(f"{part}.{name}").to(value.device), value)
                for part in ("exp_avg", "exp_avg_sq")
            }
            optimizer.state[value]["step"] = file.get_tensor(f"step.{name}").to(value.device)  # where `fused` wants it
    return step


@torch.no_grad()
def losses(
    model: nn.Module,
    data: list[Encoded],
    *,
    pad_id: int,
    batch_size: int = 16,
    dtype="bf16",
    platform="cpu",
    on_batch: Callable[[int], None] | None = None,
) -> tuple[list[float], list[int]]:
    """Summed nats and label tokens of every example, in the order given; all processes compute the same batches.

    on_batch: is told after each batch how many examples it had.
    """
    model.eval()
    nats, counts = [0.0] * len(data), [0] * len(data)
    with half_products(platform), frozen_linears_in(dtype, model), frozen_head_in(dtype, model):
        for batch in sorted_batches([len(example.ids) for example in data], batch_size):
            with arithmetic(model, dtype, platform):
                flat, sizes = gathered(model, label_losses, [data[index] for index in batch], pad_id)
            for index, part in zip(batch, flat.split(sizes), strict=True):
                nats[index], counts[index] = part.sum().item(), len(part)
            if on_batch:
                on_batch(len(batch))
    return nats, counts
