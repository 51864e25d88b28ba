"""What several commands ask for in the same way."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

TYPE_CHECKING = False  # as in `typing`, whose import would be a tenth of the time of --help

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Protocol

    class Add(Protocol):
        """What adds a command: its name, what it does, and its options if they are declared later."""

        def __call__(
            self, name: str, handler: Callable[[argparse.Namespace], int], options: Options | None = None
        ) -> Command: ...


Options = Callable[[argparse.ArgumentParser], None]


class Help(argparse.HelpFormatter):
    """argparse's help, as wide as the terminal. It would ask `shutil`, which loads three ways to compress."""

    def __init__(self, prog: str):
        super().__init__(prog, width=columns() - 2)


def columns() -> int:
    """Width of the terminal: what $COLUMNS says, else the system, else 80."""
    said = os.environ.get("COLUMNS", "")
    if len(said) < 10 and said.isdecimal() and int(said):
        return int(said)
    try:
        return (sys.__stdout__ and os.get_terminal_size(sys.__stdout__.fileno()).columns) or 80
    except (ValueError, OSError):  # no terminal
        return 80


class Command(argparse.ArgumentParser):
    """A command, whose options are declared when they are first needed: some take imports that no other waits for."""

    options: Options | None = None

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=Help, **settings)

    def declared(self) -> Command:
        """The command with its options."""
        if self.options is not None:
            declare, self.options = self.options, None
            declare(self)
        return self

    def parse_known_args(self, args=None, namespace=None):
        """argparse's own, which also prints the help, with the options."""
        return super(Command, self.declared()).parse_known_args(args, namespace)


def on_platform(parser: argparse.ArgumentParser) -> None:
    """The option that turns a study's CPU runs into those of a GPU."""
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu", help="which records (default cpu)")


def on_dtype(parser: argparse.ArgumentParser) -> None:
    """The option that says what a run computes in."""
    types = ("auto", "fp32", "bf16", "fp16")
    parser.add_argument("--dtype", choices=types, default="auto", help="to compute in (default auto: the fastest here)")


def path(text: str) -> Path:
    """A path, for argparse. Who asks for help alone waits for no import of pathlib, which is a fifth of it."""
    from pathlib import Path

    return Path(text)


def print_json(value: Any) -> None:
    """On standard output; raises ValueError for a number that JSON has no word for."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value
