"""Columns: which of a table's is what, and a guess at it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peftbook.core.errors import InputError
from peftbook.tasks.table import TextTable

INPUT_NAMES = (
    "input", "prompt", "question", "query", "source", "text", "document", "article", "dialogue", "conversation",
    "code", "context", "sentence", "request", "message", "problem", "content", "en",
)  # fmt: skip
TARGET_NAMES = (
    "target", "output", "answer", "response", "completion", "label", "summary", "reference", "sql", "translation",
    "docstring", "reply", "solution", "title", "highlights", "headline", "gold", "expected", "chosen", "ground_truth",
)  # fmt: skip
SYSTEM_NAMES = ("system", "system_prompt")
INSTRUCTION_NAMES = ("instruction", "instructions", *SYSTEM_NAMES, "task")
GROUP_NAMES = (
    "group", "author", "user", "user_id", "customer", "customer_id", "conversation_id", "thread_id", "thread",
    "session", "session_id", "document_id", "doc_id", "package", "repo", "project", "speaker",
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Which column is what. instruction: a column whose text is put before the input, as a turn of the system if it has
    its name; group: whose values no split divides (an author, a conversation).
    """

    input: str
    target: str
    instruction: str | None = None
    group: str | None = None


def guess_columns(table: TextTable) -> tuple[Columns, str]:
    """Which columns are probably input and target, and why, in one sentence. Raises InputError for a single column."""
    if len(table.columns) < 2:
        raise InputError(
            f"The file has only the column {table.columns[0]!r}: it needs one for the input and one for the target."
        )
    instruction, group = find_column(table, INSTRUCTION_NAMES), find_column(table, GROUP_NAMES)
    if group is not None and not repeats(table, group):
        group = None  # each row would be a group of its own, which groups nothing
    source, target = find_column(table, INPUT_NAMES), find_column(table, TARGET_NAMES)
    if instruction is not None and (source is None or len(table.columns) == 2):
        source, instruction = instruction, None
    if source is not None and target is not None:
        return Columns(source, target, instruction, group), "The columns were chosen by their names."
    used = (source, target, instruction, group)
    free = sorted((name for name in table.columns if name not in used), key=lambda name: -mean_length(table, name))
    free += [name for name in (group, instruction) if name is not None]
    if source is None and target is None:
        source, target = sorted(free[:2], key=table.columns.index)
        why = "No name says which columns are meant: these two hold the longest texts, in the order of the file."
    else:
        found, missing = ("input", "target") if target is None else ("target", "input")
        why = f"The {found} was chosen by its name, the {missing} because it holds the longest texts of the others."
        source, target = source or free[0], target or free[0]
    instruction, group = (None if name in (source, target) else name for name in (instruction, group))
    return Columns(source, target, instruction, group), why


def find_column(table: TextTable, names: tuple[str, ...]) -> str | None:
    """The column whose name stands first in a list of likely ones, or None."""
    plain = {re.sub(r"[\W_]+", "_", name.lower()).strip("_"): name for name in reversed(table.columns)}
    return next((plain[name] for name in names if name in plain), None)


def repeats(table: TextTable, name: str) -> bool:
    """Whether a column has a value twice."""
    place = table.columns.index(name)
    cells = [row[place] for row in table.rows if row[place]]
    return len(set(cells)) < len(cells)


def mean_length(table: TextTable, name: str) -> float:
    """Mean characters of a column's first cells."""
    place, rows = table.columns.index(name), table.rows[:1000]
    return sum(len(row[place]) for row in rows) / max(1, len(rows))
