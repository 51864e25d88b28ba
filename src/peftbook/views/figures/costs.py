"""Figures of cost: what a step takes on the named machine, and what training must keep at 7B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.comparison import measured
from peftbook.memory import SHAPES, Setup, training_step
from peftbook.memory.stacks import setup_in
from peftbook.methods import arm_looks, preset_method
from peftbook.studies import costs
from peftbook.views.figures import figure
from peftbook.views.figures.drawn import draw_bars
from peftbook.views.figures.parts import draw_stacks
from peftbook.views.figures.style import SIZE, canvas, finding, look, name_rows, say, shade, tag

LLAMA = SHAPES["llama-2-7b"]
ARMS = ("full", "lora", "qlora", "prompt")  # of the deck
COSTS = {  # quantity of the study → field of its records, unit, axis
    "step_seconds": ("median_step_seconds", 1.0, "Seconds per step"),
    "peak_memory": ("peak_memory_bytes", 1e9, "Peak memory, GB"),
}
QUANTISED_BITS = 4 + 8 / 64 + 32 / (64 * 256)


def repeats(arm: str, store: Store, field: str) -> list[float]:
    """One measurement of every timing repeat of an arm."""
    return measured(costs.arm_records(arm, store), field)


@figure
def step_time(store: Store) -> Figure:
    """How long is a training step? Every repeat and their median, on the machine of the records."""
    text = "QLoRA's step takes {costs.qlora_over_lora_step_seconds} LoRA's time"
    return repeats_figure("step_seconds", store, "Median seconds per step of 8 examples", text)


@figure
def peak_memory(store: Store) -> Figure:
    """How much memory does training need? Peak memory of the process, every repeat and their median."""
    text = "QLoRA's peak memory is {costs.qlora_over_lora_peak_memory} LoRA's"
    return repeats_figure("peak_memory", store, "Peak memory of the process, GB", text)


def repeats_figure(cost: str, store: Store, label: str, text: str) -> Figure:
    field, unit, _ = COSTS[cost]
    figure, axes = canvas(height=3.3)
    found = {arm: repeats(arm, store, field) for arm in costs.ARMS}
    for row, (arm, values) in enumerate(found.items()):
        draw_repeats(axes, row, arm, [value / unit for value in values])
    name_rows(axes, [arm_looks()[arm].label for arm in found])
    axes.set(xlim=(0, max(max(values) for values in found.values()) / unit * 1.16), xlabel=label)
    say(axes, 1, -0.26, costs.MACHINE, "muted", ha="right", va="top", transform=axes.transAxes, fontsize=SIZE - 2)
    return finding(figure, text, store)


def draw_repeats(axes: Axes, row: int, arm: str, values: Sequence[float]) -> None:
    """A bar to the median with its value, and each repeat as the arm's marker."""
    middle = sorted(values)[len(values) // 2]
    axes.barh(row, middle, 0.62, color=shade(arm, 0.4))
    axes.plot(values, [row] * len(values), **look(arm, line=False))
    tag(axes, f"{middle:.2f}", (max(values), row), (9, 0), va="center")


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


@figure
def training_state() -> Figure:
    """What must training keep at 7B? Weights, gradients and optimiser, computed; activations come on top."""
    figure, axes = canvas(height=3.5)
    draw_bars(axes, kept_state())
    axes.legend(loc="lower right")
    full, lora, qlora = (sum(state_bytes(arm).values()) / 1e9 for arm in ("full", "lora", "qlora"))
    return finding(figure, f"At 7B full fine-tuning keeps {full:.0f} GB, LoRA {lora:.0f} and QLoRA {qlora:.1f}")


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


@figure
def memory_by_term() -> Figure:
    """Where does the memory of a step go at 7B? The byte model's terms at the peak, for one row of 2,048 tokens."""
    figure, axes = canvas(height=5.4)
    looks = {part: one[1:] for part, one in PARTS.items()}
    rows = {name: bytes_by_part(setup) for name, setup in STEPS_7B.items()}
    draw_stacks(axes, list(rows.values()), looks)
    name_rows(axes, list(STEPS_7B))
    axes.set(xlim=(0, 38), xlabel="GB at the peak, 1 × 2,048 tokens (computed)")
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.4)
    plain, cut = (sum(rows[f"QLoRA, {how}"].values()) / 1e9 for how in ("peft alone", "checkpointed"))
    return finding(figure, f"At 7B checkpointing cuts QLoRA's peak from {plain:.0f} to {cut:.1f} GB")
