"""Parquet as rows of plain values, read by another process, so that no file can break or fill this one.

A few kilobytes of Parquet can unpack to any size, and some damaged files end the process that reads them. The child
process therefore has limits on its memory and its time. It reads a few rows at a time and writes them as lines of JSON.

Standard input of the child: the file. Standard output: a line with the names of the columns, then a line for each row,
or, where the file cannot be read, a line with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, BinaryIO

from peftbook.core.errors import InputError, need
from peftbook.runtime.processes import limit_process

if TYPE_CHECKING:
    import pyarrow as pa

SECONDS, MEMORY_BYTES = 120, 3 << 30  # that a file may take
LINE_BYTES = 500_000_000  # of one row
BATCH_ROWS = 256  # that are unpacked together


def parquet_lines(content: bytes, what: str) -> Generator[list[Any], None, None]:
    """The names of the columns, without those that occur twice; then the values of each row.

    Values are texts, numbers, truth values, None, and lists and dictionaries of them; a byte that is not UTF-8 is a
    lone surrogate. Raises InputError, one sentence that starts with `what`, for a file that cannot be read.
    """
    need("pyarrow", f"{what} is a Parquet file, which")
    variables = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__]  # not `-m`, which imports the package `tasks` with all that it needs
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError), child.stdin:  # a child that has died is noticed below
            child.stdin.write(content)
        while (line := child.stdout.readline(LINE_BYTES)).endswith(b"\n"):
            answer = json.loads(line)
            if isinstance(answer, str):
                raise InputError(f"{what} is not a readable Parquet file ({answer}): write it again.")
            yield answer
        if line or child.wait():
            raise InputError(
                f"{what} is not a readable Parquet file: reading it took more than {SECONDS} seconds or than the "
                "memory it may have, or it is damaged; write it again."
            )
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


# --- the child process -----------------------------------------------------------------------------------------


def write_lines(content: bytes, sink: BinaryIO) -> None:
    """Write the names of a file's columns and its rows, or why it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        times = Counter(file.schema_arrow.names)
        names = [name for name in file.schema_arrow.names if times[name] == 1]
        write_line(sink, names)
        for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            for row in zip(*(values_of(batch.column(name)) for name in names), strict=True):
                write_line(sink, row)
    except Exception as error:  # whatever a damaged file raises
        write_line(sink, (str(error) or type(error).__name__).splitlines()[0][:200])


def write_line(sink: BinaryIO, value: object) -> None:
    """One line of JSON; bytes as text, and what JSON has no word for as Python writes it."""
    sink.write(json.dumps(value, default=as_text).encode() + b"\n")


def as_text(value: object) -> str:
    """A value that JSON does not know; a byte that is not UTF-8 becomes a lone surrogate."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def values_of(column: pa.Array) -> list[Any]:
    """Values as Python's: texts as bytes, since they may be no UTF-8; dates and decimals as Arrow writes them."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


if __name__ == "__main__":
    limit_process(SECONDS, MEMORY_BYTES)
    write_lines(sys.stdin.buffer.read(), sys.stdout.buffer)
