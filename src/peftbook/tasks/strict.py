"""Strict: named columns of one file, by its extension, in UTF-8, with every fault an InputError.

Each is one sentence that names the value and the fix. Rows are counted from 1, without the header.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from peftbook.errors import InputError
from peftbook.tasks import parquet
from peftbook.tasks.content import what_it_is
from peftbook.tasks.delimited import records
from peftbook.tasks.jsonlines import json_lines
from peftbook.tasks.rows import MIN_ROWS, QUOTE_CELLS, Caps, RowError, cell_fault, cell_text

__all__ = ["content_of", "texts_of"]

Cells = tuple[object, ...]


def reader_of(path: Path) -> Callable[[Path, bytes, list[str], Caps], Iterator[Cells]]:
    """The reader that a file's extension names."""
    readers = {".csv": csv_rows, ".jsonl": jsonl_rows, ".ndjson": jsonl_rows, ".parquet": parquet_rows}
    if path.suffix.lower() not in readers:
        found = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        raise InputError(f"{path} has {found}: save the data as .csv, .jsonl or .parquet.")
    return readers[path.suffix.lower()]


def content_of(path: Path, caps: Caps) -> bytes:
    """The file's bytes. They are read once, so that what is hashed is what is parsed."""
    reader_of(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: check the path.")
    size = path.stat().st_size
    if size > caps.bytes:
        raise InputError(f"{path} has {size:,} bytes, more than the cap of {caps.bytes:,}: cut it, or raise max_bytes.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    if not content.strip():
        raise InputError(f"{path} is empty: it needs at least {MIN_ROWS} rows.")
    if kind := what_it_is(content):
        raise InputError(f"{path} looks like {kind}: save the data as plain .csv, .jsonl or .parquet.")
    return content


def decoded(path: Path, content: bytes) -> str:
    """UTF-8 text without a byte order mark."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        value = f"0x{content[error.start]:02x}"
        raise InputError(f"{path} is not UTF-8 at byte offset {error.start} ({value}): save it as UTF-8.") from None


def check_columns(path: Path, wanted: list[str], present: list[str]) -> None:
    """Raises InputError for a column that is not there, or there twice."""
    for name in wanted:
        if name not in present:
            raise InputError(f"{path} has no column {name!r}: its columns are {', '.join(map(repr, present))}.")
        if present.count(name) > 1:
            raise InputError(f"{path} has {present.count(name)} columns named {name!r}: rename all but one.")


def check_count(path: Path, count: int, caps: Caps) -> None:
    """Raises InputError for more rows than the cap."""
    if count > caps.rows:
        raise InputError(f"{path} has more than {caps.rows:,} rows, the cap: cut it, or raise max_rows.")


def csv_rows(path: Path, content: bytes, columns: list[str], caps: Caps) -> Iterator[Cells]:
    """Cells of the columns, row by row. The delimiter is a comma."""
    number, header, places = -1, [], []
    for line, cells in records(decoded(path, content), ",", caps):
        number += 1
        if isinstance(cells, str):
            raise InputError(f"{path}, line {line} {cells}.")
        if not number:
            check_columns(path, columns, cells)
            header, places = cells, [cells.index(name) for name in columns]
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{path}, row {number} (line {line}) has {len(cells)} cells, the header has {len(header)}: "
                f"{QUOTE_CELLS}."
            )
        yield tuple(cells[place] for place in places)


def jsonl_rows(path: Path, content: bytes, columns: list[str], caps: Caps) -> Iterator[Cells]:
    """Values of the columns, row by row."""
    for number, (_, row) in enumerate(json_lines(decoded(path, content), caps), start=1):
        if isinstance(row, str):
            raise InputError(f"{path}, row {number} {row}.")
        missing = [name for name in columns if name not in row]
        if missing:
            names = ", ".join(map(repr, row)) or "none"
            raise InputError(f"{path}, row {number} has no column {missing[0]!r}: its columns are {names}.")
        yield tuple(row[name] for name in columns)


def parquet_rows(path: Path, content: bytes, columns: list[str], caps: Caps) -> Iterator[Cells]:
    """Values of the columns, row by row."""
    with parquet.parquet_rows(content, str(path), caps) as (names, rows):
        check_columns(path, columns, names)
        yield from rows(columns)


def texts_of(path: Path, content: bytes, columns: list[str], caps: Caps) -> list[tuple[str, ...]]:
    """The rows as text. Raises InputError for cells that are empty, too long or not text, and for too few rows."""
    texts: list[tuple[str, ...]] = []
    chars = 0
    empty: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(reader_of(path)(path, content, columns, caps), start=1):
        check_count(path, number, caps)
        cells = tuple(text_of(path, number, name, value, caps) for name, value in zip(columns, row, strict=True))
        for name, cell in zip(columns, cells, strict=True):
            if not cell.strip():
                empty[name].append(number)
        texts.append(cells)
        chars += sum(map(len, cells))
        if chars > caps.bytes:  # a small Parquet file can unpack to any size
            raise InputError(f"{path} holds more than {caps.bytes:,} characters, the cap: cut it, or raise max_bytes.")
    for name, numbers in empty.items():
        shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        raise InputError(f"{path}, column {name!r} has {len(numbers)} empty cells (rows {shown}): fill or remove them.")
    if len(texts) < MIN_ROWS:
        raise InputError(f"{path} has {len(texts)} rows: a split needs at least {MIN_ROWS}.")
    return texts


def text_of(path: Path, number: int, name: str, value: object, caps: Caps) -> str:
    """One cell as text. Raises InputError for a list, an object or other things than text and numbers."""
    where = f"{path}, row {number}, column {name!r}"
    if value is not None and not isinstance(value, str | int | float):
        raise InputError(f"{where} holds a {type(value).__name__}, not text: choose a column of text or numbers.")
    try:
        text = cell_text(value)
        if problem := cell_fault(text, caps):
            raise RowError(problem)
    except RowError as fault:
        raise InputError(f"{where} {fault}.") from None
    return text
