"""Advice: a recipe for a task, a model and a card by their names, and in words; command line and studio ask for it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbook.core import specs
from peftbook.core.base_models import model_named
from peftbook.decision.own_metrics import Metric
from peftbook.decision.recipe.choice import TrainingRecipe, choose
from peftbook.decision.recipe.folder import at_once, write_folder
from peftbook.decision.recipe.rows import BYTES, Counted, count_rows, source_of
from peftbook.decision.recipe.stages import Stage
from peftbook.memory import read_shape
from peftbook.memory.fit import bytes_of_card
from peftbook.memory.known_shapes import hub_id
from peftbook.tasks import TaskData


@dataclass(frozen=True)
class Advice:
    """A recipe, the rows that it was counted on, and the model, with the folder or hub id that it is loaded from."""

    task: TaskData
    recipe: TrainingRecipe
    counted: Counted
    model: specs.Model
    source: str

    def words(self) -> str:
        """The advice, answer first."""
        recipe, model, counted = self.recipe, self.model.name, self.counted
        setup, gib = recipe.setup, 2**30
        low, high = (size / gib for size in recipe.band)
        stage, whole = recipe.stage, f"{low:.1f} to {high:.1f} GiB with what a GPU takes beside them"
        by = f"counted with {counted.tokenizer}'s tokenizer" if counted.tokenizer else f"guessed at {BYTES} bytes each"
        again = "." if counted.own else f", and a quarter more: {model}'s tokenizer is not here. train.py counts again."
        rows = [
            ("stage", f"{stage.name.upper()}, by TRL's {stage.trainer}: it learns from {recipe.learns_from}."),
            ("method", f"{recipe.label}. {recipe.why}"),
            ("rank", f"{setup.rank} on {', '.join(recipe.modules)}"),
            ("rate", f"{recipe.learning_rate:g}: {recipe.rate_reason}."),
            ("batch", f"{recipe.micro_batch} rows{at_once(recipe)}"),
            ("length", f"{recipe.max_length} tokens, {by}{again}"),
            *([("loss", loss_words(counted))] if recipe.every_answer else []),
            ("epochs", f"up to {stage.epochs:g}, {recipe.steps:,} steps; the best by {stage.judged} is kept"),
            ("memory", f"tensors of {recipe.peak / gib:.1f} GiB at the peak, {whole}, of {recipe.memory / gib:.1f}"),
        ]
        lines = ["", f"{model}: {recipe.label}, rank {setup.rank}, rate {recipe.learning_rate:g}", ""]
        lines += [wrapped(f"{name:8}{words}") for name, words in rows]
        lines += ["", "Ruled out:", *(wrapped(f"{name}: {words}.") for name, words in recipe.ruled_out)]
        if recipe.cautions:
            lines += ["", "Mind:", *(wrapped(f"{words}.") for words in recipe.cautions)]
        return "\n".join(lines)

    def write(self, out: Path, data_name: str, command: str, data_licence: str, metrics: Sequence[Metric]) -> None:
        """The folder of scripts. Raises InputError where it is there."""
        write_folder(out, self.recipe, self.task, self.model, self.source, data_name, command, data_licence, metrics)


def advise(task: TaskData, model: str, memory: str, stage: Stage) -> Advice:
    """How to tune a model on a card and these rows. Raises InputError for a model, a size or a fit that is none."""
    named, room = model_named(hub_id(model)), bytes_of_card(memory)
    source = source_of(named)
    shape = read_shape(source if Path(source).is_dir() else named.name)
    counted = count_rows(task, named)
    recipe = choose(shape, named.name, counted.splits, room, counted.own, stage)
    return Advice(task, recipe, counted, named, source)


def loss_words(counted: Counted) -> str:
    """Of chats with several answers: what the loss is taken of, and how the script finds it."""
    every = "on every answer of a chat, not on the last alone."
    if counted.own and counted.marked:
        return f"{every} The template has generation marks."
    lacking = "The template has no generation marks:" if counted.own else "If the template has no generation marks,"
    return (
        f"{every} {lacking} train.py takes TRL's training template where TRL has one for this model, else it finds the "
        "answers by rendering turn by turn, or refuses; it says which."
    )


def wrapped(text: str) -> str:
    """A paragraph in lines that a terminal and a page have room for; those after the first stand further in."""
    first, more = "  ", " " * 10
    return textwrap.fill(text, 78, initial_indent=first, subsequent_indent=more, break_on_hyphens=False)
