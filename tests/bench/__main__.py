"""`make bench WHAT="train --steps 16"`: measure speed on an otherwise idle machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import book, commands, live, rounds, table
from peftbook.cli.arguments import positive
from peftbook.core.errors import InputError


def main() -> None:
    """Print what a bench measured."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    loops = what.add_parser("train", help="our loop, TRL's SFTTrainer and transformers' Trainer, in turn in one run")
    loops.add_argument("--steps", type=positive, default=16)
    loops.add_argument("--out", type=Path, help="also write the rows as JSON")
    what.add_parser("book", help="cold, warm and one-chapter builds of the book")
    waits = what.add_parser("cli", help="the wait for commands, with cached results and without")
    page = what.add_parser("live", help="a step of the engine in the page, in Node.js, and torch's on one thread")
    page.add_argument("--steps", type=positive, default=20)
    for command in (loops, waits, page):
        command.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    try:
        print(measured(args))
    except InputError as error:
        parser.exit(2, f"{error}\n")


def measured(args: argparse.Namespace) -> str:
    """The table of a bench."""
    if args.what == "train":
        return table.table(rounds.train_bench(steps=args.steps, rounds=args.rounds, out=args.out))
    if args.what == "book":
        return table.table(book.book_bench(Path.cwd()))
    if args.what == "cli":
        return commands.table(commands.cli_bench(args.rounds))
    return live.table(live.page_bench(args.rounds, args.steps))


if __name__ == "__main__":
    main()
