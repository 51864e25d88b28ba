"""The command from a question to scripts: recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peftbook.cli.arguments import Add


def add_commands(add: Add) -> None:
    """`recipe`; its options are read from settings."""
    add("recipe", command_recipe, recipe_options)


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """Of `recipe`."""
    from peftbook.core.options import add_options
    from peftbook.studio.settings import Guessed

    parser.add_argument("file", type=Path, help="CSV, TSV, JSONL or Parquet")
    words = "an id of the hub, a known shape, a folder, or an embedded model"
    parser.add_argument("--model", required=True, help=words)
    parser.add_argument("--memory", required=True, metavar="SIZE", help="of a card by its name, like 24GB, or 23.6GiB")
    add_options(parser, Guessed)
    parser.add_argument("--data-licence", default="", metavar="TEXT", help="for the model card")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write the scripts, into a new folder")


def command_recipe(args: argparse.Namespace) -> int:
    """Say how to tune a model on a card and a file of rows: method, rank, rate, batch, and why; write the scripts."""
    import shlex

    from peftbook.core.base_models import model_named
    from peftbook.core.folders import check_free
    from peftbook.core.options import read_options
    from peftbook.decision.recipe.advice import advise
    from peftbook.memory.fit import bytes_of_card, card_note
    from peftbook.memory.known_shapes import hub_id
    from peftbook.studio.own_file import OwnFile
    from peftbook.studio.settings import Guessed

    if args.out is not None:
        check_free(args.out)
    model_named(hub_id(args.model))
    bytes_of_card(args.memory)
    file = OwnFile.read(args.file, read_options(Guessed, args))
    for line in file.words():
        print(line)
    advice = advise(file.task, args.model, args.memory)
    print(advice.words())
    if note := card_note(args.memory):
        print(f"\n{note}")
    if args.out is not None:
        command = shlex.join(["peftbook", *sys.argv[1:]]) if sys.argv[1:2] == ["recipe"] else "peftbook recipe"
        advice.write(args.out, file.task, args.file.name, command, args.data_licence)
        steps = f"cd {shlex.quote(str(args.out))} && pip install -r requirements.txt && python train.py"
        print(f"\nWritten: {args.out}. Next: {steps}")
    return 0
