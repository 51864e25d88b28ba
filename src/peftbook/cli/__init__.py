"""The command line: `peftbook …`. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable

import peftbook
from peftbook.cli import chat, evidence, fit, machine, own_data, products, recipe, runs
from peftbook.cli.arguments import Command, Options
from peftbook.core.errors import InputError, need
from peftbook.core.quiet import filter_messages

LOADS_MODELS = ("chat", "compare", "demo", "doctor", "export", "prepare", "run", "same", "train", "verify")


def build_parser() -> argparse.ArgumentParser:
    """All commands; the options of some are declared when they are asked for."""
    parser = Command(prog="peftbook", description=peftbook.__doc__)
    parser.add_argument("--version", action="version", version=f"peftbook {peftbook.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (runs, evidence, machine, products, own_data, chat, recipe, fit):
        module.add_commands(functools.partial(command, commands))
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """All commands with all their options declared, for who lists them."""
    parser = build_parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                one.declared()
    return parser


def command(group, name: str, handler: Callable[[argparse.Namespace], int], options: Options | None = None) -> Command:
    """A parser of a group for one command, which its handler's docstring describes."""
    text = (handler.__doc__ or "").strip()
    parser = group.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
    parser.set_defaults(handler=handler)
    parser.options = options
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point: bad input is one sentence on standard error and exit status 2."""
    args = build_parser().parse_args(argv)
    filter_messages()
    try:
        if args.command in LOADS_MODELS:
            need("torch", f"`peftbook {args.command}`")
        status = args.handler(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell reports for a closed pipe
    except InputError as error:
        print(f"peftbook: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("peftbook: stopped; what was finished is kept, run the same command to go on.", file=sys.stderr)
        return 130
