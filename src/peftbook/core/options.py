"""Options: what is said once of each field of a dataclass, for the command line and for forms."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, get_type_hints

from peftbook.core.errors import InputError

__all__ = ["Bound", "Option", "add_options", "check_bounds", "listed", "number", "options_of", "read_options",
           "words_of"]  # fmt: skip

Model = TypeVar("Model")


@dataclass(frozen=True)
class Bound:
    """What a number may be. words: a sentence's start with the number in it."""

    words: str
    least: float
    most: float
    whole: bool = True

    def check(self, value: object) -> None:
        """Raises InputError, naming the value and the fix, for one that is out of bounds, or no number."""
        said = repr(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if self.least <= value <= self.most and not (self.whole and value % 1):
                return
            said = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        kind = "a whole number" if self.whole else "a number"
        raise InputError(f"{self.words.format(said)}: choose {kind} from {self.least:,} to {self.most:,}.")


@dataclass(frozen=True)
class Option:
    """What is said of a field, in the annotation of its type: `seeds: Annotated[int, Option("…")] = 1`.

    help: what it means.  flag: its name on the command line, if not the field's.  bound: of a number.
    label: of its field in a form, which has none without.
    type: of a word, as argparse calls it.  convert: from the words to the field's value.
    choices: the only words.  count: of words, if not one.  repeated: given once for each of several values.
    metavar: what a word stands for.  usual: the default, where its value says too little or too much.
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
    """Give a parser an option for each field; what is not said is None there, and the field's default in the model.

    A field that is False is a switch, without a word.
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
    """What an option means, and what holds without it."""
    usual = option.usual
    if usual is None and default not in (MISSING, None, ""):
        usual = " ".join(map(shown, default)) if isinstance(default, tuple) else shown(default)
    return (option.help + (f" (default {usual})" if usual else "")).replace("%", "%%")


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def read_options(model: type[Model], args: argparse.Namespace) -> Model:
    """The model that the given options make. Raises InputError for words that stand for no value."""
    given = {}
    for name, option in options_of(model).items():  # type: ignore[arg-type]  # a class is hashable
        if (value := getattr(args, name)) is not None:
            given[name] = option.convert(value) if option.convert else value
    return model(**given)


def words_of(model: type, said: object) -> Iterator[str]:
    """The options that make a model, word by word, without those that say no more than the defaults.

    said: what a parser made of them, or a model whose values are words already.
    """
    for field in fields(model):
        option, value = options_of(model)[field.name], getattr(said, field.name)
        if value is None or value == field.default:
            continue
        for given in value if option.repeated else [value]:
            words = given if option.count else [] if given is True else [given]
            yield from (option.flag or flag(field.name), *map(str, words))


def check_bounds(model: object, leave_out: Sequence[str] = ()) -> None:
    """Raises InputError for a number of a model that is out of its bounds; None stands for no number."""
    for name, option in options_of(type(model)).items():  # type: ignore[arg-type]
        value = getattr(model, name)
        if option.bound is not None and value is not None and name not in leave_out:
            option.bound.check(value)


def flag(name: str) -> str:
    """A field's name as that of an option."""
    return "--" + name.replace("_", "-")


def number(text: str) -> int | float:
    """A number, for argparse; what it may be its bounds say."""
    value = float(text)
    return int(value) if value.is_integer() else value


def listed(text: str) -> tuple[str, ...]:
    """The names in a list with commas; those within brackets divide nothing."""
    return tuple(filter(None, map(str.strip, re.split(r",(?![^\[]*\])", text))))
