"""Presets: the methods that the studio offers, each with the learning rate that the book's sweeps chose."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from peftbook import specs

__all__ = ["NAMES", "Preset", "preset_named", "presets"]

SHOTS = 5


@dataclass(frozen=True)
class Preset:
    """A method as the studio offers it. words: one sentence for whoever must choose; arm: whose learning rate of the
    book's sweeps it takes.
    """

    name: str
    label: str
    words: str
    method: specs.Method
    learning_rate: float


# name, label, one sentence, method, arm of the book's sweeps whose rate it takes
OFFERED: tuple[tuple[str, str, str, specs.Method, str], ...] = (
    ("untuned", "Untuned", "The model as it comes: what every other method must beat.", specs.Untuned(), ""),
    (
        "fewshot", "Five examples in the prompt",
        "Nothing is trained: solved examples stand before each question, which makes answers slower.",
        specs.Untuned(shots=SHOTS), "",
    ),
    (
        "lora", "LoRA", "Small matrices beside every weight matrix are trained: the one to try first.",
        specs.LoRA(), "lora",
    ),
    (
        "qlora", "QLoRA", "LoRA over weights in four bits: far less memory for large models, but slower steps.",
        specs.QLoRA(), "qlora",
    ),
    (
        "prompt", "Prompt tuning", "Some virtual tokens before the question are trained: the smallest file of all.",
        specs.PromptTuning(), "prompt",
    ),
    (
        "full", "Full fine-tuning", "Every weight is trained: most memory, and a whole model to store.",
        specs.Full(), "full",
    ),
    (
        "prefix", "Prefix tuning", "Keys and values before those of every attention layer are trained.",
        specs.Prefix(), "prefix",
    ),
    (
        "adapter", "Bottleneck adapter", "Small networks after attention and MLP are trained; they cannot be merged.",
        specs.Adapter(), "adapter",
    ),
    ("ia3", "(IA)³", "Keys, values and inner activations are scaled by trained numbers, very few.", specs.IA3(), "ia3"),
    (
        "norm", "Normalisation gains", "Only the gains of the normalisation layers are trained, very few.",
        specs.NormTuning(), "norm",
    ),
    (
        "vera", "VeRA", "Random matrices that all layers share are scaled by trained numbers: a small file.",
        specs.VeRA(), "vera",
    ),
    (
        "rslora", "rsLoRA",
        "LoRA divided by the root of its rank: like LoRA at the usual rank, with a rate that holds at others.",
        specs.LoRA(alpha=8, scaling="rank_stabilized"), "lora",
    ),
    (
        "dora", "DoRA", "LoRA that learns size and direction of the weights apart; slower steps.",
        specs.LoRA(dora=True), "dora",
    ),
    (
        "pissa", "PiSSA", "LoRA that starts at the weights' main directions and freezes the rest.",
        specs.LoRA(init="pissa"), "pissa",
    ),
    (
        "olora", "OLoRA", "LoRA that starts at orthogonal directions of the weights.",
        specs.LoRA(init="olora"), "olora",
    ),
    (
        "lora+", "LoRA+", "LoRA whose second matrix learns faster than its first.",
        specs.LoRA(b_rate_ratio=16), "plus16",
    ),
    (
        "lora-fa", "LoRA-FA", "LoRA of which only the second matrix is trained: less memory.",
        specs.LoRA(freeze_a=True), "frozen_a",
    ),
)  # fmt: skip
NAMES = tuple(name for name, *_ in OFFERED)


@functools.cache
def presets() -> tuple[Preset, ...]:
    """All methods in the order in which they are offered; a rate of 0 where nothing is trained."""
    from peftbook.studies.chosen_rates import learning_rate_for

    return tuple(
        Preset(name, label, words, method, learning_rate_for(arm) if arm else 0.0)
        for name, label, words, method, arm in OFFERED
    )


def preset_named(name: str) -> Preset:
    """A method by its name. Raises InputError for an unknown one."""
    from peftbook.errors import InputError

    known = {preset.name: preset for preset in presets()}
    if name not in known:
        raise InputError(f"Unknown method {name!r}: choose among {', '.join(known)}.")
    return known[name]
