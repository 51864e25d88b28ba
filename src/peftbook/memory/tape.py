"""Operations of a forward pass on sizes instead of numbers, and what autograd keeps of each until backward.

A size is a polynomial: a sum of coefficient × product of symbols; nothing here knows a model's numbers. The rules are
PyTorch's (tools/autograd/derivatives.yaml): a product keeps each factor whose partner gets a gradient, a matrix product
its input where the weight is trained, softmax its result. Parameters are not counted: they are there anyway.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


class Size(dict[tuple[str, ...], float]):
    """A polynomial: symbols, sorted → how many bytes one of their product stands for.

    Never changed once a tape has it. (A `Counter` adds as well, but slowly.)
    """

    def add(self, other: Mapping[tuple[str, ...], float], factor: float = 1) -> None:
        """Add factor × other."""
        for symbols, each in other.items():
            self[symbols] = self.get(symbols, 0) + factor * each

    def __add__(self, other: Mapping[tuple[str, ...], float]) -> Size:
        """The sum, a new one."""
        total = Size(self)
        total.add(other)
        return total


NOTHING = Size()


def product(bytes_each: float, *symbols: str) -> Size:
    """The polynomial with one term."""
    return Size({tuple(sorted(symbols)): bytes_each})


def multiple(size: Size, factor: float) -> Size:
    """factor × size."""
    return Size({symbols: factor * each for symbols, each in size.items()})


def evaluate(size: Mapping[tuple[str, ...], float], symbols: Mapping[str, float]) -> float:
    """Bytes: the sum over terms of coefficient × product of symbols."""
    total = 0.0
    for names, coefficient in size.items():
        for name in names:
            coefficient *= symbols[name]
        total += coefficient
    return total


@dataclass(frozen=True)
class Value:
    """A tensor. shape: symbols whose product counts its elements.  grad: whether a gradient passes through it.

    fixed: a parameter.  base: the tensor that this one is a part of; it takes no memory of its own.
    """

    shape: tuple[str, ...]
    bytes_each: int
    grad: bool
    key: int
    fixed: bool = False
    base: Value | None = None

    @property
    def storage(self) -> Value:
        """The tensor that takes the memory."""
        return self.base or self

    @property
    def product(self) -> tuple[str, ...]:
        """The symbols, sorted."""
        return in_order(self.shape)

    @property
    def size(self) -> Size:
        """Bytes of the tensor."""
        return tensor(self.shape, self.bytes_each)


@functools.lru_cache(maxsize=4096)
def in_order(shape: tuple[str, ...]) -> tuple[str, ...]:
    """Symbols, sorted."""
    return tuple(sorted(shape))


@functools.lru_cache(maxsize=4096)
def tensor(shape: tuple[str, ...], bytes_each: int) -> Size:
    """Bytes of a tensor."""
    return product(float(bytes_each), *shape)


@dataclass(frozen=True)
class Weight:
    """A matrix of a linear layer. shape: (inputs, outputs), each a product of symbols.

    quantised: stored in `bits` bits; in 4 it is multiplied in bfloat16.  bias: one value an output, of the same dtype.
    constants: bytes of a weight's share in constants that are read out first.  keeps_input: so it does in 4 bits.
    """

    shape: tuple[tuple[str, ...], tuple[str, ...]]
    bytes_each: int
    trained: bool = False
    quantised: bool = False
    bias: bool = False
    constants: float = 0.0
    bits: int = 4
    keeps_input: bool = False


@dataclass(frozen=True)
class MatrixProduct:
    """(rows × inner) · (inner × columns), as many times as the product of `copies` says; each a product of symbols.

    fused: a part of fused attention, whose scores are never written.
    """

    rows: tuple[str, ...]
    inner: tuple[str, ...]
    columns: tuple[str, ...]
    bytes_each: int
    copies: tuple[str, ...] = ()
    fused: bool = False

    @property
    def flops(self) -> Size:
        """Floating-point operations: a multiplication and an addition for each of rows × inner × columns."""
        return product(2, *self.copies, *self.rows, *self.inner, *self.columns)


@dataclass(frozen=True)
class Operation:
    """What one operation reads, writes and keeps.

    kept: tensors that it saves for backward.  held: what the graph has in hand beside those.  retained: what it has in
    hand without autograd's knowing, so that a checkpoint frees none of it, nor backward before its end.  weights: bytes
    of the gradients of the trained weights that it uses.  working, undoing: bytes that its forward, and its backward,
    needs for a moment beside inputs, results and their gradients.  preparing: bytes that its backward needs before its
    inputs have gradients.  passes: the gradient of the result is that of its inputs, the same tensor.
    products, undoing_products: the matrix products in its forward, and in its backward.
    exponential: it computes an exponential of every element.
    """

    where: str
    inputs: tuple[Value, ...]
    output: Value
    kept: tuple[Value, ...] = ()
    held: tuple[Value, ...] = ()
    weights: Size = field(default_factory=lambda: NOTHING)
    working: Size = field(default_factory=lambda: NOTHING)
    undoing: Size = field(default_factory=lambda: NOTHING)
    passes: bool = False
    products: tuple[MatrixProduct, ...] = ()
    undoing_products: tuple[MatrixProduct, ...] = ()
    exponential: bool = False
    preparing: Size = field(default_factory=lambda: NOTHING)
    retained: tuple[Value, ...] = ()


class Tape:
    """The operations of a forward pass in their order.

    autocast: matrix products are computed in bfloat16.  promotes: where two dtypes meet, the narrower tensor is copied
    to the wider first, as on a CPU; a GPU widens on the way, and multiplies integers.  records: gradients are wanted.
    keys: of the tensors, where another tape has some already.
    """

    def __init__(
        self,
        autocast: bool = False,
        promotes: bool = True,
        records: bool = True,
        keys: Iterator[int] | None = None,
    ):
        self.autocast = autocast
        self.promotes = promotes
        self.records = records
        self.operations: list[Operation] = []
        self.cached: list[Value] = []  # autocast's copies of trained weights, which it has until its block ends
        self.path: list[str] = []
        self.keys = keys or itertools.count()

    @contextlib.contextmanager
    def at(self, module: str) -> Iterator[None]:
        """Operations inside belong to this module."""
        self.path.append(module)
        yield
        self.path.pop()

    def value(self, shape: Iterable[str], bytes_each: int, grad: bool = False, fixed: bool = False) -> Value:
        """A tensor that no operation of the tape made."""
        return Value(tuple(shape), bytes_each, grad, next(self.keys), fixed)

    def apply(
        self,
        *inputs: Value,
        shape: Sequence[str] | None = None,
        bytes_each: int | None = None,
        kept: Iterable[Value] = (),
        held: Iterable[Value] = (),
        keeps_output: bool = False,
        trained: Size | None = None,
        working: Size | None = None,
        undoing: Size | None = None,
        passes: bool = False,
        products: Iterable[MatrixProduct] = (),
        undoing_products: Iterable[MatrixProduct] = (),
        exponential: bool = False,
        preparing: Size | None = None,
        retained: Iterable[Value] = (),
    ) -> Value:
        """Note an operation; returns its result, in the shape and the widest dtype of its inputs unless told otherwise.

        trained: bytes of the gradients of the weights that it uses; the result then has a gradient too.
        """
        grad = self.records and (any(value.grad for value in inputs) or trained is not None)
        each = max(value.bytes_each for value in inputs) if bytes_each is None else bytes_each
        output = self.value(inputs[0].shape if shape is None else shape, each, grad)
        saved = (*(value.storage for value in kept), *(output,) * keeps_output) if grad else ()
        self.operations.append(
            Operation(
                where=".".join(self.path),
                inputs=inputs,
                output=output,
                kept=saved,
                held=tuple(held) if grad else (),
                weights=trained if trained and grad else NOTHING,
                working=working or NOTHING,
                undoing=undoing or NOTHING,
                passes=passes,
                products=tuple(products),
                undoing_products=tuple(undoing_products) if grad else (),
                exponential=exponential,
                preparing=preparing or NOTHING,
                retained=tuple(retained) if grad else (),
            )
        )
        return output

    def leaf(self, x: Value) -> Value:
        """A tensor made trained: from now on the graph has it in hand, and its gradient stays."""
        if not self.records:
            return x
        trained = replace(x, grad=True)
        self.operations.append(Operation(".".join(self.path), (), trained, held=(trained,), weights=x.size))
        return trained

    def part(self, x: Value, shape: Sequence[str]) -> Value:
        """A slice of a tensor, which lives as long as any of its parts. The gradient of a part is as large as x."""
        output = replace(self.value(shape, x.bytes_each, x.grad), base=x.storage)
        self.operations.append(Operation(".".join(self.path), (x,), output))
        return output

    def touch(self, *values: Value) -> None:
        """These tensors are still there: a function that has them in hand is called, or only now returns."""
        self.operations.append(Operation(".".join(self.path), values, self.value((), 0)))

    def cast(self, x: Value, bytes_each: int) -> Value:
        """The same numbers in another dtype; the tensor itself where it has that dtype."""
        return x if x.bytes_each == bytes_each else self.apply(x, bytes_each=bytes_each)

    def promotion(self, x: Value, y: Value) -> Size:
        """Bytes of the copy that brings two tensors to one dtype."""
        narrow, wide = sorted((x, y), key=lambda value: value.bytes_each)
        mixed = self.promotes and narrow.bytes_each < wide.bytes_each
        return product(wide.bytes_each, *narrow.shape) if mixed else NOTHING

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""
        return self.apply(x, y, passes=True, working=self.promotion(x, y))

    def multiply(self, x: Value, y: Value) -> Value:
        """x · y, elementwise. Each factor is kept where the other gets a gradient."""
        kept = [factor for factor, other in ((x, y), (y, x)) if other.grad]
        return self.apply(x, y, kept=kept, working=self.promotion(x, y))

    def narrowed(self, weight: Weight) -> Value:
        """Autocast's copy of W, which it has until its block ends where W is trained."""
        d_in, d_out = weight.shape
        gradient = product(weight.bytes_each, *d_in, *d_out) if weight.trained else None
        factor = self.apply(shape=(*d_in, *d_out), bytes_each=2, trained=gradient)
        self.cached += [factor] * weight.trained
        return factor

    def linear(self, x: Value, weight: Weight, copy: Value | None = None) -> Value:
        """W x + b. x is kept where W is trained. copy: the one that autocast has made of W already.

        Under autocast x and a wider W are copied to bfloat16 first; the copy of x is kept where W is trained, that of W
        where x gets a gradient. A matrix in 4 bits is turned into bfloat16 for a moment, in forward and again in
        backward; nothing is kept of it (bitsandbytes, autograd/_functions.py, MatMul4Bit). For 8 bits see `in_int8`.
        """
        if weight.quantised and weight.bits == 8:
            return self.in_int8(x, weight)
        d_in, d_out = weight.shape
        each = 2 if weight.quantised or self.autocast else x.bytes_each
        rows = x.shape[: len(x.shape) - len(d_in)]
        shape = (*rows, *d_out)
        undoing = [MatrixProduct(rows, d_out, d_in, each)] * x.grad
        undoing += [MatrixProduct(d_in, rows, d_out, each)] * weight.trained
        told: dict[str, Any] = {"products": [MatrixProduct(rows, d_in, d_out, each)], "undoing_products": undoing}
        if weight.quantised:
            narrow, matrix = self.cast(x, 2), product(2 + weight.constants, *d_in, *d_out)
            kept = [narrow] * weight.keeps_input
            result = self.apply(narrow, shape=shape, kept=kept, working=matrix, undoing=matrix, **told)
            return self.cast(result, x.bytes_each)
        gradient = product(weight.bytes_each, *d_in, *d_out) if weight.trained else None
        bias = product(weight.bytes_each, *d_out) if weight.trained and weight.bias else NOTHING
        factor = self.value((*d_in, *d_out), weight.bytes_each, weight.trained, fixed=True)
        inputs = [x]
        if self.autocast:
            x = self.cast(x, 2)
            inputs = [x]
            if weight.bytes_each > 2:
                factor = copy or self.narrowed(weight)
                inputs, gradient = [x, factor], None
        kept = [x] * weight.trained + [factor] * x.grad
        trained = gradient + bias if gradient is not None else (bias or None)
        return self.apply(*inputs, shape=shape, bytes_each=x.bytes_each, kept=kept, trained=trained, **told)

    def in_int8(self, x: Value, weight: Weight) -> Value:
        """W x with W in 8 bits and a float32 factor a row (bitsandbytes, autograd/_functions.py).

        A CPU reads W out in the dtype of x, which takes float32 copies of a bfloat16 W on the way (MatMul8bitFp). A
        GPU rounds x to 8 bits through float16, and the product comes in int32 and goes through float16 (MatMul8bitLt,
        where no column of x has an outlier). Both have x in hand, and read W out in its dtype in backward.
        """
        (d_in, d_out), each = weight.shape, x.bytes_each
        rows = x.shape[: len(x.shape) - len(d_in)]
        shape, matrix = (*rows, *d_out), product(each, *d_in, *d_out)
        undoing = [MatrixProduct(rows, d_out, d_in, each)] * x.grad
        told: dict[str, Any] = {"shape": shape, "retained": [x], "undoing_products": undoing}
        if not self.promotes:
            rounded = self.apply(replace(x, grad=False), bytes_each=1, working=product(4, *x.shape))
            products = [MatrixProduct(rows, d_in, d_out, 2)]
            working = product(6, *shape)
            return self.apply(x, rounded, bytes_each=each, working=working, undoing=matrix, products=products, **told)
        widening = product(8 if each < 4 else 0, *d_in, *d_out) + product(4, *d_out)
        read = self.apply(shape=(*d_in, *d_out), bytes_each=each, working=widening)
        narrow = 2 if self.autocast else each
        copies = product(2, *x.shape) + product(2, *d_in, *d_out) if narrow < each else NOTHING
        back = product(each, *shape) if narrow < each else NOTHING
        products = [MatrixProduct(rows, d_in, d_out, narrow)]
        return self.apply(
            x,
            read,
            bytes_each=narrow,
            working=copies,
            undoing=matrix + back,
            preparing=matrix + widening,
            products=products,
            **told,
        )

    def kept(self, checkpoints: bool = False) -> dict[str, Size]:
        """Module → bytes that autograd keeps of it: each tensor once, where it was kept first.

        checkpoints: no more than what operations have in hand in spite of them.
        """
        seen: set[int] = set()
        sizes: dict[str, Size] = {}
        for operation in self.operations:
            for value in (*operation.kept * (not checkpoints), *operation.retained):
                if not value.fixed and value.key not in seen:
                    seen.add(value.key)
                    sizes.setdefault(operation.where, Size()).add(value.size)
        return sizes


def repeated(operations: Sequence[Operation]) -> tuple[list[Operation], tuple[Value, ...]]:
    """What a checkpoint runs again: operations until the last tensor that is needed is kept, and those tensors.

    An input is kept before its operation has a result, so that this operation is not run any more.
    """
    needed = max(index for index, operation in enumerate(operations) if operation.kept)
    last = operations[needed]
    if last.output in last.kept:
        return list(operations[: needed + 1]), ()
    return list(operations[:needed]), last.kept
