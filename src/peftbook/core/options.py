"""Options: one description of each field of a dataclass, for the command line and for forms."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, get_type_hints

from peftbook.core.errors import InputError

Model = TypeVar("Model")


@dataclass(frozen=True)
class Bound:
    """The range of a number. words: the start of the error message, with {} for the number."""

    words: str
    least: float
    most: float
    whole: bool = True

    def check(self, value: object) -> None:
        """Raise InputError, naming the value and the fix, if it is out of bounds or not a number."""
        said = repr(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if self.least <= value <= self.most and not (self.whole and value % 1):
                return
            said = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        kind = "a whole number" if self.whole else "a number"
        raise InputError(f"{self.words.format(said)}: choose {kind} from {self.least:,} to {self.most:,}.")


@dataclass(frozen=True)
class Option:
    """The description of a field, in the annotation of its type: `seeds: Annotated[int, Option("…")] = 1`.

    help: what the field means.  flag: the option's name, if not the field's.  bound: the range of a number.
    label: in a form; a field without one is not in the form.
    type, choices, metavar: as in argparse.  convert: makes the field's value from the words.
    count: number of words, if not one.  repeated: given once for each of several values.
    usual: text for the default, where its value says too little or too much.
    """

    help: str
    label: str = ""
    bound: Bound | None = None
    type: Callable[[str], Any] = str
    convert: Callable[[Any], Any] | None = None
    choices: tuple[str, ...] | None = None
    count: int | None = None
    repeated: bool = False
    metavar: str | None = None
    usual: str | None = None
    flag: str = ""


@functools.cache
def options_of(model: type) -> dict[str, Option]:
    """The options of a dataclass by the names of its fields, in their order."""
    hints = get_type_hints(model, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in fields(model)}


def add_options(parser: argparse.ArgumentParser, model: type) -> None:
    """Add an option for each field to a parser. An omitted option parses as None; the model then has its default.

    A field whose default is False becomes a switch.
    """
    defaults = {field.name: field.default for field in fields(model)}
    for name, option in options_of(model).items():
        if defaults[name] is False:
            words = help_of(option, None)
            parser.add_argument(option.flag or flag(name), dest=name, action="store_true", default=None, help=words)
            continue
        asked: dict[str, Any] = {"action": "append"} if option.repeated else {"nargs": option.count}
        parser.add_argument(
            option.flag or flag(name),
            dest=name,
            type=number if option.bound else option.type,
            choices=option.choices,
            metavar=option.metavar,
            required=defaults[name] is MISSING and not option.repeated,
            help=help_of(option, defaults[name]),
            **asked,
        )


def help_of(option: Option, default: object) -> str:
    """The help text of an option, with its default."""
    usual = option.usual
    if usual is None and default not in (MISSING, None, ""):
        usual = " ".join(map(format_default, default)) if isinstance(default, tuple) else format_default(default)
    return (option.help + (f" (default {usual})" if usual else "")).replace("%", "%%")


def format_default(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def read_options(model: type[Model], args: argparse.Namespace) -> Model:
    """Build the model from parsed options. Raises InputError for words that cannot be converted."""
    given = {}
    for name, option in options_of(model).items():  # type: ignore[arg-type]  # a class is hashable
        if (value := getattr(args, name)) is not None:
            given[name] = option.convert(value) if option.convert else value
    return model(**given)


def words_of(model: type, said: object) -> Iterator[str]:
    """The command-line words that reproduce a model, without options at their defaults.

    said: parsed options, or a model whose values are words already.
    """
    for field in fields(model):
        option, value = options_of(model)[field.name], getattr(said, field.name)
        if value is None or value == field.default:
            continue
        for given in value if option.repeated else [value]:
            words = given if option.count else [] if given is True else [given]
            yield from (option.flag or flag(field.name), *map(str, words))


def check_bounds(model: object, leave_out: Sequence[str] = ()) -> None:
    """Raise InputError if a number of a model is out of its bounds; None passes."""
    for name, option in options_of(type(model)).items():  # type: ignore[arg-type]
        value = getattr(model, name)
        if option.bound is not None and value is not None and name not in leave_out:
            option.bound.check(value)


def flag(name: str) -> str:
    """The option name of a field: `max_length` → `--max-length`."""
    return "--" + name.replace("_", "-")


def number(text: str) -> int | float:
    """Parse a number for argparse, without checking its bounds."""
    value = float(text)
    return int(value) if value.is_integer() else value


def listed(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list; commas inside brackets do not separate."""
    return tuple(filter(None, map(str.strip, re.split(r",(?![^\[]*\])", text))))
