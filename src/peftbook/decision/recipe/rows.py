"""How many tokens each row of a task has, by the model's own tokenizer where it can be had; else by its bytes."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbook.core import specs
from peftbook.core.base_models import check_folder, in_folder
from peftbook.core.errors import InputError, need
from peftbook.decision.recipe.choice import RowTokens
from peftbook.tasks import TaskData, TaskExample

END = 2  # tokens that a template writes after an answer
TEMPLATE = {"enable_thinking": False}  # as in the scripts
BYTES = 3  # of text, that are taken for a token where no tokenizer is here: of prose and code nearly all have more
TURN, SYSTEM = 5, 25  # tokens that ChatML writes around a turn, and that templates have for a system nobody wrote


@dataclass(frozen=True)
class Counted:
    """The rows of each split. tokenizer: whose it was, empty where none was here.  own: whether that is the model's.
    marked: whether its chat template marks what an assistant says.
    """

    splits: dict[str, list[RowTokens]]
    tokenizer: str
    own: bool
    marked: bool


def source_of(model: specs.Model) -> str:
    """The folder or the hub id that a model is loaded from. Raises InputError for a folder without one."""
    if in_folder(model):
        check_folder(Path(model.name))
    if in_folder(model) or "/" in model.name:
        return model.name
    need("torch", f"The model {model.name}")
    from peftbook.training.models import resolve

    return resolve(model)[0]


def count_rows(task: TaskData, model: specs.Model) -> Counted:
    """Count with the tokenizer of the model, or with the embedded model's where that cannot be reached; guess where
    transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        guessed = {name: [guess_row(task, one) for one in examples] for name, examples in task.splits.items()}
        return Counted(guessed, "", own=False, marked=False)
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    from peftbook.core.quiet import quieten_libraries
    from peftbook.training.models import check_reachable, prepare_embedded

    quieten_libraries()
    try:
        check_reachable(model)
        tokenizer, own = AutoTokenizer.from_pretrained(source_of(model), revision=model.revision or "main"), True
    except (OSError, ValueError):
        tokenizer, own = AutoTokenizer.from_pretrained(prepare_embedded()), False
    if not tokenizer.chat_template:
        raise InputError(f"{model.name} has no chat template: take its instruct or chat version.")
    try:
        splits = {name: [row_of(tokenizer, task, one) for one in examples] for name, examples in task.splits.items()}
    except TemplateError as error:
        raise InputError(
            f"The chat template of {model.name} refuses the turns of a row ({error}): leave such rows out, or use "
            "another model."
        ) from None
    marked = re.search(r"\{%-?\s*generation\b", str(tokenizer.chat_template)) is not None
    return Counted(splits, model.name if own else specs.EMBEDDED_MODEL, own, marked)


def guess_row(task: TaskData, example: TaskExample) -> RowTokens:
    """Tokens by the bytes of each turn."""
    turns = [(one["role"], TURN + len(one["content"].encode()) // BYTES) for one in task.messages(example)]
    earlier = sum(tokens for role, tokens in turns if role == "assistant")
    return RowTokens(SYSTEM + sum(tokens for _, tokens in turns), END + len(example.target.encode()) // BYTES, earlier)


def row_of(tokenizer: Any, task: TaskData, example: TaskExample) -> RowTokens:
    """Tokens as TRL makes them of a prompt and its completion, or the longer of a pair, by the tokenizer's template."""
    prompt = task.messages(example)
    texts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **TEMPLATE)]
    for answer in filter(None, (example.target, example.rejected)):
        turns = [*prompt, {"role": "assistant", "content": answer}]
        texts.append(tokenizer.apply_chat_template(turns, tokenize=False, **TEMPLATE))
    first, *whole = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    answers = (turn["content"] for turn in prompt if turn["role"] == "assistant")
    earlier = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + END for text in answers)
    return RowTokens(first, max(1, max(whole) - first), earlier)
