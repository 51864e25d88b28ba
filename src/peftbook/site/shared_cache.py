"""Executed chapters that travel: outputs that were made elsewhere from the same code, data, records and lock file.

A place is a folder with one file for each executed chapter, or a .zip archive of such a folder. A file says in its
first line the hash of the rest: what the execution used, as the ledger has it, and the notebook with its outputs. What
is damaged, of another version, or made from anything else than what lies here, is as good as not there.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

from peftbook.errors import InputError
from peftbook.records import default_store, write_atomically
from peftbook.site.execution import Ledger, read_again

__all__ = ["LEDGER", "bring", "check_place", "give"]

LEDGER = "peftbook.json"  # in the folder of the cache
FORMAT = 1
KEPT_DAYS = 60  # after which a file that no build has had a use for is deleted
OURS = re.compile(r"[0-9a-f]{32}\.json")
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


def check_place(place: Path) -> None:
    """Raise InputError where no outputs can be had, nor kept: a .zip that is none, a file in place of a folder."""
    if len(folders := default_store().folders) > 1:
        raise InputError(
            f"Records are read from {str(folders[-1])!r} too, which outputs executed elsewhere do not know: leave out "
            "--cache, or unset PEFTBOOK_RECORDS."
        )
    try:
        if place.suffix == ".zip":
            with zipfile.ZipFile(place):
                return
        if place.exists() and not place.is_dir():
            raise InputError(f"{str(place)!r} is neither a folder nor a .zip archive: give one of them to --cache.")
    except zipfile.BadZipFile:
        raise InputError(
            f"{str(place)!r} is no .zip archive of executed chapters: give another, or a folder."
        ) from None
    except OSError as error:
        raise InputError(f"{str(place)!r} cannot be read ({error.strerror}): give another place to --cache.") from None


def bring(place: Path, build: Path, root: Path) -> list[str]:
    """Put the executed chapters of a place that hold here into the cache; returns their pages, to be read again.

    build: folder of the builds, with the caches of Sphinx and of jupyter-cache.  root: of the checkout, to which the
    paths of the ledger are. Raises InputError where there is no room.
    """
    pages: list[str] = []
    try:
        ledger, cache = Ledger(cache_of(build) / LEDGER, root), get_cache(cache_of(build))
        for code_hash, entry, notebook in chapters(place):
            with suppress(Exception):  # whatever is wrong with a notebook, it is as good as not there
                if ledger.holds(code_hash) or foreign(entry) or ledger.changes_of(entry):
                    continue
                if cache.create_hashed_notebook(notebook)[1] != code_hash:  # it says it is of other code than it is
                    continue
                bundle = CacheBundleIn(notebook, str(root / f"{entry['page']}.md"))
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
                ledger.entries[code_hash] = entry
                pages.append(entry["page"])
        ledger.failed = [page for page in ledger.failed if page not in pages]
        for page in pages:
            read_again(build / ".doctrees", page)
        ledger.save()
    except OSError as error:
        raise InputError(
            f"What {str(place)!r} has cannot be written to {str(build)!r} ({error.strerror}): make room, or leave out "
            "--cache."
        ) from None
    return pages


def cache_of(build: Path) -> Path:
    """Where jupyter-cache and the ledger are."""
    return build / ".jupyter_cache"


def foreign(entry: dict[str, Any]) -> bool:
    """Whether an execution used what is in no checkout: nobody else can tell whether that is the same."""
    return any(Path(name).is_absolute() or ".." in Path(name).parts for name in [entry["page"], *entry["files"]])


def give(place: Path, build: Path, root: Path) -> list[str]:
    """Write the executed chapters of the cache that hold here into a folder; returns the pages of those that are new
    there. What was of use to nobody for long is deleted. Raises InputError where the folder cannot be written.
    """
    ledger, cache, pages = Ledger(cache_of(build) / LEDGER, root), get_cache(cache_of(build)), []
    for record in cache.list_cache_records():
        entry = ledger.entries.get(record.hashkey)
        if entry is None or foreign(entry) or ledger.changes_of(entry):
            continue
        try:
            notebook = cache.get_cache_bundle(record.pk).nb
        except KeyError:  # its file is gone
            continue
        told = {"format": FORMAT, "code": record.hashkey, "entry": entry, "notebook": notebook}
        body = json.dumps(told, sort_keys=True, ensure_ascii=False)
        whole = f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}".encode()
        path = place / f"{record.hashkey}.json"
        try:
            if path.is_file() and path.read_bytes() == whole:
                path.touch()
            else:
                write_atomically(path, whole)
                pages.append(entry["page"])
        except OSError as error:
            raise InputError(
                f"The book is built, but {str(place)!r} cannot be written ({error.strerror}): give another folder to "
                "--cache."
            ) from None
    for old in place.glob("*.json"):
        with suppress(OSError):  # another build may delete it too
            long_ago = time.time() - old.stat().st_mtime > KEPT_DAYS * 86400
            if OURS.fullmatch(old.name) and long_ago and whole_part(old.read_bytes()) is not None:
                old.unlink(missing_ok=True)
    return pages


def chapters(place: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Hash of the code, ledger's entry and notebook of every whole file of a place."""
    for body in files(place):
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            if (rest := whole_part(body)) is not None and (told := json.loads(rest))["format"] == FORMAT:
                yield str(told["code"]), dict(told["entry"]), nbformat.from_dict(told["notebook"])


def whole_part(body: bytes) -> bytes | None:
    """What follows a file's first line, if that is the hash of it."""
    digest, _, rest = body.partition(b"\n")
    return rest if hashlib.sha256(rest).hexdigest().encode() == digest else None


def files(place: Path) -> Iterator[bytes]:
    """What each file of a place holds, those of an archive wherever in it they are; not those that cannot be read."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                with suppress(*DAMAGED):
                    if name.endswith(".json"):
                        yield archive.read(name)
        return
    for path in sorted(place.glob("*.json")):
        with suppress(OSError):
            yield path.read_bytes()
