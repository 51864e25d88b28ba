"""How much memory is taken at each moment of a training step: the operations forward and back, with what is freed.

A tensor is freed after its last use; one that is kept for backward, once the operations that keep it have been undone.
The gradient of a weight stays until the optimiser has used it. Weights and optimiser are not counted here.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from peftbook.memory.tape import NOTHING, Operation, Size, Value, repeated
from peftbook.memory.walk import Walk

if TYPE_CHECKING:
    import numpy as np

KINDS = (
    "embedding", "layer inputs", "norms", "attention", "mlp", "adapter inputs", "cache", "logits and loss",
    "gradients", "working",
)  # fmt: skip
TWIN = 1 << 40  # beyond the keys of a tape
Column = tuple[str, tuple[str, ...]]  # kind, symbols
Bytes = dict[Column, float]  # coefficients of the products of symbols


@functools.lru_cache(maxsize=1024)
def kind_of(where: str) -> str:
    """The kind of what a module keeps."""
    if "lora_" in where or where.startswith("prompt_encoder"):
        return "adapter inputs"
    if where.split(".", 1)[0] in ("lm_head", "loss"):
        return "logits and loss"
    if where.endswith(".cache"):
        return "cache"
    if where.rsplit(".", 1)[-1].endswith("norm"):
        return "norms"
    if ".mlp" in where:
        return "mlp"
    if ".self_attn" in where:
        return "attention"
    return "layer inputs" if where.startswith("layers.") else "embedding"


@dataclass(frozen=True, eq=False)
class MomentTable:
    """Everything that is there at each moment of a step. names: what happens.  columns: (kind, symbols).

    table: coefficients, (moments, columns).
    """

    names: tuple[str, ...]
    columns: tuple[Column, ...]
    table: np.ndarray

    def largest(self, symbols: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """The moment with most bytes, and its bytes by kind."""
        import numpy as np

        sizes = self.table * np.array([math.prod(symbols[name] for name in product) for _, product in self.columns])
        row = int(sizes.sum(axis=1).argmax())
        terms: dict[str, float] = {}
        for (kind, _), size in zip(self.columns, sizes[row], strict=True):
            terms[kind] = terms.get(kind, 0.0) + float(size)
        return self.names[row], {kind: terms[kind] for kind in KINDS if terms.get(kind)}

    def scaled(self, kind: str, factor: float) -> MomentTable:
        """The same with `factor` times the bytes of one kind."""
        import numpy as np

        factors = np.array([factor if name == kind else 1.0 for name, _ in self.columns])
        return MomentTable(self.names, self.columns, self.table * factors)

    def pruned(self) -> list[tuple[str, dict[str, Size]]]:
        """Those that no other one outweighs in every product of symbols; of equal ones the first."""
        import numpy as np

        products = {symbols: index for index, symbols in enumerate(dict.fromkeys(column for _, column in self.columns))}
        weights = np.zeros((len(self.names), len(products)))
        for (_, symbols), column in zip(self.columns, self.table.T, strict=True):
            weights[:, products[symbols]] += column
        rows, first = np.unique(weights, axis=0, return_index=True)
        heavy: list[int] = []
        for row in reversed(range(len(rows))):  # one that outweighs another is sorted behind it
            if not (rows[heavy] >= rows[row]).all(axis=1).any():
                heavy.append(row)
        return [(self.names[index], self.by_kind(index)) for index in sorted(first[heavy].tolist())]

    def by_kind(self, index: int) -> dict[str, Size]:
        """Kind → bytes of one moment, as polynomials."""
        kinds: dict[str, dict[tuple[str, ...], float]] = {}
        for (kind, symbols), each in zip(self.columns, self.table[index], strict=True):
            if each:
                kinds.setdefault(kind, {})[symbols] = float(each)
        return {kind: Size(sizes) for kind, sizes in kinds.items()}


class Timeline:
    """What is there now, by kind, and how it came about.

    names: what happened, moment by moment.  changes: (moment, what of, how much), the moment being the first that sees
    it.  passing: the same for bytes that are there in one moment alone.
    """

    def __init__(self):
        self.live: Bytes = defaultdict(float)
        self.holders: Counter[int] = Counter()
        self.kinds: dict[int, str] = {}
        self.made: set[int] = set()
        self.names: list[str] = []
        self.changes: list[tuple[int, Column, float]] = []
        self.passing: list[tuple[int, Column, float]] = []

    def copy(self) -> Timeline:
        """The same state, with no past."""
        other = Timeline()
        other.live = self.live.copy()
        other.holders, other.kinds, other.made = Counter(self.holders), dict(self.kinds), set(self.made)
        return other

    def change(self, column: Column, amount: float) -> None:
        """More, or less, of something."""
        self.live[column] += amount
        self.changes.append((len(self.names), column, amount))

    def note(self, what: str, working: Size = NOTHING) -> None:
        """Write down this moment, with bytes that are there for it alone."""
        for symbols, each in working.items():
            self.passing.append((len(self.names), ("working", symbols), each))
        self.names.append(what)

    def hold(self, value: Value, kind: str = "working") -> None:
        """One more user of a tensor; one that keeps it says of what kind it is now."""
        value = value.storage
        if value.fixed:
            return
        known = self.kinds.get(value.key, "working") if self.holders[value.key] else None
        self.holders[value.key] += 1
        if known is None or known == "working" != kind:
            self.change((kind, value.product), value.bytes_each)
            self.kinds[value.key] = kind
            if known:
                self.change((known, value.product), -value.bytes_each)

    def drop(self, value: Value) -> None:
        """One user less; without any the tensor is freed."""
        value = value.storage
        if value.fixed:
            return
        self.holders[value.key] -= 1
        if not self.holders[value.key]:
            self.change((self.kinds[value.key], value.product), -value.bytes_each)

    def add(self, sizes: Mapping[Column, float], factor: float = 1) -> None:
        """Bytes by kind, `factor` times."""
        for column, each in sizes.items():
            self.change(column, factor * each)

    def moments(self) -> MomentTable:
        """What was there at each moment."""
        import numpy as np

        columns: dict[Column, int] = {}
        for _, column, _ in itertools.chain(self.changes, self.passing):
            columns.setdefault(column, len(columns))
        table = np.zeros((len(self.names) + 1, len(columns)))
        for moment, column, amount in self.changes:
            table[moment, columns[column]] += amount
        table = table.cumsum(axis=0)
        for moment, column, amount in self.passing:
            table[moment, columns[column]] += amount
        return MomentTable(tuple(self.names), tuple(columns), table[:-1])

    def forward(
        self, operations: Iterable[Operation], readers: Counter[int], keep: bool = True, said: str = "forward"
    ) -> None:
        """Run operations. readers: how many operations have yet to read each tensor; it is freed after the last."""
        for operation in operations:
            kind = kind_of(operation.where)
            self.hold(operation.output, passing(kind))
            self.made.add(operation.output.key)
            for value in (*operation.kept, *operation.held) if keep else ():
                self.hold(value, kind)
            for value in operation.retained:
                self.hold(value, kind)
            self.note(f"{said} {operation.where}", operation.working)
            for value in unique(operation.inputs):
                readers[value.key] -= 1
                if value.key in self.made and not readers[value.key]:
                    self.drop(value)

    def part(self, operations: Iterable[Operation]) -> None:
        """What operations have in hand is no longer the tensor that a checkpoint computes again."""
        for operation in operations:
            for value in operation.retained:
                self.hold(twin(value), self.kinds[value.key])
                self.drop(value)

    def let_go(self, operations: Iterable[Operation], parted: bool = False) -> None:
        """Operations are gone, and what they had in hand."""
        for operation in operations:
            for value in operation.retained:
                self.drop(twin(value) if parted else value)

    def in_hand(self, operations: Iterable[Operation]) -> Bytes:
        """Bytes that operations have in hand, each tensor once."""
        values = {value.key: value for operation in operations for value in operation.retained}
        sizes: Bytes = defaultdict(float)
        for value in values.values():
            sizes[self.kinds[value.key], value.product] += value.bytes_each
        return sizes

    def recompute(self, operations: Sequence[Operation]) -> None:
        """Run a layer again whose arguments are there."""
        again, inputs = repeated(operations)
        rest = readers_of(operations[len(again) :])
        self.forward(again, readers_of(operations) + readers_of(operations[:1]))
        self.let_go(again)
        for value in inputs:
            self.hold(value, kind_of(operations[len(again)].where))
        for operation in again:
            if rest[operation.output.key] and self.holders[operation.output.storage.key]:
                self.drop(operation.output)


class Gradients:
    """The gradients of tensors on the way back. Two tensors may have one and the same.

    accumulated: a weight has a gradient already, and what it gets is there until it has been added to that.
    stepped: a weight is moved when it has its gradient, which is then let go, but for those of these modules.
    """

    def __init__(self, timeline: Timeline, accumulated: bool, stepped: Collection[str] | None = None):
        self.timeline = timeline
        self.accumulated = accumulated
        self.stepped = stepped
        self.new = itertools.count()
        self.of: dict[int, Value] = {}  # tensor → its gradient

    def make(self, value: Value) -> Value:
        """A gradient of its own for a tensor."""
        return Value(value.shape, value.bytes_each, False, -1 - next(self.new))

    def backward(self, operations: Sequence[Operation], recompute: Callable[[], None] | None = None) -> None:
        """Undo operations from the last to the first. recompute: what is done once a kept tensor is needed."""
        timeline = self.timeline
        for operation in reversed([operation for operation in operations if operation.output.grad]):
            if recompute and any(not value.fixed for value in operation.kept):
                recompute()
                recompute = None
            kind = passing(kind_of(operation.where))
            if operation.output.key not in self.of:  # the loss
                self.give(operation.output, self.make(operation.output), operation.where)
            mine = self.of.pop(operation.output.key)
            if operation.preparing:
                timeline.note(f"backward {operation.where}", operation.preparing)
            readers = [value for value in unique(operation.inputs) if value.grad]
            gradients = [
                mine if operation.passes and value.size == mine.size else self.make(value) for value in readers
            ]
            for gradient in gradients:
                timeline.hold(gradient, kind)
            moved = self.stepped is not None and operation.where not in self.stepped
            if (self.accumulated and not operation.held) or moved:  # what is held is new in every micro-batch
                timeline.note(f"backward {operation.where}", operation.undoing + operation.weights)
            else:
                timeline.add(labelled("gradients", operation.weights))
                timeline.note(f"backward {operation.where}", operation.undoing)
            timeline.drop(mine)
            for value in (*operation.kept, *operation.held):
                timeline.drop(value)
            for value, gradient in zip(readers, gradients, strict=True):
                self.give(value, gradient, operation.where)
                timeline.drop(gradient)

    def give(self, value: Value, gradient: Value, where: str) -> None:
        """Add a gradient to what a tensor has; in place unless another tensor has that one too."""
        timeline = self.timeline
        if value.key not in self.of:
            self.of[value.key] = gradient
            timeline.hold(gradient)
            return
        before = self.of[value.key]
        if timeline.holders[before.key] > 1:
            total = self.make(value)
            timeline.hold(total)
            timeline.note(f"backward {where}")
            timeline.drop(before)
            self.of[value.key] = total


def twin(value: Value) -> Value:
    """A tensor with the same numbers."""
    return replace(value, key=TWIN + value.key)


def passing(kind: str) -> str:
    """The kind of what a module does not keep."""
    return kind if kind in ("logits and loss", "cache") else "working"


def unique(values: tuple[Value, ...]) -> Iterable[Value]:
    """Each tensor once."""
    return values if len(values) < 2 else {value.key: value for value in values}.values()


def readers_of(operations: Iterable[Operation]) -> Counter[int]:
    """How many operations read each tensor."""
    return Counter(value.key for operation in operations for value in unique(operation.inputs))


def moments(
    walked: Walk,
    checkpointing: bool,
    accumulated: bool = False,
    offloaded: bool = False,
    roots: Size = NOTHING,
    stepped: Collection[str] | None = None,
    said: str = "forward",
) -> MomentTable:
    """What happens and the bytes that are there, for every operation of a training step, forward and back.

    offloaded: what a checkpointed layer keeps is on the host, but for the layers on the tape: one that computes and its
    neighbours, whose inputs come and go meanwhile.  roots: what the optimiser takes beside the gradients.
    stepped: where it moves each weight in backward: the modules whose gradient waits for that of another one.  said:
    what the pass is called.
    """
    timeline, parts = Timeline(), walked.sections
    left, hands = through(timeline, walked, checkpointing, offloaded, said)
    if walked.reference:  # beside what the graph of the pass before has kept
        through(timeline, walked.reference, False, False, "reference")
    stays = {name: {key: each for key, each in sizes.items() if key[0] != "working"} for name, sizes in left.items()}
    gradients = Gradients(timeline, accumulated, stepped)
    for name, operations in reversed(parts.items()):
        inside = checkpointing and name in walked.copies
        gradients.backward(operations, functools.partial(timeline.recompute, operations) if inside else None)
        for value in operations[0].inputs if inside else ():
            timeline.drop(value)
        if name in left:
            others = walked.copies[name] - 1
            timeline.add(stays[name], -others)
            timeline.add(hands[name], others)
            for operation in operations if not accumulated and stepped is None else ():
                timeline.add(labelled("gradients", operation.weights), others)
    for name, operations in parts.items():
        timeline.let_go(operations, parted=checkpointing and name in walked.copies)
        timeline.add(hands.get(name, {}), 1 - walked.copies.get(name, 1))
    timeline.note("optimiser", roots)
    return timeline.moments()


def through(
    timeline: Timeline, walked: Walk, checkpointing: bool, offloaded: bool, said: str
) -> tuple[dict[str, Bytes], dict[str, Bytes]]:
    """A forward pass; returns what a layer leaves behind, and of that what it has in hand, for those with others alike.

    What a layer on the tape leaves behind is counted for all that it stands for when it is reached, and on the way back
    turns into the gradients of their weights once it has been undone: between those two moments memory is a straight
    line in the number of layers, so that its peak is at one of them.
    """
    readers = readers_of(walked.tape.operations)
    left: dict[str, Bytes] = {}
    hands: dict[str, Bytes] = {}
    parts = walked.sections
    for name, operations in parts.items():
        inside = checkpointing and name in walked.copies
        for value in operations[0].inputs if inside else ():
            timeline.hold(value, "layer inputs")
        others = walked.copies.get(name, 1) - 1
        if others:
            trial = timeline.copy()
            trial.forward(operations, Counter(readers), keep=not inside)
            hands[name] = trial.in_hand(operations)
            trial.add(timeline.live, -1)
            if inside:  # what the layer hands on is an argument of the next
                trial.add(labelled("layer inputs", NOTHING if offloaded else own_arguments(parts, name)))
                trial.add(labelled("working", operations[0].inputs[0].size), -1)
            left[name] = trial.live
            timeline.add(left[name], others)
        timeline.forward(operations, readers, not inside, said)
        if inside:
            timeline.part(operations)
    for name, sizes in left.items():  # what stayed no longer than forward
        timeline.add({key: each for key, each in sizes.items() if key[0] == "working"}, 1 - walked.copies[name])
    return left, hands


def labelled(kind: str, size: Size) -> Bytes:
    """Bytes of one kind."""
    return {(kind, symbols): each for symbols, each in size.items()}


def own_arguments(parts: dict[str, list[Operation]], name: str) -> Size:
    """Bytes of the arguments that a layer does not share with the others."""
    others = {value.key for other, operations in parts.items() if other != name for value in operations[0].inputs}
    total = Size()
    for value in parts[name][0].inputs:
        total.add(value.size if value.key not in others else NOTHING)
    return total
