"""Table: bytes of a reader's file, or pasted text, as named columns of text. What is in it decides, not its name.

CSV, TSV, JSON lines (flat, or chats, see `chats`), a JSON array, or Parquet. Rows that cannot be read become
faults with their row number; only where no table can be had at all there is an InputError, one sentence. Nothing in a
file is ever run, and no archive is unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from peftbook.core.errors import InputError
from peftbook.tasks.chats import PARTS, Chat, Turn, chat_of, shape_of
from peftbook.tasks.content import FIX, decode, display_name, is_markup, what_it_is
from peftbook.tasks.delimited import DELIMITERS, find_delimiter, records
from peftbook.tasks.jsonlines import looks_like_json, objects
from peftbook.tasks.parquet import parquet_lines
from peftbook.tasks.rows import QUOTE_CELLS, Caps, Fault, RowError, cell_fault, cell_text

Format = Literal["csv", "tsv", "jsonl", "chat", "parquet"]


@dataclass(frozen=True)
class TextTable:
    """Named columns of text.

    format: what the file was; encoding and delimiter: of its text, empty where it has none.
    sha256: of the file's bytes.  faults: rows left out, numbered as in the file.  numbers: row number in the file of
    each row that is kept.  turns: of chats, before the answer of each of these rows.  cut: how many of the chats go on
    after their last answer.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    format: Format
    encoding: str
    delimiter: str
    sha256: str
    faults: tuple[Fault, ...] = ()
    numbers: tuple[int, ...] = ()
    turns: tuple[tuple[Turn, ...], ...] = ()
    cut: int = 0


def read_table(content: bytes, name: str = "", caps: Caps = Caps()) -> TextTable:  # noqa: B008
    """The table in a file's bytes.

    name: of the file: what messages call it, and a hint where the content leaves two ways open. Raises InputError
    where no table can be had: a file of another kind, one beyond the caps, or one without a single row that is whole.
    """
    what = display_name(name)
    if len(content) > caps.bytes:
        raise InputError(
            f"{what} has {len(content):,} bytes, more than the cap of {caps.bytes:,}: cut it, or raise the cap."
        )
    if not content.strip(b" \t\r\n\x00"):
        raise InputError(f"{what} is empty: give a header and rows.")
    if kind := what_it_is(content):
        raise InputError(f"{what} looks like {kind}: {FIX}.")
    sha256 = hashlib.sha256(content).hexdigest()
    if content.startswith(b"PAR1"):
        return parquet_table(content, what, caps, sha256)
    text, encoding = decode(content, what)
    if is_markup(text):
        raise InputError(f"{what} looks like an HTML or XML page, perhaps of a failed download: {FIX}.")
    ending = name.lower().rpartition(".")[2]
    if looks_like_json(text, ending in ("json", "jsonl", "ndjson")):
        return table_of_rows(objects(text, caps), "jsonl", what, caps, sha256, encoding)
    return delimited_table(text, what, caps, sha256, encoding, ending)


# --- one builder of tables a format ----------------------------------------------------------------------------


class Builder:
    """Collects rows and faults, and holds them against the caps."""

    def __init__(self, what: str, caps: Caps):
        self.what, self.caps = what, caps
        self.rows: list[tuple[str, ...]] = []
        self.numbers: list[int] = []
        self.faults: list[Fault] = []
        self.turns: list[tuple[Turn, ...]] = []
        self.cut = 0
        self.number = self.chars = self.cells = 0

    def count(self) -> None:
        """One row more in the file."""
        self.number += 1
        if self.number > self.caps.rows:
            raise InputError(f"{self.what} has more than {self.caps.rows:,} rows, the cap: cut it, or raise the cap.")

    def fault(self, problem: str, line: int = 0, column: str = "") -> None:
        """The row is left out."""
        self.faults.append(Fault(self.number, column, problem, line))

    def add(self, names: Iterable[str], row: tuple[str, ...], line: int = 0, chat: Chat | None = None) -> None:
        """A row, unless one of its cells is at fault."""
        for name, cell in zip(names, row, strict=False):
            problem = cell_fault(cell, self.caps)
            if not problem and "\x00" in cell:
                problem = "holds a null character (U+0000), which no text does: remove it"
            if problem and chat is not None and name in PARTS:
                return self.fault(f"{PARTS[name]} {problem}", line)
            if problem:
                return self.fault(problem, line, name)
        self.chars += sum(map(len, row))
        self.cells += len(row)
        self.check_size(self.chars, self.cells)
        self.rows.append(row)
        self.numbers.append(self.number)
        if chat is not None:
            self.turns.append(chat.turns)
            self.cut += chat.cut
        return None

    def check_size(self, chars: int, cells: int) -> None:
        """Raises InputError for more characters or cells than the caps."""
        if chars > self.caps.bytes:
            raise InputError(
                f"{self.what} holds more than {self.caps.bytes:,} characters, the cap: cut it, or raise the cap."
            )
        if cells > self.caps.cells:
            raise InputError(
                f"{self.what} has more than {self.caps.cells:,} cells, the cap: leave out columns or rows, or raise it."
            )

    def table(self, names: Iterable[str], form: Format, encoding: str, delimiter: str, sha256: str) -> TextTable:
        """The table. Raises InputError if no row is whole."""
        if not self.rows:
            if not self.faults:
                raise InputError(f"{self.what} has a header and no rows: add rows.")
            first = self.faults[0]
            where = f"column {first.column!r} " if first.column else ""
            raise InputError(f"{self.what} has no row that is whole; row {first.row}: {where}{first.problem}.")
        kept = tuple(self.faults), tuple(self.numbers), tuple(self.turns), self.cut
        return TextTable(tuple(names), tuple(self.rows), form, encoding, delimiter, sha256, *kept)


def check_width(what: str, count: int, caps: Caps) -> None:
    """Raises InputError for more columns than the cap."""
    if count > caps.columns:
        raise InputError(f"{what} has {count:,} columns, more than the cap of {caps.columns:,}: leave out columns.")


def header_names(cells: list[str]) -> list[str]:
    """Names of columns: one line each, none empty, none twice."""
    names: list[str] = []
    for place, cell in enumerate(cells, start=1):
        plain = " ".join("".join(letter if letter.isprintable() else " " for letter in cell[:200]).split())
        name, times = plain or f"column {place}", 1
        while name in names:
            times += 1
            name = f"{plain or f'column {place}'} ({times})"
        names.append(name)
    return names


def delimited_table(text: str, what: str, caps: Caps, sha256: str, encoding: str, ending: str) -> TextTable:
    """CSV and its kin; a first line such as `sep=;` says the delimiter."""
    said = re.match(r"sep=(.)\r?\n", text)
    if said and said[1] in DELIMITERS:
        delimiter, text = said[1], text[said.end() :]
    else:
        delimiter = find_delimiter(text, "\t" if ending in ("tsv", "tab") else ",")
    found, built = records(text, delimiter, caps), Builder(what, caps)
    _, header = next(((line, cells) for line, cells in found if cells), (0, "is empty: give a header and rows"))
    if isinstance(header, str):
        raise InputError(f"The first line of {what} {header}.")
    check_width(what, len(header), caps)
    names = header_names(header)
    for line, cells in found:
        if not cells:
            continue  # a blank line
        built.count()
        if isinstance(cells, str):
            built.fault(cells, line)
        elif len(cells) != len(names):
            built.fault(f"has {len(cells)} cells, the header has {len(names)}: {QUOTE_CELLS}", line)
        else:
            built.add(names, tuple(cells), line)
    return built.table(names, "tsv" if delimiter == "\t" else "csv", encoding, delimiter, sha256)


def parquet_table(content: bytes, what: str, caps: Caps, sha256: str) -> TextTable:
    """Parquet, flat or chats."""
    with contextlib.closing(parquet_lines(content, what)) as lines:
        names = next(lines)
        check_width(what, len(names), caps)
        if not names:
            raise InputError(f"{what} has no column of text or numbers: write one input and one target column.")
        found = ((0, dict(zip(names, row, strict=True))) for row in lines)
        return table_of_rows(found, "parquet", what, caps, sha256)


def table_of_rows(
    found: Iterable[tuple[int, dict[str, Any] | str]],
    form: Format,
    what: str,
    caps: Caps,
    sha256: str,
    encoding: str = "",
) -> TextTable:
    """A table of (line, values by name), or (line, problem); they are chats if the first row is one.

    A cell that a row lacks is empty.
    """
    built = Builder(what, caps)
    rows: list[tuple[int, int, dict[str, str], Chat | None]] = []
    names: dict[str, None] = {}
    shape: str | None = None
    chars = 0
    for line, row in found:
        built.count()
        try:
            if isinstance(row, str):
                raise RowError(row)
            shape = shape_of(row) if shape is None else shape
            chat = chat_of(row, shape) if shape else None
            cells = {name: cell_text(value) for name, value in (chat.fields if chat else row).items()}
        except RowError as fault:
            built.fault(str(fault), line)
            continue
        if not cells.keys() <= names.keys() and len(names.keys() | cells.keys()) > caps.columns:
            built.fault(f"brings more than {caps.columns:,} columns, the cap: use the same names in all rows", line)
            continue
        names.update(dict.fromkeys(cells))
        rows.append((built.number, line, cells, chat))
        chars += sum(map(len, cells.values()))
        built.check_size(chars, len(rows) * len(names))
    used = [name for name in names if not (shape and name == "instruction") or any(row[2][name] for row in rows)]
    shown_names, count = header_names(used), built.number
    for number, line, row, chat in rows:
        built.number = number
        built.add(shown_names, tuple(row.get(name, "") for name in used), line, chat)
    built.number = count
    built.faults.sort(key=lambda fault: fault.row)
    return built.table(shown_names, "chat" if shape else form, encoding, "", sha256)
