"""What merging a LoRA into its base does to weights, logits and losses: exactly, rounded, and quantised again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftbook.methods.qlora import QLoRA
from peftbook.scratch.codebooks import quantise_dense
from peftbook.training.encode import Encoded
from peftbook.training.forward import causal_model
from peftbook.training.loop import losses, pad
from peftbook.training.probes import Findings

LOGIT_EXAMPLES = 4
STATES = ("full", "untuned", "merged", "requantised", "merged_16bit", "requantised_16bit")


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """peft's LoRA layers by their names in the model under peft's wrapper."""
    return {name: part for name, part in causal_model(model).named_modules() if hasattr(part, "lora_A")}


def adapter_state(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """A and B of one of peft's adapters under the names that `peftbook.scratch.lora` uses."""
    state = {}
    for name, layer in lora_layers(model).items():
        state[f"{name}.A"] = layer.lora_A[adapter].weight.detach()
        state[f"{name}.B"] = layer.lora_B[adapter].weight.detach()
    return state


@torch.no_grad()
def merge_state(model: nn.Module, state: dict[str, Tensor], scaling: float) -> None:
    """Add gamma B A to the weights of the layers that the state names."""
    for name in {key.rpartition(".")[0] for key in state}:
        model.get_submodule(name).weight += scaling * state[f"{name}.B"] @ state[f"{name}.A"]


def rms(values: Tensor) -> float:
    """Root mean square."""
    return values.square().mean().sqrt().item()


def compare_merges(model: Any, encoded: list[Encoded], pad_id: int, platform: str = "cpu") -> Findings:
    """Loss, logits and weights of a trained LoRA model in the states that `merge_gap` lists; it is left as it was."""
    nats: dict[str, list[float]] = {}
    logits: dict[str, Tensor] = {}

    def note(name: str) -> None:
        nats[name], _ = losses(model, encoded, pad_id=pad_id, dtype="fp32", platform=platform)
        logits[name] = label_logits(model, encoded, pad_id)

    note("unmerged")
    with model.disable_adapter():
        note("untuned")
    with base_restored(model):
        model.merge_adapter()
        note("merged")
        round_base(model)
        note("merged_then_rounded")
    with base_restored(model):
        round_base(model)
        note("unmerged_bf16")
        with model.disable_adapter():
            note("untuned_bf16")
        changes = merge_in_bf16(model)
        note("merged_bf16")
    effect = rms(logits["unmerged"] - logits["untuned"])
    gaps = {
        f"{name}_logit_gap": rms(values - logits["unmerged"]) / effect
        for name, values in logits.items()
        if name not in ("unmerged", "untuned")
    }
    return loss_findings(nats, encoded, {**gaps, **changes})


def loss_findings(
    nats: Mapping[str, list[float]], encoded: Sequence[Encoded], measured: Mapping[str, float | int | None]
) -> Findings:
    """The losses of several states, per token and per example, beside what else was measured."""
    counts = [example.label_tokens for example in encoded]
    means = {f"{name}_loss_nats": sum(values) / sum(counts) for name, values in nats.items()}
    per_example = {f"{name}_loss_nats": [round(value, 6) for value in values] for name, values in nats.items()}
    return Findings(
        measurements={**means, **measured},
        per_example={**per_example, "label_tokens": [float(count) for count in counts]},
    )


@torch.no_grad()
def label_logits(model: nn.Module, encoded: list[Encoded], pad_id: int) -> Tensor:
    """Logits at the label positions of the first examples, (labels, V), float32."""
    base = causal_model(model)
    few = encoded[:LOGIT_EXAMPLES]
    output = base(input_ids=pad(few, pad_id, base.get_input_embeddings().weight.device), use_cache=False)
    return torch.cat([output.logits[row, example.start - 1 : len(example.ids) - 1] for row, example in enumerate(few)])


@contextmanager
def base_restored(model: Any) -> Iterator[None]:
    """Put the base weights back, bit by bit, and the adapter beside them when the block ends."""
    kept = {name: value.detach().clone() for name, value in base_parameters(model)}
    try:
        yield
    finally:
        model.unmerge_adapter()
        for name, value in base_parameters(model):
            value.data = kept[name]


def base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All parameters that are not the adapter's."""
    return [(name, value) for name, value in model.named_parameters() if ".lora_" not in name]


def round_base(model: nn.Module) -> None:
    """Round all base weights to bfloat16; they stay stored in float32."""
    for _, value in base_parameters(model):
        value.data = value.data.bfloat16().float()


@torch.no_grad()
def merge_in_bf16(model: Any) -> dict[str, float]:
    """Let peft merge into bfloat16 base weights and say what became of the update D = gamma B A.

    update_kept_share: <W' − W, D> / ‖D‖², 1 if the update arrives whole.   update_error_share: ‖W' − W − D‖ / ‖D‖.
    unchanged_weights_share: weights of the adapted layers that the merge left at their value.
    """
    layers = list(lora_layers(model).values())
    before = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    updates = [layer.get_delta_weight(layer.active_adapters[0]) for layer in layers]
    for layer in layers:
        layer.get_base_layer().weight.data = layer.get_base_layer().weight.data.bfloat16()
    model.merge_adapter()
    kept = norm = error = unchanged = total = 0.0
    for layer, old, update in zip(layers, before, updates, strict=True):
        weight = layer.get_base_layer().weight
        weight.data = weight.data.float()
        moved = weight - old
        kept += (moved * update).sum().item()
        norm += update.square().sum().item()
        error += (moved - update).square().sum().item()
        unchanged += (moved == 0).sum().item()
        total += moved.numel()
    return {
        "update_kept_share": kept / norm,
        "update_error_share": (error / norm) ** 0.5,
        "unchanged_weights_share": unchanged / total,
        "update_rms": (norm / total) ** 0.5,
    }


@torch.no_grad()
def requantised_losses(
    model: nn.Module,
    state: dict[str, Tensor],
    scaling: float,
    method: QLoRA,
    encoded: list[Encoded],
    pad_id: int,
    platform: str = "cpu",
    states: Collection[str] = STATES,
) -> dict[str, list[float]]:
    """Summed nats of every example with the weights of each of the states; the model is left in the last of STATES.

    W: the model's weights; Q: to the method's type and back, block 64; D = γ B A, the adapter's update.
    full W; untuned Q(W); merged Q(W) + D; requantised Q(Q(W) + D); merged_16bit W + D; requantised_16bit Q(W + D).
    """
    kept = {name: value.detach().clone() for name, value in model.named_parameters()}
    nats: dict[str, list[float]] = {}

    def note(name: str) -> None:
        if name in states:
            nats[name], _ = losses(model, encoded, pad_id=pad_id, dtype="fp32", platform=platform)

    def quantise() -> None:
        quantise_dense(model, method.quant, double_quant=method.double_quant)

    note("full")
    quantise()
    note("untuned")
    merge_state(model, state, scaling)
    note("merged")
    quantise()
    note("requantised")
    for name, value in model.named_parameters():
        value.copy_(kept[name])
    merge_state(model, state, scaling)
    note("merged_16bit")
    quantise()
    note("requantised_16bit")
    return nats
