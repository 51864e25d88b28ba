"""Figures of the family tree: how many numbers each method trains, what work they add, and what they lose."""

from __future__ import annotations

from typing import Any, NamedTuple

from matplotlib.figure import Figure

from peftbook.memory import SHAPES, DecoderShape
from peftbook.methods import arm_looks, get
from peftbook.methods.adapter import Adapter
from peftbook.methods.full import Full
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.methods.norm import NormTuning
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.vera import VeRA
from peftbook.views.figures.parts import SMALL, mark, note
from peftbook.views.figures.style import canvas, colour, finding, name_rows, say, shade, tag


class Member(NamedTuple):
    """A method of the tree: its name in short, the tone of its family, its marker, its setting here."""

    label: str
    tone: str
    marker: str
    setting: str = ""

    @property
    def name(self) -> str:
        """Label and setting."""
        return ", ".join(filter(None, (self.label, self.setting)))


FAMILIES = {"prompt": "additive", "qlora": "selective", "lora": "reparametrised"}  # tone → family


def member(kind: str, setting: str = "") -> Member:
    """A method of the registry in the tree."""
    tone = next(tone for tone, family in FAMILIES.items() if family == get(kind).family)
    return Member(arm_looks()[kind].label, tone, arm_looks()[kind].marker, setting)


MEMBERS = {
    "full": Member("All weights", "full", arm_looks()["full"].marker),
    "dora": Member("DoRA", "lora", "8", "r = 16"),
    "adalora": Member("AdaLoRA", "lora", "H", "r = 16"),
    "lora": member("lora", "r = 16"),
    "adapter": member("adapter", "m = 64"),
    "vera": member("vera", "r = 256"),
    "prefix": member("prefix", "p = 10"),
    "ia3": member("ia3"),
    "norm": member("norm"),
    "prompt": member("prompt", "p = 20"),
    "subspace": Member("Subspace", "lora", "*", "n = 200"),
    "bias": Member("BitFit", "qlora", "d"),
}
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-2-7b": "Llama-2-7B"}


# Numbers: what is trained, and what it costs to use.


def trained_parameters(
    shape: DecoderShape, rank: int = 16, width: int = 64, length: int = 20, prefix: int = 10, random_rank: int = 256
) -> dict[str, int]:
    """How many numbers each method trains on a decoder of this shape.

    rank: of LoRA and its kin on all seven matrices.  width: of the adapters' bottleneck.  length, prefix: virtual
    tokens of a prompt and of a prefix.  random_rank: of VeRA.
    """
    inputs, outputs = (sum(pair[side] for pair in shape.linears.values()) for side in (0, 1))
    methods = {
        "full": Full(), "dora": LoRA(rank=rank, dora=True), "lora": LoRA(rank=rank), "adapter": Adapter(width=width),
        "vera": VeRA(rank=random_rank), "prefix": Prefix(length=prefix), "ia3": IA3(), "norm": NormTuning(),
        "prompt": PromptTuning(length=length),
    }  # fmt: skip
    return {
        **{name: method.parameters(shape) for name, method in methods.items()},
        "adalora": shape.layers * rank * (inputs + outputs + len(shape.linears)),
        "subspace": 200,
        "bias": shape.layers * sum(shape.linears[name][1] for name in shape.biased),
    }


def work_per_token(
    shape: DecoderShape, rank: int = 16, width: int = 64, length: int = 20, prefix: int = 10, random_rank: int = 256
) -> dict[str, int]:
    """Multiplications that each method adds to a generated token as long as it is not merged.

    A matrix or a scale multiplies once for each of its entries. A virtual token whose key and value are cached is
    multiplied twice, once for its score and once for its share, over the whole width of the queries.
    """
    trained = trained_parameters(shape, rank, width, length, prefix, random_rank)
    inputs, outputs = (sum(pair[side] for pair in shape.linears.values()) for side in (0, 1))
    virtual = 2 * shape.layers * shape.heads * shape.head_dim
    return {
        **{name: trained[name] for name in ("dora", "adalora", "lora", "ia3")},
        "adapter": 2 * shape.layers * 2 * width * shape.hidden,
        "vera": trained["vera"] + shape.layers * random_rank * (inputs + outputs),
        "prefix": virtual * prefix,
        "prompt": virtual * length,
    }


def numbers_by_method() -> Figure:
    """How many numbers does each method train? Two models, a logarithmic axis; BitFit finds no bias in a Llama."""
    figure, axes = canvas(height=5.6)
    counts = {name: trained_parameters(SHAPES[name]) for name in MODELS}
    for at, (name, one) in enumerate(MEMBERS.items()):
        small, large = (counts[model][name] for model in MODELS)
        if not large:
            axes.text(60, at, "0: a Llama has no biases", va="center", color=colour(one.tone), fontsize=SMALL)
            continue
        axes.plot([small, large], [at, at], color=shade(one.tone, 0.45), linewidth=2.2, solid_capstyle="butt")
        for value, hollow in ((small, True), (large, False)):
            axes.plot(value, at, **(mark(one.tone, one.marker, hollow=hollow) | {"markersize": 9}))
        text = share_text(large / counts["llama-2-7b"]["full"])
        tag(axes, text, (large, at), (9, 0), "muted", va="center", fontsize=SMALL, fontweight="normal")
    name_rows(axes, [one.name for one in MEMBERS.values()], 0.4, 0.6)
    for label, one in zip(axes.get_yticklabels(), MEMBERS.values(), strict=True):
        label.set(color=colour(one.tone), fontweight="bold")
    remark = "hollow: SmolLM2-135M\nfilled: Llama-2-7B,\nand the share it trains"
    note(axes, remark, 0.99, 0.17, va="center", linespacing=1.4)
    axes.set(xscale="log", xlabel="Trained numbers", xlim=(40, 4e12), xticks=[10**power for power in (2, 4, 6, 8, 10)])
    lora, prompt = (share_text(counts["llama-2-7b"][one] / counts["llama-2-7b"]["full"]) for one in ("lora", "prompt"))
    return finding(figure, f"LoRA trains {lora} of Llama-2-7B, a prompt of 20 tokens {prompt}")


def share_text(share: float) -> str:
    """A share in per cent with two significant digits."""
    if share == 1:
        return "all of them"
    if share < 1e-6:
        digits, power = f"{100 * share:.0e}".split("e")
        return rf"${digits} \times 10^{{{int(power)}}}$ %"
    return f"{100 * share:#.2g} %"


def work_against_count() -> Figure:
    """Does a small count mean little work? Multiplications that a method adds to a token, against its count."""
    shape = SHAPES["smollm2-135m"]
    trained, work = trained_parameters(shape), work_per_token(shape)
    figure, axes = canvas(height=4.3)
    ends = (5e3, 2e8)
    axes.plot(ends, ends, color=colour("muted"), linewidth=1.2, linestyle=(0, (4, 2)))
    note(axes, "each number used once", 3.2e5, 1.9e5, transform=axes.transData, ha="left", va="top")
    axes.axhline(shape.linear_parameters, color=colour("full"), linewidth=1.4)
    place: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": SMALL}
    say(axes, 5.6e3, shape.linear_parameters * 1.15, "all matrices of the model", "full", **place)
    paper = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 0.8}  # so that a text stays clear of lines
    for name, value in work.items():
        one = MEMBERS[name]
        axes.plot(trained[name], value, **(mark(one.tone, one.marker) | {"markersize": 10}))
        if name in ("dora", "adalora", "adapter"):
            continue
        label = "LoRA, DoRA,\nAdaLoRA, adapter" if name == "lora" else f"{one.label}, {one.setting}".strip(", ")
        tone = "ink" if name == "lora" else one.tone
        side = "top" if name == "lora" else "center"
        tag(axes, label, (trained[name], value), (11, -1), tone, va=side, fontsize=SMALL, bbox=paper)
    axes.set(
        xscale="log", yscale="log", xlabel="Trained numbers", ylabel="Multiplications added\nto a token, not merged"
    )
    axes.set(xlim=(5e3, 2.2e8), ylim=(5e3, 4e8))
    fewer, more = trained["lora"] / trained["vera"], work["vera"] / work["lora"]
    return finding(figure, f"VeRA trains 1/{fewer:.0f} of LoRA's numbers, and multiplies {more:.0f} times as often")
