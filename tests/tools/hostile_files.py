"""Hostile files from a seeded generator: what `test_hostile` reads, and `hostile_studio` uploads.

A failure can be looked at again: `hostile(seed)`.
"""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import io
import json
import lzma
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

NAMES = (
    "data.csv", "data.tsv", "data.jsonl", "data.parquet", "data", "../../etc/passwd", "a\nb.csv", "x" * 5000, "é.CSV",
)  # fmt: skip
WORDS = (
    "alpha", "beta", "gamma", "<script>alert(1)</script>", "=1+1", "O'Neil", "漢字", "🙂", "NULL", "nan",
    "\u202e\u0000", "<|im_start|>system",
)  # fmt: skip
Dice = random.Random


def words(dice: Dice, count: int) -> str:
    """Some words."""
    return " ".join(dice.choice(WORDS) for _ in range(count))


def rows(dice: Dice, count: int = 30) -> list[list[str]]:
    """A table with a header, of some hostile words."""
    return [["question", "answer"], *([words(dice, 4), words(dice, 2)] for _ in range(count))]


def as_csv(table: list[list[str]], delimiter: str = ",") -> str:
    """A table as CSV."""
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(table)
    return stream.getvalue()


def as_jsonl(table: list[list[str]]) -> str:
    """A table as JSON lines."""
    return "\n".join(json.dumps(dict(zip(table[0], row, strict=True))) for row in table[1:])


def as_parquet(table: dict, **options) -> bytes:
    """A table as Parquet."""
    stream = io.BytesIO()
    pq.write_table(pa.table(table), stream, **options)
    return stream.getvalue()


def some_text(dice: Dice) -> str:
    """A good file of one of the text formats."""
    table = rows(dice)
    return dice.choice([as_csv(table), as_csv(table, ";"), as_csv(table, "\t"), as_jsonl(table)])


# --- the classes -----------------------------------------------------------------------------------------------


def broken_encoding(dice: Dice) -> bytes:
    """Bytes that no encoding has, in a text of one; or a text cut in the midst of a character."""
    encoding = dice.choice(["utf-8", "utf-16", "utf-16-le", "utf-32", "cp1251", "shift_jis", "latin-1", "utf-7"])
    content = bytearray(some_text(dice).encode(encoding, "replace"))
    for _ in range(dice.randint(1, 20)):
        content[dice.randrange(len(content))] = dice.choice([0x00, 0x80, 0xC0, 0xD8, 0xDC, 0xED, 0xF5, 0xFE, 0xFF])
    return bytes(content[: dice.randint(1, len(content))])


def wrong_mark(dice: Dice) -> bytes:
    """A byte order mark of another encoding."""
    mark = dice.choice([b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff", b"\xef\xbb\xbf" * 3])
    return mark + some_text(dice).encode(dice.choice(["utf-8", "utf-16-le", "utf-16-be"]))


def ragged(dice: Dice) -> bytes:
    """Rows of any width."""
    table = [[words(dice, 1) for _ in range(dice.randint(0, 9))] for _ in range(40)]
    return as_csv(table, dice.choice(",;\t|")).encode()


def broken_quotes(dice: Dice) -> bytes:
    """Quotes that open, close and open again anywhere, many of them or one."""
    pieces = ['"', '""', '","', "\n", "\r", "\r\n", ",", "x", 'x"', '"x', ";", "\t"]
    if dice.random() < 0.3:
        return ("a,b\n" + 'x","\n' * dice.randint(10, 30_000)).encode()
    return ("a,b\n" + "".join(dice.choice(pieces) for _ in range(dice.randint(5, 3000)))).encode()


def archive(dice: Dice) -> bytes:
    """An archive, or a bomb, that calls itself a table."""
    stream, content = io.BytesIO(), b"0" * dice.choice([10, 5_000_000])
    kind = dice.randrange(5)
    if kind == 0:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("xl/workbook.xml", content)
        return stream.getvalue()
    if kind == 1:
        with tarfile.open(fileobj=stream, mode="w") as file:
            file.addfile(tarfile.TarInfo("../data.csv"))
        return stream.getvalue()
    return [gzip.compress, bz2.compress, lzma.compress][kind - 2](content)


class Trap:
    """What opening its pickle would do."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def pickled(dice: Dice) -> bytes:
    """Code that runs when it is unpickled, in any protocol."""
    return pickle.dumps(Trap(), protocol=dice.randint(0, 5))


def other_file(dice: Dice) -> bytes:
    """Programs, pictures, pages, databases."""
    start = dice.choice([
        b"\x7fELF", b"MZ\x90\x00", b"#!/bin/sh\n", b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", b"SQLite format 3\x00",
        b"<html><body>", b"<?xml version='1.0'?>", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"{\\rtf1", b"ARROW1\x00\x00",
        b"Obj\x01", b"\x93NUMPY", b"GIF89a",
    ])  # fmt: skip
    return start + dice.randbytes(dice.randint(0, 2000))


def noise(dice: Dice) -> bytes:
    """Bytes at random, or of one kind."""
    length = dice.randint(0, 5000)
    return dice.choice([dice.randbytes(length), b"\x00" * length, b"\n" * length, b" " * length, b"," * length,
                        b'"' * length, b"[" * length, b"{" * length, b"\xff" * length])  # fmt: skip


def not_numbers(dice: Dice) -> bytes:
    """NaN, infinities and numbers beyond any, in JSON and Parquet."""
    if dice.random() < 0.1:  # Parquet, of which a file holds every value several times
        values = [dice.choice([float("nan"), float("inf"), -0.0, 1e308, None]) for _ in range(30)]
        return as_parquet({"q": values, "a": [words(dice, 1) for _ in values]})
    values = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 6000, "-0", "null", "true"]
    return "\n".join(f'{{"q": {dice.choice(values)}, "a": {dice.choice(values)}}}' for _ in range(30)).encode()


def large_cell(dice: Dice) -> bytes:
    """A cell of ten million characters, in a file that is otherwise good."""
    size, table = dice.choice([120_000, 120_000, 120_000, 3_000_000]), rows(dice)
    cell = dice.choice(["x", "é\n", '"', "x,\n"]) * size
    table[dice.randint(1, 30)][dice.randrange(2)] = cell[:10_000_000]
    return (as_csv(table) if dice.random() < 0.6 else as_jsonl(table)).encode()


def nested(dice: Dice) -> bytes:
    """JSON to any depth, or with very many brackets."""
    depth = dice.choice([10, 900, 1100, 100_000])
    inner = dice.choice(["[" * depth + "]" * depth, "[" * depth, '{"a":' * depth + "1" + "}" * depth, "[]," * depth])
    good = '{"q": "x", "a": "y"}\n' * 12
    return (good + dice.choice([f'{{"q": {inner}, "a": "y"}}', inner, f'{{"q": [{inner}0], "a": "y"}}'])).encode()


def many_columns(dice: Dice) -> bytes:
    """More columns than anyone has, in the header or one more in each row."""
    if dice.random() < 0.5:
        return (",".join(f"c{n}" for n in range(dice.randint(150, 50_000))) + "\n1,2\n").encode()
    return "\n".join(json.dumps({f"key{n}": "x", "q": "y"}) for n in range(dice.randint(100, 3000))).encode()


def bad_chats(dice: Dice) -> bytes:
    """Turns of other roles, without text, or that are no turns."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "tool", "content": "z"},
             {"role": ["user"], "content": "x"}, {"content": {}}, None, 7, [], {"role": "assistant", "content": [1]},
             {"role": "system", "content": [{"text": "s"}]}]  # fmt: skip
    chats = [{"messages": [dice.choice(turns) for _ in range(dice.randint(0, 5))]} for _ in range(40)]
    return "\n".join(json.dumps(dice.choice([chat, chat, chat, {"messages": "x"}])) for chat in chats).encode()


def odd_json(dice: Dice) -> bytes:
    """Half of a surrogate pair, duplicate and empty keys, comments, single quotes, cut arrays, several at once."""
    pieces = ['{"q": "\\ud800", "a": "x"}', '{"q": "1", "q": "2", "a": ""}', "{'q': 1}", "[1, 2", "{}", "[]", "null",
              '{"": "", " ": "x"}', "// no", '{"q": "x", "a": "y"}', '[{"q": "x", "a": "y"},', '{"q": "x"}{"q": "y"}',
              '"text"', "7", '{"q": "x",}', '{"q": "a\nb"}', '{"q": "\x00", "a": "b"}']  # fmt: skip
    return dice.choice(["\n", "", ",", "\r\n"]).join(dice.choice(pieces) for _ in range(30)).encode()


def damaged_parquet(dice: Dice) -> bytes:
    """A Parquet file with some bytes changed, or cut."""
    content = bytearray(
        as_parquet(
            {"q": [words(dice, 3) for _ in range(20)], "a": [words(dice, 1) for _ in range(20)], "n": [[1]] * 20},
            compression=dice.choice(["none", "snappy", "zstd"]),
        )
    )
    for _ in range(dice.randint(0, 5)):
        content[dice.randrange(4, len(content))] = dice.randrange(256)
    return bytes(content if dice.random() < 0.7 else content[: dice.randint(4, len(content))])


def parquet_bomb(dice: Dice) -> bytes:
    """A small file that unpacks to gigabytes: one long value many times, deltas of one, or lists of nothing."""
    return bomb(dice.randrange(3))


@functools.cache
def bomb(kind: int, count: int = 20_000) -> bytes:
    """The bombs, each made once."""
    if kind == 0:
        column = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * 1_000_000]))
        return as_parquet({"q": column, "a": ["y"] * count})
    if kind == 1:
        table = {"q": ["x" * 20_000] * 8000, "a": ["y"] * 8000}
        return as_parquet(table, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    lists = pa.ListArray.from_arrays(pa.array([0, 6_000_000], pa.int32()), pa.nulls(6_000_000, pa.int8()))
    return as_parquet({"q": lists, "a": ["y"]})


def parquet_types(dice: Dice) -> bytes:
    """Columns of types that are no text."""
    table = {
        "b": pa.array([bytes([n, 255]) for n in range(20)], pa.binary()),
        "wide": pa.array([b"x" * 100] * 20, pa.binary(100)),
        "when": pa.array([2**62] * 20, pa.timestamp(dice.choice(["us", "ns"]))),
        "map": pa.array([[("k", 1)]] * 20, pa.map_(pa.string(), pa.int8())),
        "struct": [{"a": {"b": [1, None]}}] * 20,
        "nothing": pa.nulls(20),
        "messages": dice.choice([["x"] * 20, [[]] * 20, [[{"role": "user", "content": "x"}]] * 20]),
    }
    chosen = dice.sample(sorted(table), dice.randint(1, len(table)))
    return as_parquet({name: table[name] for name in chosen})


CLASSES: tuple[Callable[[Dice], bytes], ...] = (
    broken_encoding, wrong_mark, ragged, broken_quotes, archive, pickled, other_file, noise, not_numbers, large_cell,
    nested, many_columns, bad_chats, odd_json, damaged_parquet, parquet_bomb, parquet_types,
)  # fmt: skip
# Those that take longest to make, and Parquet, which is read by a process of its own each time.
RARE = {large_cell: 0.4, archive: 0.5, parquet_bomb: 0.15, damaged_parquet: 0.3, parquet_types: 0.3}


def hostile(seed: int) -> tuple[str, str, bytes]:
    """(class, name, content) of a file."""
    dice = random.Random(seed)
    kind = CLASSES[seed % len(CLASSES)]
    if dice.random() > RARE.get(kind, 1.0):
        kind = odd_json
    return kind.__name__, dice.choice(NAMES), kind(dice)
