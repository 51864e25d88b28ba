"""An adapter beside a matrix of the decoder, as peft computes it. Symbols are those of `decoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbook.memory.setup import BYTES
from peftbook.memory.tape import Value, Weight, product

if TYPE_CHECKING:
    from peftbook.memory.decoder import Decoder

__all__ = ["ia3", "lora"]


def base_layer(decoder: Decoder, x: Value, weight: Weight) -> Value:
    """The matrix under an adapter."""
    with decoder.tape.at("base_layer"):
        return decoder.tape.linear(x, weight)


def lora(decoder: Decoder, x: Value, weight: Weight) -> Value:
    """W x + γ B A x (peft, tuners/lora/layer.py and bnb.py).

    Kept are the input of A, in A's dtype, unless A is frozen, and A x. With dropout every
    matrix has an input, and a mask, of its own.
    """
    setup, tape = decoder.setup, decoder.tape
    each, given, (d_in, d_out) = BYTES[setup.adapter_dtype], x, weight.shape
    result = base_layer(decoder, x, weight)
    first = result.bytes_each
    if weight.quantised:
        result = tape.apply(result)
    if not weight.quantised or decoder.converts:
        x = tape.cast(x, each)
    cast = x
    if setup.dropout:
        with tape.at("lora_dropout.default"):
            noise = tape.value(x.shape, x.bytes_each if setup.device == "cpu" else 1)
            x = tape.apply(x, kept=[noise] * x.grad)
    with tape.at("lora_A.default"):
        low = tape.linear(x, Weight((d_in, ("r",)), each, trained=not setup.freeze_a))
    with tape.at("lora_B.default"):
        high = tape.linear(low, Weight((("r",), d_out), each, trained=True))
    scaled = tape.apply(high)
    if weight.quantised:
        scaled = tape.cast(scaled, first) if decoder.converts else scaled
        result = tape.add(result, scaled)
    else:
        result = tape.cast(tape.add(result, scaled), first)
    tape.touch(given, cast)
    return result


def ia3(decoder: Decoder, x: Value, weight: Weight, before: bool) -> Value:
    """l · (W x), or before the matrix W (l · x) (peft, tuners/ia3/layer.py and bnb.py).

    What l is multiplied with is kept, and a copy of l. Over a 4-bit matrix peft computes in float32.
    """
    tape, each = decoder.tape, BYTES[decoder.setup.adapter_dtype]
    width, first = weight.shape[0 if before else 1], x.bytes_each
    if weight.quantised:
        x = tape.cast(x, 4) if decoder.converts else x
        result = base_layer(decoder, rescale(decoder, x, width), weight) if before else base_layer(decoder, x, weight)
        expected = result.bytes_each
        result = tape.apply(result if before else rescale(decoder, result, width))
        return tape.cast(result, expected) if decoder.converts else result
    if before:
        return base_layer(decoder, tape.cast(rescale(decoder, tape.cast(x, each), width), first), weight)
    result = base_layer(decoder, x, weight)
    return tape.cast(rescale(decoder, result, width), result.bytes_each)


def rescale(decoder: Decoder, x: Value, width: tuple[str, ...]) -> Value:
    """l · x with a trained l."""
    tape, each = decoder.tape, BYTES[decoder.setup.adapter_dtype]
    factor = tape.value(width, each, grad=True)
    wide = max(each, x.bytes_each)
    return tape.apply(
        x,
        bytes_each=wide,
        kept=[x] + [factor] * x.grad,
        trained=product(each, *width),
        working=tape.promotion(x, tape.value(x.shape, each)),
        undoing=product(wide, *x.shape),
    )
