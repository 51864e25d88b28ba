"""What several commands ask for in the same way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Options = Callable[[argparse.ArgumentParser], None]


class Command(argparse.ArgumentParser):
    """A command that declares its options when it is parsed: some need imports for which no other command waits."""

    options: Options | None = None

    def declared(self) -> Command:
        """The command with its options."""
        if self.options is not None:
            declare, self.options = self.options, None
            declare(self)
        return self

    def parse_known_args(self, args=None, namespace=None):
        """argparse's own, which also prints the help, with the options."""
        return super(Command, self.declared()).parse_known_args(args, namespace)


Add = Callable[..., Command]  # by name, handler and, where its options are declared later, what declares them


def on_platform(parser: argparse.ArgumentParser) -> None:
    """The option that turns a study's CPU runs into those of a GPU."""
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu", help="which records (default cpu)")


def on_dtype(parser: argparse.ArgumentParser) -> None:
    """The option that says what a run computes in."""
    types = ("auto", "fp32", "bf16", "fp16")
    parser.add_argument("--dtype", choices=types, default="auto", help="to compute in (default auto: the fastest here)")


def print_json(value: Any) -> None:
    """On standard output, with null for a number that JSON has no word for."""
    from pydantic_core import to_json

    print(to_json(value, indent=1, inf_nan_mode="null").decode())


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value
