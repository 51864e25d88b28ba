"""Executed chapters that travel: outputs that were made elsewhere from the same code, data, records and lock file.

A place is a folder with one file for each executed chapter, or a .zip archive of such a folder. A file has a checksum,
what the execution used, and the notebook with its outputs. Files that are damaged, of another version, or made from
anything else than what lies here, are ignored.
"""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

from peftbook.core.errors import InputError
from peftbook.core.records import default_store, write_atomically
from peftbook.core.stamp import add_checksum, verified_body
from peftbook.views.site.execution import changed_files, read_again

__all__ = ["check_place", "export_chapters", "import_chapters"]

FORMAT = 1
MAX_AGE_DAYS = 60  # after which a file that no build has used is deleted
FILE_NAME = re.compile(r"[0-9a-f]{32}\.json")


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


def import_chapters(place: Path, build: Path, root: Path) -> list[str]:
    """Add the chapters of a place that are valid here to the cache; returns their pages, which are read again.

    build: folder of the builds, with the caches of Sphinx and of jupyter-cache.  root: of the checkout, to which the
    paths of used files are relative. Raises InputError where the cache cannot be written.
    """
    pages: list[str] = []
    try:
        cache = get_cache(cache_of(build))
        valid = {record.hashkey for record in cache.list_cache_records() if not changed_files(record.data, root)}
        for code_hash, entry, notebook in read_chapters(place):
            with suppress(Exception):  # whatever is wrong with a notebook, it is ignored
                if code_hash in valid or outside_checkout(entry) or changed_files(entry, root):
                    continue
                if cache.create_hashed_notebook(notebook)[1] != code_hash:
                    continue
                bundle = CacheBundleIn(notebook, str(root / f"{entry['page']}.md"), data=entry)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
                pages.append(entry["page"])
        for page in pages:
            read_again(build / ".doctrees", page)
    except OSError as error:
        raise InputError(
            f"What {str(place)!r} has cannot be written to {str(build)!r} ({error.strerror}): make room, or leave out "
            "--cache."
        ) from None
    return pages


def cache_of(build: Path) -> Path:
    """Where jupyter-cache is."""
    return build / ".jupyter_cache"


def outside_checkout(entry: dict[str, Any]) -> bool:
    """Whether an execution used files that are in no checkout, which cannot be compared elsewhere."""
    return any(Path(name).is_absolute() or ".." in Path(name).parts for name in [entry["page"], *entry["files"]])


def export_chapters(place: Path, build: Path, root: Path) -> list[str]:
    """Write the valid chapters of the cache into a folder, and delete old files there; returns the pages of new ones.

    Raises InputError where the folder cannot be written.
    """
    cache, pages = get_cache(cache_of(build)), []
    for record in cache.list_cache_records():
        entry = record.data
        if changed_files(entry, root) or outside_checkout(entry):
            continue
        try:
            notebook = cache.get_cache_bundle(record.pk).nb
        except KeyError:  # its file is gone
            continue
        content = {"format": FORMAT, "code": record.hashkey, "entry": entry, "notebook": notebook}
        data = add_checksum(json.dumps(content, sort_keys=True, ensure_ascii=False))
        path = place / f"{record.hashkey}.json"
        try:
            if path.is_file() and path.read_bytes() == data:
                path.touch()
            else:
                write_atomically(path, data)
                pages.append(entry["page"])
        except OSError as error:
            raise InputError(
                f"The book is built, but {str(place)!r} cannot be written ({error.strerror}): give another folder to "
                "--cache."
            ) from None
    for path in place.glob("*.json"):
        with suppress(OSError):  # another build may delete it too
            old = time.time() - path.stat().st_mtime > MAX_AGE_DAYS * 86400
            if old and FILE_NAME.fullmatch(path.name) and verified_body(path.read_bytes()) is not None:
                path.unlink(missing_ok=True)
    return pages


def read_chapters(place: Path) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Hash of the code, what its execution used, and notebook of every undamaged file of a place."""
    for data in read_files(place):
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            if (body := verified_body(data)) is not None and (content := json.loads(body))["format"] == FORMAT:
                yield str(content["code"]), dict(content["entry"]), nbformat.from_dict(content["notebook"])


def read_files(place: Path) -> Iterator[bytes]:
    """The readable files of a place, those of an archive wherever in it they are."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                with suppress(Exception):  # each way of packing fails in its own
                    if name.endswith(".json"):
                        yield archive.read(name)
        return
    for path in sorted(place.glob("*.json")):
        with suppress(OSError):
            yield path.read_bytes()
