"""The command from a question to scripts: recipe."""

from __future__ import annotations

import argparse
import sys

from peftbook.cli.arguments import TYPE_CHECKING, path
from peftbook.errors import InputError

if TYPE_CHECKING:
    from peftbook.cli.arguments import Add
    from peftbook.recipe.choice import Recipe
    from peftbook.recipe.rows import Counted
    from peftbook.tasks import TaskData


def add_commands(add: Add) -> None:
    """`recipe`; its options are read from settings."""
    add("recipe", command_recipe, recipe_options)


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """Of `recipe`."""
    from peftbook.options import add_options
    from peftbook.studio.settings import Guessed

    parser.add_argument("file", type=path, help="CSV, TSV, JSONL or Parquet")
    words = "an id of the hub, a folder, or an embedded model"
    parser.add_argument("--model", required=True, help=words)
    parser.add_argument(
        "--memory", required=True, metavar="SIZE", help="of the card as torch sees it, like 23.6GiB (24 GB)"
    )
    add_options(parser, Guessed)
    parser.add_argument("--stack", default="trl", help="of the scripts; trl is the one that there is (default trl)")
    parser.add_argument("--data-licence", default="", metavar="TEXT", help="for the model card")
    parser.add_argument("--out", type=path, metavar="FOLDER", help="also write the scripts, into a new folder")


def command_recipe(args: argparse.Namespace) -> int:
    """Say how to tune a model on a card and a file of rows: method, rank, rate, batch, and why; write the scripts."""
    import shlex
    from pathlib import Path

    from peftbook.base_models import model_named
    from peftbook.memory import bytes_of_text, read_shape
    from peftbook.options import read_options
    from peftbook.recipe.choice import choose
    from peftbook.recipe.folder import check_free, write_folder
    from peftbook.recipe.rows import count_rows, source_of
    from peftbook.studio.settings import Guessed
    from peftbook.tasks.columns import guess_columns
    from peftbook.tasks.files import describe_reading, read_file, task_from_table

    if args.stack.lower() != "trl":
        raise InputError(
            f"Scripts are written for trl, not for {args.stack!r}: `peftbook fit --stack {args.stack}` says what that "
            "one needs."
        )
    if args.out is not None:
        check_free(args.out)
    model, memory = model_named(args.model), bytes_of_text(args.memory)
    source = source_of(model)
    shape = read_shape(source if Path(source).is_dir() else model.name)
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
    counted = count_rows(task, model)
    recipe = choose(shape, model.name, counted.splits, memory, counted.own)
    print(as_text(recipe, model.name, counted))
    if args.out is not None:
        command = shlex.join(["peftbook", *sys.argv[1:]]) if sys.argv[1:2] == ["recipe"] else "peftbook recipe"
        write_folder(args.out, recipe, task, model, source, args.file.name, command, args.data_licence)
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


def as_text(recipe: Recipe, model: str, counted: Counted) -> str:
    """The advice, answer first."""
    from peftbook.recipe.folder import at_once

    setup, gib = recipe.setup, 2**30
    low, high = (size / gib for size in recipe.band)
    rows = [
        ("method", f"{recipe.label}. {recipe.why}"),
        ("rank", f"{setup.rank} on {', '.join(recipe.modules)}"),
        ("rate", f"{recipe.learning_rate:g}: {recipe.rate_reason}."),
        ("batch", f"{recipe.micro_batch} rows{at_once(recipe)}"),
        ("length", f"{recipe.max_length} tokens, counted with {counted.tokenizer}'s tokenizer"
         + ("." if counted.own else f", and a quarter more: {model}'s is not here. train.py counts again.")),
        ("epochs", f"up to {recipe.epochs:g}, {recipe.steps:,} steps; the best by validation loss is kept"),
        ("memory", f"tensors of {recipe.peak / gib:.1f} GiB at the peak, {low:.1f} to {high:.1f} GiB with what a GPU "
         f"takes beside them, of {recipe.memory / gib:.1f}"),
    ]  # fmt: skip
    lines = ["", f"{model}: {recipe.label}, rank {setup.rank}, rate {recipe.learning_rate:g}", ""]
    lines += [wrapped(f"{name:8}{words}") for name, words in rows]
    lines += ["", "Ruled out:", *(wrapped(f"{name}: {words}.") for name, words in recipe.ruled_out)]
    if recipe.cautions:
        lines += ["", "Mind:", *(wrapped(f"{words}.") for words in recipe.cautions)]
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """A paragraph in lines that a terminal and a page have room for; those after the first stand further in."""
    import textwrap

    first, more = "  ", " " * 10
    return textwrap.fill(text, 78, initial_indent=first, subsequent_indent=more, break_on_hyphens=False)
