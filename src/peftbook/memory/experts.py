"""A layer's mixture of experts, as transformers computes it by grouped products (integrations/moe.py).

Symbols beside those of `decoder`: E experts, m of them for each token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbook.memory.tape import MatrixProduct, Value, Weight, product

if TYPE_CHECKING:
    from peftbook.memory.decoder import Decoder

# Parameters in three dimensions, which are neither quantised nor adapted: (inputs, outputs) of each expert
MATRICES = {"gate_up_proj": (("h",), ("two", "f")), "down_proj": (("f",), ("h",))}
ROUTER = (("h",), ("E",))


def mixture(decoder: Decoder, x: Value) -> Value:
    """Σ over the m chosen experts of share · W_down (φ(gate) · up), where W_gate_up x holds gate and up.

    Kept are what one expert's MLP keeps, for each of a token's experts, what each of them gives, the shares, and the
    orders in which tokens are sorted by expert and back.
    """
    tape = decoder.tape
    with tape.at("gate"):
        shares = routed(decoder, x)
    with tape.at("experts"):
        rows = shares.shape
        sorted_x = tape.apply(x, shape=(*rows, "h"), kept=[tape.value(rows, 8)])
        sorted_shares = tape.apply(shares, kept=[tape.value(rows, 8)])
        offsets = tape.value(("E",), 4)
        whole = grouped(decoder, "gate_up_proj", sorted_x, offsets)
        gate, up = (tape.part(whole, (*rows, "f")) for _ in range(2))
        with tape.at("act_fn"):
            active = tape.apply(gate, kept=[gate], exponential=True)
        given = grouped(decoder, "down_proj", tape.multiply(active, up), offsets)
        weighted = tape.multiply(given, sorted_shares)
        back = tape.apply(weighted, kept=[tape.value(rows, 8)])
        total = tape.apply(back, shape=x.shape)
        tape.touch(x)
        return tape.cast(total, x.bytes_each)


def routed(decoder: Decoder, x: Value) -> Value:
    """The shares of the m largest of E experts: the softmax of W x in float32, with a sum of 1 if they are rescaled."""
    tape, shape = decoder.tape, decoder.shape
    logits = tape.linear(x, Weight(ROUTER, decoder.base_bytes, decoder.full))
    shares = tape.apply(tape.cast(logits, 4), keeps_output=True, exponential=True)
    rows = (*x.shape[:-1], "m")
    top = tape.apply(shares, shape=rows, kept=[tape.value(rows, 8)])
    if shape.rescaled:
        total = tape.apply(top, shape=x.shape[:-1])
        top = tape.apply(top, total, shape=rows, kept=[tape.value(rows, 4), total])  # in place, so that a copy is kept
    return top if shape.float32_shares else tape.cast(top, logits.bytes_each)


def grouped(decoder: Decoder, name: str, x: Value, offsets: Value) -> Value:
    """Each token times the matrix of its expert; where the experts end in the order of tokens is kept too."""
    tape, (d_in, d_out) = decoder.tape, MATRICES[name]
    x = tape.cast(x, decoder.base_bytes)
    rows, each = x.shape[: len(x.shape) - len(d_in)], x.bytes_each
    undoing = [MatrixProduct(rows, d_out, d_in, each)] * x.grad
    undoing += [MatrixProduct(d_in, rows, d_out, each)] * decoder.full
    return tape.apply(
        x,
        shape=(*rows, *d_out),
        kept=[x] * decoder.full + [offsets],
        trained=product(decoder.base_bytes, "E", *d_in, *d_out) if decoder.full else None,
        products=[MatrixProduct(rows, d_in, d_out, each)],
        undoing_products=undoing,
    )
