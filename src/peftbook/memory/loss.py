"""The head and the loss: how what the last layer hands on becomes one number, in the ways of several libraries.

The logits of n positions are n · V numbers, for a small model or a long row the largest tensor of all. What is there of
them at once, for each position and word, at the peak:

- whole (transformers 5, the book's own loop): in float32 log-probabilities and two gradients of these;
- shifted (transformers 4.46 to 4.48): with several rows in forward the logits, in float32 once more, moved by one once
  more, and log-probabilities; a single row is moved in place;
- held (transformers before 4.46, in a loop that has the model's output in hand): as whole, and the logits in float32;
- loop (a loop of one's own, `cross_entropy(logits[:, :-1].reshape(…), …)`): in the model's dtype, the logits in hand,
  with several rows moved by one, log-probabilities and two gradients of these;
- in_place (Liger's cross-entropy in transformers 5's loss): the logits in float32, whose place their gradient takes;
- narrow (LitGPT 0.5): logits and log-probabilities in the model's dtype; gradients of 128 positions at a time;
- chunked (torchtune 0.7, `LinearCrossEntropyLoss`): log-probabilities in float32; all else of an eighth of the
  positions;
- compiled (torchtune 0.7 with torch.compile): the logits in the model's dtype; gradients of an eighth;
- tiled (TRL 1.16, `ChunkedLogProbFunction`): 4,096 positions and 32,768 words, computed again in backward;
- liger (Liger 0.8, `LigerFusedLinearCrossEntropyFunction`): a part of the positions at a time, their gradient in
  forward;
- fused (cut cross-entropy, arXiv:2411.09009): none of them outside a kernel.
"""

from __future__ import annotations

from dataclasses import replace

from peftbook.memory.decoder import Decoder
from peftbook.memory.setup import CHUNKS
from peftbook.memory.tape import NOTHING, MatrixProduct, Size, Value, Weight, product

STATISTICS = 7  # float32 numbers that a position has while its tiles are summed up (TRL)
TILE_COPIES = 29.0  # bytes a logit of a tile in backward, on a CPU, where torch does what TRL's kernels do elsewhere


def head(decoder: Decoder, x: Value) -> Value:
    """Final norm, logits at every position, or at those with a label alone, and their cross-entropy."""
    tape, setup = decoder.tape, decoder.setup
    x = decoder.norm("norm", x)
    if setup.generates:
        return next_token(decoder, x)
    if setup.labels:
        with tape.at("loss"):
            x = tape.apply(x, shape=("n", "h"), kept=[tape.value(("n",), 8), tape.value(("n",), 8)])
    ways = {
        "whole": full_logits_loss, "shifted": shifted, "held": held, "loop": held, "in_place": in_place,
        "narrow": undone_in_parts, "compiled": undone_in_parts, "chunked": chunked, "tiled": recomputed,
        "liger": undone_in_forward, "fused": recomputed,
    }  # fmt: skip
    return ways[setup.logits](decoder, x)


def next_token(decoder: Decoder, x: Value) -> Value:
    """The last position's logits, copied to float32, their probabilities, and what is drawn of them (`_sample`)."""
    tape = decoder.tape
    with tape.at("loss"):
        x = tape.apply(x, shape=("b", "h"))
    logits = logits_of(decoder, x)
    with tape.at("loss"):
        scores = tape.apply(logits, bytes_each=4)
        probabilities = tape.apply(scores, exponential=True)
        token = tape.apply(probabilities, shape=("b",), bytes_each=8, working=probabilities.size)
        tape.touch(logits, scores, probabilities)
        return token


def logits_of(decoder: Decoder, x: Value) -> Value:
    """x W: (positions, V), capped where the model does that."""
    with decoder.tape.at(decoder.place("lm_head")):
        logits = decoder.tape.linear(x, Weight((("h",), ("V",)), decoder.each("lm_head"), decoder.trains("lm_head")))
    with decoder.tape.at("loss"):
        return decoder.capped(logits) if decoder.shape.capped_logits else logits


def cross_entropy(decoder: Decoder, logits: Value, held: tuple[Value, ...] = ()) -> Value:
    """The mean loss; kept are log-probabilities, the labels, and how many there are. held: what stays in hand."""
    tape, positions = decoder.tape, logits.shape[:-1]
    log_probabilities = tape.apply(logits, held=held, keeps_output=True, exponential=True)
    kept = [log_probabilities, tape.value(positions, 8), tape.value((), 4)]
    if decoder.setup.rows == 1 and not decoder.setup.labels:  # labels moved by one are the same tensor, with its end
        kept.append(tape.value((), 8))
    return tape.apply(log_probabilities, shape=(), bytes_each=4, kept=kept)


def full_logits_loss(decoder: Decoder, x: Value) -> Value:
    """All logits, brought to float32."""
    logits = logits_of(decoder, x)
    with decoder.tape.at("loss"):
        loss = cross_entropy(decoder, decoder.tape.cast(logits, 4))
        if not decoder.setup.labels:  # transformers' own has them in hand until the loss is there
            decoder.tape.touch(logits)
        return loss


def shifted(decoder: Decoder, x: Value) -> Value:
    """All logits as they are, in float32, and moved by one: three tensors while log-probabilities are computed."""
    logits, tape = logits_of(decoder, x), decoder.tape
    with tape.at("loss"):
        wide = tape.cast(logits, 4)
        moved = tape.apply(wide) if decoder.setup.rows > 1 else wide
        loss = cross_entropy(decoder, moved)
        tape.touch(logits, wide, moved)
        return loss


def held(decoder: Decoder, x: Value) -> Value:
    """All logits, which stay in hand; what is moved by one for the labels is a copy.

    held: in float32.  loop: as they are, and under autocast in float32 for the loss.
    """
    logits, tape = logits_of(decoder, x), decoder.tape
    with tape.at("loss"):
        mine = logits if decoder.setup.logits == "loop" else tape.cast(logits, 4)
        wide = 4 if tape.autocast else mine.bytes_each
        if decoder.setup.rows == 1:
            return cross_entropy(decoder, tape.cast(mine, wide), held=(mine,))
        return cross_entropy(decoder, tape.cast(tape.apply(mine, held=[mine]), wide))


def in_place(decoder: Decoder, x: Value) -> Value:
    """All logits in float32, which are their own gradient from forward on; those as they are stay until the loss is
    there."""
    logits, tape = logits_of(decoder, x), decoder.tape
    with tape.at("loss"):
        wide = tape.cast(logits, 4)
        loss = tape.apply(wide, shape=(), bytes_each=4, kept=[wide], undoing=product(-4.0, *wide.shape))
        tape.touch(logits)
        return loss


def undone_in_forward(decoder: Decoder, x: Value) -> Value:
    """Logits and their gradient of a part of the positions at a time, in forward, which keeps the gradients of x and of
    a trained matrix alone."""
    tape, trained, own = decoder.tape, decoder.trains("lm_head"), float(decoder.each("lm_head"))
    with tape.at("loss"):
        each = 2 if tape.autocast else x.bytes_each
        kept = [tape.value(x.shape, x.bytes_each)] + [tape.value(("V", "h"), decoder.each("lm_head"))] * trained
        working = product(float(each), "q", "V") + product(float(each), "q", "h")
        wide = each + 4.0 * (each < 4)  # a product, brought to float32
        working.add(product(wide if trained else float(each * (own != each)), "V", "h"))
        forward, back = products_of(x, each, trained)
        return tape.apply(
            x,
            shape=(),
            bytes_each=4,
            kept=kept,
            trained=gradient_of(decoder),
            working=working,
            undoing=product(-float(x.bytes_each), *x.shape) + product(-own * trained, "V", "h"),
            products=[forward, *back],
        )


def undone_in_parts(decoder: Decoder, x: Value) -> Value:
    """Log-probabilities in the dtype of the model, whose gradients are there for one part after the other.

    narrow: the logits stay in hand meanwhile.  compiled: one kernel keeps the logits alone, with two numbers a
    position, and overwrites them by their gradient.
    """
    tape, narrow, trained = decoder.tape, decoder.setup.logits == "narrow", decoder.trains("lm_head")
    rows, each = x.shape[:-1], x.bytes_each
    with tape.at("loss"):
        held = [tape.value((*rows, "V"), each)] * narrow
        kept = [tape.value((*rows, "V"), each), tape.value(rows, 8 if narrow else 12)] + [x] * trained
        forward, back = products_of(x, each, trained)
        return tape.apply(
            x,
            shape=(),
            bytes_each=4,
            kept=kept,
            held=held,
            trained=gradient_of(decoder),
            undoing=product(float(2 * each if narrow else each), "q", "V"),
            products=[forward],
            undoing_products=back,
            exponential=True,
        )


def chunked(decoder: Decoder, x: Value) -> Value:
    """One part of the positions after the other; autograd keeps the log-probabilities of each.

    In backward the last part makes the gradient of a trained matrix, to which the others add theirs.
    """
    tape, losses = decoder.tape, []
    for index in range(CHUNKS):
        with tape.at("loss"):
            part = tape.apply(x, shape=("q", "h"))
        logits = logits_of(decoder, part)
        if index < CHUNKS - 1:
            made = tape.operations[-1]
            tape.operations[-1] = replace(made, weights=NOTHING, undoing=made.undoing + made.weights)
        with tape.at("loss"):
            losses.append(cross_entropy(decoder, tape.cast(logits, 4)))
    with tape.at("loss"):
        return tape.apply(*losses)


def gradient_of(decoder: Decoder) -> Size | None:
    """Bytes of the gradient of the head's matrix, if it is trained."""
    return product(decoder.each("lm_head"), "V", "h") if decoder.trains("lm_head") else None


def products_of(x: Value, each: int, trained: bool) -> tuple[MatrixProduct, list[MatrixProduct]]:
    """x W, and the products that undo it."""
    rows = x.shape[:-1]
    back = [MatrixProduct(rows, ("V",), ("h",), each)] + [MatrixProduct(("h",), rows, ("V",), each)] * trained
    return MatrixProduct(rows, ("h",), ("V",), each), back


def recomputed(decoder: Decoder, x: Value) -> Value:
    """Log-probabilities of the labels alone; logits are computed twice, and never kept.

    Kept are x, the labels and the logarithm of each position's sum, in TRL with the entropy. In backward the gradient
    of x is summed in float32, and so is that of a trained matrix, which is then brought to its dtype.
    """
    tape, tiled, trained = decoder.tape, decoder.setup.logits == "tiled", decoder.trains("lm_head")
    with tape.at("loss"):
        if tiled and not decoder.setup.labels:  # positions with a label, here all of them
            x = tape.apply(x, kept=[tape.value(x.shape[:-1], 8)])
        rows, each = x.shape[:-1], 2 if tape.autocast else x.bytes_each
        kept = [x, tape.value(rows, 8), tape.value(rows, 8 if tiled else 4)]
        forward, undoing = product(4.0 * STATISTICS, *rows), product(4.0, *x.shape)
        undoing.add(product((4.0 - decoder.each("lm_head")) * trained, "V", "h"))
        if tiled:
            copies = product(TILE_COPIES if decoder.setup.device == "cpu" else 0.0, "T", "U")
            forward, undoing = forward + tile(decoder, x, each), undoing + tile(decoder, x, each) + copies
        score, back = products_of(x, each, trained)
        log_probabilities = tape.apply(
            x,
            shape=rows,
            bytes_each=4,
            kept=kept,
            trained=gradient_of(decoder),
            working=forward,
            undoing=undoing,
            products=[score],
            undoing_products=[score, *back],
            exponential=True,
        )
        return tape.apply(log_probabilities, shape=())


def tile(decoder: Decoder, x: Value, each: int) -> Size:
    """Bytes of the room for a tile's logits, and of what of x and of the matrix is brought to their dtype for it."""
    size = product(float(each), "T", "W")
    size.add(product(float(each) * (x.bytes_each != each), "T", "h"))
    size.add(product(float(each) * (decoder.each("lm_head") != each), "U", "h"))
    return size
