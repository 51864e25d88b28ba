"""What several commands ask for in the same way."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Add = Callable[[str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]  # a command by name and handler


def on_platform(parser: argparse.ArgumentParser) -> None:
    """The option that turns a study's CPU runs into those of a GPU."""
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu", help="which records (default cpu)")


def on_dtype(parser: argparse.ArgumentParser) -> None:
    """The option that says what a run computes in."""
    types = ("auto", "fp32", "bf16", "fp16")
    parser.add_argument("--dtype", choices=types, default="auto", help="to compute in (default auto: the fastest here)")


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value
