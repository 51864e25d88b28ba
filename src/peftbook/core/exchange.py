"""Exchange: records of other machines and homes, as files, checked before anything is written."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store, check_record, write_atomically

TEXTS_BYTES = 64_000_000  # of a record, unpacked
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # so that equal files give equal archives


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
