"""Content: what a file is by its bytes, and its text by its encoding. Nothing is unpacked, nothing is run."""

from __future__ import annotations

import codecs
import re

from peftbook.core.errors import InputError

FIX = "save the data as plain .csv, .tsv, .jsonl or .parquet"
# Beginnings of files that hold no table, or none that is opened here.
BINARY_STARTS = {
    **{bytes([0x80, protocol]): "a pickle, which can run code when it is opened" for protocol in range(2, 6)},
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"PK\x05\x06": "a zip archive or an Excel file",
    b"PK\x07\x08": "a zip archive or an Excel file",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x04\x22\x4d\x18": "an LZ4 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel or Word file",
    b"\x7fELF": "a program",
    b"\xcf\xfa\xed\xfe": "a program",
    b"\xca\xfe\xba\xbe": "a program",
    b"\x00asm": "a program",
    b"#!": "a script",
    b"%PDF-": "a PDF",
    b"\x89PNG\r\n": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file",
    b"ARROW1": "an Arrow or Feather file",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"{\\rtf": "a rich text document",
}
MARKUP = re.compile(r"\s*<(!doctype|html|\?xml|head|body|script|svg)\b", re.I)
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\x81\x8d\x8f\x90\x9d]")
BINARY_SHARE, LEAST_BINARY = 0.05, 8  # control characters of a text that is none
SAMPLE = 65_536


def display_name(name: str) -> str:
    """A file's name as messages print it: one line, not too long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name.replace("\\", "/").rsplit("/", 1)[-1])
    return (plain if len(plain) <= 80 else f"{plain[:60]}…{plain[-16:]}") or "The file"


def what_it_is(content: bytes) -> str:
    """What a file is by its first bytes, where it is no table; else nothing."""
    for start, kind in BINARY_STARTS.items():
        if content.startswith(start):
            return kind
    if content[257:262] == b"ustar":
        return "a tar archive"
    if content.startswith(b"MZ") and b"\x00" in content[:128]:
        return "a program"
    return ""


def is_markup(text: str) -> bool:
    """Whether a text begins as a page of HTML or XML does."""
    return MARKUP.match(text) is not None


def decode(content: bytes, what: str) -> tuple[str, str]:
    """(text, encoding): by its byte order mark, else UTF-16 by the places of null bytes, else UTF-8, else cp1252.

    A byte that is not UTF-8 in a text that mostly is stays as a lone surrogate, which makes its row a fault; a text
    that has no other letters beyond ASCII is taken as cp1252, or latin-1. Raises InputError for what is no text.
    """
    encoding = next((name for mark, name in BOMS if content.startswith(mark)), "") or without_mark(content)
    if encoding.startswith("utf-16"):
        text = content[: len(content) // 2 * 2].decode(encoding, "surrogatepass")
    elif encoding == "utf-32":
        text = content[: len(content) // 4 * 4].decode(encoding, "replace")
    else:
        text = content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    text = text.removeprefix("\ufeff")
    sample = text[:SAMPLE]
    if len(CONTROLS.findall(sample)) > max(LEAST_BINARY, BINARY_SHARE * len(sample)):
        raise InputError(f"{what} looks like a binary file, not like text: {FIX}.")
    return text, encoding


def without_mark(content: bytes) -> str:
    """The encoding of bytes without a byte order mark."""
    sample = content[:SAMPLE]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) > 0.2 * len(sample) and min(even, odd) < 0.1 * max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    try:
        content.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    escaped = content.decode("utf-8", "surrogateescape")
    broken = len(re.findall(r"[\udc80-\udcff]", escaped))
    beyond = len(re.findall(r"[^\x00-\x7f]", escaped)) - broken
    if beyond > broken:
        return "utf-8"
    try:
        content.decode("cp1252")
        return "cp1252"
    except UnicodeDecodeError:
        return "latin-1"
