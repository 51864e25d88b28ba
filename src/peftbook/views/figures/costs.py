"""Figures of cost: what a step takes on the named machine, and what training must keep at 7B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.evidence.chart import Chart, Series
from peftbook.memory import SHAPES, Setup, training_step
from peftbook.memory.stacks import setup_in
from peftbook.methods import arm_looks, preset_method
from peftbook.views.figures.parts import draw_stacks
from peftbook.views.figures.style import canvas, finding, name_rows

LLAMA = SHAPES["llama-2-7b"]
ARMS = ("full", "lora", "qlora", "prompt")  # of the deck
QUANTISED_BITS = 4 + 8 / 64 + 32 / (64 * 256)


def state_bytes(method: str, rank: int = 16, length: int = 20) -> dict[str, float]:
    """Bytes that training keeps for Llama-2-7B, without activations: weights, gradients, master copy and moments.

    16-bit weights (QLoRA: 4-bit linear layers with double-quantised scales, the rest 16-bit); each trained parameter
    adds a 16-bit gradient, a 32-bit copy and two 32-bit Adam moments, and a small method's own 16-bit weights.
    """
    spec = preset_method(method).sized(rank=rank, prompt_length=length)
    total, linear, trained = LLAMA.parameters, LLAMA.linear_parameters, spec.parameters(LLAMA)
    base = linear * QUANTISED_BITS / 8 + 2 * (total - linear) if spec.packed else 2.0 * total
    own = 2 * trained if spec.efficient else 0
    return {"weights": base + own, "gradients": 2.0 * trained, "optimiser": 12.0 * trained}


def kept_state() -> Chart:
    """Gigabytes that training keeps for Llama-2-7B, activations not counted."""
    parts = {"weights": "untuned", "gradients": "qlora", "optimiser": "lora"}
    series = [
        Series(part.capitalize(), [state_bytes(arm)[part] / 1e9 for arm in ARMS], look) for part, look in parts.items()
    ]
    labels = [arm_looks()[arm].label for arm in ARMS]
    return Chart(
        series,
        "",
        "GB, Llama-2-7B, activations not counted (computed)",
        labels,
        horizontal=True,
        stacked=True,
        number_format="0",
        gap=65,
    )


LONG = Setup(method="lora", seq=2048)  # peft alone: float32 adapters, no autocast
NF4 = replace(LONG, quantised="nf4")
STEPS_7B = {
    "LoRA, peft alone": LONG,
    "QLoRA, peft alone": NF4,
    "QLoRA, autocast": replace(NF4, autocast=True),
    "QLoRA, bf16 adapters": replace(NF4, adapter_dtype="bf16"),
    "QLoRA, checkpointed": replace(NF4, checkpointing=True),
    "QLoRA, TRL": setup_in("trl", method="lora", quantised="nf4", dtype="bf16", batch=1, seq=LONG.seq)[0],
    "Prompt on NF4": replace(NF4, method="prompt"),
}
# part → its terms in the byte model, tone, share of the tone, hatch
PARTS: dict[str, tuple[tuple[str, ...], str, float, str]] = {
    "weights": (("weights", "quantisation constants"), "lora", 0.35, ""),
    "adapter and its state": (("adapter", "moments", "gradients"), "lora", 1.0, ""),
    "activations": (("embedding", "layer inputs", "norms", "attention", "mlp", "working"), "qlora", 0.45, ""),
    "inputs kept for adapters": (("adapter inputs",), "qlora", 0.8, "///"),
    "logits and loss": (("logits and loss",), "muted", 0.6, "..."),
}


def bytes_by_part(setup: Setup, model: str = "llama-2-7b") -> dict[str, float]:
    """Bytes of the parts of a model's training step at its peak."""
    terms = training_step(SHAPES[model], setup).peak().terms
    return {part: sum(terms.get(name, 0.0) for name in names) for part, (names, *_) in PARTS.items()}


def draw_peaks(axes: Axes, rows: Mapping[str, Mapping[str, float]]) -> float:
    """A bar a row with its name and the parts of its peak; returns the longest, in GB."""
    draw_stacks(axes, list(rows.values()), {part: one[1:] for part, one in PARTS.items()})
    name_rows(axes, list(rows))
    longest = max(sum(row.values()) for row in rows.values()) / 1e9
    axes.set_xlim(0, 1.14 * longest)
    return longest


def part_key(figure: Figure, axes: Axes) -> None:
    """What the parts are, below the figure."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.4)


def memory_by_term() -> Figure:
    """Where does the memory of a step go at 7B? The byte model's terms at the peak, for one row of 2,048 tokens."""
    figure, axes = canvas(height=5.4)
    rows = {name: bytes_by_part(setup) for name, setup in STEPS_7B.items()}
    draw_peaks(axes, rows)
    axes.set_xlabel("GB at the peak, 1 × 2,048 tokens (computed)")
    part_key(figure, axes)
    plain, cut = (sum(rows[f"QLoRA, {how}"].values()) / 1e9 for how in ("peft alone", "checkpointed"))
    return finding(figure, f"At 7B checkpointing cuts QLoRA's peak from {plain:.0f} to {cut:.1f} GB")
