"""Does a training step fit in so much memory, how large may it be, and what is the cheapest way to make it fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from peftbook.core.errors import InputError
from peftbook.memory.architecture import NO_SDPA
from peftbook.memory.configuration import Configuration
from peftbook.memory.setup import TARGETS, Setup
from peftbook.memory.step import Peak, loading

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
UNITS |= {unit.removesuffix("B"): size for unit, size in UNITS.items() if unit != "B"}
CARDS = (8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 94, 96, 141)  # GB in the names of cards
WITH_ECC = {16: "T4: 14.6 GiB", 24: "L4, A10: 22.1 GiB", 48: "L40S: 44.4 GiB"}
SHOWN = 23.6 / 24  # GiB of a card's GB that torch shows, as of an RTX 3090 or 4090
MOST = {"batch": 4096, "seq": 1 << 20}  # where the search ends


@dataclass(frozen=True)
class Reserve:
    """What is taken beside the tensors: so many bytes, and a share of the tensors' peak."""

    fixed: float = 0.0
    share: float = 0.0

    def beside(self, peak: float) -> float:
        """Bytes beside tensors of so many."""
        return self.fixed + self.share * peak

    def room(self, memory: float) -> float:
        """Bytes that are left to tensors in so much memory."""
        return (memory - self.fixed) / (1 + self.share)


# What a figure holds beside tensors, by what it is of: torch's tensors, its allocator, a device, the card that held it.
# Chosen on the development rows of the study `memory_elsewhere`, and not since.
BESIDE = {
    "allocated": Reserve(),
    "reserved": Reserve(2**28, 0.04),
    "device": Reserve(2**29, 0.04),
    "card": Reserve(2**29, 0.04),
    "oom": Reserve(2**29, 0.04),
}
# What a figure was above the tensors predicted: in 19 of 20 rows of the study no more than the upper one, whose share
# was 12 % when the judged rows were predicted, and was then found too low
GPU_RESERVE = (Reserve(2**28, 0.0), Reserve(1.5 * 2**30, 0.25))


@dataclass(frozen=True)
class Change:
    """A way to need less. names: what is changed.  costs: what each change costs.  needs: bytes after it.

    fields: the settings of a set-up that make it.
    """

    names: tuple[str, ...]
    costs: tuple[str, ...]
    needs: float
    fields: Mapping[str, object]


Derive = Callable[[Mapping[str, object]], Setup]  # a set-up with other settings, as the library that trains has it


@dataclass(frozen=True)
class Fit:
    """What a training step needs of `memory` bytes, of which others take between two reserves.

    largest_batch, largest_seq: the most rows, and the most tokens a row, that fit with all else as it is, by the larger
    reserve; 0 for none.  changes: the cheapest ways to make it fit; empty where it does, or where none would.
    """

    configuration: Configuration
    peak: Peak
    memory: float
    reserve: tuple[Reserve, Reserve]
    largest_batch: int
    largest_seq: int
    changes: tuple[Change, ...]

    @property
    def fits(self) -> bool:
        """Whether it needs no more than the memory, whatever the reserve."""
        return needs(self.peak) <= self.reserve[1].room(self.memory)

    @property
    def may_fit(self) -> bool:
        """Whether it needs no more, with the least reserve."""
        return needs(self.peak) <= self.reserve[0].room(self.memory)


def needs(peak: Peak) -> float:
    """Bytes that must be on the device: the host takes moments in pages where the device is full."""
    return peak.total - peak.terms.get("paged moments", 0.0)


def fit(
    configuration: Configuration,
    memory: float,
    reserve: float | tuple[Reserve, Reserve] = 0.0,
    derive: Derive | None = None,
) -> Fit:
    """Hold a training step against `memory` bytes, of which others take the reserve, or something between two.

    derive: the set-up with other settings, where they bring more with them than those (a stack's defaults).

    It is said to fit where it does with the larger one. Raises InputError where that leaves nothing.
    """
    band = reserve if isinstance(reserve, tuple) else (Reserve(reserve), Reserve(reserve))
    if not all(math.isfinite(size) and size >= 0 for size in (memory, *(one.fixed for one in band))):
        raise InputError(f"Memory of {memory} bytes and a reserve of {band[1].fixed} are no sizes: give bytes.")
    room = band[1].room(memory)
    if room <= 0:
        raise InputError(f"A reserve of {band[1].fixed / 2**30:.1f} GiB leaves nothing of {memory / 2**30:.1f} GiB.")
    peak = configuration.step.peak()
    changes = () if needs(peak) <= room else cheapest(configuration, room, derive)
    rows, tokens = (largest(configuration, room, name, derive) for name in ("batch", "seq"))
    return Fit(configuration, peak, memory, band, rows, tokens, changes)


def largest(configuration: Configuration, room: float, name: str, derive: Derive | None = None) -> int:
    """The largest batch or seq that needs no more than `room` bytes, by bisection; 0 if not even 1 does."""
    most = MOST[name]
    mine, context = getattr(configuration.setup, name), configuration.shape.context
    if name == "seq" and context >= configuration.setup.seq:
        most = context

    def holds(value: int) -> bool:
        return needed_with(configuration, {name: value}, derive) <= room

    low = next((value for value in (mine, 1) if holds(value)), 0)  # one row alone may have no fused attention
    if not low:
        return 0
    high = max(mine, most) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def needed_with(configuration: Configuration, fields: Mapping[str, object], derive: Derive | None) -> float:
    """What the same step needs with other settings; the share of positions that have a label stays.

    Infinite where there is no such step.
    """
    before = configuration.setup
    try:
        setup = derive(fields) if derive else replace(before, **{"labels": 0, **fields})  # type: ignore[arg-type]
        if before.labels and not setup.labels:
            share = before.labels / (before.rows * before.seq)
            setup = replace(setup, labels=max(1, round(share * setup.rows * setup.seq)))
        return needs(Configuration(configuration.shape, setup).step.peak())
    except InputError:
        return math.inf


Option = tuple[str, str, dict[str, object]]  # what, at what cost, the settings


def cheaper(configuration: Configuration) -> tuple[list[Option], list[Option]]:
    """(what, at what cost, settings) of single changes, in the order of what they cost; and those to another method."""
    shape, setup = configuration.shape, configuration.setup
    full, adapter, card = setup.method == "full", setup.method != "full", setup.device == "cuda"
    in_float32 = setup.dtype == "fp32" and not setup.autocast  # a GPU may have no fused attention there
    capped = shape.family in NO_SDPA
    fused = setup.attention == "eager" and (card or not capped)
    kernel: dict[str, object] = {"attention": "flash_attention_2" if capped else "sdpa"}
    where = "attention" if shape.experts else "all matrices"
    lora: dict[str, object] = {"method": "lora", "targets": TARGETS[:4] if shape.experts else TARGETS}
    lora |= {"in_backward": False} if setup.in_backward else {}
    changes: list[tuple[bool, str, str, dict[str, object]]] = [
        (full and setup.optimiser == "adamw_foreach", "AdamW in one kernel", "nothing, and it is faster",
         {"optimiser": "adamw"}),
        (fused and not in_float32, "flash attention" if capped else "fused attention",
         "another package, flash-attn, which caps scores too" if capped else "nothing, and it is faster", kernel),
        (setup.logits in ("whole", "shifted", "held") and card, "a loss without whole logits",
         "a kernel beside transformers' (TRL 1.16 has one, Liger, cut cross-entropy)", {"logits": "fused"}),
        (in_float32 and card, "products in bfloat16 by autocast", "rounded products, which are faster",
         {"autocast": True} | (kernel if fused else {})),
        (setup.batch > 1, "rows one at a time", "more passes for the same batch, whose gradients stay meanwhile",
         {"batch": 1, "accumulated": True}),
        (setup.reference and setup.stage == "dpo", "the reference's log-probabilities computed before training",
         "a pass over all rows beforehand", {"reference": False}),
        (adapter and setup.dtype == "fp32" and card, "frozen weights in bfloat16", "the rounding that checkpoints have",
         {"dtype": "bf16", "held": False}),
        (full and setup.dtype == "fp32" and card, "weights in bfloat16",
         "updates below a 512th to a 256th of a weight are lost, and moments are rounded", {"dtype": "bf16"}),
        (adapter and setup.adapter_dtype == "fp32" and setup.dtype == "bf16", "adapters in bfloat16",
         "updates below a 512th to a 256th of a weight are lost, and the decay of Adam's second moment",
         {"adapter_dtype": "bf16"}),
        (setup.dropout, "no dropout", "a regulariser", {"dropout": False}),
        (not setup.checkpointing and setup.method != "prefix", "checkpointing",
         "the layers' forward pass a second time", {"checkpointing": True}),
        (setup.checkpointing and not setup.offloaded and card and setup.stage != "grpo", "checkpoints on the host",
         "copies there and back", {"offloaded": True}),
        (full and card and setup.optimiser in ("adamw", "adamw_foreach", "adamw_8bit", "paged_adamw"),
         "moments in 8 bits, in pages", "a coarser optimiser, which waits for the host where the card is full",
         {"optimiser": "paged_adamw_8bit"}),
        (setup.method in ("lora", "prompt", "prefix") and not setup.quantised and setup.devices == 1,
         "a base in 8 bits", "slower steps, rounded weights, and inputs of matrices that no checkpoint frees",
         {"quantised": "int8"}),
        (setup.method in ("lora", "prompt", "prefix") and setup.quantised in ("", "int8"), "a base in NF4",
         "slower steps, and weights that are rounded", {"quantised": "nf4"}),
        (bool(setup.saved), "a frozen embedding and head", "tokens that are new to the model are not learnt",
         {"saved": ()}),
        (setup.dora, "LoRA without DoRA's magnitudes", "another method", {"dora": False}),
    ]  # fmt: skip
    others: list[tuple[bool, str, str, dict[str, object]]] = [
        (full, f"LoRA on {where}", "another method, with fewer parameters", lora),
        (full, "LoRA over NF4", "another method; slower steps, and weights that are rounded",
         {**lora, "quantised": "nf4", "dtype": "bf16", "autocast": False}),
    ]  # fmt: skip
    own, other = ([one[1:] for one in rows if one[0]] for rows in (changes, others))
    return own, other


def beyond_a_card(setup: Setup) -> list[Option]:
    """What helps where the cards do not hold a step: the host's memory, or more cards."""
    if setup.device == "cpu" or setup.host_weights:
        return []
    words = "layers that travel between them in every pass (FSDP)"
    host = "the host's memory, and each layer is copied from there in every pass (FSDP's or ZeRO-3's offload)"
    more = (count for count in (2, 4, 8) if count > setup.devices)
    cards: list[Option] = [(f"{count} such cards", words, {"devices": count}) for count in more]
    return [("weights and optimiser on the host", host, {"host_weights": True}), *cards]


def cheapest(configuration: Configuration, room: float, derive: Derive | None = None) -> tuple[Change, ...]:
    """The single changes that make it fit; else all in the order of their cost until it does, without idle ones.

    Another method comes after all that keeps the one that is asked for; the host and further cards where neither helps.
    """
    own, other = cheaper(configuration)

    def change(taken: list[Option]) -> Change:
        fields = {name: value for _, _, fields in taken for name, value in fields.items()}
        names, costs = tuple(what for what, _, _ in taken), tuple(cost for _, cost, _ in taken)
        return Change(names, costs, needed_with(configuration, fields, derive), fields)

    def single(options: list[Option]) -> list[Change]:
        return [one for one in (change([option]) for option in options) if one.needs <= room]

    def together(options: list[Option]) -> list[Change]:
        taken: list[Option] = []
        for option in options:
            taken.append(option)
            if change(taken).needs <= room:
                break
        else:
            return []
        for option in list(taken):
            rest = [other for other in taken if other is not option]
            if change(rest).needs <= room:
                taken = rest
        return [change(taken)]

    found = (single(own) or together(own)) + single(other) or together(own + other)
    for option in [] if found else beyond_a_card(configuration.setup):
        found += together([option, *own, *other])
        if found and "devices" in found[-1].fields:
            break
    return tuple(found)


def card_named(text: str) -> int:
    """The GB in the name of a card such as 24GB; 0 where a size is no such name."""
    match = re.fullmatch(r"\s*(\d+)\s*[gG][bB]?\s*", text)
    return next((size for size in CARDS if match and match[1] == str(size)), 0)


def bytes_of_card(text: str) -> float:
    """Bytes of a machine's memory; 24GB is the name of a card, which shows less than 24 GiB."""
    return card_named(text) * SHOWN * 2**30 or bytes_of_text(text)


def card_note(text: str) -> str:
    """What the name of a card is taken for; empty for another size."""
    if not (size := card_named(text)):
        return ""
    less = f" Where ECC takes a part of it ({WITH_ECC[size]}) give what yours shows." if size in WITH_ECC else ""
    return f"{size}GB is counted as the {size * SHOWN:.1f} GiB that torch shows of such a card.{less}"


def bytes_of_text(text: str, least: float = 1) -> float:
    """Bytes of a size such as 24GiB, 24Gi, 24 GB, 24G or 512MiB; a bare number is GiB.

    least: the fewest bytes that make sense. Raises InputError for another text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match and (match[2].upper() or "GIB")
    if not match or unit not in UNITS or float(match[1]) * UNITS[unit] < least:
        raise InputError(f"{text!r} is no size of memory: write it like 24GiB, 80GB or 512MiB.")
    return float(match[1]) * UNITS[unit]


def as_json(answer: Fit) -> dict[str, Any]:
    """What `peftbook fit` says, and the table of terms from which it can be computed again."""
    return as_numbers(answer) | {"model": answer.configuration.step.table()}


def as_numbers(answer: Fit) -> dict[str, Any]:
    """What `peftbook fit` says, in whole bytes."""
    return {
        "peak_bytes": round(answer.peak.total),
        "needed_bytes": round(needs(answer.peak)),
        "at": answer.peak.at,
        "loading_bytes": round(loading(answer.configuration.shape, answer.configuration.setup)),
        "terms_bytes": {name: round(size) for name, size in answer.peak.terms.items()},
        "step_flops": round(sum(flops_of(answer).values())),
        "memory_bytes": round(answer.memory),
        "reserve_bytes": [round(one.beside(needs(answer.peak))) for one in answer.reserve],
        "fits": answer.fits,
        "may_fit": answer.may_fit,
        "largest_batch": answer.largest_batch,
        "largest_seq": answer.largest_seq,
        "changes": [
            {
                "change": list(change.names),
                "costs": list(change.costs),
                "needed_bytes": round(change.needs),
                "settings": dict(change.fields),
            }
            for change in answer.changes
        ],
    }


def flops_of(answer: Fit) -> dict[str, float]:
    """Floating-point operations of the step's matrix products: forward, backward, again."""
    step = answer.configuration.step
    return step.numbers(step.flops)


def as_text(answer: Fit, model: str, said: Callable[[str, object], str] = lambda field, value: "") -> str:
    """The terms at the peak, what fits, and what would help. said: the option that says a setting."""
    setup = answer.configuration.setup
    base = f" over {setup.quantised.upper()}" if setup.quantised else ""
    where = f"on each of {setup.devices} × {setup.device}" if setup.devices > 1 else f"on {setup.device}"
    stage = "" if setup.stage == "sft" else f"{setup.stage}, "
    lines = [f"{model}, {stage}{setup.name}{base}, {counted(setup, setup.batch)} × {setup.seq} tokens, {where}", ""]
    lines += [f"  {name:24} {size / 2**30:9.3f} GiB" for name, size in answer.peak.terms.items() if size >= 2**19]
    lines += [f"  {'peak':24} {answer.peak.total / 2**30:9.3f} GiB   ({answer.peak.at})"]
    if paged := answer.peak.total - needs(answer.peak):
        on_card = needs(answer.peak) / 2**30
        lines.append(f"  Of these {paged / 2**30:.3f} GiB are in pages that the host takes: {on_card:.3f} GiB stay.")
    return "\n".join([*lines, "", *conclusion(answer, said)])


def counted(setup: Setup, batch: int) -> str:
    """A batch in words: rows, or pairs of them."""
    return f"{batch} pair{'s' * (batch != 1)}" if setup.stage == "dpo" else str(batch)


def conclusion(answer: Fit, said: Callable[[str, object], str] = lambda field, value: "") -> list[str]:
    """Whether it fits, how much would, and what would help, in sentences. said: the option that says a setting."""
    setup = answer.configuration.setup
    tensors, memory = (f"{size / 2**30:.1f} GiB" for size in (needs(answer.peak), answer.memory))
    sentences = [f"It {verdict(answer)}: tensors take {tensors}{beside(answer)}, of {memory}."]
    batch, seq, context = answer.largest_batch, answer.largest_seq, answer.configuration.shape.context
    least = ["at least " * (size == MOST[name]) for name, size in (("batch", batch), ("seq", seq))]
    surely = "" if answer.fits or not answer.may_fit else "surely "
    rows = f"the largest batch that {surely}fits is {least[0]}{counted(setup, batch)} × {setup.seq} tokens"
    tokens = f"the longest rows are {least[1]}{counted(setup, setup.batch)} × {seq} tokens"
    rows = rows if batch else f"not even {counted(setup, 1)} × {setup.seq} tokens {surely}fit"
    tokens = tokens if seq else f"not even {counted(setup, setup.batch)} × 1 token {surely}fits"
    limit = ", its context" if seq and seq == context else ""
    sentences.append(f"With all else as it is, {rows},\nand {tokens}{limit}.")
    for change in answer.changes:
        costs, words = "; ".join(change.costs), filter(None, (said(*one) for one in change.fields.items()))
        options = f" ({' '.join(words)})" if change.fields and said(*next(iter(change.fields.items()))) else ""
        sentences.append(f"With {' and '.join(change.names)}{options}: {change.needs / 2**30:.3f} GiB. Cost: {costs}.")
    if not answer.fits and not answer.changes:
        sentences.append(f"No change known here makes it {surely}fit: choose a smaller model or shorter texts.")
    if answer.configuration.shape.experts and setup.quantised:
        sentences.append("Experts stay whole in a 4-bit base: bitsandbytes packs linear layers alone.")
    flops = flops_of(answer)
    again = f", {flops['again'] / 1e12:.1f} of them for layers that are run again" if flops["again"] else ""
    step = "the loss, without generation" if setup.stage == "grpo" else "a step"
    sentences.append(f"Matrix products of {step}: {sum(flops.values()) / 1e12:.1f} TFLOP{again}.")
    sentences.append(
        "The reserve (--reserve) is what a GPU's context, allocator and cuBLAS take beside the tensors,\n"
        "and by how much our predictions of published runs were too low."
    )
    return sentences


def verdict(answer: Fit) -> str:
    """Whether it fits, in a word or three."""
    return "fits" if answer.fits else "may fit" if answer.may_fit else "does not fit"


def beside(answer: Fit) -> str:
    """What the reserve takes: one number, or two."""
    sizes = dict.fromkeys(f"{one.beside(needs(answer.peak)) / 2**30:.1f}" for one in answer.reserve)
    return f" and the reserve {' to '.join(sizes)} GiB" if any(float(size) for size in sizes) else ""
