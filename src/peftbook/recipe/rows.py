"""How many tokens each row of a task has, by the model's own tokenizer where it can be had."""

from __future__ import annotations

from dataclasses import dataclass

from peftbook import specs
from peftbook.errors import InputError
from peftbook.recipe.choice import Row
from peftbook.tasks import TaskData

__all__ = ["Counted", "count_rows", "source_of"]

UNCUT = 1 << 30


@dataclass(frozen=True)
class Counted:
    """The rows of each split. tokenizer: whose it was.  own: whether that is the model's."""

    splits: dict[str, list[Row]]
    tokenizer: str
    own: bool


def source_of(model: specs.Model) -> str:
    """The folder or the hub id that a model is loaded from. Raises InputError for a folder without one."""
    from peftbook.training.models import resolve

    return resolve(model)[0]


def count_rows(task: TaskData, model: specs.Model) -> Counted:
    """Count with the tokenizer of the model, or with the embedded model's where that cannot be reached."""
    from transformers import AutoTokenizer

    from peftbook.training.encode import encode_example
    from peftbook.training.models import prepare_embedded
    from peftbook.training.quiet import quieten_libraries

    quieten_libraries()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source_of(model), revision=model.revision or "main")
        own = bool(tokenizer.chat_template)
    except (OSError, ValueError, InputError):
        own = False
    if not own:
        tokenizer = AutoTokenizer.from_pretrained(prepare_embedded())
    splits = {
        name: [
            Row(pair.start, pair.label_tokens)
            for pair in (encode_example(tokenizer, task, example, UNCUT) for example in examples)
        ]
        for name, examples in task.splits.items()
    }
    return Counted(splits, model.name if own else specs.EMBEDDED_MODEL, own)
