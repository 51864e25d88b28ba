"""The command from a question to scripts: recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from peftbook.cli.arguments import Add

if TYPE_CHECKING:
    from peftbook.tasks import TaskData


def add_commands(add: Add) -> None:
    """`recipe`; its options are read from settings."""
    add("recipe", command_recipe, recipe_options)


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """Of `recipe`."""
    from peftbook.core.options import add_options
    from peftbook.studio.settings import Guessed

    parser.add_argument("file", type=Path, help="CSV, TSV, JSONL or Parquet")
    words = "an id of the hub, a folder, or an embedded model"
    parser.add_argument("--model", required=True, help=words)
    parser.add_argument(
        "--memory", required=True, metavar="SIZE", help="of the card as torch sees it, like 23.6GiB (24 GB)"
    )
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
    from peftbook.memory import bytes_of_text
    from peftbook.studio.settings import Guessed
    from peftbook.tasks.columns import guess_columns
    from peftbook.tasks.files import describe_reading, read_file, task_from_table

    if args.out is not None:
        check_free(args.out)
    model_named(args.model)
    bytes_of_text(args.memory)
    reading = read_options(Guessed, args)
    _, table = read_file(args.file)
    columns, why = (reading.columns, "") if reading.input and reading.target else guess_columns(table)
    task = task_from_table(table, columns, reading.split, reading.instruction)
    for line in describe_reading(args.file.name, table, columns, task):
        print(line)
    if why:
        print(f"{columns.input!r} is read, {columns.target!r} written. {why}")
    if task.instruction == "{input}":
        print("The model is told nothing but the input: say what to do, as in --instruction 'Summarise this: {input}'.")
    if leaks := leaking(task):
        print(leaks)
    advice = advise(task, args.model, args.memory)
    print(advice.words())
    if args.out is not None:
        command = shlex.join(["peftbook", *sys.argv[1:]]) if sys.argv[1:2] == ["recipe"] else "peftbook recipe"
        advice.write(args.out, task, args.file.name, command, args.data_licence)
        steps = f"cd {shlex.quote(str(args.out))} && pip install -r requirements.txt && python train.py"
        print(f"\nWritten: {args.out}. Next: {steps}")
    return 0


def leaking(task: TaskData) -> str:
    """How many test rows are nearly training rows, in a sentence; empty where none are."""
    from peftbook.tasks.similarity import count_near_duplicates

    inputs = {name: [row.input for row in task.splits[name]] for name in ("train", "test")}
    near, compared = count_near_duplicates(inputs["test"], inputs["train"])
    grouped = any(row.group for row in task.splits["test"])
    remedy = "even so: the scores may be too good" if grouped else "name what they share with --group"
    return f"{near} of {compared} test rows are nearly training rows, {remedy}." if near else ""
