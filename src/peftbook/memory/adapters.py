"""An adapter beside a matrix of the decoder, as peft computes it. Symbols are those of `decoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbook.memory.setup import BYTES
from peftbook.memory.tape import MatrixProduct, Tape, Value, Weight, product

if TYPE_CHECKING:
    from peftbook.memory.decoder import Decoder

MAGNITUDE = "lora_magnitude_vector.default"


def base_layer(decoder: Decoder, x: Value, weight: Weight) -> Value:
    """The matrix under an adapter."""
    with decoder.tape.at("base_layer"):
        return decoder.tape.linear(x, weight)


def lora(decoder: Decoder, x: Value, weight: Weight) -> Value:
    """W x + γ B A x (peft, tuners/lora/layer.py and bnb.py).

    Kept are the input of A, in A's dtype, unless A is frozen, and A x. With dropout every
    matrix has an input, and a mask, of its own. See `dora` for what DoRA adds in place of γ B A x.
    """
    setup, tape = decoder.setup, decoder.tape
    each, given, (d_in, d_out) = BYTES[setup.adapter_dtype], x, weight.shape
    result = base_layer(decoder, x, weight)
    first = result.bytes_each
    if weight.quantised and weight.bits == 4:
        result = tape.apply(result)
    if not weight.quantised or decoder.converts:
        x = tape.cast(x, each)
    cast = x
    if setup.dropout:
        with tape.at("lora_dropout.default"):
            noise = tape.value(x.shape, x.bytes_each if setup.device == "cpu" else 1)
            x = tape.apply(x, kept=[noise] * x.grad)
    if setup.dora:
        result = tape.add(result, dora(decoder, x, weight, result))
        result = tape.cast(result, first) if not weight.quantised or decoder.converts else result
        tape.touch(given, cast)
        return result
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


def dora(decoder: Decoder, x: Value, weight: Weight, result: Value) -> Value:
    """(ρ − 1) W x + ρ γ B A x with ρ = m / ‖W + γ B A‖, the norm that of a row (peft, tuners/lora/dora.py).

    Kept are both products, ρ, ρ − 1 and the norm, which is a constant to the gradient. With dropout W x is computed
    again, from the input of A, and the matrix that this multiplies is kept too, where it is not the parameter itself.
    Until the function returns, the matrices from which the norm came are there.
    Source: Liu et al. 2024, DoRA, arXiv:2402.09353, section 4.3.
    """
    setup, tape, (d_in, d_out) = decoder.setup, decoder.tape, weight.shape
    each = BYTES[setup.adapter_dtype]
    a, b = Weight((d_in, ("r",)), each, not setup.freeze_a), Weight((("r",), d_out), each, True)
    with tape.at(MAGNITUDE):
        copies = [tape.narrowed(part) if tape.autocast and each > 2 and part.trained else None for part in (a, b)]
        matrix, update, there = whole_matrices(decoder, x, weight)
        norm = tape.apply(tape.add(matrix, tape.apply(update)), shape=d_out)
        own = BYTES[setup.magnitude_dtype or setup.adapter_dtype]
        wide = max(own, norm.bytes_each)
        ratio = tape.apply(norm, bytes_each=wide, kept=[norm], trained=product(own, *d_out))
    with tape.at("lora_A.default"):
        low = tape.linear(x, a, copies[0])
    with tape.at("lora_B.default"):
        high = tape.linear(low, b, copies[1])
    with tape.at(MAGNITUDE):
        if setup.dropout:
            result = multiplied(tape, x, matrix, weight)
        elif weight.bias:
            result = tape.apply(result)
        less = rowwise(tape, result, tape.apply(ratio))
        more = tape.add(less, tape.apply(rowwise(tape, high, ratio)))
        tape.touch(*there, high, result, norm, ratio)
    return more


def whole_matrices(decoder: Decoder, x: Value, weight: Weight) -> tuple[Value, Value, list[Value]]:
    """W and B A in the dtype of x, and all that is there while DoRA needs them.

    B A comes from B (A I), with a unit matrix of d_in × d_in that is kept in vain where A is trained. W is read out
    where it is quantised, and copied where its dtype is another.
    """
    setup, tape, (d_in, d_out) = decoder.setup, decoder.tape, weight.shape
    each = BYTES[setup.adapter_dtype]
    narrow = 2 if tape.autocast else each
    unit = tape.apply(shape=(*d_in, *d_in), bytes_each=each)
    factor = tape.cast(unit, narrow)
    low = tape.apply(factor, shape=(*d_in, "r"), products=[MatrixProduct(d_in, d_in, ("r",), narrow)])
    update = tape.apply(low, shape=(*d_in, *d_out), products=[MatrixProduct(d_in, ("r",), d_out, narrow)])
    tape.touch(unit)
    update = tape.cast(update, x.bytes_each)
    matrix = tape.value((*d_in, *d_out), weight.bytes_each, fixed=True)
    if weight.quantised and weight.bits == 8:
        matrix = tape.apply(shape=matrix.shape, bytes_each=4, working=product(4, *d_in, *d_out))
    elif weight.quantised:
        matrix = tape.apply(shape=matrix.shape, bytes_each=2, working=product(weight.constants, *d_in, *d_out))
    matrix = tape.cast(matrix, x.bytes_each)
    return matrix, update, [factor] * (not setup.freeze_a) + [low, update, matrix]


def multiplied(tape: Tape, x: Value, matrix: Value, weight: Weight) -> Value:
    """W x with a matrix that is there: it is kept, or the copy that autocast makes of it."""
    d_in, d_out = weight.shape
    if tape.autocast:
        x, matrix = tape.cast(x, 2), tape.cast(matrix, 2)
    rows = x.shape[: len(x.shape) - len(d_in)]
    return tape.apply(
        x,
        matrix,
        shape=(*rows, *d_out),
        kept=[matrix] * x.grad,
        products=[MatrixProduct(rows, d_in, d_out, x.bytes_each)],
        undoing_products=[MatrixProduct(rows, d_out, d_in, x.bytes_each)] * x.grad,
    )


def rowwise(tape: Tape, x: Value, factor: Value) -> Value:
    """x · factor, with a factor for each output that gets a gradient."""
    wide = max(x.bytes_each, factor.bytes_each)
    return tape.apply(
        x,
        factor,
        kept=[x] + [factor] * x.grad,
        working=tape.promotion(x, factor),
        undoing=product(wide, *x.shape),
    )


def ia3(decoder: Decoder, x: Value, weight: Weight, before: bool) -> Value:
    """l · (W x), or before the matrix W (l · x) (peft, tuners/ia3/layer.py and bnb.py).

    What l is multiplied with is kept, and a copy of l. Over a quantised matrix peft computes in float32.
    """
    tape, each = decoder.tape, BYTES[decoder.setup.adapter_dtype]
    width, first = weight.shape[0 if before else 1], x.bytes_each
    if weight.quantised:
        x = tape.cast(x, 4) if decoder.converts else x
        result = base_layer(decoder, rescale(decoder, x, width), weight) if before else base_layer(decoder, x, weight)
        expected = result.bytes_each
        result = result if before else rescale(decoder, result, width)
        result = tape.apply(result) if weight.bits == 4 else result
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
