"""Dependency tracking: which records a number was computed from, and which files were looked for.

Reads are keys of records, which a page links beside the number. Lookups are paths, found or not; an output such as a
chapter is rebuilt when one of them changes. Each thread has its own trackers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path

LOOKUP = "peftbook.lookup"  # audit event of Python; its arguments are paths


class Reads(dict[str, None]):
    """Keys of the records that were read, each once, in the order of their first reads; and the paths looked for.

    hidden: whether outer trackers do not see these reads.
    """

    def __init__(self, *, hidden: bool = False):
        super().__init__()
        self.hidden = hidden
        self.lookups: set[str] = set()


_active: ContextVar[tuple[Reads, ...]] = ContextVar("active", default=())  # from the outermost to the innermost


@contextmanager
def track_reads(*, hidden: bool = False) -> Iterator[Reads]:
    """Collect what is read and looked for inside; trackers nest."""
    token = _active.set((*_active.get(), reads := Reads(hidden=hidden)))
    try:
        yield reads
    finally:
        _active.reset(token)


def untracked() -> AbstractContextManager[Reads]:
    """Hide the reads inside from outer trackers, which still see the lookups.

    For reads that only determine which runs count, and for a result that is cached together with its reads.
    """
    return track_reads(hidden=True)


def record_reads(keys: Iterable[str]) -> None:
    """Add keys of records to every active tracker."""
    found = dict.fromkeys(keys)
    for reads in reversed(_active.get()):
        reads.update(found)
        if reads.hidden:
            break


def record_lookups(paths: Iterable[Path | str]) -> None:
    """Add paths to every active tracker, and raise the audit event."""
    names = tuple(map(str, paths))
    for reads in _active.get():
        reads.lookups.update(names)
    sys.audit(LOOKUP, *names)
