"""Seconds of a training step: its operations, and what a machine takes for each, measured once on that machine.

The walk of the byte model (`peftbook.memory`) knows every operation of a step with its sizes. A matrix product takes

    seconds = operations / (operations a second) + bytes / (bytes a second),

an elementwise operation what the machine took for so many elements, and every operation what Python and torch take to
start it. `peftbook.training.calibration` measures these rates in some seconds; nothing is fitted to whole trainings.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from peftbook.memory import DecoderShape, Setup
from peftbook.memory.step import elements, trained
from peftbook.memory.tape import MatrixProduct, Operation, Size, Value, evaluate, product, repeated
from peftbook.memory.walk import walk

DTYPES = {2: "bf16", 4: "fp32"}
Number = Any  # a float, or an array with a value for each of many steps
Symbols = Mapping[str, Number]


class Curve(NamedTuple):
    """Seconds by number of elements: straight in the logarithms of both, and proportional beyond the last point."""

    elements: tuple[float, ...]
    seconds: tuple[float, ...]

    def __call__(self, count: Number) -> Number:
        """Seconds for so many elements; below the first point those of the first."""
        inside = np.interp(np.log(np.maximum(count, 1.0)), np.log(self.elements), np.log(self.seconds))
        return np.where(count == 0, 0.0, np.exp(inside) * np.maximum(1.0, np.asarray(count) / self.elements[-1]))

    def slowed(self, times: float) -> Curve:
        """What is more than the seconds of the fewest elements takes so many times as long."""
        least = self.seconds[0]
        return Curve(self.elements, tuple(least + times * (one - least) for one in self.seconds))


class ProductLaw(NamedTuple):
    """Seconds of a matrix product: flops · each_flop + bytes · each_byte."""

    each_flop: float
    each_byte: float

    def __call__(self, one: MatrixProduct, symbols: Symbols) -> Number:
        """Seconds of one product."""
        copies, rows, inner, columns = (
            count(names, symbols) for names in (one.copies, one.rows, one.inner, one.columns)
        )
        moved = one.bytes_each * copies * (rows * inner + inner * columns + rows * columns)
        return evaluate(one.flops, symbols) * self.each_flop + moved * self.each_byte

    def slowed(self, times: float) -> ProductLaw:
        """Every operation and byte takes so many times as long."""
        return ProductLaw(times * self.each_flop, times * self.each_byte)


@dataclass(frozen=True)
class Rates:
    """What a machine takes, in seconds. Keys of the mappings are dtypes, bf16 and fp32.

    products: of a matrix with another; batched: of many small ones at once; fused: seconds of a floating-point
    operation in fused attention, forward and backward.  plain, exponential: elementwise operations.  dequantised: of a
    4-bit weight that is turned into bfloat16.  optimiser: of a value that AdamW moves.  operation: what starting one
    takes, beyond what it computes.
    """

    products: Mapping[str, ProductLaw]
    batched: Mapping[str, ProductLaw]
    fused: Mapping[str, tuple[float, float]]
    plain: Mapping[str, Curve]
    exponential: Mapping[str, Curve]
    dequantised: float
    optimiser: float
    operation: float

    def as_json(self) -> dict[str, Any]:
        """Numbers and lists alone: of a law or a curve its fields in their order."""
        return json.loads(json.dumps(vars(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Rates:
        """The rates that `as_json` wrote. Raises ValueError for others."""
        return TypeAdapter(cls).validate_python(values)

    def slowed(self, times: float) -> Rates:
        """With fewer threads: what is computed takes so many times as long, and starting an operation what it took."""
        laws: dict[str, Any] = {
            name: {dtype: law.slowed(times) for dtype, law in getattr(self, name).items()}
            for name in ("products", "batched", "plain", "exponential")
        }
        fused = {dtype: (times * forward, times * backward) for dtype, (forward, backward) in self.fused.items()}
        return replace(
            self, **laws, fused=fused, dequantised=times * self.dequantised, optimiser=times * self.optimiser
        )


def count(names: Iterable[str], symbols: Symbols) -> Number:
    """The product of symbols."""
    return math.prod(symbols[name] for name in names)


def step_seconds(
    shape: DecoderShape, setup: Setup, rates: Rates, symbols: Symbols | None = None, clipped: bool = False
) -> dict[str, Number]:
    """Seconds of a training step by part: products, attention, elementwise, dequantised, optimiser, calls.

    symbols: other numbers of rows, tokens and labels than those of the set-up, or arrays of them for many steps at
    once.  clipped: the norm of the gradients is taken and they are scaled, as in the book's own loop.
    """
    walked, values = walk(shape, setup), {**shape.symbols, **setup.symbols, **(symbols or {})}
    clock = Clock(rates, setup, values)
    for name, operations in walked.sections.items():
        copies = walked.copies.get(name, 1)
        clock.forward(operations, copies)
        if setup.checkpointing and name in walked.copies:
            clock.forward(repeated(operations)[0], copies)
        clock.backward(operations, copies)
    tensors = trained(shape, setup)
    pieces = sum((each for each, _ in tensors), start=Size())
    clock.optimiser(evaluate(elements(tensors), values), evaluate(pieces, values), clipped)
    return clock.seconds


def layers_seconds(shape: DecoderShape, setup: Setup, rates: Rates, symbols: Symbols) -> dict[str, Number]:
    """Seconds of the decoder's layers alone, forward and backward, by part: no head, no optimiser."""
    walked, clock = walk(shape, setup), Clock(rates, setup, {**shape.symbols, **setup.symbols, **symbols})
    for name, copies in walked.copies.items():
        clock.forward(walked.sections[name], copies)
        clock.backward(walked.sections[name], copies)
    return clock.seconds


def forward_seconds(shape: DecoderShape, setup: Setup, rates: Rates, symbols: Symbols) -> dict[str, Number]:
    """Seconds of a forward pass alone, by part."""
    walked, clock = walk(shape, setup), Clock(rates, setup, {**shape.symbols, **setup.symbols, **symbols})
    for name, operations in walked.sections.items():
        clock.forward(operations, walked.copies.get(name, 1))
    return clock.seconds


class Clock:
    """Adds up seconds by part."""

    def __init__(self, rates: Rates, setup: Setup, symbols: Symbols):
        self.rates = rates
        self.setup = setup
        self.symbols = symbols
        self.passes: dict[tuple[tuple[str, ...], int, bool], Number] = {}  # over tensors of a shape, dtype and kind
        self.seconds: dict[str, Number] = dict.fromkeys(
            ("products", "attention", "elementwise", "dequantised", "optimiser", "calls"), 0.0
        )

    def add(self, part: str, seconds: Number, copies: int = 1) -> None:
        """So many seconds more, `copies` times."""
        self.seconds[part] = self.seconds[part] + copies * seconds

    def forward(self, operations: Sequence[Operation], copies: int) -> None:
        """Run operations."""
        for one in operations:
            if not one.output.bytes_each:
                continue
            self.add("calls", self.rates.operation, copies)
            if one.products:
                self.multiply(one.products, bool(one.working), copies, backward=False)
            elif one.inputs or one.output.shape:
                self.elementwise(largest((*one.inputs, one.output)), one.exponential, copies)

    def backward(self, operations: Sequence[Operation], copies: int) -> None:
        """Undo operations; a tensor with several readers has its gradients added up."""
        read: Counter[int] = Counter()
        for one in operations:
            if not one.output.grad or not one.output.bytes_each:
                continue
            self.add("calls", self.rates.operation, copies)
            readers = [value for value in one.inputs if value.grad and not value.fixed]
            if one.products:
                self.multiply(one.undoing_products, bool(one.working), copies, backward=True)
            elif not one.passes:
                for value in readers:
                    self.elementwise(value, one.exponential, copies)
                for size in (one.weights, one.undoing):
                    self.pass_over(size, copies)
                if one.where == "embed_tokens" and self.setup.method == "full":  # zeros, and the rows put into them
                    self.pass_over(product(4, "V", "h"), 2 * copies)
            for value in readers:
                if read[value.key]:
                    self.elementwise(value, False, copies)
                read[value.key] += 1

    def multiply(self, products: Sequence[MatrixProduct], working: bool, copies: int, backward: bool) -> None:
        """Matrix products, and before them the matrix in 4 bits that is read out."""
        for one in products:
            dtype = DTYPES[one.bytes_each]
            if one.fused:
                each = self.rates.fused[dtype][backward]
                self.add("attention", each * evaluate(one.flops, self.symbols), copies)
                continue
            laws = self.rates.batched if one.copies else self.rates.products
            self.add("attention" if one.copies else "products", laws[dtype](one, self.symbols), copies)
        if working and self.setup.quantised and products:
            matrix = count(products[0].inner, self.symbols) * count(products[0].columns, self.symbols)
            self.add("dequantised", matrix * self.rates.dequantised, copies)

    def elementwise(self, value: Value, exponential: bool, copies: int) -> None:
        """A pass over the elements of a tensor."""
        kind = (value.product, value.bytes_each, exponential)
        if kind not in self.passes:
            curves = self.rates.exponential if exponential else self.rates.plain
            curve = curves[DTYPES.get(value.bytes_each, "fp32")]
            self.passes[kind] = curve(count(value.product, self.symbols))
        self.add("elementwise", self.passes[kind], copies)

    def pass_over(self, size: Size, copies: int) -> None:
        """A pass over so many bytes in float32."""
        if size:
            self.add("elementwise", self.rates.plain["fp32"](evaluate(size, self.symbols) / 4), copies)

    def optimiser(self, values: Number, tensors: Number, clipped: bool) -> None:
        """AdamW over all that is trained, and the gradients' norm."""
        self.add("optimiser", values * self.rates.optimiser)
        self.add("calls", tensors * self.rates.operation)
        if clipped:
            self.add("elementwise", 2 * self.rates.plain["fp32"](values))
            self.add("calls", 2 * tensors * self.rates.operation)


def largest(values: Sequence[Value]) -> Value:
    """The tensor with most symbols in its shape, of those the widest."""
    return max(values, key=lambda one: (len(one.shape), one.bytes_each))
