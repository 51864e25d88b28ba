"""Parquet as rows of plain values, read by another process, so that no file can break or fill this one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from peftbook.core.errors import InputError
from peftbook.tasks.rows import Caps

__all__ = ["parquet_rows"]

SECONDS = 120.0  # that a file may take
Rows = Iterator[tuple[Any, ...]]


@contextlib.contextmanager
def parquet_rows(content: bytes, what: str, caps: Caps) -> Iterator[tuple[list[str], Any]]:
    """(names of the columns, a function from some of the names to an iterator of their rows).

    Values are texts, numbers, truth values, None, and lists and dictionaries of them; a byte that is not UTF-8 is a
    lone surrogate. Raises InputError, one sentence that starts with `what`, for a file that cannot be read, or takes
    more than the caps or some time.
    """
    child = start_child()
    timer = threading.Timer(SECONDS, child.kill)
    timer.start()
    try:
        tell(child, json.dumps({"size": len(content), "what": what, "caps": asdict(caps)}).encode() + b"\n" + content)
        names = hear(child, what)["names"]

        def rows(wanted: list[str]) -> Rows:
            tell(child, json.dumps(wanted).encode() + b"\n")
            while isinstance(batch := hear(child, what), list):
                yield from map(tuple, batch)

        yield names, rows
    finally:
        timer.cancel()
        close(child)


def tell(child: subprocess.Popen[bytes], message: bytes) -> None:
    """Send; a process that has died is noticed when it does not answer."""
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.write(message)
        child.stdin.flush()


def hear(child: subprocess.Popen[bytes], what: str) -> Any:
    """The next line of an answer. Raises InputError for a refusal, and where there is no answer any more."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        raise InputError(
            f"{what} is not a readable Parquet file: reading it took more than {SECONDS:g} seconds or than the memory "
            "it may have, or it is damaged; write it again."
        )
    answer = json.loads(line)
    if isinstance(answer, dict) and "error" in answer:
        raise InputError(answer["error"])
    return answer


def start_child() -> subprocess.Popen[bytes]:
    """Start a process that reads one file."""
    variables = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "peftbook.tasks.parquet_child"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables
    )


def close(child: subprocess.Popen[bytes]) -> None:
    """End a process."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
    child.wait()
