"""Results that rest on records, kept on disk with the hashes of everything that their making was seen to use.

An entry holds as long as each of those files is what it was: the code that computes it, its data, the records that it
read and those that it looked for in vain. A damaged, foreign or outdated entry is computed again without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

import psutil
from pydantic import TypeAdapter

from peftbook.folders import results_folder
from peftbook.records import Store, aside, default_store, look, looked_at, steady, write_atomically

__all__ = ["USED", "Kept", "changed_since", "is_kept", "kept", "named"]

T = TypeVar("T")
PACKAGE = Path(__file__).resolve().parent
USED = "peftbook.used"  # the audit event of a result that is taken from disk; its arguments are the files it rests on
LIBRARIES = ("numpy", "scipy", "pydantic")  # that results are computed with
IMPORTED = re.compile(
    r"^\s*(?:from\s+(peftbook[\w.]*)\s+import\s+(\([^)]*\)|.*)|import\s+(peftbook[\w.]*))", re.MULTILINE
)
BY_NAME = re.compile(r"\b(import_module|get_study)\(")
STARTED = psutil.Process().create_time()  # of this process, which may have loaded its code ever since
CLOCK_TICK = 0.05  # seconds by which a file's time may lag behind the clock
KEPT_DAYS = 60  # after which an entry is deleted, and computed again if it is still asked for


@dataclass(frozen=True)
class Kept(Generic[T]):
    """A result, the keys of the records that it read, and path → fingerprint of every file that it rests on."""

    value: T
    seen: tuple[str, ...]
    files: dict[str, str]


def kept(name: str, make: Callable[[Store], T], module: str, form: TypeAdapter[T], store: Store) -> Kept[T]:
    """What `make` computes from a store, taken from disk if nothing that it rests on has changed.

    name: of the result.  module: where its rule is, from which the code that it uses is found.  form: how it is written
    and read.  Only what rests on the folders at hand is kept; any other store, of a test say, is computed. Reads in
    threads that `make` starts are not seen.
    """
    at_hand = set(store.folders) <= set(default_store().folders)
    path, code = _place(name, store), code_of(module)
    found = _read(path, form, code) if at_hand else None
    if found is None:
        with steady() as began, aside() as seen, looked_at() as looked:
            value = make(store)
        if not at_hand:
            return Kept(value, tuple(seen), {})
        prints = {file: fingerprint(file) for file in sorted({*looked, *code})}
        found = Kept(form.validate_python(form.dump_python(value)), tuple(seen), prints)
        if not changed_since(began, looked) and not changed_since(STARTED, code):
            with suppress(OSError):  # a full disk, or a cache that may not be written
                _write(path, found, form)
    look(found.files)
    return found


def is_kept(name: str, module: str, form: TypeAdapter[T], store: Store) -> bool:
    """Whether `kept` would take this result from disk."""
    return _read(_place(name, store), form, code_of(module)) is not None


def changed_since(moment: float, files: Iterable[str]) -> bool:
    """Whether one of these files may be another one than was used."""
    for file in files:
        with suppress(OSError):
            if os.stat(file).st_ctime >= moment - CLOCK_TICK:  # noqa: PTH116 — a command asks for thousands
                return True
    return False


def _place(name: str, store: Store) -> Path:
    known = json.dumps([name, [str(folder) for folder in store.folders], store.platform, store.machine, _versions()])
    return results_folder() / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"


@cache
def _versions() -> list[str]:
    return [sys.version, *(metadata.version(library) for library in LIBRARIES)]


def _read(path: Path, form: TypeAdapter[T], code: frozenset[str]) -> Kept[T] | None:
    """The entry if it is whole and holds, and knows all of this code, else None."""
    try:
        digest, _, body = path.read_text(encoding="utf-8").partition("\n")
        if digest != hashlib.sha256(body.encode()).hexdigest():
            return None
        entry = json.loads(body)
        files = entry["files"]
        if not code <= files.keys() or any(fingerprint(file) != known for file, known in files.items()):
            return None
        found = Kept(form.validate_python(entry["value"]), tuple(entry["seen"]), files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sys.audit(USED, *found.files)
    return found


def _write(path: Path, result: Kept[T], form: TypeAdapter[T]) -> None:
    body = json.dumps({"value": form.dump_python(result.value), "seen": result.seen, "files": result.files})
    write_atomically(path, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode(), lasting=False)
    _clear(path.parent)


@cache
def _clear(folder: Path) -> None:
    """Delete what is old there, once a process."""
    for old in folder.glob("*.json"):
        if time.time() - old.stat().st_mtime > KEPT_DAYS * 86400:
            old.unlink(missing_ok=True)


def fingerprint(file: str) -> str:
    """SHA-256 of a file, of the names of the records in a folder, or nothing where there is neither."""
    try:
        state = os.stat(file)  # noqa: PTH116 — a command asks for thousands
    except OSError:
        return ""
    if stat.S_ISDIR(state.st_mode):
        return hashlib.sha256("\n".join(sorted(one.name for one in Path(file).glob("*.json"))).encode()).hexdigest()
    return _hash(file, state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(maxsize=8192)
def _hash(file: str, *state: int) -> str:
    """`state` is what changes when the file does."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@lru_cache(maxsize=64)
def code_of(module: str) -> frozenset[str]:
    """The package's files that a module's functions can use: what it imports, what that imports, and the data.

    A module that imports others by a name it computes, or asks for a study by name, can use all of its package;
    `studies` itself is told the name, and that study is a rule of its own.
    """
    waiting, files = [module], set[str]()
    while waiting:
        for file in _files_of(waiting.pop()):
            if str(file) not in files:
                files.add(str(file))
                waiting += imported(file)
    return frozenset({*files, *_data()})


@cache
def _data() -> list[str]:
    """The package's files that are no code."""
    found = [*PACKAGE.glob("data/**/*"), *PACKAGE.glob("*/*.toml")]
    return [str(path) for path in found if path.is_file()]


@lru_cache(maxsize=4096)
def _files_of(name: str) -> list[Path]:
    """The file of a module and those of the packages that it lies in."""
    parts = name.split(".")
    names = [".".join(parts[: length + 1]) for length in range(len(parts))]
    return [_modules()[one] for one in names if one in _modules()]


@cache
def _modules() -> dict[str, Path]:
    """Name → file of each module of the package."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join([PACKAGE.name, *(part for part in parts if part != "__init__")])] = file
    return found


@lru_cache(maxsize=512)
def imported(file: Path) -> tuple[str, ...]:
    """Names of the package's modules that a file of it imports, or may import by a name that it computes."""
    text = file.read_text(encoding="utf-8")
    names = named(text)
    if BY_NAME.search(text) and file != PACKAGE / "studies" / "__init__.py":
        names |= {".".join(("peftbook", *one.relative_to(PACKAGE).with_suffix("").parts)) for one in _siblings(file)}
    return tuple(sorted(names))


def named(code: str) -> set[str]:
    """Names of the package's modules that code imports, wherever in it; of `from a import b` both a and a.b."""
    names = set[str]()
    for origin, what, whole in IMPORTED.findall(code):
        names |= {whole} if whole else {origin, *(f"{origin}.{name}" for name in re.findall(r"\w+", what))}
    return names


def _siblings(file: Path) -> Iterable[Path]:
    return [*file.parent.glob("*.py"), *(one.parent for one in file.parent.glob("*/__init__.py"))]
