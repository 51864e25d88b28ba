"""JSON lines, or a JSON array, as objects: one fault a row that is none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from peftbook.tasks.rows import Caps

LINE = re.compile(r"\S[^\n]*")
BETWEEN = re.compile(r"[ \t\r\n,]*")
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
