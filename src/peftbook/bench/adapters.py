"""Several LoRA trainings in one step over one frozen base, beside the same trainings step by step in turn.

Each has rows, start and rate of its own. In one step all rows are one batch: the base's products are made once over all
of them, and each row's thin ones with the A and B of its training (`scratch.multi_lora`). The losses are summed, and no
row's loss depends on another training's numbers, so that each gets the gradient that it has alone. Mean losses over
rows of equal length, AdamW, float32, on the CPU: the case that suits one step best, for no row is padded.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from peftbook import specs
from peftbook.base_models import model_named
from peftbook.methods.lora import LoRA
from peftbook.scratch.lora import add_lora, lora_state
from peftbook.scratch.multi_lora import MultiLoRALinear, add_multi_lora, select_adapters
from peftbook.training.models import load_model

__all__ = ["adapters_bench", "in_one_step", "in_turn", "table"]

RANK, ALPHA = 16, 32
RATES = (1e-4, 2e-4, 4e-4, 8e-4)  # one a training
SHAPES = ((1, 32), (4, 128))  # rows and tokens of a batch of each training
MODELS = (specs.SMALL_MODEL, specs.EMBEDDED_MODEL)
Step = Callable[[Tensor], list[float]]  # of all trainings, from their rows to their losses


def adapters_bench(rounds: int = 3, steps: int = 3) -> list[dict[str, Any]]:
    """A row for each model and shape: seconds of a step of all trainings in turn and in one, medians over rounds.

    The first step of a round is left out. apart: the largest difference of two losses, nats per token.
    """
    rows = []
    for name in MODELS:
        model: Any = load_model(model_named(name), dtype="fp32").model.train()
        for shape in SHAPES:
            found = [measured(model, shape, steps) for _ in range(rounds)]
            turn, one = (median(times[at] for times in found) for at in (0, 1))
            apart = max(times[2] for times in found)
            rows.append({"model": name, "shape": shape, "turn": turn, "one": one, "apart": apart})
    return rows


def measured(model: nn.Module, shape: tuple[int, int], steps: int) -> tuple[float, float, float]:
    """Seconds of a step in turn and in one, step about, and how far apart the losses are."""
    ids = drawn(shape, steps, model.get_input_embeddings().num_embeddings)
    models = started(model)
    ways = in_one_step(model, [lora_state(one) for one in models]), in_turn(models)
    seconds: tuple[list[float], list[float]] = ([], [])
    apart = 0.0
    for batch in ids:
        losses = []
        for way, took in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            losses.append(way(batch))
            took.append(time.perf_counter() - began)
        apart = max(apart, *(abs(first - second) for first, second in zip(*losses, strict=True)))
    one, turn = (median(took[1:]) for took in seconds)
    return turn, one, apart


def drawn(shape: tuple[int, int], steps: int, vocabulary: int) -> Tensor:
    """Token ids: (steps, trainings, rows, tokens + 1)."""
    rows, tokens = shape
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (steps, len(RATES), rows, tokens + 1), generator=draw)


def started(model: nn.Module) -> list[nn.Module]:
    """The base with LoRA on every matrix, once a training, each with an A of its own; they share the base's numbers."""
    models = []
    for seed in range(len(RATES)):
        torch.manual_seed(seed)
        models.append(sharing(model))
        add_lora(models[-1], set(LoRA().targets), RANK, ALPHA)
    return models


def sharing(model: nn.Module) -> nn.Module:
    """A copy over the same numbers, frozen."""
    numbers = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(value): value for value in numbers}).requires_grad_(False)


def in_turn(models: Sequence[nn.Module]) -> Step:
    """A step of each training after that of the one before."""
    groups = [[value for value in model.parameters() if value.requires_grad] for model in models]
    optimizers = [torch.optim.AdamW(group, lr=rate) for group, rate in zip(groups, RATES, strict=True)]

    def step(ids: Tensor) -> list[float]:
        losses = []
        for model, optimizer, rows in zip(models, optimizers, ids, strict=True):
            (loss,) = losses_of(model, rows[None])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return step


def in_one_step(model: nn.Module, states: Sequence[dict[str, Tensor]]) -> Step:
    """A step of all trainings over all their rows."""
    model = add_multi_lora(sharing(model), states, ALPHA / RANK)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MultiLoRALinear)}
    trained = [{name: nn.Parameter(value.clone()) for name, value in state.items()} for state in states]
    groups = [{"params": [*own.values()], "lr": rate} for own, rate in zip(trained, RATES, strict=True)]
    optimizer = torch.optim.AdamW(groups)

    def step(ids: Tensor) -> list[float]:
        for name, layer in layers.items():
            layer.A, layer.B = (torch.stack([own[f"{name}.{part}"] for own in trained]) for part in "AB")
        select_adapters(model, [at for at, rows in enumerate(ids) for _ in rows])
        losses = losses_of(model, ids)
        losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return losses.tolist()

    return step


def losses_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean loss of each training, nats per token: (trainings,), from its rows, (trainings, rows, tokens + 1)."""
    rows = ids.flatten(0, 1)
    logits = model(input_ids=rows[:, :-1]).logits
    nats = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return nats.view(len(ids), -1).mean(1)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    titles = ("model", "rows × tokens each", "in turn, s", "in one step, s", "times as fast", "losses apart, nats")
    cells = [titles, *(
        (row["model"], "{} × {}".format(*row["shape"]), f"{row['turn']:.3f}", f"{row['one']:.3f}",
         f"{row['turn'] / row['one']:.2f}", f"{row['apart']:.0e}")
        for row in rows
    )]  # fmt: skip
    widths = [max(len(line[at]) for line in cells) for at in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    head = (
        f"a step of {len(RATES)} LoRA trainings, r = {RANK} on every matrix, float32, {torch.get_num_threads()} threads"
    )
    return "\n".join([head, *lines])
