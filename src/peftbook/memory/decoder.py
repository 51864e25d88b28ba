"""The forward pass of a training step of a decoder like Llama, as transformers, peft and bitsandbytes compute it.

Symbols: b rows, s tokens of a row, t positions of a row (with a soft prompt more than s), k positions that attention
looks at (with a prefix more than t), h width, f width of the MLP, a heads, g key and value heads, d width of a head,
V vocabulary, L layers, r rank, P virtual tokens; where matrices are fused c width of queries, keys and values together,
and e width of a head that is rotated.

Written from the sources of transformers 5.24, peft 0.21 and bitsandbytes 0.50; a test counts what those keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from peftbook.memory.adapters import ia3, lora
from peftbook.memory.experts import mixture
from peftbook.memory.setup import BLOCK, BYTES, IA3_TARGETS, Setup
from peftbook.memory.shapes import DecoderShape
from peftbook.memory.tape import MatrixProduct, Tape, Value, Weight, product

GENERATOR = 5056  # bytes of the state of torch's random generator on a CPU, which a checkpoint puts by


def mask_of(tape: Tape, shape: DecoderShape, setup: Setup, sliding: bool) -> Value | None:
    """The mask that attention gets: always where it is eager, else for padding, a prefix, or a window that is full."""
    if setup.attention == "eager":
        return tape.apply(shape=("b", "t", "k"), bytes_each=BYTES[setup.dtype])
    full = sliding and setup.symbols["k"] >= shape.window
    if setup.padding or setup.method == "prefix" or full:
        return tape.apply(shape=("b", "t", "k"), bytes_each=1)
    return None


@dataclass(frozen=True)
class AttentionInputs:
    """What layers of a kind share: cosines and sines of the rotation, and the mask if there is one."""

    rotation: list[Value]
    mask: Value | None

    @property
    def values(self) -> list[Value]:
        """The tensors."""
        return self.rotation + ([self.mask] if self.mask else [])


@dataclass(frozen=True)
class Decoder:
    """The parts of the forward pass. prefix: the trained keys and values, and the cache that they are put into.

    adapted: the method's adapter is switched on.
    """

    shape: DecoderShape
    setup: Setup
    tape: Tape
    prefix: list[Value] = field(default_factory=list)
    adapted: bool = True

    @property
    def base_bytes(self) -> int:
        """Bytes of a weight outside the adapter that is not quantised."""
        return BYTES[self.setup.dtype]

    @property
    def converts(self) -> bool:
        """Whether peft brings the input of a quantised layer's adapter to the adapter's dtype: not under autocast, by
        which it means that of a GPU alone."""
        return not (self.setup.autocast and self.setup.device == "cuda")

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.setup.method == "full"

    def trains(self, name: str) -> bool:
        """Whether the embedding, or the head, is trained: itself, or in a copy of it."""
        return self.full or name in self.setup.saved

    def place(self, name: str) -> str:
        """Where the embedding, or the head, is computed: itself, or in the copy that peft trains."""
        return f"{name}.modules_to_save.default" if name in self.setup.saved else name

    def each(self, name: str) -> int:
        """Bytes of a number of the embedding, or of the head: of the copy, if there is one."""
        return BYTES[self.setup.saved_dtype or self.setup.dtype] if name in self.setup.saved else self.base_bytes

    def weight(self, name: str) -> Weight:
        """A matrix of the decoder."""
        setup, bias = self.setup, name in self.shape.biased
        quantised, bits, widths = bool(setup.quantised), setup.bits, self.shape.widths[name]
        constants = 4 / BLOCK if quantised and setup.double and bits == 4 else 0.0
        each = 2 if setup.held and not self.full else self.base_bytes
        return Weight(widths, each, self.full, quantised, bias, constants, bits, setup.keeps_inputs)

    def layer(self, x: Value, context: AttentionInputs) -> Value:
        """One decoder layer. A checkpoint of it has its arguments, and the state of the random generator."""
        tape, four, after = self.tape, self.shape.layer_norms == 4, self.shape.norms_after
        arguments = [x, *context.values]
        if self.setup.checkpointing and self.setup.device == "cpu":
            arguments.append(tape.value((), GENERATOR))
        tape.touch(*arguments)
        y = self.attention(x if after else self.norm("input_layernorm", x), context)
        if four or after:
            y = self.norm("post_attention_layernorm", y)
        x = tape.add(x, y)
        before = "pre_feedforward_layernorm" if four else "post_attention_layernorm"
        y = self.mlp(x if after else self.norm(before, x))
        if four or after:
            y = self.norm("post_feedforward_layernorm", y)
        y = tape.add(x, y)
        tape.touch(*arguments)
        return y

    def norm(self, name: str, x: Value, axes: int = 1) -> Value:
        """x / √(mean x² + ε) · gain over the last width, or the last `axes` of them, in float32.

        Kept are x in float32, the inverse root and, where the gain is trained, the quotient. Gemma multiplies with
        1 + gain in float32, a new vector that is kept too; OLMo 2 with the gain as it is, in float32 too.
        """
        tape, width = self.tape, x.shape[-axes:]
        trained = product(self.base_bytes, *width) if self.full else None
        with tape.at(name):
            wide = tape.cast(x, 4)
            squares = tape.apply(wide, kept=[wide], undoing=wide.size + wide.size)
            mean = tape.apply(squares, shape=x.shape[:-axes])
            inverse = tape.apply(tape.apply(mean, passes=True), keeps_output=True)
            normed = tape.multiply(wide, inverse)
            if self.shape.gains_in_fp32 or self.shape.float32_products:
                gain = tape.value(width, 4, self.full)
                kept = [gain] * (normed.grad and self.shape.gains_in_fp32) + [normed] * self.full
                undoing = wide.size if self.full else None
                return tape.cast(tape.apply(normed, kept=kept, trained=trained, undoing=undoing), x.bytes_each)
            narrow = tape.cast(normed, x.bytes_each)
            each = max(narrow.bytes_each, 4 if self.setup.wide_norms else self.base_bytes)
            undoing = narrow.size if self.full else None
            return tape.apply(narrow, bytes_each=each, kept=[narrow] * self.full, trained=trained, undoing=undoing)

    def attention(self, x: Value, context: AttentionInputs) -> Value:
        """Queries, keys and values, their rotation, attention, and the output matrix."""
        tape = self.tape
        with tape.at("self_attn"):
            q, k, v = self.projected(x)
            if self.shape.head_norms:
                axes = 2 if self.shape.joint_norms else 1
                q, k = self.norm("q_norm", q, axes), self.norm("k_norm", k, axes)
            q, k = self.rotate(q, context), self.rotate(k, context)
            if self.shape.scaled_queries:
                q = tape.apply(q, kept=[tape.value(("t",), q.bytes_each)])
            if self.setup.method == "prefix" or self.setup.generates:
                k, v = self.extend(k), self.extend(v)
            y = self.linear("o_proj", self.attend(q, k, v, context.mask))
            tape.touch(x, v)
            return y

    def projected(self, x: Value) -> tuple[Value, Value, Value]:
        """Queries, keys and values; parts of one tensor where one matrix makes them."""
        if not self.shape.fused:
            return self.linear("q_proj", x), self.linear("k_proj", x), self.linear("v_proj", x)
        whole, rows = self.linear("qkv_proj", x), x.shape[:-1]
        q, k, v = (self.tape.part(whole, (*rows, heads, "d")) for heads in ("a", "g", "g"))
        return q, k, v

    def rotate(self, x: Value, context: AttentionInputs) -> Value:
        """x · cos + rotated x · sin: linear in x, so that only cos and sin are kept, once for all layers.

        OLMo 2 has them in float32, and brings the sum back to the dtype of x. Phi 3 rotates a part of each head, and
        puts the two parts together again.
        """
        tape, (cos, sin) = self.tape, context.rotation
        if self.shape.fused:
            part = tape.part(x, (*x.shape[:-1], "e"))
            rotated = tape.add(tape.multiply(part, cos), tape.multiply(tape.apply(part), sin))
            return tape.apply(rotated, shape=x.shape)
        rotated = tape.add(tape.multiply(x, cos), tape.multiply(tape.apply(x), sin))
        return tape.cast(rotated, x.bytes_each) if self.shape.float32_products else rotated

    def extend(self, x: Value) -> Value:
        """What comes before a layer's keys or values, and these, as the cache holds them.

        A prefix is there already; a generation copies what the cache had (transformers, `DynamicLayer.update`).
        """
        shape = ("b", "k", "g", "d")
        if self.setup.generates:
            before = product(x.bytes_each, *shape) if self.setup.stage == "decode" else None
            with self.tape.at("cache"):
                whole = self.tape.apply(x, shape=shape, working=before)
        else:
            whole = self.tape.apply(x, self.prefix[0], shape=shape)
        self.prefix.append(whole)
        return whole

    def attend(self, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
        """Fused attention keeps q, k, v, the result and a float32 scalar a head and position; eager attention q, k, v
        and the weights, in float32 and in the dtype of q. With a mask, k and v are repeated for every head, and fused
        attention keeps the mask in their dtype."""
        tape, eager = self.tape, self.setup.attention == "eager"
        if self.shape.heads != self.shape.kv_heads and (mask or eager):
            k, v = self.for_every_head(k), self.for_every_head(v)
        if not eager:
            if tape.autocast:
                q, k, v = (tape.cast(factor, 2) for factor in (q, k, v))
            kept = [q, k, v, tape.value(("b", "t", "a"), 4)]
            kept += [tape.value(("b", "t", "k"), q.bytes_each)] if mask else []
            score = MatrixProduct(("t",), ("d",), ("k",), q.bytes_each, ("b", "a"), fused=True)
            mix = replace(score, inner=("k",), columns=("d",))
            grad = q.grad or k.grad or v.grad  # scores again, and two gradients of each of the two products
            undoing = [score, score, mix, mix, mix] if grad else []
            y = tape.apply(q, k, v, kept=kept, keeps_output=True, products=[score, mix], undoing_products=undoing)
            return tape.apply(y) if self.shape.fused and self.setup.device == "cpu" else y  # heads before positions
        if v.base and self.setup.rows > 1:
            v = tape.apply(v)  # a product of several rows copies it
        scores = self.matmul(q, k, ("b", "a", "t", "k"))
        scores = tape.apply(scores)  # scaled
        scores = self.capped(scores) if self.shape.capped_scores else scores
        scores = tape.cast(tape.add(scores, mask) if mask else scores, 4)
        product_of_both = scores.size if self.setup.device == "cuda" else None  # a GPU's softmax has it in backward
        weights = tape.cast(
            tape.apply(scores, keeps_output=True, undoing=product_of_both, exponential=True), q.bytes_each
        )
        return tape.apply(self.matmul(weights, v, ("b", "t", "a", "d")))

    def capped(self, x: Value) -> Value:
        """c · tanh(x / c), of which the hyperbolic tangent is kept."""
        tape = self.tape
        return tape.apply(tape.apply(tape.apply(x), keeps_output=True, exponential=True))

    def for_every_head(self, x: Value) -> Value:
        """Keys or values copied for every head that reads them; a single head is read in place, until a cast or the
        product of several rows copies it."""
        tape, wide = self.tape, ("b", "k", "a", "d")
        if self.shape.kv_heads > 1 or (self.setup.attention == "eager" and self.setup.rows > 1):
            return tape.apply(x, shape=wide)
        return tape.apply(x, shape=wide, bytes_each=2) if tape.autocast and x.bytes_each > 2 else x

    def matmul(self, x: Value, y: Value, shape: tuple[str, ...]) -> Value:
        """x y, a product for every row and head; both are kept. shape: its last symbol is k for the scores."""
        tape = self.tape
        if tape.autocast:
            x, y = tape.cast(x, 2), tape.cast(y, 2)
        inner, columns = (("d",), ("k",)) if shape[-1] == "k" else (("k",), ("d",))
        forward = MatrixProduct(("t",), inner, columns, x.bytes_each, ("b", "a"))
        undoing = [replace(forward, inner=columns, columns=inner)] * x.grad
        undoing += [replace(forward, rows=inner, inner=("t",))] * y.grad
        kept = [x] * y.grad + [y] * x.grad
        return tape.apply(x, y, shape=shape, kept=kept, products=[forward], undoing_products=undoing)

    def mlp(self, x: Value) -> Value:
        """W_down (φ(W_gate x) · W_up x): the gate before and after φ and the other factor are kept."""
        tape, fused = self.tape, self.shape.fused
        with tape.at("mlp"):
            if self.shape.experts:
                return mixture(self, x)
            if fused:
                whole = self.linear("gate_up_proj", x)
                gate, up = (tape.part(whole, (*x.shape[:-1], "f")) for _ in range(2))
            else:
                gate = self.linear("gate_proj", x)
            with tape.at("activation_fn" if fused else "act_fn"):
                active = tape.apply(gate, kept=[gate], exponential=True)
            product_of_both = tape.multiply(active, up if fused else self.linear("up_proj", x))
            y = self.linear("down_proj", product_of_both)
            tape.touch(x)
            return y

    def linear(self, name: str, x: Value) -> Value:
        """A matrix of the decoder, with its adapter if the method gives it one."""
        setup, weight = self.setup, self.weight(name)
        with self.tape.at(name):
            if not self.adapted:
                return self.tape.linear(x, weight)
            if setup.method == "lora" and name in self.shape.adapted(setup.targets):
                return lora(self, x, weight)
            if setup.method == "ia3" and name in IA3_TARGETS:
                return ia3(self, x, weight, before=name == "down_proj")
            return self.tape.linear(x, weight)


def embed(decoder: Decoder) -> Value:
    """The input of the first layer.

    It gets a gradient where the embedding is trained or a soft prompt stands before, and with checkpointing:
    transformers then makes the embedded tokens a leaf that a gradient is kept of.
    """
    tape, setup, each = decoder.tape, decoder.setup, decoder.each("embed_tokens")
    ids, width, scaled = tape.value(("b", "s"), 8), ("b", "s", "h"), decoder.shape.scaled_embedding
    with tape.at(decoder.place("embed_tokens")):
        if decoder.trains("embed_tokens"):
            # a matrix that the head has too has a gradient already: unless autocast has made both alike, the two are
            # added into a third
            new, sum_of_both = (
                (0, each if setup.autocast and each > 2 else 2 * each)
                if decoder.shape.tied and decoder.full
                else (each, 0)
            )
            trained, undoing = product(new, "V", "h"), product(sum_of_both, "V", "h")
            x = tape.apply(ids, shape=width, bytes_each=each, kept=[ids], trained=trained, undoing=undoing)
            if scaled:
                x = tape.apply(x, kept=[tape.value((), each)] if each == 2 else [])
        else:
            x = tape.apply(ids, shape=width, bytes_each=each)
            x = tape.apply(x) if scaled else x
            if setup.checkpointing:
                x = tape.leaf(x)
    if setup.method != "prompt":
        return x
    return tape.apply(virtual_tokens(decoder, ("h",)), x, shape=("b", "t", "h"))


def virtual_tokens(decoder: Decoder, width: tuple[str, ...]) -> Value:
    """A trained vector for each virtual token, looked up for every row and brought to the model's dtype."""
    tape, each = decoder.tape, BYTES[decoder.setup.adapter_dtype]
    with tape.at("prompt_encoder.default.embedding"):
        indices, trained = tape.value(("P",), 8), product(each, "P", *width)
        rows = tape.apply(indices, shape=("b", "P", *width), bytes_each=each, kept=[indices], trained=trained)
    return tape.cast(rows, decoder.base_bytes)
