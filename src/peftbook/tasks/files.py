"""Files: the reader's own CSV, JSONL or Parquet as a task.

Every fault of the file is an InputError: one sentence that names the value and the fix. Rows are counted from 1,
without the header.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peftbook.errors import InputError
from peftbook.tasks import SPLITS, Example, TaskData

__all__ = ["MAX_BYTES", "MAX_CELL_CHARS", "MAX_ROWS", "MIN_ROWS", "load_files", "split_examples"]

MAX_BYTES = 100_000_000
MAX_ROWS = 200_000
MAX_CELL_CHARS = 100_000
MIN_ROWS = 10
BINARY_STARTS = {
    **{bytes([0x80, protocol]): "a pickle, which can run code when it is opened" for protocol in range(2, 6)},
    b"PK": "a zip archive or an Excel file",
    b"\x1f\x8b": "a gzip archive",
}
Cells = tuple[object, ...]


def load_files(
    path: str | Path,
    *,
    input: str,  # noqa: A002
    target: str,
    group: str | None = None,
    instruction: str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    max_bytes: int = MAX_BYTES,
    max_rows: int = MAX_ROWS,
) -> TaskData:
    """A task from one file with named columns, split at random by `seed`.

    input, target: names of the columns that the model reads and should write.
    group: name of a column whose values no split divides (an author, a conversation); None splits by row.
    instruction: the user turn, with `{input}` where the input goes; None is the input alone.
    fractions: of the rows, for train, validation and test. Rows with the same input always share a split.
    Raises InputError for anything wrong with the file or these arguments.
    """
    path = Path(path)
    instruction = "{input}" if instruction is None else instruction
    if "{input}" not in instruction:
        raise InputError(f"The instruction {instruction!r} does not say where the input goes: put {{input}} in it.")
    _check_fractions(fractions)
    columns = _columns(input, target, group)
    content = _content(path, max_bytes)
    rows = _texts(path, columns, _reader(path)(path, content, columns, max_rows), max_rows, max_bytes)
    examples = [Example(f"row-{number:06d}", *row) for number, row in enumerate(rows, start=1)]
    settings = [hashlib.sha256(content).hexdigest(), input, target, group, seed, *map(float, fractions), instruction]
    return TaskData(
        name="files",
        version=1,
        instruction=instruction,
        splits=split_examples(examples, seed=seed, fractions=fractions),
        metrics=("rouge", "bertscore", "exact_match"),
        data_sha256=hashlib.sha256(json.dumps(settings).encode()).hexdigest(),
    )


# --- arguments and the file as a whole -------------------------------------------------------------------------


def _check_fractions(fractions: Sequence[float]) -> None:
    is_valid = len(fractions) == 3 and all(math.isfinite(part) and part > 0 for part in fractions)
    if not is_valid or abs(sum(fractions) - 1) > 1e-9:
        raise InputError(f"The fractions {tuple(fractions)} are not three positive numbers that add up to 1.")


def _columns(source: str, target: str, group: str | None) -> list[str]:
    """Names of the columns to read, in the order of `Example`'s fields."""
    if source == target:
        raise InputError(f"Input and target are both column {source!r}: name two different columns.")
    return [source, target] if group is None else [source, target, group]


def _reader(path: Path) -> Callable[[Path, bytes, list[str], int], Iterator[Cells]]:
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        found = f"the extension {path.suffix!r}" if path.suffix else "no extension"
        raise InputError(f"{path} has {found}: save the data as .csv, .jsonl or .parquet.")
    return readers[path.suffix.lower()]


def _content(path: Path, max_bytes: int) -> bytes:
    """The file's bytes. They are read once, so that what is hashed is what is parsed."""
    _reader(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: check the path.")
    size = path.stat().st_size
    if size > max_bytes:
        raise InputError(f"{path} has {size:,} bytes, more than the cap of {max_bytes:,}: cut it, or raise max_bytes.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    if not content.strip():
        raise InputError(f"{path} is empty: it needs at least {MIN_ROWS} rows.")
    for start, what in BINARY_STARTS.items():
        if content.startswith(start):
            raise InputError(f"{path} looks like {what}: save the data as plain .csv, .jsonl or .parquet.")
    return content


def _decoded(path: Path, content: bytes) -> str:
    """UTF-8 text without a byte order mark."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        value = f"0x{content[error.start]:02x}"
        raise InputError(f"{path} is not UTF-8 at byte offset {error.start} ({value}): save it as UTF-8.") from None


def _check_columns(path: Path, wanted: list[str], present: list[str]) -> None:
    for name in wanted:
        if name not in present:
            raise InputError(f"{path} has no column {name!r}: its columns are {', '.join(map(repr, present))}.")
        if present.count(name) > 1:
            raise InputError(f"{path} has {present.count(name)} columns named {name!r}: rename all but one.")


def _check_count(path: Path, count: int, max_rows: int) -> None:
    if count > max_rows:
        raise InputError(f"{path} has more than {max_rows:,} rows, the cap: cut it, or raise max_rows.")


# --- one reader a format ---------------------------------------------------------------------------------------


def _csv_rows(path: Path, content: bytes, columns: list[str], max_rows: int) -> Iterator[Cells]:
    records = csv.reader(io.StringIO(_decoded(path, content), newline=""), strict=True)
    try:
        header = next(records)
        _check_columns(path, columns, header)
        places = [header.index(name) for name in columns]
        number = 0
        for record in records:
            if not record:
                continue  # a blank line
            number += 1
            if len(record) != len(header):
                raise InputError(
                    f"{path}, row {number} (line {records.line_num}) has {len(record)} cells, the header has "
                    f"{len(header)}: quote cells that hold commas, quotes or line breaks."
                )
            yield tuple(record[place] for place in places)
    except csv.Error as error:
        raise InputError(f"{path}, line {records.line_num} is not valid CSV ({error}): mend its quotes.") from None


def _jsonl_rows(path: Path, content: bytes, columns: list[str], max_rows: int) -> Iterator[Cells]:
    lines = [line for line in _decoded(path, content).split("\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, row {number} is not valid JSON ({error}): put one object on a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number} is a JSON {type(row).__name__}, not an object: use {{...}} rows.")
        missing = [name for name in columns if name not in row]
        if missing:
            raise InputError(f"{path}, row {number} has no column {missing[0]!r}: its columns are {_names(row)}.")
        yield tuple(row[name] for name in columns)


def _names(row: dict) -> str:
    return ", ".join(map(repr, row)) or "none"


def _parquet_rows(path: Path, content: bytes, columns: list[str], max_rows: int) -> Iterator[Cells]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        _check_columns(path, columns, file.schema_arrow.names)
        _check_count(path, file.metadata.num_rows, max_rows)
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a readable Parquet file ({reason}): write it again.") from None


# --- cells -----------------------------------------------------------------------------------------------------


def _texts(
    path: Path, columns: list[str], rows: Iterator[Cells], max_rows: int, max_chars: int
) -> list[tuple[str, ...]]:
    """The rows as text. Raises InputError for cells that are empty, too long or not text, and for too few rows."""
    texts: list[tuple[str, ...]] = []
    chars = 0
    empty: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        _check_count(path, number, max_rows)
        cells = tuple(_text(path, number, name, value) for name, value in zip(columns, row, strict=True))
        for name, cell in zip(columns, cells, strict=True):
            if not cell.strip():
                empty[name].append(number)
        texts.append(cells)
        chars += sum(map(len, cells))
        if chars > max_chars:  # a small Parquet file can unpack to any size
            raise InputError(f"{path} holds more than {max_chars:,} characters, the cap: cut it, or raise max_bytes.")
    for name, numbers in empty.items():
        shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        raise InputError(f"{path}, column {name!r} has {len(numbers)} empty cells (rows {shown}): fill or remove them.")
    if len(texts) < MIN_ROWS:
        raise InputError(f"{path} has {len(texts)} rows: a split needs at least {MIN_ROWS}.")
    return texts


def _text(path: Path, number: int, name: str, value: object) -> str:
    """One cell as text: strings as they are, numbers and truth values as JSON writes them, null as empty."""
    where = f"{path}, row {number}, column {name!r}"
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise InputError(f"{where} holds a {type(value).__name__}, not text: choose a column of text or numbers.")
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > MAX_CELL_CHARS:
        raise InputError(f"{where} has {len(text):,} characters, more than the cap of {MAX_CELL_CHARS:,}: shorten it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} holds {text[error.start]!r}, half of a surrogate pair: remove it.") from None
    return text


# --- splitting -------------------------------------------------------------------------------------------------


def split_examples(
    examples: Sequence[Example], *, seed: int = 0, fractions: Sequence[float] = (0.8, 0.1, 0.1)
) -> dict[str, tuple[Example, ...]]:
    """Splits that divide neither a group nor a set of rows with the same input.

    Units (groups joined by shared inputs) are visited in an order that depends on the seed and on their text alone;
    each goes to the split that lacks most rows, after every split has got one. Within a split the order is by hash.
    Raises InputError if there are fewer than three units.
    """
    units = _units(examples)
    if len(units) < len(SPLITS):
        raise InputError(
            f"The rows form only {len(units)} groups that no split may divide (same group or same input), and three "
            "splits need at least 3: choose a finer group column or add rows."
        )
    wanted = {split: fraction * len(examples) for split, fraction in zip(SPLITS, fractions, strict=True)}
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for place, name in enumerate(sorted(units, key=lambda unit: _rank(seed, unit))):
        lacking = {split: wanted[split] - len(splits[split]) for split in SPLITS}
        split = SPLITS[-1 - place] if place < len(SPLITS) else max(SPLITS, key=lambda each: lacking[each])
        splits[split].extend(units[name])
    return {
        split: tuple(sorted(rows, key=lambda row: (_rank(seed, row.input), _rank(seed, row.target), row.id)))
        for split, rows in splits.items()
    }


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()


def _units(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples joined by group or by input (union-find), each unit under its alphabetically first key."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for example in examples:
        by_input = root(f"input {example.input}")
        by_group = root(f"group {example.group}") if example.group else by_input
        parent[max(by_input, by_group)] = min(by_input, by_group)
    units: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        units[root(f"input {example.input}")].append(example)
    return dict(units)
