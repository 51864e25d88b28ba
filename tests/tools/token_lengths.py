"""Count the tokens of every example of three tasks, and write one example out token by token, for the figures.

    PEFTBOOK_E2E=FOLDER python tests/tools/token_lengths.py

The figures are drawn where no tokenizer is at hand, so the counts are shipped. They hold no text of E2E.
"""

from __future__ import annotations

import json
from typing import Any

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.core.records import write_atomically
from peftbook.tasks import TaskData, TaskExample, get_task
from peftbook.training.encode import encode_example, encode_plain, encode_turns
from peftbook.training.models import prepare_embedded

__all__ = ["count", "spell"]

TASKS = ("docstrings", "sql", "e2e")
SPELT = "5a1deb96b16237f0"  # a short validation example of the docstrings task
LONGEST = 8192


def count(tokenizer: Any, task: TaskData) -> dict[str, Any]:
    """Tokens before the target and tokens of the target, its end of turn included, of each example of each split."""
    counts: dict[str, Any] = {"data_sha256": task.data_sha256}
    for split, examples in task.splits.items():
        encoded = [encode_example(tokenizer, task, example, LONGEST) for example in examples]
        counts[split] = {"before": [pair.start for pair in encoded], "target": [pair.label_tokens for pair in encoded]}
    return counts


def spell(tokenizer: Any, task: TaskData, example: TaskExample) -> list[tuple[str, str]]:
    """The tokens of prompt, target and end of turn as (text, kind): `template`, `question`, `target` or `end`."""
    head, question, tail = encode_turns(tokenizer, task.messages(example))
    parts = [("template", head), ("question", question), ("template", tail)]
    parts += [("target", encode_plain(tokenizer, example.target)), ("end", [tokenizer.eos_token_id])]
    return [(tokenizer.decode([token]), kind) for kind, ids in parts for token in ids]


def main() -> None:
    """Write `token_lengths.json` beside the data."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepare_embedded())
    docstrings = get_task("docstrings")
    example = next(candidate for candidate in docstrings.splits["validation"] if candidate.id == SPELT)
    counts = {
        "tokenizer": specs.EMBEDDED_MODEL,
        "revision": specs.EMBEDDED_REVISION,
        "example": {"task": "docstrings", "id": SPELT, "tokens": spell(tokenizer, docstrings, example)},
        "tasks": {name: count(tokenizer, get_task(name)) for name in TASKS},
    }
    write_atomically(DATA / "token_lengths.json", json.dumps(counts, separators=(",", ":")).encode() + b"\n")


if __name__ == "__main__":
    main()
