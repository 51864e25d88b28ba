"""Exchange: records of other machines, as files of a node or in one archive, checked before anything is written."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store, check_record, write_atomically

# What an imported file may hold: our own names, and no more than these sizes (the largest shipped record has 0.1 MB).
MEMBER = re.compile(r"([0-9a-f]{12})(\.json|\.texts\.json\.gz)")
MEMBERS, MEMBER_BYTES, ALL_BYTES, TEXTS_BYTES = 4000, 8_000_000, 400_000_000, 64_000_000
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # so that equal records give equal files


def export_records(store: Store, keys: Iterable[str], path: Path) -> int:
    """Write the records of these keys with their texts into one zip file, whole or not at all; returns their number."""
    body, count = io.BytesIO(), 0
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in sorted(set(keys)):
            files = files_of(store, key)
            count += bool(files)
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), data)
    write_atomically(path, body.getvalue())
    return count


def import_records(store: Store, path: Path) -> tuple[list[str], list[str]]:
    """Add the records of an exported file that are new; returns the keys that were added and those that were refused.

    Everything in the file is checked before anything is written: names, sizes, and each record as on every load, its
    texts against their hash. A record that is at hand with other content is refused: records are never replaced.

    Raises InputError for a file that is not such an export; nothing is written then.
    """
    members = read_members(path)
    found: dict[str, tuple[bytes, bytes | None]] = {}
    for name, data in members.items():
        key, suffix = MEMBER.fullmatch(name).groups()  # type: ignore[union-attr]
        if suffix == ".json":
            record = check_record(name, data)
            texts = members.get(f"{key}.texts.json.gz")
            check_texts(record, texts)
            found[record.key] = data, texts
        elif f"{key}.json" not in members:
            raise InputError(f"{path.name} has texts of {key} without their record: export it again.")
    added, refused = [], []
    for key, (data, texts) in sorted(found.items()):
        present = store.path(key)
        if present is not None:
            if present.read_bytes() != data:
                refused.append(key)
            continue
        write_files(store.folders[-1], key, data, texts)
        added.append(key)
    return added, refused


def files_of(store: Store, key: str) -> dict[str, bytes]:
    """The content of a record's files by their names: the record, and its texts if it has some; empty without one."""
    if (record := store.path(key)) is None:
        return {}
    paths = record, record.with_suffix(".texts.json.gz")
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def receive_record(store: Store, key: str, files: Mapping[str, bytes]) -> Record:
    """Add the record of this key, made on another machine, byte for byte.

    Raises InputError, and writes nothing, unless the record is this run's and complete with its texts. A record that is
    already at hand is not replaced.
    """
    name = f"{key[:12]}.json"
    record = check_record(name, files.get(name, b""))
    if record.key != key:
        raise InputError(f"Record {name} is of run {record.key}, not of {key}: run it again.")
    texts = files.get(f"{key[:12]}.texts.json.gz")
    check_texts(record, texts)
    if store.path(key) is None:
        write_files(store.folders[-1], key, files[name], texts)
    return record


def write_files(folder: Path, key: str, data: bytes, texts: bytes | None) -> None:
    """Write the texts first, so that a record on disk is always complete."""
    if texts is not None:
        write_atomically(folder / f"{key[:12]}.texts.json.gz", texts)
    write_atomically(folder / f"{key[:12]}.json", data)


def read_members(path: Path) -> dict[str, bytes]:
    """Name → content of an exported file. Raises InputError for other names, sizes or formats."""
    again = "give a file that `peftbook run --export` wrote"
    out: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) > MEMBERS or len(set(names)) < len(names):
                raise InputError(f"{path.name} holds more than {MEMBERS} files or one name twice: {again}.")
            for name in names:
                if not MEMBER.fullmatch(name):
                    raise InputError(f"{path.name} holds {name[:60]!r}, which is no record: {again}.")
                with archive.open(name) as stream:  # the stated size is not trusted
                    out[name] = stream.read(MEMBER_BYTES + 1)
                if len(out[name]) > MEMBER_BYTES or sum(map(len, out.values())) > ALL_BYTES:
                    raise InputError(f"{path.name} is too large at {name}: {again}.")
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path.name} cannot be read ({error}): {again}.") from None
    return out


def check_texts(record: Record, texts: bytes | None) -> None:
    """Raises InputError unless the texts are those that the record names."""
    found = ""
    if texts is not None:
        gzipped = zlib.decompressobj(wbits=31)  # 31: with gzip's header
        try:
            raw = gzipped.decompress(texts, TEXTS_BYTES + 1)
        except zlib.error:
            raw = b""
        found = hashlib.sha256(raw).hexdigest() if gzipped.eof and len(raw) <= TEXTS_BYTES else "unreadable"
    if found != record.texts_sha256:
        raise InputError(f"The texts of record {record.short_key} do not match its hash: export it again.")
