"""Rows as the readers hand them over: caps, faults, and values as text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated

from peftbook.core.options import Bound, Option

MIN_ROWS = 10  # that a split needs
QUOTE_CELLS = "quote cells that hold commas, quotes or line breaks"


def cap(help: str, what: str) -> Option:  # noqa: A002
    """An option of the studio that caps something."""
    return Option(
        help, bound=Bound(f"A cap of {{}} {what} is chosen", 1, 10**12), flag=f"--max-{what.replace(' ', '-')}"
    )


@dataclass(frozen=True)
class Caps:
    """How much is read. bytes: of the file, and characters that it unpacks to; rows, columns, cells: of the table;
    cell_chars: characters of one cell.
    """

    bytes: Annotated[int, cap("of an upload", "bytes")] = 100_000_000
    rows: Annotated[int, cap("of an upload", "rows")] = 200_000
    cell_chars: Annotated[int, cap("characters of a cell", "cell chars")] = 100_000
    columns: Annotated[int, cap("of an upload", "columns")] = 200
    cells: Annotated[int, cap("of an upload", "cells")] = 5_000_000

    @property
    def row_chars(self) -> int:
        """Characters of one row as it is written in the file."""
        return 10 * self.cell_chars


@dataclass(frozen=True)
class Fault:
    """Why a row is left out. Rows count from 1, without the header; an empty column means the whole row; line: in the
    file, 0 where it has none.
    """

    row: int
    column: str
    problem: str
    line: int = 0


class RowError(Exception):
    """A row cannot be read; the message says why, in the words that stand after “row 3 …”."""


def cell_text(value: object) -> str:
    """One value as text: strings as they are, null and NaN as empty, all else as JSON writes it.

    Raises RowError for a value that JSON cannot write.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError):
        if isinstance(value, bool | int | float | list | dict):
            raise RowError("is nested too deeply or too long a number: write it as text") from None
        return str(value)


def cell_fault(text: str, caps: Caps) -> str:
    """Why a text is no cell, or nothing."""
    if len(text) > caps.cell_chars:
        return f"has {len(text):,} characters, more than the cap of {caps.cell_chars:,}: shorten it"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            if 0xDC80 <= code <= 0xDCFF:
                return f"holds the byte 0x{code - 0xDC00:02x}, which is not UTF-8 there: save the file as UTF-8"
            return f"holds {text[error.start]!r}, half of a surrogate pair: remove it"
    return ""
