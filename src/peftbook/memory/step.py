"""The bytes of a training step: terms that are always there, terms that come and go, and their largest sum.

Every term is a sum of coefficient × product of symbols, so that the table of a model can be evaluated elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from peftbook.core.errors import InputError
from peftbook.memory.experts import MATRICES, ROUTER
from peftbook.memory.setup import BLOCK, BYTES, IA3_TARGETS, OUTER_BLOCK, TILE, Setup
from peftbook.memory.shapes import DecoderShape
from peftbook.memory.tape import Size, evaluate, multiple, product
from peftbook.memory.timeline import MomentTable, kind_of, moments
from peftbook.memory.walk import alike, walk

CODES, OUTER_CODES = 16, 256  # entries of the tables that codes are looked up in, float32, a table a matrix
STATE_BLOCK = 256  # moments that share a constant in an 8-bit optimiser
LEAST_8BIT = 4096  # smaller tensors keep their moments in float32
LEAST_PAGED = 100_000  # smaller tensors are not paged
Tensors = list[tuple[Size, tuple[str, ...]]]  # how many tensors, and the symbols that count the elements of one


@dataclass(frozen=True)
class Peak:
    """The largest sum. at: when it is reached.  terms: bytes by term, at that moment."""

    at: str
    terms: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes of all terms."""
        return sum(self.terms.values())


@dataclass(frozen=True, eq=False)
class Step:
    """The memory of a training step as polynomials. state: there all the time.  kept: between forward and backward.

    gradients: of all that is trained.  moments: what is there beyond the state, gradients and all.
    flops: floating-point operations of the matrix products, forward, backward, and again where layers are checkpointed.
    phases: what else there is in a step at other times, with the same state.
    """

    state: dict[str, Size]
    kept: dict[str, Size]
    gradients: Size
    moments: MomentTable
    flops: dict[str, Size]
    symbols: dict[str, int]
    phases: tuple[Step, ...] = ()

    def peak(self) -> Peak:
        """The moment at which most is there."""
        name, terms = self.moments.largest(self.symbols)
        most = Peak(name, dict(Counter(self.numbers(self.state)) + Counter(terms)))
        for phase in self.phases:
            peak = phase.peak()
            most = peak if peak.total > most.total else most
        return most

    def numbers(self, sizes: Mapping[str, Size]) -> dict[str, float]:
        """The numbers that polynomials stand for."""
        return {name: evaluate(size, self.symbols) for name, size in sizes.items()}

    def table(self) -> dict[str, Any]:
        """The polynomials as JSON: bytes = Σ coefficient · Π symbols; the peak is the state and the largest moment.

        Moments that another one outweighs term by term are left out. The table holds for any number of tokens, below a
        window if there is one, and for one row, or for any number of more.
        """
        return {
            "symbols": self.symbols,
            "state": {name: as_list(size) for name, size in self.state.items()},
            "moments": [
                {"at": name, "terms": {kind: as_list(size) for kind, size in kinds.items()}}
                for name, kinds in self.moments.pruned()
            ],
            **({"phases": [phase.table() for phase in self.phases]} if self.phases else {}),
        }


def as_list(size: Size) -> list[list[Any]]:
    """[coefficient, symbol, symbol, …] for every term."""
    return [[each, *symbols] for symbols, each in size.items() if each]


def training_step(shape: DecoderShape, setup: Setup) -> Step:
    """The memory of a training step of a model of this shape.

    Raises InputError where there is no fused attention: on a GPU in float32, with fewer key than query heads and no
    mask, and on a CPU for scores that are capped.
    """
    if shape.capped_scores and setup.device == "cpu" and setup.attention != "eager":
        raise InputError("A CPU has no fused attention that caps its scores: choose eager attention.")
    if shape.experts and setup.optimiser.startswith("galore"):
        raise InputError(
            "GaLore projects matrices, and experts are stored as stacks of them: choose another optimiser."
        )
    grouped, masked = shape.heads != shape.kv_heads, setup.padding or setup.method == "prefix"
    wide = setup.dtype == "fp32" and not setup.autocast and setup.attention == "sdpa"
    if setup.attention == "flash_attention_2" and setup.dtype == "fp32" and not setup.autocast:
        raise InputError("flash_attention_2 takes 16 bits: choose autocast, dtype 'bf16', or eager attention.")
    if setup.device == "cuda" and wide and grouped and not masked:
        raise InputError(
            f"A GPU has no fused attention in float32 for {shape.heads} heads over {shape.kv_heads} key heads: "
            "choose autocast, dtype 'bf16', or eager attention."
        )
    step = structure(shape, alike(shape, setup))
    symbols = shape.symbols | setup.symbols
    if setup.logits == "tiled":
        symbols |= {"W": TILE[1], "U": min(shape.vocab, TILE[1])}  # words that a tile has room for, and those in it
    if setup.logits == "liger":
        symbols["q"] = liger_chunk(setup.labels or setup.rows * symbols["t"], shape)
    return replace(step, symbols=symbols, phases=generation(shape, setup))


def generation(shape: DecoderShape, setup: Setup) -> tuple[Step, ...]:
    """The two moments of GRPO's generation by `model.generate`: prompts are read, and the last token is computed.

    peft's `generate` calls the base model, past the autocast that accelerate has put around the adapted one. Layers
    with a window are counted as if their cache had all positions. Log-probabilities of the policy before the step, or
    of the reference, are computed without gradients for a batch at a time, which needs no more than the loss does.
    """
    if setup.stage != "grpo":
        return ()
    autocast = setup.autocast and setup.method == "full"
    wide = setup.device == "cuda" and setup.dtype == "fp32" and not autocast  # no fused kernel for grouped heads
    attention = "eager" if wide and not (setup.padding and setup.attention == "sdpa") else setup.attention
    last = replace(
        setup, stage="decode", batch=setup.rollouts or setup.batch, autocast=autocast, attention=attention, held=False,
        checkpointing=False, offloaded=False, accumulated=False, in_backward=False, labels=0, logits="whole",
    )  # fmt: skip
    prompt = max(1, setup.seq - (setup.completion or setup.seq))
    return training_step(shape, replace(last, stage="prefill", seq=prompt)), training_step(shape, last)


def liger_chunk(positions: int, shape: DecoderShape) -> int:
    """Positions whose logits are there at a time: a power of two (Liger, `fused_linear_cross_entropy_forward`)."""
    least = math.ceil(positions / math.ceil(shape.vocab / shape.hidden))
    chunk = 1
    while chunk < least:
        chunk *= 2
    return chunk


@functools.lru_cache(maxsize=1024)
def structure(shape: DecoderShape, setup: Setup) -> Step:
    """The polynomials of set-ups that are `alike`."""
    walked = walk(shape, setup)
    kept: dict[str, Size] = {}
    for where, size in walked.kept(setup.checkpointing).items():
        kept.setdefault(kind_of(where), Size()).add(size, walked.copies_of(where))
    share = 0.0 if setup.host_weights else 1 / setup.devices
    gradients = multiple(gradients_of(shape, setup), share)
    roots = gradients if setup.optimiser == "adamw_foreach" and not setup.in_backward else Size()
    stepped = (("lm_head",) if shape.tied else ()) if setup.in_backward else None
    said = setup.stage if setup.generates else "forward"
    held = moments(walked, setup.checkpointing, setup.accumulated, setup.offloaded, roots, stepped, said)
    return Step(
        state(shape, setup) if share == 1 else shared(state(shape, setup), shape, setup, share),
        kept,
        Size() if setup.in_backward else gradients,
        held if share == 1 else held.scaled("gradients", share),
        walked.flops(setup.checkpointing),
        {},
    )


def shared(terms: dict[str, Size], shape: DecoderShape, setup: Setup, share: float) -> dict[str, Size]:
    """A device's share of the state, none where the host has it, and what is whole on it for a while.

    Whole are two decoder layers, the one that computes and the one that is fetched meanwhile, and all the time what
    belongs to no layer: embedding, head and last norm; what of these is trained is so twice, for its gradient. The
    constants of a quantisation are not cut (Zhao et al. 2023, arXiv:2304.11277; `peftbook.training.distributed.shard`).
    """
    part = {name: size if "constants" in name else multiple(size, share) for name, size in terms.items()}
    part = {name: size for name, size in part.items() if share or "constants" in name}
    each, others = BYTES[setup.dtype], rest(shape)
    layer = multiple(one_layer(others), each)
    for d_in, d_out in shape.widths.values():
        layer.add(product(0.5 if setup.quantised else 2 if setup.held else each, *d_in, *d_out))
    outside = Size({symbols: each * count for symbols, count in others.items() if "L" not in symbols})
    if setup.method == "full":
        layer, outside = multiple(layer, 2), multiple(outside, 2)
    else:
        adapter = one_layer(elements(trained(shape, setup)))
        layer.add(adapter, 2 * BYTES[setup.adapter_dtype])
    return part | {"whole for a while": multiple(layer, 2) + outside}


def one_layer(size: Size) -> Size:
    """What of a polynomial falls to one of the layers."""
    return Size(
        {tuple(symbol for symbol in symbols if symbol != "L"): each for symbols, each in size.items() if "L" in symbols}
    )


def gradients_of(shape: DecoderShape, setup: Setup) -> Size:
    """Bytes of the gradients of all that is trained."""
    total = Size()
    for tensors, each in trained_by_dtype(shape, setup):
        total.add(elements(tensors), each)
    return total


def state(shape: DecoderShape, setup: Setup) -> dict[str, Size]:
    """Bytes of weights, of the constants of their quantisation, of what an adapter trains, and of the moments.

    A weight takes 2 or 4 bytes; in 4 bits ½, and for each block of 64 a constant of 4 bytes, or with double
    quantisation of 1, and of 4 for each 256 of those; beside them the tables of codes (Dettmers et al. 2023,
    arXiv:2305.14314, section 3; the arrays are those of bitsandbytes 0.50). In int8 it takes 1 byte, and a row 4
    (Dettmers et al. 2022, arXiv:2208.07339).
    """
    matrices = Size()
    for d_in, d_out in shape.widths.values():
        matrices.add(product(1, "L", *d_in, *d_out))
    each = BYTES[setup.dtype]
    weights = multiple(rest(shape), each)
    terms = {"weights": weights + multiple(matrices, each)}
    if setup.quantised == "int8":
        terms["weights"] = weights + matrices
        terms["quantisation constants"] = elements([(product(4, "L"), d_out) for _, d_out in shape.widths.values()])
    elif setup.quantised:
        scales = 1 + 4 / OUTER_BLOCK if setup.double else 4
        tables = 4 * CODES + (4 * OUTER_CODES + 4 if setup.double else 0)
        terms["weights"] = weights + multiple(matrices, 0.5)
        terms["quantisation constants"] = multiple(matrices, scales / BLOCK) + product(tables * len(shape.widths), "L")
    elif setup.held and setup.method != "full":
        copies = multiple(matrices, 2)  # where devices share the model, in place of float32
        terms["weights"] = copies + (weights if setup.devices > 1 else terms["weights"])
    if setup.method == "lora" and setup.freeze_a:
        frozen = elements([(product(1, "L"), (*shape.widths[name][0], "r")) for name in shape.adapted(setup.targets)])
        terms["weights"].add(frozen, BYTES[setup.adapter_dtype])
    if setup.reference and setup.method == "full" and setup.stage != "sft":
        terms["reference"] = terms["weights"]
    if setup.accumulated:
        terms["gradients"] = gradients_of(shape, setup)
    if setup.method != "full":
        terms["adapter"] = gradients_of(shape, setup)  # of the same dtype as what is trained
    return terms | optimiser_state(shape, setup)


def rest(shape: DecoderShape) -> Size:
    """Parameters outside the matrices of the layers: embedding, head, gains, biases, experts and their router."""
    total = product(1 if shape.tied else 2, "V", "h")
    total.add(product(shape.layer_norms, "L", "h"))
    total.add(product(1, "h"))
    for symbols in head_gains(shape):
        total.add(product(1, "L", *symbols))
    for d_in, d_out in (ROUTER, *MATRICES.values()) if shape.experts else ():
        total.add(product(1, "L", *d_in, *d_out, *("E",) * ((d_in, d_out) != ROUTER)))
    for name in shape.biased:
        total.add(product(1, "L", *shape.widths[name][1]))
    return total


def trained_by_dtype(shape: DecoderShape, setup: Setup) -> list[tuple[Tensors, int]]:
    """The trained tensors, and the bytes of each of their numbers; DoRA's magnitudes, and copies, have their own."""
    each = BYTES[setup.dtype if setup.method == "full" else setup.adapter_dtype]
    groups = [(adapted(shape, setup), each)]
    if setup.dora:
        magnitudes = [(product(1, "L"), shape.widths[name][1]) for name in shape.adapted(setup.targets)]
        groups.append((magnitudes, BYTES[setup.magnitude_dtype or setup.adapter_dtype]))
    if setup.saved:
        copies: Tensors = [(product(len(setup.saved)), ("V", "h"))]
        groups.append((copies, BYTES[setup.saved_dtype or setup.dtype]))
    return groups


def trained(shape: DecoderShape, setup: Setup) -> Tensors:
    """The trained tensors."""
    return [tensor for tensors, _ in trained_by_dtype(shape, setup) for tensor in tensors]


def adapted(shape: DecoderShape, setup: Setup) -> Tensors:
    """The tensors that the method itself trains, without DoRA's magnitudes."""
    layers, single = product(1, "L"), product(1)
    if setup.method == "lora":
        pairs = [shape.widths[name] for name in shape.adapted(setup.targets)]
        first = [] if setup.freeze_a else [(layers, (*d_in, "r")) for d_in, _ in pairs]
        return first + [(layers, ("r", *d_out)) for _, d_out in pairs]
    if setup.method == "ia3":
        found = [name for name in IA3_TARGETS if name in shape.widths]
        return [(layers, shape.widths[name][0 if name == "down_proj" else 1]) for name in found]
    if setup.method == "prompt":
        return [(single, ("P", "h"))]
    if setup.method == "prefix":
        return [(single, ("P", "L", "two", "g", "d"))]
    tensors: Tensors = [(layers, (*d_in, *d_out)) for d_in, d_out in shape.widths.values()]
    if shape.experts:
        tensors += [(layers, ("E", *d_in, *d_out)) for d_in, d_out in MATRICES.values()]
        tensors.append((layers, ("E", "h")))
    tensors += [(layers, shape.widths[name][1]) for name in shape.biased]
    tensors += [(product(shape.layer_norms, "L") + single, ("h",)), (product(1 if shape.tied else 2), ("V", "h"))]
    return tensors + [(layers, symbols) for symbols in head_gains(shape)]


def head_gains(shape: DecoderShape) -> list[tuple[str, ...]]:
    """The gains of the norms of queries and of keys, as products of symbols."""
    if not shape.head_norms:
        return []
    return [("a", "d"), ("g", "d")] if shape.joint_norms else [("d",), ("d",)]


def elements(tensors: Iterable[tuple[Size, tuple[str, ...]]]) -> Size:
    """How many numbers there are in tensors."""
    total = Size()
    for count, symbols in tensors:
        for others, each in count.items():
            total.add(product(each, *others, *symbols))
    return total


def optimiser_state(shape: DecoderShape, setup: Setup) -> dict[str, Size]:
    """Bytes of Adam's two moments: in the dtype of the parameter, or in 8 bits with a constant for each 256.

    bitsandbytes (optim/optimizer.py) has them in float32, or where they are in 8 bits those of tensors of fewer than
    4,096 numbers; it pages tensors of 100,000 or more: "paged moments", which the host takes where the device is full.
    Under GaLore a layer's matrix has the moments of `projected`, and a projection in its own dtype.
    """
    if setup.optimiser == "sgd":
        return {}
    symbols = {**shape.symbols, **setup.symbols}
    terms: dict[str, Size] = {}
    groups = trained_by_dtype(shape, setup)
    if setup.optimiser.startswith("galore"):
        low, projections = projected(shape, setup)
        ((whole, each),) = groups
        groups = [(low + whole[len(shape.widths) :], each)]
        terms["projections"] = multiple(elements(projections), each)
    tensors = ((*tensor, each) for group, each in groups for tensor in group)
    for count, axes, each in tensors:
        size = evaluate(product(1, *axes), symbols)
        bytes_each = 8.0 if setup.optimiser == "paged_adamw" else 2.0 * each
        if setup.optimiser.endswith("8bit"):
            bytes_each = 2 * (1 + 4 / STATE_BLOCK) if size >= LEAST_8BIT else 8.0
        paged = setup.optimiser.startswith("paged") and size >= LEAST_PAGED
        total = multiple(elements([(count, axes)]), bytes_each)
        terms.setdefault("paged moments" if paged else "moments", Size()).add(total)
    return terms


def loading(shape: DecoderShape, setup: Setup) -> float:
    """Bytes at the most while the weights are read: all of them as they stay, and one tensor as the file has it.

    What is quantised is on the device in 16 bits before, one tensor after the other (transformers 5,
    `core_model_loading.py`, which reads a quantised model in one thread); what is made float32 is so too. A step needs
    more: it has the same matrix in 16 bits for a moment, and moments and gradients beside.
    """
    terms = state(shape, replace(setup, accumulated=False))
    names = ("weights", "reference", "quantisation constants", "adapter")
    stays = sum((terms.get(name, Size()) for name in names), start=Size())
    largest = max(inputs * outputs for inputs, outputs in shape.linears.values())
    if setup.dtype == "fp32":
        largest = max(largest, shape.vocab * shape.hidden)
    elif not setup.quantised:
        largest = 0
    return evaluate(stays, shape.symbols | setup.symbols) + 2 * largest


def projected(shape: DecoderShape, setup: Setup) -> tuple[Tensors, Tensors]:
    """GaLore's moments of the layers' matrices, r × n for one of m × n with m ≤ n, and their projections, m × r.

    A matrix whose shorter side is no more than r keeps all of it.
    Source: Zhao et al. 2024, GaLore, arXiv:2403.03507, table 1 (optimiser states mr + 2nr).
    """
    layers, symbols = product(1, "L"), {**shape.symbols, **setup.symbols}
    moments: Tensors = []
    projections: Tensors = []
    for sides in shape.widths.values():
        short, long = sorted(sides, key=lambda side: evaluate(product(1, *side), symbols))
        rows = ("r",) if setup.rank < evaluate(product(1, *short), symbols) else short
        moments.append((layers, (*rows, *long)))
        projections.append((layers, (*short, *rows)))
    return moments, projections
