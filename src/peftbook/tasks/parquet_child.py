"""The process that reads Parquet for `peftbook.tasks.parquet`: what breaks it breaks nothing else.

A few kilobytes of Parquet can unpack to any size, and some damaged files end the process that reads them. This one has
a limit on its memory. Texts are read as dictionaries, in which a value that occurs a million times is there once; what
rows of them would take is added up before they are made.

Standard input: a line of JSON {"size", "what", "caps"}, so many bytes, and after the answer a line of JSON with names.
Standard output: a line {"names"}; then lines that each hold some rows, and {"end"}; or at any time {"error"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from peftbook.core.errors import InputError
from peftbook.tasks.rows import Caps

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["serve"]

BATCH_ROWS, SLICE_ROWS = 8192, 256
BATCH_BYTES = 64_000_000  # of texts that are made together
WIDEST_FIXED = 64  # bytes: decimals and half floats are fixed bytes; texts are not
MEMORY_BYTES = 3 << 30


class File:
    """A Parquet file: names of its columns, and its rows.

    Raises InputError, one sentence that starts with `what`, for a file that cannot be read or is beyond the caps.
    """

    def __init__(self, content: bytes, what: str, caps: Caps):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.what, self.caps = what, caps
        plain_errors = (OSError, ValueError, KeyError, OverflowError, MemoryError, NotImplementedError)
        self.errors = (pa.ArrowException, *plain_errors)
        source = pa.BufferReader(content)
        limits: dict[str, Any] = {"thrift_string_size_limit": 10_000_000, "thrift_container_size_limit": 1_000_000}
        try:
            plain = pq.ParquetFile(source, **limits)
            leaves = [plain.schema.column(place) for place in range(len(plain.schema.names))]
            delta = delta_coded(plain.metadata)  # not to be had as dictionaries
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.path not in delta]
            self.file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts, **limits)
            self.metadata = self.file.metadata
            wide = {
                leaf.path.split(".")[0]
                for leaf in leaves
                if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.length > WIDEST_FIXED
            }
            self.names: list[str] = [name for name in self.file.schema_arrow.names if name not in wide]
        except self.errors as error:
            raise self.unreadable(error) from None

    def unreadable(self, error: Exception) -> InputError:
        """The sentence for a broken file."""
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return InputError(f"{self.what} is not a readable Parquet file ({reason}): write it again.")

    def check(self, names: list[str]) -> int:
        """Hold what the file says of these columns against the caps; returns how many rows may be read at once."""
        caps, batch = self.caps, BATCH_ROWS
        if self.metadata.num_rows > caps.rows:
            raise InputError(f"{self.what} has more than {caps.rows:,} rows, the cap: cut it, or raise max_rows.")
        for group in range(self.metadata.num_row_groups):
            for place in range(self.metadata.num_columns):
                chunk = self.metadata.row_group(group).column(place)
                if chunk.path_in_schema.split(".")[0] not in names:
                    continue
                size, values = chunk.total_uncompressed_size, chunk.num_values
                if size > 4 * caps.bytes or values > caps.cells:
                    raise InputError(
                        f"{self.what}, column {chunk.path_in_schema!r} unpacks to {size:,} bytes and {values:,} "
                        "values, more than the caps: cut it, or raise them."
                    )
                if "DELTA_BYTE_ARRAY" in chunk.encodings:  # every value may repeat all of the one before
                    batch = min(batch, max(1, BATCH_BYTES // max(size, 1)))
        return batch

    def slices(self, names: list[str]) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of these columns, some at a time."""
        batch_rows, taken = self.check(names), 0
        try:
            for batch in self.file.iter_batches(batch_size=batch_rows, columns=names, use_threads=False):
                columns = [as_read(batch.column(name)) for name in names]
                taken += sum(map(text_bytes, columns))
                if taken > 4 * self.caps.bytes:  # of UTF-8, where a character has at most four
                    raise InputError(
                        f"{self.what} holds more than {self.caps.bytes:,} characters, the cap: cut it, or raise "
                        "max_bytes."
                    )
                for at in range(0, len(batch), SLICE_ROWS):
                    slices = [column.slice(at, SLICE_ROWS) for column in columns]
                    yield list(zip(*map(values_of, slices), strict=True))
        except InputError:
            raise
        except self.errors as error:
            raise self.unreadable(error) from None


def delta_coded(metadata: pq.FileMetaData) -> set[str]:
    """Paths of the columns in which a value may repeat the beginning of the one before."""
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    chunks = (group.column(place) for group in groups for place in range(group.num_columns))
    return {chunk.path_in_schema for chunk in chunks if any(name.startswith("DELTA") for name in chunk.encodings)}


def as_read(column: pa.Array) -> pa.Array:
    """A column as it can be turned into Python: dates and their kin as text."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.string())
    return column


def text_bytes(column: pa.Array) -> int:
    """What the texts in a column take, each occurrence counted, and something for every other value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        if not len(column.dictionary) or not is_text(kind.value_type):
            return 8 * len(column)
        lengths = pc.binary_length(column.dictionary).cast(pa.int64())
        return (pc.sum(lengths.take(column.indices)).as_py() or 0) + len(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        return text_bytes(column.flatten() if not pa.types.is_map(kind) else column.items) + 8 * len(column)
    if pa.types.is_struct(kind):
        return sum(map(text_bytes, column.flatten()))
    if is_text(kind):
        return (pc.sum(pc.binary_length(column)).as_py() or 0) + len(column)
    return 8 * len(column)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type have a length in bytes."""
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(holds(kind) for holds in kinds)


def values_of(column: pa.Array) -> list[Any]:
    """Values as Python's; bytes as text."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [decoded(value) for value in column.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if not is_text(column.type):
            raise
        return [decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def decoded(value: bytes | None) -> str | None:
    """Text; a byte that is not UTF-8 becomes a lone surrogate."""
    return None if value is None else value.decode("utf-8", "surrogateescape")


# --- the process -----------------------------------------------------------------------------------------------


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer one request: the names of a file's columns, then the rows of those that are asked for."""
    request = json.loads(source.readline())
    try:
        file = File(source.read(request["size"]), request["what"], Caps(**request["caps"]))
        say(sink, {"names": file.names})
        for rows in file.slices(json.loads(source.readline())):
            say(sink, rows)
        say(sink, {"end": True})
    except InputError as error:
        say(sink, {"error": str(error)})


def say(sink: BinaryIO, value: object) -> None:
    """One line of JSON; what JSON has no word for as its text."""
    sink.write(json.dumps(value, default=as_word).encode() + b"\n")
    sink.flush()


def as_word(value: object) -> str:
    """A value within a list that JSON does not know, as text."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def limit_memory() -> None:
    """Let this process fail rather than the machine; where the system knows limits."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
