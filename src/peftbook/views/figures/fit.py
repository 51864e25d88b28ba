"""Figures of the chapter on memory: what a step holds by model, by length and by rank. All computed, none measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.memory import SHAPES, Setup, training_step
from peftbook.memory.stacks import setup_in
from peftbook.views.figures.costs import LONG, NF4, bytes_by_part, draw_peaks, part_key
from peftbook.views.figures.parts import SMALL, Points, decimals, labelled, mosaic, paint, plain_ticks
from peftbook.views.figures.style import canvas, colour, finding, tag

CHECKPOINTED = replace(NF4, checkpointing=True)
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-2-7b": "Llama-2-7B", "llama-2-70b": "Llama-2-70B"}
WAYS = {
    "Full": replace(LONG, method="full"),
    "LoRA": LONG,
    "QLoRA": NF4,
    "QLoRA, checkp.": CHECKPOINTED,
    "Prompt on NF4": replace(NF4, method="prompt"),
}
CARDS = {"24 GB card": 24e9, "80 GB card": 80e9}  # less than what they hold, by what the driver keeps
ROWS = (1, 2, 4, 8, 16)
BY_ROWS = {"LoRA": ("full", "s"), "QLoRA": ("qlora", "D"), "QLoRA, checkp.": ("lora", "o")}  # way → tone, marker


def memory_by_model() -> Figure:
    """Where does the memory of a step go, from 135 million to 70 billion parameters? One row of 2,048 tokens."""
    figure, axes = mosaic([[name] for name in MODELS], height=7.4)
    for name, label in MODELS.items():
        draw_model(axes[name], {way: bytes_by_part(setup, name) for way, setup in WAYS.items()})
        axes[name].set_title(label, loc="right", fontsize=SMALL, fontweight="bold", pad=4)
    axes["llama-2-70b"].set_xlabel("GB at the peak, 1 × 2,048 tokens (computed)")
    part_key(figure, axes["llama-2-7b"])
    full, cut = (training_step(SHAPES["llama-2-70b"], WAYS[way]).peak().total for way in ("Full", "QLoRA, checkp."))
    return finding(
        figure, f"At 70B full fine-tuning peaks at {full / 1e9:.0f} GB, checkpointed QLoRA at {cut / 1e9:.0f}"
    )


def draw_model(axes: Axes, rows: Mapping[str, Mapping[str, float]]) -> None:
    """The bars of one model, and where the cards end that they come near."""
    longest = draw_peaks(axes, rows)
    axes.tick_params(axis="y", labelsize=SMALL)
    for card, size in CARDS.items():
        if 0.1 * longest < size / 1e9 < longest:
            axes.axvline(size / 1e9, color=colour("ink"), linestyle=(0, (2, 2)), linewidth=1.2)
            tag(axes, card, (size / 1e9, -0.55), (0, 3), ha="center", fontsize=SMALL, fontweight="normal")


def draw_cards(axes: Axes, x: float, lift: float = 4, **look: Any) -> None:
    """A line at the memory of each card, in GB, with its name at x, `lift` points above the line."""
    for card, size in CARDS.items():
        axes.axhline(size / 1e9, color=colour("ink"), linestyle=(0, (2, 2)), linewidth=1.2)
        axes.annotate(card, (x, size / 1e9), xytext=(0, lift), textcoords="offset points", fontsize=SMALL, **look)


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


def memory_by_stack() -> Figure:
    """Does it fit with the library that you run? Llama-3.1-8B, 4 rows of 1,024 tokens, by each library's defaults."""
    figure, axes = mosaic([[name] for name in BASES], height=8.2)
    for name, base in BASES.items():
        draw_model(axes[name], {label: bytes_by_part(stack_setup(label, base), STACK_MODEL) for label in STACKED})
        axes[name].set_title(name, loc="left", fontsize=SMALL, fontweight="bold", pad=4)
    axes["QLoRA"].set_xlabel("GB at the peak, 4 × 1,024 tokens (computed)")
    part_key(figure, axes["LoRA"])
    peaks = {label: stack_peaks(label)["QLoRA"] / 1e9 for label in STACKED}
    least, most = (pick(peaks, key=lambda label: peaks[label]) for pick in (min, max))
    text = f"Llama-3.1-8B: a QLoRA step takes {peaks[least]:.1f} GB in {least}, {peaks[most]:.0f} in {most}"
    return finding(figure, text)


def memory_by_rows() -> Figure:
    """How many rows fit? Peak of Llama-2-7B's step against the rows of a batch, 1,024 tokens each."""
    figure, axes = canvas(height=4.2)
    ends: Points = {}
    for way, (tone, marker) in BY_ROWS.items():
        setups = [replace(WAYS[way], seq=1024, batch=rows) for rows in ROWS]
        peaks = [training_step(SHAPES["llama-2-7b"], setup).peak().total / 1e9 for setup in setups]
        axes.plot(ROWS, peaks, color=paint(tone), marker=marker, linewidth=1.6, markersize=6)
        ends[way] = ROWS[-1], peaks[-1], tone
    axes.set(xscale="log", yscale="log")
    plain_ticks(axes, ROWS)
    decimals(axes.yaxis, (1, 2, 4))
    draw_cards(axes, ROWS[-1] * 3.9, ha="right")
    axes.set(xlabel="Rows of 1,024 tokens", ylabel="GB at the peak (computed)", xlim=(ROWS[0] * 0.9, ROWS[-1] * 4))
    plain, cut = (ends[way][1] for way in ("QLoRA", "QLoRA, checkp."))
    text = f"Llama-2-7B: {ROWS[-1]} rows take {plain:.0f} GB with QLoRA, {cut:.0f} with checkpointing"
    return labelled(figure, text, axes, ends, column=0.735)
