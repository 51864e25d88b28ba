"""A shape and a set-up as one line of text, so that a measurement can name what it measured."""

from __future__ import annotations

import functools
import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

from peftbook.core.errors import InputError
from peftbook.memory.setup import Setup
from peftbook.memory.shapes import FAMILIES, DecoderShape
from peftbook.memory.step import Step, training_step
from peftbook.memory.tape import evaluate
from peftbook.memory.walk import walk


@dataclass(frozen=True)
class Configuration:
    """A model's shape and how it is trained."""

    shape: DecoderShape
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
            traits = FAMILIES[shape.get("family", "llama")]
            return cls(DecoderShape(**(traits | tuples(shape))), Setup(**tuples(setup)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{text!r} is no configuration of a training step: {error}.") from error

    @property
    def step(self) -> Step:
        """Its byte model."""
        return training_step(self.shape, self.setup)

    @functools.lru_cache(maxsize=1024)  # noqa: B019 — configurations are few and small
    def kept_by_module(self) -> dict[str, float]:
        """Module → bytes that autograd keeps of it; a layer stands for all that are like it."""
        walked = walk(self.shape, self.setup)
        symbols = self.shape.symbols | self.setup.symbols
        kept = walked.kept(self.setup.checkpointing)
        sizes = {module: walked.copies_of(module) * evaluate(size, symbols) for module, size in kept.items()}
        return {module: size for module, size in sizes.items() if size}


def given(part: DecoderShape | Setup) -> dict[str, Any]:
    """The fields that differ from their defaults, and of a shape from what its family and its sizes imply."""
    implied = {field.name: field.default for field in fields(part)}
    if isinstance(part, DecoderShape):
        needed = {field.name: getattr(part, field.name) for field in fields(part) if field.default is MISSING}
        alike = DecoderShape(**needed, **(FAMILIES[part.family] | {"family": part.family, "window": part.window}))
        implied = {name: getattr(alike, name) for name in implied if name not in (*needed, "family", "window")}
        implied |= {"family": "llama", "window": 0}
    missing = object()
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {name: value for name, value in values.items() if implied.get(name, missing) != value}


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Lists of JSON as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
