"""Cache of results computed from records, such as verdicts and quantities: on disk and in this process.

The key of a result hashes the code and data that it depends on, the records at hand, and the versions of Python and
the libraries. A damaged entry, or one with another key, is recomputed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
from pydantic import TypeAdapter

from peftbook.core.folders import results_folder
from peftbook.core.imports import dependencies
from peftbook.core.records import Store, default_store, write_atomically
from peftbook.core.stamp import CLOCK_TICK, add_checksum, changed_since, inputs_hash, verified_body
from peftbook.core.tracking import record_lookups, untracked

T = TypeVar("T")
LIBRARIES = ("numpy", "scipy", "pydantic")  # whose versions are part of a key
STARTED = psutil.Process().create_time()  # code that changed later may not be the code in memory


@dataclass(frozen=True)
class CachedResult(Generic[T]):
    """A result with its key, the keys of the records that it was computed from, and the paths that were looked up."""

    value: T
    key: str
    runs: tuple[str, ...]
    lookups: tuple[str, ...]


_results: dict[Path, CachedResult[Any]] = {}  # of this process, by the path of the entry


def cached_result(
    name: str, compute: Callable[[Store], T], module: str, form: TypeAdapter[T], store: Store
) -> CachedResult[T]:
    """What `compute` returns for a store: a cache hit unless something that it depends on has changed.

    name: of the result.  module: of `compute`; its imports determine the code that the key hashes.  form: converts the
    value to and from JSON.
    Only results of the default store are written to disk. The files behind a result are recorded as lookups. Its runs
    are not recorded as reads: the caller records them when it uses the value.
    """
    path, key = _entry_path(name, store), _key(module, store)
    on_disk = set(store.folders) <= set(default_store().folders)
    result = _results.get(path)
    if result is None or result.key != key:
        result = _read_entry(path, key, form) if on_disk else None
    if result is None:
        with untracked() as reads:
            value = form.validate_python(form.dump_python(compute(store)))
        result = CachedResult(value, key, tuple(reads), tuple(sorted(reads.lookups)))
        if on_disk and key == _key(module, store) and not changed_since(STARTED, dependencies(module)):
            with suppress(OSError):  # a full disk, or a cache that may not be written
                _write_entry(path, result, form)
    _results[path] = result
    record_lookups([*dependencies(module), *result.lookups])
    return result


def _entry_path(name: str, store: Store) -> Path:
    known = json.dumps([name, [str(folder) for folder in store.folders], store.platform, store.machine])
    return results_folder() / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"


def _key(module: str, store: Store) -> str:
    folders = dict.fromkeys((*store.folders, *default_store().folders))
    parts = [_code_hash(module), records_hash(*folders), *_versions()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@lru_cache(maxsize=64)
def _code_hash(module: str) -> str:
    return inputs_hash(dependencies(module))


@cache
def _versions() -> list[str]:
    return [sys.version, *(metadata.version(library) for library in LIBRARIES)]


def records_hash(*folders: Path) -> str:
    """SHA-256 over names, sizes and times of the files in folders of records."""
    total = hashlib.sha256()
    for folder in folders:
        with suppress(OSError):
            changed = folder.stat().st_mtime_ns
            recent = time.time_ns() - changed < CLOCK_TICK * 1e9  # the next change may get the same time
            total.update((_folder_hash.__wrapped__ if recent else _folder_hash)(folder, changed).encode())
    return total.hexdigest()


@lru_cache(maxsize=64)
def _folder_hash(folder: Path, changed: int) -> str:
    """`changed` differs after a file is added, removed or replaced."""
    with os.scandir(folder) as entries:
        files = {entry.name: entry.stat() for entry in entries if not entry.name.startswith(".")}
    states = [(name, files[name].st_size, files[name].st_mtime_ns) for name in sorted(files)]
    return hashlib.sha256(f"{folder}{states}".encode()).hexdigest()


def _read_entry(path: Path, key: str, form: TypeAdapter[T]) -> CachedResult[T] | None:
    """The entry if it is undamaged and has this key, else None."""
    try:
        entry = json.loads(verified_body(path.read_bytes()) or "{}")
        if entry["key"] != key:
            return None
        return CachedResult(form.validate_python(entry["value"]), key, tuple(entry["runs"]), tuple(entry["lookups"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_entry(path: Path, result: CachedResult[T], form: TypeAdapter[T]) -> None:
    entry = {"key": result.key, "value": form.dump_python(result.value), "runs": result.runs, "lookups": result.lookups}
    write_atomically(path, add_checksum(json.dumps(entry)), lasting=False)
