"""Chats: rows whose turns stand apart, in the shapes in which people have them, as turns and the answer to them.

`messages` (role, content), ShareGPT's `conversations` (from, value), TRL's `prompt` with `completion`, `chosen` or a
checkable answer, `chosen` and `rejected` that hold whole chats, and alpaca with `system` or `history`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peftbook.tasks.rows import RowError

Turn = tuple[str, str]  # role, text

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
}
TOOL_ROLES = {"tool", "function", "ipython", "observation", "function_call", "tool_call", "tool_response"}
TOOLS = ("tools", "functions", "tool_calls", "function_call")  # fields of a row or a turn
NO_TOOLS = "which are not kept here: leave such rows out, or train on them with TRL, which reads `messages` and `tools`"
LISTS = ("messages", "conversations", "conversation")
ANSWERS = ("completion", "chosen", "response", "answer", "solution", "ground_truth")  # beside a prompt of turns
PARTS = {"instruction": "what the system says", "input": "what is asked", "target": "the last answer"}
MADE = tuple(PARTS)  # columns that a chat becomes


@dataclass(frozen=True)
class Chat:
    """A chat up to its last answer. turns: before it.  others: the row's other fields.  cut: whether more follow."""

    turns: tuple[Turn, ...]
    answer: str
    others: dict[str, Any]
    cut: bool

    @property
    def fields(self) -> dict[str, Any]:
        """What the system says as instruction, input and target, beside the other fields.

        The input is for people and for what compares texts: the user's words alone where there is one turn, otherwise
        all turns with their speakers. A model reads the turns.
        """
        said = [(role, text) for role, text in self.turns if role != "system"]
        plain = said[0][1] if len(said) == 1 else "\n\n".join(f"{role.capitalize()}: {text}" for role, text in said)
        system = "\n\n".join(text for role, text in self.turns if role == "system")
        return {"instruction": system, "input": plain, "target": self.answer, **self.others}


def shape_of(row: dict[str, Any]) -> str:
    """The field by which a row is a chat, or nothing."""
    listed = next((name for name in (*LISTS, "prompt", "chosen") if isinstance(row.get(name), list)), "")
    alpaca = {"instruction", "output"} <= row.keys() and ("history" in row or "system" in row)
    return listed or ("instruction" if alpaca else "")


def chat_of(row: dict[str, Any], shape: str) -> Chat:
    """The chat in a row of this shape. Raises RowError for a row of another, and for one that teaches nothing."""
    if shape_of(row) != shape:
        what = "no `instruction` with an `output`" if shape == "instruction" else f"no list of `{shape}`"
        raise RowError(f"has {what}, as the first row has: give each row one")
    if any(row.get(name) for name in TOOLS):
        raise RowError(f"offers tools, {NO_TOOLS}")
    given, used = turns_in(row, shape)
    turns = [turn_of(turn) for turn in given]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and (not turns or turns[0][0] != "system"):
        turns = [("system", system), *turns]
    last = max((place for place, (role, _) in enumerate(turns) if role == "assistant"), default=-1)
    if last < 0:
        raise RowError("has no assistant turn: the last one is what the model learns to write")
    if turns[last - 1 if last else 0][0] != "user":
        raise RowError("has no user turn before its last assistant turn: give the model something to answer")
    for place, (role, text) in enumerate(turns[: last + 1], start=1):
        if role != "system" and not text.strip():
            raise RowError(f"turn {place}, of the {role}, is empty: fill it, or remove the row")
    others = {name: value for name, value in row.items() if name not in (*used, "system", *MADE)}
    if isinstance(rejected := others.get("rejected"), list) and rejected:
        others["rejected"] = turn_of(rejected[-1])[1]
    return Chat(tuple(turns[:last]), turns[last][1], others, last + 1 < len(turns))


def turns_in(row: dict[str, Any], shape: str) -> tuple[list[Any], tuple[str, ...]]:
    """The turns of a row as they are written, its answer the last, and the fields that they are from."""
    if shape in LISTS:
        return row[shape], (shape,)
    if shape == "instruction":
        texts = (row[name] for name in ("instruction", "input") if isinstance(row.get(name), str))
        told = "\n\n".join(text for text in texts if text.strip())
        turns = [*of_pairs(row.get("history") or []), said("user", told), said("assistant", row["output"])]
        return turns, ("history", "output")
    name = shape if shape == "chosen" else next((name for name in ANSWERS if row.get(name) is not None), "")
    answer = row.get(name)
    after = answer if isinstance(answer, list) else [said("assistant", answer)] if name else []
    before = row.get("prompt") or []
    if isinstance(before, str):
        whole = len(after) > 1 and turn_of(after[0])[0] != "assistant"  # `chosen` has the prompt once more
        before = [] if whole else [said("user", before)]
    return [*before, *after], ("prompt", name)


def said(role: str, text: object) -> dict[str, object]:
    """A turn as it is written; a number, which a checkable answer may be, as text."""
    return {"role": role, "content": str(text) if isinstance(text, int | float) else text}


def of_pairs(history: object) -> Iterable[Any]:
    """Alpaca's history: pairs of what the user said and the answer. Raises RowError for others."""
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("has a `history` that is no list of pairs: give what was said and the answer to it")
        yield from map(said, ("user", "assistant"), pair)


def turn_of(turn: object) -> Turn:
    """Role and text of a turn. Raises RowError."""
    if not isinstance(turn, dict):
        raise RowError('has a turn that is no object: write {"role": …, "content": …}')
    role, content = (turn.get(name, turn.get(other)) for name, other in (("role", "from"), ("content", "value")))
    if any(turn.get(name) for name in TOOLS) or (isinstance(role, str) and role in TOOL_ROLES):
        raise RowError(f"has a turn that calls tools or answers for one, {NO_TOOLS}")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"has a turn of role {str(role)[:40]!r}: use system, user and assistant")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if texts and len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise RowError(f"has a turn of the {role} without text: give its content as text")
    return ROLES[role], content
