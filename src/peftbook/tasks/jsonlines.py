"""JSON lines, or a JSON array, as objects: one fault a row that is none. Chats become instruction, input and target."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from peftbook.tasks.rows import Caps, RowError

LINE = re.compile(r"\S[^\n]*")
BETWEEN = re.compile(r"[ \t\r\n,]*")
ROLES = {"system": "", "developer": "", "user": "User", "assistant": "Assistant"}
Row = tuple[int, dict[str, Any] | str]


def looks_like_json(text: str, named: bool = False) -> bool:
    """Whether a text begins as objects or an array do. named: its name says JSON, which decides where a start could be
    a cell too.
    """
    start = text[:4096].lstrip()
    inside = start[1:].lstrip()[:1]
    return (start.startswith("{") and (named or inside in ('"', "}", ""))) or (
        start.startswith("[") and (named or inside in ("{", "["))
    )


def objects(text: str, caps: Caps) -> Iterator[Row]:
    """(line, object) or (line, problem) of each row: JSON lines, one array, or objects on several lines each."""
    first = LINE.search(text)
    if first is None or first[0].startswith("["):
        return several_lines(text, caps)
    try:
        _, end = json.JSONDecoder().raw_decode(text[first.start() : first.start() + caps.row_chars])
    except (ValueError, RecursionError):
        end = 0
    return several_lines(text, caps) if first.start() + end > first.end() else json_lines(text, caps)


def json_lines(text: str, caps: Caps) -> Iterator[Row]:
    """One row a line; blank lines are none."""
    counted, number = 0, 1
    for match in LINE.finditer(text):
        number += text.count("\n", counted, match.start())
        counted = match.start()
        if len(match[0]) > caps.row_chars:
            yield number, f"has {len(match[0]):,} characters, more than the cap of {caps.row_chars:,}: shorten it"
            continue
        try:
            value = json.loads(match[0])
        except (ValueError, RecursionError) as error:
            yield number, f"is not valid JSON ({error}): put one object on a line"
            continue
        yield number, as_object(value)


def several_lines(text: str, caps: Caps) -> Iterator[Row]:
    """The elements of an array, or objects one after another. What is not valid JSON ends the reading."""
    decoder = json.JSONDecoder()
    place = len(text) - len(text.lstrip())
    is_array = text.startswith("[", place)
    place += is_array
    base, window = 0, text[: 3 * caps.row_chars]
    counted, number = 0, 1
    while True:
        place = BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        number += text.count("\n", counted, place)
        counted = place
        closed = is_array and text.startswith("]", place)
        if closed or place == len(text):
            if is_array and not closed:
                yield number, "is missing, as the array is cut short: close it with ]"
            elif closed and text[place + 1 :].strip():
                yield number, "and all that follows the array's end were not read: write one array"
            return
        if place + caps.row_chars > base + len(window) and base + len(window) < len(text):
            base, window = place, text[place : place + 3 * caps.row_chars]
        try:
            value, end = decoder.raw_decode(window, place - base)
        except (ValueError, RecursionError) as error:
            reason = str(error).split(": line")[0]
            yield number, f"is not valid JSON ({reason}), and none after it was read: mend it"
            return
        place = base + end
        yield number, as_object(value)


def as_object(value: object) -> dict[str, Any] | str:
    """A row, or why it is none."""
    return value if isinstance(value, dict) else f"is a JSON {type(value).__name__}, not an object: use {{...}} rows"


# --- chats -----------------------------------------------------------------------------------------------------


def is_chat(row: dict[str, Any]) -> bool:
    """Whether a row has turns."""
    return isinstance(row.get("messages"), list)


def chat_fields(row: dict[str, Any]) -> dict[str, Any]:
    """instruction, input and target of a chat, beside its other fields.

    The target is the last assistant turn, the input what the user said before it: his words alone where it is one
    turn, otherwise all turns with their speakers. The instruction is what the system says. Turns after the last answer
    are left out. Raises RowError.
    """
    if not is_chat(row):
        raise RowError("has no list of `messages`: give each chat one")
    turns = [turn_of(message) for message in row["messages"]]
    places = [place for place, (role, _) in enumerate(turns) if role == "assistant"]
    if not places:
        raise RowError("has no assistant turn: the last one is what the model learns to write")
    earlier = [(ROLES[role], text) for role, text in turns[: places[-1]] if ROLES[role]]
    if not any(speaker == "User" for speaker, _ in earlier):
        raise RowError("has no user turn before its last assistant turn: give the model something to answer")
    plain = earlier[0][1] if len(earlier) == 1 else "\n\n".join(f"{speaker}: {text}" for speaker, text in earlier)
    others = {name: value for name, value in row.items() if name not in ("messages", "instruction", "input", "target")}
    system = "\n\n".join(text for role, text in turns if not ROLES[role])
    return {"instruction": system, "input": plain, "target": turns[places[-1]][1], **others}


def turn_of(turn: object) -> tuple[str, str]:
    """Role and text of a turn. Raises RowError."""
    if not isinstance(turn, dict):
        raise RowError('has a turn that is no object: write {"role": …, "content": …}')
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"has a turn of role {str(role)[:40]!r}: use system, user and assistant")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if texts and len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise RowError(f"has a turn of the {role} without text: give its content as text")
    return role, content
