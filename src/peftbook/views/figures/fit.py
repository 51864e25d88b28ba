"""Figures of the chapter on memory: what a step holds by model, by length and by rank. All computed, none measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.evidence.chart import Chart, Series
from peftbook.memory import SHAPES, Setup, training_step
from peftbook.memory.stacks import setup_in
from peftbook.views.figures import figure
from peftbook.views.figures.costs import PARTS, bytes_by_part
from peftbook.views.figures.parts import SMALL, Points, decimals, draw_stacks, labelled, mosaic, paint, plain_ticks
from peftbook.views.figures.style import canvas, colour, finding, name_rows, tag

ROW = Setup(method="lora", seq=2048)  # peft alone: float32 adapters, no autocast
NF4 = replace(ROW, quantised="nf4")
CHECKPOINTED = replace(NF4, checkpointing=True)
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-2-7b": "Llama-2-7B", "llama-2-70b": "Llama-2-70B"}
WAYS = {
    "Full": replace(ROW, method="full"),
    "LoRA": ROW,
    "QLoRA": NF4,
    "QLoRA, checkp.": CHECKPOINTED,
    "Prompt on NF4": replace(NF4, method="prompt"),
}
CARDS = {"24 GB card": 24e9, "80 GB card": 80e9}  # less than what they hold, by what the driver keeps
ROWS = (1, 2, 4, 8, 16)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
RANKS = (1, 4, 16, 64, 256)
# label → set-up, tone, marker, line
BY_LENGTH = {
    "LoRA": (ROW, "full", "s", "-"),
    "QLoRA": (NF4, "qlora", "D", "-"),
    "QLoRA, checkp.": (CHECKPOINTED, "lora", "o", "-"),
    "checkp., eager": (replace(CHECKPOINTED, attention="eager"), "prompt", "^", (0, (4, 1.5))),
    "… bf16 adapters": (replace(NF4, adapter_dtype="bf16"), "qlora", "v", (0, (4, 1.5))),
}


@figure
def memory_by_model() -> Figure:
    """Where does the memory of a step go, from 135 million to 70 billion parameters? One row of 2,048 tokens."""
    figure, axes = mosaic([[name] for name in MODELS], height=7.4)
    looks = {part: one[1:] for part, one in PARTS.items()}
    for name, label in MODELS.items():
        draw_model(axes[name], [bytes_by_part(setup, name) for setup in WAYS.values()], looks, label)
    axes["llama-2-70b"].set_xlabel("GB at the peak, 1 × 2,048 tokens (computed)")
    figure.legend(
        *axes["llama-2-7b"].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.4
    )
    full, cut = (training_step(SHAPES["llama-2-70b"], WAYS[way]).peak().total for way in ("Full", "QLoRA, checkp."))
    return finding(
        figure, f"At 70B full fine-tuning peaks at {full / 1e9:.0f} GB, checkpointed QLoRA at {cut / 1e9:.0f}"
    )


def draw_model(
    axes: Axes,
    rows: Sequence[Mapping[str, float]],
    looks: Mapping[str, tuple[str, float, str]],
    label: str,
    ways: Sequence[str] = tuple(WAYS),
) -> None:
    """The bars of one model, and where the cards end that they come near."""
    draw_stacks(axes, rows, looks)
    longest = max(sum(row.values()) for row in rows) / 1e9
    name_rows(axes, list(ways))
    axes.set_xlim(0, 1.13 * longest)
    axes.set_title(label, loc="right", fontsize=SMALL, fontweight="bold", pad=4)
    axes.tick_params(axis="y", labelsize=SMALL)
    for card, size in CARDS.items():
        if 0.1 * longest < size / 1e9 < longest:
            axes.axvline(size / 1e9, color=colour("ink"), linestyle=(0, (2, 2)), linewidth=1.2)
            tag(axes, card, (size / 1e9, -0.55), (0, 3), ha="center", fontsize=SMALL, fontweight="normal")


def peak_gigabytes(setup: Setup) -> float:
    """Peak of Llama-2-7B's step."""
    return training_step(SHAPES["llama-2-7b"], setup).peak().total / 1e9


def draw_cards(axes: Axes, x: float, lift: float = 4, **look: Any) -> None:
    """A line at the memory of each card, in GB, with its name at x, `lift` points above the line."""
    for card, size in CARDS.items():
        axes.axhline(size / 1e9, color=colour("ink"), linestyle=(0, (2, 2)), linewidth=1.2)
        axes.annotate(card, (x, size / 1e9), xytext=(0, lift), textcoords="offset points", fontsize=SMALL, **look)


def draw_peaks(axes: Axes, ways: Sequence[str], field: str, sizes: Sequence[int], **fixed: Any) -> Points:
    """Peaks of ways of BY_LENGTH against a size of their set-up, both logarithmic; returns the ends of the lines."""
    ends: Points = {}
    for label in ways:
        setup, tone, marker, line = BY_LENGTH[label]
        peaks = [peak_gigabytes(replace(setup, **(fixed | {field: size}))) for size in sizes]
        axes.plot(sizes, peaks, color=paint(tone), marker=marker, linestyle=line, linewidth=1.6, markersize=6)
        ends[label] = sizes[-1], peaks[-1], tone
    axes.set(xscale="log", yscale="log")
    plain_ticks(axes, sizes)
    decimals(axes.yaxis, (1, 2, 4))
    return ends


# label → stack, and what is said beside its defaults; all of it on the same rows, at the same rank
STACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "Own loop, peft": ("peft", {}),
    "Trainer": ("trainer", {}),
    "TRL": ("trl", {}),
    "TRL, bf16 weights": ("trl", {"dtype": "bf16"}),
    "torchtune": ("torchtune", {}),
    "LitGPT": ("litgpt", {}),
    "Axolotl": ("axolotl", {}),
    "Unsloth": ("unsloth", {}),
    "peftbook": ("peftbook", {}),
}
STACK_MODEL, STACK_ROWS = "llama-3.1-8b", {"batch": 4, "seq": 1024, "rank": 16, "targets": Setup.targets}
BASES = {"LoRA": "", "QLoRA": "nf4"}


def stack_setup(label: str, quantised: str) -> Setup:
    """How a stack of STACKED trains LoRA over a base."""
    stack, said = STACKED[label]
    return setup_in(stack, quantised=quantised, **(STACK_ROWS | said))[0]


def stack_peaks(label: str) -> dict[str, float]:
    """Bytes at the peak of LoRA and of QLoRA in a stack."""
    shape = SHAPES[STACK_MODEL]
    return {name: training_step(shape, stack_setup(label, base)).peak().total for name, base in BASES.items()}


def stack_bars() -> Chart:
    """Gigabytes at the peak of LoRA and of QLoRA in each stack."""
    peaks = [stack_peaks(label) for label in STACKED]
    series = [
        Series(name, [one[name] / 1e9 for one in peaks], look) for name, look in (("LoRA", "lora"), ("QLoRA", "qlora"))
    ]
    return Chart(
        series,
        "",
        "GB at the peak, Llama-3.1-8B, 4 × 1,024 tokens (computed)",
        list(STACKED),
        horizontal=True,
        number_format="0",
        gap=40,
    )


@figure
def memory_by_stack() -> Figure:
    """Does it fit with the library that you run? Llama-3.1-8B, 4 rows of 1,024 tokens, by each library's defaults."""
    figure, axes = mosaic([[name] for name in BASES], height=8.2)
    looks = {part: one[1:] for part, one in PARTS.items()}
    for name, base in BASES.items():
        rows = [bytes_by_part(stack_setup(label, base), STACK_MODEL) for label in STACKED]
        draw_model(axes[name], rows, looks, "", list(STACKED))
        axes[name].set_title(name, loc="left", fontsize=SMALL, fontweight="bold", pad=4)
    axes["QLoRA"].set_xlabel("GB at the peak, 4 × 1,024 tokens (computed)")
    figure.legend(*axes["LoRA"].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.4)
    peaks = {label: stack_peaks(label)["QLoRA"] / 1e9 for label in STACKED}
    least, most = (pick(peaks, key=lambda label: peaks[label]) for pick in (min, max))
    text = f"Llama-3.1-8B: a QLoRA step takes {peaks[least]:.1f} GB in {least}, {peaks[most]:.0f} in {most}"
    return finding(figure, text)


@figure
def memory_by_length() -> Figure:
    """How does memory grow with the text? Peak of Llama-2-7B's step against the tokens of its one row."""
    figure, axes = canvas(height=4.6)
    ends = draw_peaks(axes, tuple(BY_LENGTH), "seq", LENGTHS)
    draw_cards(axes, LENGTHS[0])
    axes.set(xlabel="Tokens of the one row", ylabel="GB at the peak (computed)")
    axes.set(xlim=(LENGTHS[0] * 0.9, LENGTHS[-1] * 5.5), ylim=(3, 110))
    lora, cut = (ends[way][1] for way in ("LoRA", "QLoRA, checkp."))
    text = f"Llama-2-7B: {LENGTHS[-1]:,} tokens take {lora:.0f} GB with LoRA, {cut:.1f} with checkpointed QLoRA"
    return labelled(figure, text, axes, ends, column=0.735)


@figure
def memory_by_rows() -> Figure:
    """How many rows fit? Peak of Llama-2-7B's step against the rows of a batch, 1,024 tokens each."""
    figure, axes = canvas(height=4.2)
    ends = draw_peaks(axes, tuple(BY_LENGTH)[:3], "batch", ROWS, seq=1024)
    draw_cards(axes, ROWS[-1] * 3.9, ha="right")
    axes.set(xlabel="Rows of 1,024 tokens", ylabel="GB at the peak (computed)", xlim=(ROWS[0] * 0.9, ROWS[-1] * 4))
    plain, cut = (ends[way][1] for way in ("QLoRA", "QLoRA, checkp."))
    text = f"Llama-2-7B: {ROWS[-1]} rows take {plain:.0f} GB with QLoRA, {cut:.0f} with checkpointing"
    return labelled(figure, text, axes, ends, column=0.735)


@figure
def memory_by_rank() -> Figure:
    """What does the rank cost? The adapter with its gradients and moments, and the whole peak, against the rank."""
    figure, axes = canvas(height=4.2)
    shape, ends = SHAPES["llama-2-7b"], dict[str, tuple[float, float, str]]()
    looks = {"QLoRA's peak": ("qlora", "D"), "checkpointed": ("lora", "o"), "adapter's own": ("accent", "P")}
    series: dict[str, list[float]] = {name: [] for name in looks}
    for rank in RANKS:
        step = training_step(shape, replace(NF4, rank=rank))
        own = step.numbers({**step.state, "gradients": step.gradients})
        series["adapter's own"].append(sum(own[name] for name in ("adapter", "moments", "gradients")) / 1e9)
        series["QLoRA's peak"].append(step.peak().total / 1e9)
        series["checkpointed"].append(peak_gigabytes(replace(CHECKPOINTED, rank=rank)))
    for name, (tone, marker) in looks.items():
        axes.plot(RANKS, series[name], color=paint(tone), marker=marker, linewidth=1.6, markersize=6)
        ends[name] = RANKS[-1], series[name][-1], tone
    axes.set(xscale="log", yscale="log", xlabel="Rank, on all linear layers", ylabel="GB, 1 × 2,048 tokens (computed)")
    plain_ticks(axes, RANKS)
    decimals(axes.yaxis, (1, 3))
    axes.set_xlim(0.85, RANKS[-1] * 12)
    small, large = (series["adapter's own"][RANKS.index(rank)] for rank in (16, RANKS[-1]))
    text = f"Llama-2-7B: an adapter of rank 16 takes {small:.1f} GB, of rank {RANKS[-1]} {large:.0f}"
    return labelled(figure, text, axes, ends, column=0.735)
