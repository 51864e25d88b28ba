"""A training step's forward pass walked through on sizes: its operations by part of the model, what it keeps, its work.

Symbols are those of `decoder`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from peftbook.memory.decoder import AttentionInputs, Decoder, embed, mask_of, virtual_tokens
from peftbook.memory.loss import head
from peftbook.memory.setup import Setup
from peftbook.memory.shapes import DecoderShape
from peftbook.memory.tape import MatrixProduct, Operation, Size, Tape, repeated

NEVER_FULL = 1 << 40  # tokens of a window


@dataclass(frozen=True)
class Walk:
    """A tape of a whole forward pass. copies: how many layers each layer on the tape stands for.

    reference: the forward pass of the model as it was, which comes after.
    """

    tape: Tape
    copies: Mapping[str, int]
    reference: Walk | None = None

    @functools.cached_property
    def sections(self) -> dict[str, list[Operation]]:
        """Operations by part of the model: before the layers, each layer, after the layers."""
        parts: dict[str, list[Operation]] = {"embedding": []}
        for operation in self.tape.operations:
            layer = layer_of(operation.where)
            name = layer if layer in self.copies else "embedding" if len(parts) == 1 else "head"
            parts.setdefault(name, []).append(operation)
        return parts

    def flops(self, checkpointing: bool) -> dict[str, Size]:
        """Floating-point operations of matrix products, in forward, in backward, and of layers that are run again."""
        totals = {"forward": Size(), "backward": Size(), "again": Size()}
        if self.reference:
            totals["forward"].add(self.reference.flops(False)["forward"])
        for name, operations in self.sections.items():
            copies = self.copies.get(name, 1)
            for operation in operations:
                totals["forward"].add(flops_of(operation.products), copies)
                totals["backward"].add(flops_of(operation.undoing_products), copies)
            for operation in repeated(operations)[0] if checkpointing and name in self.copies else ():
                totals["again"].add(flops_of(operation.products), copies)
        return totals

    def copies_of(self, module: str) -> int:
        """How many modules this one stands for."""
        return self.copies.get(layer_of(module), 1)

    def kept(self, checkpointing: bool) -> dict[str, Size]:
        """Module → bytes that autograd keeps of it between forward and backward; of a checkpointed layer its input."""
        sizes = self.tape.kept()
        if not checkpointing:
            return sizes
        inputs: dict[str, Size] = {}
        for operation in self.tape.operations:
            if (layer := layer_of(operation.where)) in self.copies and layer not in inputs:
                inputs[layer] = operation.inputs[0].size
        inputs |= self.tape.kept(checkpoints=True)
        return inputs | {module: size for module, size in sizes.items() if layer_of(module) not in self.copies}


def flops_of(products: Iterable[MatrixProduct]) -> Size:
    """Floating-point operations of matrix products."""
    total = Size()
    for matrix_product in products:
        total.add(matrix_product.flops)
    return total


def layer_of(module: str) -> str:
    """The layer that a module is a part of, or the module itself."""
    return ".".join(module.split(".")[:2])


def alike(shape: DecoderShape, setup: Setup) -> Setup:
    """The least set-up with the same tape: that does not depend on how many rows and tokens there are beyond one row
    and a full window.
    """
    slides = any(shape.sliding) and setup.symbols["k"] >= shape.window
    return replace(
        setup,
        batch=min(setup.batch, 2),
        seq=shape.window if slides else 1,
        labels=min(setup.labels, 1),
        completion=0,
        rollouts=0,
    )


def walk(shape: DecoderShape, setup: Setup) -> Walk:
    """Embedding, the layers, head and loss."""
    return walked(*without_sizes(shape, setup))


def without_sizes(shape: DecoderShape, setup: Setup) -> tuple[DecoderShape, Setup]:
    """The least shape and set-up with the same tape, which knows symbols and how many heads, experts and layers.

    Of a window it matters alone whether it is full.
    """
    least = alike(shape, setup)
    window = 0 if not shape.window else 1 if least.seq == shape.window else NEVER_FULL
    return replace(shape, hidden=1, ffn=1, head_dim=1, vocab=1, context=0, window=window), replace(least, seq=1)


@functools.lru_cache(maxsize=512)
def walked(shape: DecoderShape, setup: Setup) -> Walk:
    """`walk` of what is the same without sizes."""
    tape = Tape(setup.autocast, promotes=setup.device == "cpu", records=not setup.generates)
    run(Decoder(shape, setup, tape))
    copies, reference = Counter(layer_names(shape)), None
    if setup.stage == "dpo" and setup.reference:
        frozen = replace(setup, checkpointing=False, offloaded=False, saved=())
        pure = Tape(tape.autocast, tape.promotes, records=False, keys=tape.keys)
        run(Decoder(shape, frozen, pure, adapted=False))
        reference = Walk(pure, copies)
    return Walk(tape, copies, reference)


def run(decoder: Decoder) -> None:
    """A whole forward pass, on the decoder's tape.

    The first layer differs, because under most adapters no gradient passes through its input, and the second may be the
    first to keep what all share. Of the others there is one of each kind, see `layer_names`.
    """
    shape, setup, tape = decoder.shape, decoder.setup, decoder.tape
    each = 4 if shape.float32_products else decoder.each("embed_tokens")
    width = (*("b",) * setup.generates, "t", "e" if shape.fused else "d")  # padded prompts begin at places of their own
    kinds = sorted({*shape.sliding})
    masks = {sliding: mask_of(tape, shape, setup, sliding) for sliding in kinds}
    pairs = [[tape.apply(shape=width, bytes_each=each) for _ in range(2)] for _ in range(1 + shape.two_rotations)]
    rotations = {sliding: pairs[sliding and shape.two_rotations] for sliding in kinds}
    if setup.method == "prefix":
        decoder.prefix.append(virtual_tokens(decoder, ("L", "g", "d", "two")))
    x = first = embed(decoder)
    names = layer_names(shape)
    kinds_of = dict(zip(names, shape.sliding, strict=True))
    for name in sorted(kinds_of):
        sliding = kinds_of[name]
        with tape.at(name):
            x = decoder.layer(x, AttentionInputs(rotations[sliding], masks[sliding]))
    head(decoder, x)
    tables = (table for pair in pairs for table in pair)
    tape.touch(first, *tables, *(mask for mask in masks.values() if mask), *decoder.prefix, *tape.cached)


def layer_names(shape: DecoderShape) -> list[str]:
    """For each layer the name of the one on the tape that stands for it.

    The first two stand for themselves, and so does the first of each kind, which may be the first to keep what its kind
    shares; of the others there is one of each kind.
    """
    sliding = shape.sliding
    labels = [(not kind, kind in sliding[:index]) for index, kind in enumerate(sliding)]
    others = sorted({*labels[2:]})
    return [f"layers.{index if index < 2 else 2 + others.index(label)}" for index, label in enumerate(labels)]
