"""The commands from a question to a tuned model: recipe writes the folder, tune runs it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peftbook.cli.arguments import Add, positive


def add_commands(add: Add) -> None:
    """`recipe`, whose options are read from settings, and `tune`."""
    add("recipe", command_recipe, recipe_options)
    tune = add("tune", command_tune)
    tune.add_argument("recipe", type=Path, metavar="FOLDER", help="that `recipe --out` wrote, or its recipe.yaml")
    tune.add_argument("--devices", type=positive, default=1, help="cards to train on (default 1)")
    tune.add_argument("--report-to", default="none", metavar="NAME", help="tensorboard or wandb, if it is installed")


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """Of `recipe`."""
    from peftbook.core.options import add_options
    from peftbook.studio.settings import Guessed, Scoring

    parser.add_argument("file", type=Path, help="CSV, TSV, JSONL or Parquet")
    words = "an id of the hub, a known shape, a folder, or an embedded model"
    parser.add_argument("--model", required=True, help=words)
    parser.add_argument("--memory", required=True, metavar="SIZE", help="of a card by its name, like 24GB, or 23.6GiB")
    words = "sft, dpo or grpo (default: dpo where rows are preference pairs, which is said, otherwise sft)"
    parser.add_argument("--stage", choices=("sft", "dpo", "grpo"), default="", help=words)
    add_options(parser, Guessed)
    add_options(parser, Scoring)
    parser.add_argument("--data-licence", default="", metavar="TEXT", help="for the model card")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write the scripts, into a new folder")


def command_recipe(args: argparse.Namespace) -> int:
    """Say how to tune a model on a card and a file of rows: method, rank, rate, batch, and why; write the scripts."""
    import shlex

    from peftbook.core.base_models import model_named
    from peftbook.core.folders import check_free
    from peftbook.core.options import read_options
    from peftbook.decision.recipe.advice import advise
    from peftbook.decision.recipe.stages import choose_stage
    from peftbook.memory.fit import bytes_of_card, card_note
    from peftbook.memory.known_shapes import hub_id
    from peftbook.studio.own_file import OwnFile
    from peftbook.studio.settings import Guessed, Scoring

    if args.out is not None:
        check_free(args.out)
    model_named(hub_id(args.model))
    bytes_of_card(args.memory)
    file = OwnFile.read(args.file, read_options(Guessed, args))
    metrics = read_options(Scoring, args).metrics
    stage, task, why = choose_stage(args.stage, file.task, metrics)
    for line in filter(None, [*file.words(stage.name), why]):
        print(line)
    advice = advise(task, args.model, args.memory, stage)
    print(advice.words())
    if note := card_note(args.memory):
        print(f"\n{note}")
    if args.out is not None:
        command = shlex.join(["peftbook", *sys.argv[1:]]) if sys.argv[1:2] == ["recipe"] else "peftbook recipe"
        advice.write(args.out, args.file.name, command, args.data_licence, metrics)
        print(f"\nWritten: {args.out}. Next: peftbook tune {shlex.quote(str(args.out))}")
    return 0


def command_tune(args: argparse.Namespace) -> int:
    """Train and score by a recipe, from where it was stopped; end with the decision and where the model card is."""
    from peftbook.decision.recipe.tune import tune

    folder = args.recipe.parent if args.recipe.name == "recipe.yaml" else args.recipe
    status, words = tune(folder, args.devices, args.report_to)
    print(words, file=sys.stderr if status else sys.stdout)
    return status
