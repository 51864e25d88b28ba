"""What adapters cost once they are trained: latency merged and not, quality after merging, many adapters at once."""

from __future__ import annotations

import copy
import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.methods import Method
from peftbook.methods.adapter import Adapter
from peftbook.methods.lora import LoRA
from peftbook.methods.qlora import QLoRA
from peftbook.methods.untuned import Untuned
from peftbook.scratch.multi_lora import add_multi_lora, select_adapters
from peftbook.scratch.rounding import Survival, survival
from peftbook.training.execute import prepare
from peftbook.training.forward import apply_method, causal_model
from peftbook.training.loop import losses
from peftbook.training.merges import (
    adapter_state,
    compare_merges,
    lora_layers,
    loss_findings,
    merge_state,
    requantised_losses,
    rms,
)
from peftbook.training.models import load_model
from peftbook.training.probes import Findings, positive
from peftbook.training.products import TORCH_DTYPES

VARIANTS = ("base", "merged", "lora", "adapter")
CONTENDERS = ("mixed", "mixed_peft", "swapped", "merged")
RANDOM_STD = 0.02  # of the random adapters; time does not depend on their values, the check of the logits does
SCALING = 2.0  # alpha / r
GAIN_STATES = ("untuned", "merged", "requantised")

# ids, following, platform → seconds of the forward pass, seconds of decoding, last logits
Server = Callable[[Tensor, Tensor, str], tuple[float, float, Tensor]]


def latency(probe: specs.Probe) -> Findings:
    """Seconds of a forward pass and of one decoded token: base, merged LoRA, unmerged LoRA, bottleneck adapter.

    settings: batch, tokens (of the prompt), decode_steps, trials, dtype (of all weights), rank (of LoRA), width (of the
    bottleneck). A trial runs every variant once, in an order drawn anew, so that a slow spell of the machine hits all;
    the first trial is not recorded. The forward pass takes the logits of the last position, as serving does.
    Adapters are random. Source of the set-up: Hu et al. 2021, arXiv:2106.09685, Table 1.
    """
    batch, tokens, steps, trials = positive(probe, "batch", "tokens", "decode_steps", "trials")
    models = {name: variant(name, probe) for name in VARIANTS}
    ids, following = random_ids(models["base"], probe, batch, tokens, steps)
    contenders = {name: functools.partial(request, models[name]) for name in VARIANTS}
    times, logits = timed(contenders, ids, following, probe, trials, steps)
    effect = rms(logits["lora"] - logits["base"])
    return Findings(
        measurements={
            **{name: median(values) for name, values in times.items()},
            "merged_logit_gap": rms(logits["merged"] - logits["lora"]) / effect,
            "threads": torch.get_num_threads(),
        },
        per_example=times,
    )


def timed(
    contenders: Mapping[str, Server], ids: Tensor, following: Tensor, probe: specs.Probe, trials: int, steps: int = 1
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each part of a request by each contender, those of decoding over `steps`; and its last logits.

    A trial runs every contender once, in an order drawn anew; the first trial is not recorded.
    """
    rng = np.random.default_rng(probe.seed)
    times: dict[str, list[float]] = {
        f"{name}_{part}_seconds": [] for name in contenders for part in ("forward", "decode")
    }
    logits: dict[str, Tensor] = {}
    for trial in range(trials + 1):
        for name in rng.permutation(list(contenders)).tolist():
            forward, decode, logits[name] = contenders[name](ids, following, probe.platform)
            if trial:
                times[f"{name}_forward_seconds"].append(round(forward, 6))
                times[f"{name}_decode_seconds"].append(round(decode / steps, 6))
    return times, logits


def variant(name: str, probe: specs.Probe) -> nn.Module:
    """One of VARIANTS with its adapters filled with random values, all weights in the probe's type."""
    loaded = load_model(probe.model, platform=probe.platform)
    rank, width = positive(probe, "rank", "width")
    method: Method = Untuned()
    if name in ("merged", "lora"):
        method = LoRA(rank=rank, alpha=SCALING * rank)
    elif name == "adapter":
        method = Adapter(width=width)
    model = apply_method(loaded.model, method, probe.seed, loaded.tokenizer)
    randomize(model, probe.seed)
    if name == "merged":
        model = model.merge_and_unload()
    return causal_model(model).to(chosen_dtype(probe)).eval()


def chosen_dtype(probe: specs.Probe) -> torch.dtype:
    """The type of the weights. Raises InputError for an unknown one."""
    name = probe.word("dtype")
    if name not in TORCH_DTYPES:
        raise InputError(f"The probe's dtype is {name!r}: choose one of {', '.join(TORCH_DTYPES)}.")
    return TORCH_DTYPES[name]


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Fill what starts at zero, LoRA's B and the adapter's W_up, with N(0, RANDOM_STD²)."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if ".lora_B." in name or (name.endswith("up.weight") and value.requires_grad):
            value.copy_(RANDOM_STD * torch.randn(value.shape, generator=generator))


def random_ids(model: nn.Module, probe: specs.Probe, batch: int, tokens: int, steps: int) -> tuple[Tensor, Tensor]:
    """Prompts (batch, tokens) and the tokens that follow (batch, steps), drawn by the probe's seed."""
    embedding: Any = causal_model(model).get_input_embeddings()
    generator = torch.Generator().manual_seed(probe.seed)
    ids = torch.randint(embedding.num_embeddings, (batch, tokens + steps), generator=generator)
    ids = ids.to(embedding.weight.device)
    return ids[:, :tokens], ids[:, tokens:]


@torch.inference_mode()
def request(
    model: Any, ids: Tensor, following: Tensor, platform: str, before: Callable[[], object] | None = None, **extra: Any
) -> tuple[float, float, Tensor]:
    """Seconds of the forward pass over `ids`, seconds of decoding all of `following`, and the last logits (batch, V).

    before: what has to be done first; it counts to the forward pass.  extra: passed to the model.
    """
    began = clock(platform)
    if before is not None:
        before()
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1, **extra)
    middle = clock(platform)
    for token in following.split(1, dim=1):
        output = model(input_ids=token, cache=output.cache, use_cache=True, **extra)
    return middle - began, clock(platform) - middle, output.logits[:, -1].float()


def clock(platform: str) -> float:
    """Seconds; on a GPU after its queue is empty."""
    if platform == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def many_adapters(probe: specs.Probe) -> Findings:
    """Generated tokens per second for a batch whose rows belong to several adapters, served in four ways.

    mixed: one batch, each row with its own A and B (`peftbook.scratch.multi_lora`).  mixed_peft: one batch by peft's
    `adapter_names`.  swapped: the rows of one adapter after those of another, `set_adapter` between them.  merged: the
    same with one merged copy of the model for each adapter, held in memory.

    settings: adapters, batch, tokens (of the prompt), new_tokens, trials, rank, dtype. Row i belongs to adapter
    i mod adapters. A trial runs every contender once, in an order drawn anew; the first trial is not recorded.
    """
    count, batch, tokens, steps, trials = positive(probe, "adapters", "batch", "tokens", "new_tokens", "trials")
    rows = [row % count for row in range(batch)]
    base: nn.Module = load_model(probe.model, platform=probe.platform).model
    base.to(chosen_dtype(probe)).eval()
    ids, following = random_ids(base, probe, batch, tokens, steps)
    contenders = serving_contenders(base, probe, rows, count)
    times, logits = timed(contenders, ids, following, probe, trials)
    measured: dict[str, float | int | None] = {"threads": torch.get_num_threads()}
    for name in CONTENDERS:
        parts = zip(times[f"{name}_forward_seconds"], times[f"{name}_decode_seconds"], strict=True)
        measured[f"{name}_tokens_per_second"] = batch * steps / median(map(sum, parts))
        measured[f"{name}_logit_gap"] = rms(logits[name] - logits["swapped"]) / rms(logits["swapped"])
    return Findings(measurements=measured, per_example=times)


def serving_contenders(base: Any, probe: specs.Probe, rows: list[int], count: int) -> dict[str, Server]:
    """The four contenders over one set of weights; only the merged copies hold linear weights of their own."""
    (rank,) = positive(probe, "rank")
    mixed = shallow_copy(base, list(base.parameters()))
    embeddings = [part.weight for part in (base.get_input_embeddings(), base.get_output_embeddings())]
    copies = [shallow_copy(base, embeddings) for _ in range(count)]
    tuned: Any = apply_method(base, LoRA(rank=rank, alpha=SCALING * rank), probe.seed)
    names = ["default", *(f"adapter_{at}" for at in range(1, count))]
    for name in names[1:]:
        tuned.add_adapter(name, tuned.peft_config["default"])
    randomize(tuned, probe.seed)
    tuned.to(chosen_dtype(probe)).eval()
    states = [adapter_state(tuned, name) for name in names]
    add_multi_lora(mixed, states, SCALING)
    for model, state in zip(copies, states, strict=True):
        merge_state(model, state, SCALING)
    groups = [[row for row, adapter in enumerate(rows) if adapter == at] for at in range(count)]
    causal = causal_model(tuned)
    by_row = [names[adapter] for adapter in rows]
    swaps = [functools.partial(tuned.set_adapter, name) for name in names]
    return {
        "mixed": lambda ids, following, on: request(
            mixed, ids, following, on, before=lambda: select_adapters(mixed, rows)
        ),
        "mixed_peft": lambda ids, following, on: request(tuned, ids, following, on, adapter_names=by_row),
        "swapped": lambda ids, following, on: in_turn([causal] * count, groups, swaps, ids, following, on),
        "merged": lambda ids, following, on: in_turn(copies, groups, [None] * count, ids, following, on),
    }


def in_turn(
    models: Sequence[nn.Module],
    groups: Sequence[Sequence[int]],
    before: Sequence[Callable[[], object] | None],
    ids: Tensor,
    following: Tensor,
    platform: str,
) -> tuple[float, float, Tensor]:
    """Serve one group of rows after another, each to its end, by its own model; as `request`, seconds summed."""
    forward = decode = 0.0
    parts = []
    for model, group, first in zip(models, groups, before, strict=True):
        if group:
            ahead, after, logits = request(model, ids[group], following[group], platform, before=first)
            forward, decode = forward + ahead, decode + after
            parts.append(logits)
    order = torch.tensor([row for group in groups for row in group], device=ids.device)
    return forward, decode, torch.cat(parts)[order.argsort()]


def shallow_copy(model: nn.Module, shared: Sequence[Tensor]) -> nn.Module:
    """A copy of the model that holds the tensors in `shared` in common with it."""
    return copy.deepcopy(model, {id(value): value for value in shared})


def merge_gap(probe: specs.Probe) -> Findings:
    """What merging does to the loss: train the probe's run, then evaluate it before and after merging.

    The loss on the run's validation examples is taken in float32 arithmetic, so that only the weights differ:

    untuned, unmerged, merged: float32 weights.   untuned_bf16, unmerged_bf16: the base rounded to bfloat16, adapters
    in float32.   merged_bf16: the adapter merged by peft into the rounded base, which rounds again.
    merged_then_rounded: merged into the float32 base, which is then rounded.
    """
    (run,) = probe.runs
    trainee = prepare(run)
    trained = trainee.train()
    gaps = compare_merges(trainee.model, trainee.graded, trainee.tokenizer.pad_token_id, run.platform)
    return Findings(
        measurements={**gaps.measurements, "train_tokens": trained.tokens if trained else 0},
        per_example=gaps.per_example,
    )


def requantise_gap(probe: specs.Probe) -> Findings:
    """What is lost when an adapter tuned on a 4-bit base is merged and the result is quantised again.

    Trains the probe's run, a QLoRA with the plain start. Its losses are taken in float32 arithmetic, as
    `requantised_losses` lists them, and beside them `unmerged`, the trained model as it computes.
    """
    (run,) = probe.runs
    method = plain_qlora(probe)
    trainee = prepare(run)
    trained = trainee.train()
    pad_id = trainee.tokenizer.pad_token_id
    beside, _ = losses(trainee.model, trainee.graded, pad_id=pad_id, dtype="fp32", platform=run.platform)
    base: nn.Module = load_model(run.model, platform=run.platform).model
    nats = requantised_losses(base, *trained_update(trainee.model), method, trainee.graded, pad_id, run.platform)
    nats["unmerged"] = beside
    return loss_findings(nats, trainee.graded, {"train_tokens": trained.tokens if trained else 0})


def surviving_update(probe: specs.Probe) -> Findings:
    """What is left of an adapter that is merged into its 4-bit base and quantised again: of its update and of its gain.

    Trains the probe's run, a QLoRA with the plain start.  Of the update, by the weights alone: `size`, `kept` and
    `error` of `Survival`, its sums taken over all adapted matrices; `module_size` and `module_kept` are those
    of each.  Of the gain: the losses `untuned`, `merged` and `requantised` of `requantised_losses`, in float32.
    """
    (run,) = probe.runs
    method = plain_qlora(probe)
    trainee = prepare(run)
    trained = trainee.train()
    state, scaling = trained_update(trainee.model)
    base: nn.Module = load_model(run.model, platform=run.platform).model
    parts = survivals(base, state, scaling, method)
    pooled = functools.reduce(operator.add, parts.values())
    pad_id = trainee.tokenizer.pad_token_id
    nats = requantised_losses(base, state, scaling, method, trainee.graded, pad_id, run.platform, GAIN_STATES)
    measured = {name: getattr(pooled, name) for name in ("size", "kept", "error")}
    found = loss_findings(nats, trainee.graded, {**measured, "train_tokens": trained.tokens if trained else 0})
    modules: dict[str, list[float] | list[str]] = {
        "module_size": [round(part.size, 6) for part in parts.values()],
        "module_kept": [round(part.kept, 6) for part in parts.values()],
        "module": list(parts),
    }
    return replace(found, per_example={**found.per_example, **modules})


def plain_qlora(probe: specs.Probe) -> QLoRA:
    """The method of the probe's run. Raises InputError where its base is not the rounded weights."""
    method = probe.runs[0].method
    if not isinstance(method, QLoRA) or method.init != "kaiming" or method.dora:
        name = probe.measure.partition(".")[2]
        raise InputError(f"{name} needs a QLoRA run with init 'kaiming' and without DoRA, not {method!r}.")
    return method


def trained_update(model: nn.Module) -> tuple[dict[str, Tensor], float]:
    """A and B of the adapted layers in float32, and γ."""
    state = {name: value.float() for name, value in adapter_state(model, "default").items()}
    (scaling,) = {layer.scaling["default"] for layer in lora_layers(model).values()}
    return state, scaling


@torch.no_grad()
def survivals(base: nn.Module, state: dict[str, Tensor], scaling: float, method: QLoRA) -> dict[str, Survival]:
    """Adapted module → what requantising leaves of its update γ B A; the base has its dense weights."""
    names = [name.removesuffix(".A") for name in state if name.endswith(".A")]
    return {
        name: survival(
            base.get_submodule(name).weight,  # type: ignore[arg-type]
            scaling * state[f"{name}.B"] @ state[f"{name}.A"],
            method.quant,
            method.double_quant,
        )
        for name in names
    }
