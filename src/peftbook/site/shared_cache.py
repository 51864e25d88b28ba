"""Executed chapters that travel: outputs that were made elsewhere from the same code, data, records and lock file.

A place is a folder with one file for each executed chapter, or a .zip archive of such a folder. A file says in its
first line the hash of the rest: what the execution used, as the ledger has it, and the notebook with its outputs. What
is damaged, of another version, or made from anything else than what lies here, is as good as not there.
"""

from __future__ import annotations

import hashlib
import json
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
from peftbook.site.execution import Ledger

__all__ = ["LEDGER", "bring", "check_place", "give"]

LEDGER = "peftbook.json"  # in the folder of the cache
FORMAT = 1
KEPT_DAYS = 60  # after which a file that no build has had a use for is deleted


def check_place(place: Path) -> None:
    """Raise InputError where no outputs can be had, nor kept: a .zip that is none, a file in place of a folder."""
    if len(default_store().folders) > 1:
        raise InputError(
            "PEFTBOOK_RECORDS adds records of yours, which outputs executed elsewhere do not know: unset it, or leave "
            "out --cache."
        )
    if place.suffix == ".zip":
        if not zipfile.is_zipfile(place):
            raise InputError(f"{str(place)!r} is no .zip archive of executed chapters: give another, or a folder.")
    elif place.exists() and not place.is_dir():
        raise InputError(f"{str(place)!r} is neither a folder nor a .zip archive: give one of them to --cache.")


def bring(place: Path, cache_folder: Path, root: Path) -> list[str]:
    """Put the executed chapters of a place that hold here into the cache; returns their pages.

    cache_folder: of jupyter-cache and the ledger.  root: of the checkout, to which the paths of the ledger are.
    """
    ledger, cache, pages = Ledger(cache_folder / LEDGER, root), get_cache(cache_folder), []
    for code_hash, entry, notebook in chapters(place):
        if ledger.holds(code_hash) or ledger.changes_of(entry):
            continue
        bundle = CacheBundleIn(notebook, str(root / f"{entry['page']}.md"))
        record = cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        if record.hashkey != code_hash:  # it says that it is of other code than it is
            cache.remove_cache(record.pk)
            continue
        ledger.entries[code_hash] = entry
        pages.append(entry["page"])
    ledger.save()
    return pages


def give(place: Path, cache_folder: Path, root: Path) -> list[str]:
    """Write the executed chapters of the cache that hold here into a folder; returns the pages of those that are new
    there. What was of use to nobody for long is deleted. Raises InputError where the folder cannot be written.
    """
    ledger, cache, pages = Ledger(cache_folder / LEDGER, root), get_cache(cache_folder), []
    for record in cache.list_cache_records():
        entry = ledger.entries.get(record.hashkey)
        if entry is None or ledger.changes_of(entry):
            continue
        notebook = cache.get_cache_bundle(record.pk).nb
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
        if time.time() - old.stat().st_mtime > KEPT_DAYS * 86400:
            old.unlink(missing_ok=True)
    return pages


def chapters(place: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Hash of the code, ledger's entry and notebook of every whole file of a place."""
    for body in files(place):
        digest, _, rest = body.partition(b"\n")
        if hashlib.sha256(rest).hexdigest().encode() != digest:
            continue
        told = json.loads(rest)
        if told.get("format") == FORMAT:
            yield told["code"], told["entry"], nbformat.from_dict(told["notebook"])


def files(place: Path) -> Iterator[bytes]:
    """What each file of a place holds, those of an archive wherever in it they are; not those that cannot be read."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json"):
                    with suppress(zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError):
                        yield archive.read(name)
        return
    for path in sorted(place.glob("*.json")):
        with suppress(OSError):
            yield path.read_bytes()
