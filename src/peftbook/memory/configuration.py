"""A shape and a set-up as one line of text, so that a measurement can name what it measured."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

from peftbook.errors import InputError
from peftbook.memory.decoder import walk
from peftbook.memory.setup import Setup
from peftbook.memory.shapes import Shape
from peftbook.memory.step import Step, training_step
from peftbook.memory.tape import evaluate

__all__ = ["Configuration"]


@dataclass(frozen=True)
class Configuration:
    """A model's shape and how it is trained."""

    shape: Shape
    setup: Setup

    @property
    def text(self) -> str:
        """JSON of what is not the default, so that a field that joins later changes no older text."""
        return json.dumps([given(self.shape), given(self.setup)], sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """The configuration that a text stands for. Raises InputError for a text that is none."""
        try:
            shape, setup = json.loads(text)
            return cls(Shape(**tuples(shape)), Setup(**tuples(setup)))
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{text!r} is no configuration of a training step: {error}.") from error

    @property
    def step(self) -> Step:
        """Its byte model."""
        return training_step(self.shape, self.setup)

    def kept_by_module(self) -> dict[str, float]:
        """Module → bytes that autograd keeps of it; a layer stands for all that are like it."""
        walked = walk(self.shape, self.setup)
        symbols = self.shape.symbols | self.setup.symbols
        kept = walked.kept(self.setup.checkpointing)
        found = {module: walked.copies_of(module) * evaluate(size, symbols) for module, size in kept.items()}
        return {module: size for module, size in found.items() if size}


def given(part: Shape | Setup) -> dict[str, Any]:
    """The fields that differ from their defaults; what a shape derives is left out where it can be derived again."""
    found = {one.name: getattr(part, one.name) for one in fields(part) if getattr(part, one.name) != one.default}
    if isinstance(part, Shape):
        needed = {one.name: found[one.name] for one in fields(part) if one.default is MISSING}
        derived = Shape(**needed, window=part.window)
        for name in ("head_dim", "sliding"):
            if getattr(derived, name) == getattr(part, name):
                found.pop(name, None)
    return found


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Lists of JSON as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
