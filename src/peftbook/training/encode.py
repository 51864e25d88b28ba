"""Text to token ids: chat template, label positions, truncation that never cuts the target, the batch plan, replay."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from jinja2 import TemplateError

from peftbook.core.errors import InputError
from peftbook.core.specs import Budget
from peftbook.tasks import TaskData, TaskExample

POOL_BATCHES = 16
TEMPLATES: WeakKeyDictionary[Any, dict[Hashable, list[list[int]]]] = WeakKeyDictionary()  # tokenizer → what is rendered
Row = TypeVar("Row", list[int], tuple[int, ...])


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt and target in one list; the target, end-of-turn included, starts at `start`.

    The label of position t is ids[t + 1], so the loss is taken at positions start − 1 … len(ids) − 2.
    """

    ids: tuple[int, ...]
    start: int
    truncated: bool

    @property
    def label_tokens(self) -> int:
        return len(self.ids) - self.start


def encode_turns(tokenizer, messages: list[dict[str, str]]) -> list[list[int]]:
    """Token ids of a chat prompt in pieces: template, content, template, content, …, template.

    The template is rendered around markers and its pieces are encoded with control tokens on; the contents are
    encoded with control tokens off, so that `<|im_end|>` inside a user's text is plain text and cannot end a turn.
    """
    first, *rest = template_pieces(tokenizer, tuple(message["role"] for message in messages))
    pieces = [list(first)]
    for message, piece in zip(messages, rest, strict=True):
        pieces += [encode_plain(tokenizer, message["content"]), list(piece)]
    return pieces


def template_pieces(tokenizer, roles: tuple[str, ...]) -> list[list[int]]:
    """Token ids of what the chat template writes before, between and after the texts of these roles.

    Rendered once for a tokenizer: no text is part of it.
    """
    if not tokenizer.chat_template:
        raise InputError("The tokenizer of this model has no chat template: use the model's instruct or chat version.")
    kept = TEMPLATES.setdefault(tokenizer, {})
    key = (tokenizer.chat_template, roles)
    if key not in kept:
        marks = [f"\x00{index}\x00" for index in range(len(roles))]
        marked = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            rest = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InputError(
                f"The chat template of this tokenizer refuses turns of {', '.join(roles)} ({error}): leave such chats "
                "out, or use another model."
            ) from None
        pieces = []
        for mark in marks:
            head, placed, rest = rest.partition(mark)
            if not placed:
                raise InputError(
                    "The chat template of this tokenizer drops or rewrites message texts: use another model."
                )
            pieces.append(head)
        kept[key] = [tokenizer.encode(piece, add_special_tokens=False) for piece in [*pieces, rest]]
    return kept[key]


def encode_plain(tokenizer, text: str) -> list[int]:
    """Token ids of a text in which control tokens are plain text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def encode_prompt(tokenizer, task: TaskData, example: TaskExample, shots: Sequence[TaskExample] = ()) -> list[int]:
    """Token ids of the question, ready for generation."""
    return [token for piece in encode_turns(tokenizer, task.messages(example, shots)) for token in piece]


def encode_example(
    tokenizer, task: TaskData, example: TaskExample, max_length: int, shots: Sequence[TaskExample] = ()
) -> Encoded:
    """Prompt + target + end-of-turn. A pair that is too long loses the end of its *question*, never of its target."""
    pieces = encode_turns(tokenizer, task.messages(example, shots))
    target = [*encode_plain(tokenizer, example.target), tokenizer.eos_token_id]
    excess = sum(map(len, pieces)) + len(target) - max_length
    if excess > 0:
        question = pieces[-2]
        if excess >= len(question):
            what, remedy = "its target alone", "raise max_length or shorten the target"
            if shots:
                what, remedy = "the solved examples before it", "leave this method out, or shorten the rows"
            elif example.turns:
                what, remedy = "its target and the turns before its last question", "raise max_length or shorten them"
            raise InputError(
                f"Example {example.id!r} needs more than max_length = {max_length} tokens for {what}: {remedy}."
            )
        pieces[-2] = question[: len(question) - excess]
    prompt = [token for piece in pieces for token in piece]
    return Encoded(tuple(prompt + target), len(prompt), excess > 0)


def encode_training(tokenizer, task: TaskData, budget: Budget) -> list[Encoded]:
    """The training examples that a budget names."""
    examples = task.splits["train"][: budget.train_examples or None]
    return [encode_example(tokenizer, task, example, budget.max_length) for example in examples]


def shared_prefix(examples: Sequence[Encoded]) -> int:
    """How many leading ids all examples share, at most all before the first position that predicts a label."""
    return common_start([example.ids for example in examples], min(example.start for example in examples) - 1)


def common_start(rows: Sequence[Row], most: int) -> int:
    """How many leading ids all rows share, at most so many; none where there is only one."""
    first, last = min(rows), max(rows)
    return next((at for at in range(most) if first[at] != last[at]), most) if len(rows) > 1 else 0


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All indices in batches of similar length, longest first (an out-of-memory run fails at once, not at the end)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def batch_plan(lengths: Sequence[int], batch_size: int, tokens: int, seed: int) -> list[list[int]]:
    """The batches of a training run: every arm with this seed and budget sees the same ones in the same order.

    Each epoch is a seeded permutation, cut into pools of 16 batches that are sorted by length, so that a batch holds
    similar lengths and little padding; the batches of a pool are shuffled. The plan ends with the batch that reaches
    `tokens` real tokens.
    """
    if not lengths:
        raise InputError("There are no training examples: give a task with a non-empty training split.")
    rng = np.random.default_rng(seed)
    plan: list[list[int]] = []
    seen = 0
    while True:
        order = rng.permutation(len(lengths)).tolist()
        for at in range(0, len(order), batch_size * POOL_BATCHES):
            pool = sorted(order[at : at + batch_size * POOL_BATCHES], key=lambda index: (lengths[index], index))
            batches = [pool[cut : cut + batch_size] for cut in range(0, len(pool), batch_size)]
            for which in rng.permutation(len(batches)):
                plan.append(batches[which])
                seen += sum(lengths[index] for index in batches[which])
                if seen >= tokens:
                    return plan


def with_replay(
    data: Sequence[Encoded], plan: Sequence[Sequence[int]], pieces: Sequence[Encoded], share: float
) -> tuple[list[Encoded], list[list[int]]]:
    """The examples with the pieces behind them, and the plan with pieces at the end of its batches.

    Target batches stay what they are and where they are: replay comes on top. After each batch as many pieces follow as
    bring the replayed tokens to `share` of all tokens so far, R ≥ share · (T + R), so that R is above it by less than
    one piece. Pieces are taken in order, and again from the first when all were.
    Raises InputError for a share that is not in [0, 1), or where there are no pieces to replay.
    """
    if not 0 <= share < 1 or (share > 0 and not pieces):
        raise InputError(f"{len(pieces)} pieces cannot be {share:g} of the tokens: give pieces, and a share below 1.")
    mixed, target, replayed, taken = [], 0, 0, 0
    for batch in plan:
        target += sum(len(data[index].ids) for index in batch)
        row = list(batch)
        while replayed < share * (target + replayed):
            row.append(len(data) + taken % len(pieces))
            replayed += len(pieces[taken % len(pieces)].ids)
            taken += 1
        mixed.append(row)
    return [*data, *pieces], mixed
