"""Laws of the reader: what was written is read back, whatever format, encoding or delimiter; faults are numbered."""

from __future__ import annotations

import csv
import io
import json
import pickle
import time
import zipfile

import docstrings_build
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.core.errors import InputError
from peftbook.tasks import TaskExample, similarity
from peftbook.tasks.cautions import cautions
from peftbook.tasks.columns import Columns, guess_columns
from peftbook.tasks.files import Split, examine, split_examples, split_rows, task_from_table, usable_rows
from peftbook.tasks.table import Caps, read_table

COLUMNS = Columns("question", "answer")
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from("\n\t"), max_size=12)
LETTERS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
GROUPED = st.lists(st.tuples(LETTERS, LETTERS, st.sampled_from(["", "x", "y", "z"])), max_size=20)


def written(rows, delimiter=",", header=("question", "answer")) -> str:
    """Rows as CSV."""
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return stream.getvalue()


def parquet(table: pa.Table) -> bytes:
    """A table as Parquet."""
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def pairs(count: int) -> list[tuple[str, str]]:
    """Pairs without a word in common, beside one."""
    return [(f"what is w{n} x{n * 7} y{n * 13}", f"it is {n}") for n in range(count)]


# --- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_delimiter_in_every_encoding_reads_the_same(delimiter, encoding):
    """Cells may hold every delimiter, quotes and line breaks."""
    rows = [("Grüße, a;b|c\td", 'say "hé"\nnow'), ("x, y", "ö"), ("a | b", "ç; à")]
    table = read_table(written(rows, delimiter).encode(encoding), "data.txt")
    assert table.rows == tuple(rows) and table.columns == ("question", "answer")
    assert table.delimiter == delimiter and table.format == ("tsv" if delimiter == "\t" else "csv")
    assert table.encoding == encoding and table.numbers == (1, 2, 3) and not table.faults


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=8), st.sampled_from([",", ";", "\t"]))
def test_what_was_written_as_csv_is_read_back(rows, delimiter):
    """Any text survives, the delimiter being found by itself."""
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("q", "a"), *rows])
    assert read_table(stream.getvalue().encode()).rows == tuple(rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({"q": PLAIN, "a": PLAIN}), min_size=1, max_size=6), st.sampled_from([None, 1]))
def test_json_lines_arrays_and_pretty_printed_objects_read_the_same(rows, indent):
    """A dump as one array, one object a line, or objects over several lines."""
    lines = "\n".join(json.dumps(row, indent=indent) for row in rows)
    wanted = tuple(tuple(row[name] for name in rows[0]) for row in rows)
    for text in (lines, json.dumps(rows, indent=indent)):
        table = read_table(text.encode(), "data.csv")
        assert (table.rows, table.format, table.faults) == (wanted, "jsonl", ())


def test_parquet_reads_text_numbers_dates_and_lists_as_text():
    """Null and NaN are empty, all else is as JSON writes it."""
    table = read_table(
        parquet(
            pa.table(
                {
                    "s": ["é", None],
                    "n": [1, 2],
                    "f": [float("nan"), 2.5],
                    "d": pa.array([0, 1], pa.date32()),
                    "l": [[1, 2], None],
                    "b": [b"x", b"y"],
                }
            )
        )
    )
    assert table.format == "parquet"
    assert table.rows == (("é", "1", "", "1970-01-01", "[1, 2]", "x"), ("", "2", "2.5", "1970-01-02", "", "y"))


def test_chats_of_both_formats_become_instruction_input_and_target():
    """The last answer is the target, what comes before it the input, and the system's words the instruction."""

    def turn(role, content):
        return {"role": role, "content": content}

    chats = [
        {"messages": [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello")], "id": "a"},
        {
            "messages": [turn("user", "1?"), turn("assistant", "2"), turn("user", "3?"), turn("assistant", "4")],
            "id": "b",
        },
    ]
    wanted = (("Be brief.", "Hi", "Hello", "a"), ("", "User: 1?\n\nAssistant: 2\n\nUser: 3?", "4", "b"))
    for content in ("\n".join(map(json.dumps, chats)).encode(), parquet(pa.Table.from_pylist(chats))):
        table = read_table(content)
        assert table.columns == ("instruction", "input", "target", "id") and table.rows == wanted
        assert table.turns == (
            (("system", "Be brief."), ("user", "Hi")),
            (("user", "1?"), ("assistant", "2"), ("user", "3?")),
        )
        assert table.format == "chat" and guess_columns(table)[0] == Columns("input", "target", "instruction")


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no user turn"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "role 'narrator'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "calls tools"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]}, "offers tools"),
        ({"messages": [{"role": "user", "content": None}]}, "without text"),
        ({"messages": ["x"]}, "no object"),
        (
            {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "x"}]},
            "turn 1, of the user",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]},
            "turn 2, of the assist",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\0"}]},
            "the last answer holds",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role \"['user']\""),
        ({"text": "x"}, "no list of"),
    ],
)
def test_a_chat_that_teaches_nothing_is_a_fault(chat, problem):
    """Each with its row."""
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    table = read_table("\n".join(map(json.dumps, [good, chat, good])).encode())
    assert table.numbers == (1, 3) and [fault.row for fault in table.faults] == [2]
    assert problem in table.faults[0].problem and not table.faults[0].column


def spoken(*texts, first="user", keys=("role", "content"), names=("user", "assistant")):
    """Turns by two speakers in turn."""
    at = ("user", "assistant").index(first)
    return [dict(zip(keys, (names[(n + at) % 2], text), strict=True)) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "S"}, *spoken("1", "2", "3", "4")]},
        {"messages": [{"role": "developer", "content": "S"}, *spoken("1", "2", "3", "4", "5")]},
        {"system": "S", "conversations": spoken("1", "2", "3", "4", keys=("from", "value"), names=("human", "gpt"))},
        {
            "prompt": [{"role": "system", "content": "S"}, *spoken("1", "2", "3")],
            "completion": spoken("4", first="assistant"),
        },
        {"prompt": [{"role": "system", "content": "S"}, *spoken("1", "2", "3")], "answer": 4},
        {"system": "S", "chosen": spoken("1", "2", "3", "4"), "rejected": spoken("1", "2", "3", "no")},
        {"system": "S", "prompt": "1", "chosen": spoken("1", "2", "3", "4"), "rejected": spoken("1", "2", "3", "no")},
        {"system": "S", "history": [["1", "2"]], "instruction": "3", "input": "", "output": "4"},
    ],
)
def test_every_shape_of_a_chat_is_the_same_turns(row):
    """Whoever wrote it, the model reads the same; what follows the last answer is counted, `rejected` is named."""
    content = "\n".join(json.dumps(row) for _ in range(12)).encode()
    table = read_table(content)
    assert table.turns[0] == (("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3")) and not table.faults
    columns, _ = guess_columns(table)
    (example, *_), _ = usable_rows(table, columns)
    assert example.turns == table.turns[0] and example.target == "4" and "Assistant: 2" in example.input
    found = examine(table, columns)
    assert found.told and found.several == 12 and found.cut == 12 * (len(row.get("messages", ())) == 6)
    assert found.unused == ("rejected" if "rejected" in row else "")


def test_a_history_that_is_none_is_a_fault():
    """And a row without one is its instruction alone."""
    rows = [
        {"instruction": f"{n}", "output": "x", "history": history} for n, history in enumerate(([], 7, [["a"]], None))
    ]
    table = read_table("\n".join(map(json.dumps, rows)).encode())
    assert table.numbers == (1, 4) and ["no list of pairs" in fault.problem for fault in table.faults] == [True, True]


def test_flat_preferences_are_trained_on_what_was_chosen():
    """The longer text is not taken for it, and what is not used is named."""
    rows = [{"prompt": f"p{n}", "rejected": f"a long answer {n}", "chosen": f"c{n}"} for n in range(12)]
    table = read_table("\n".join(map(json.dumps, rows)).encode())
    columns, _ = guess_columns(table)
    assert (columns.input, columns.target) == ("prompt", "chosen")
    assert "“rejected” is not used" in cautions(examine(table, columns), "{input}")[1][0]


@pytest.mark.parametrize("turns", [False, True])
def test_completions_that_are_labelled_bad_are_left_out(turns):
    """KTO's rows: those whose `label` is false would teach what nobody wants. A label of another kind is a column."""
    rows = [
        {
            "prompt": spoken(f"p{n}") if turns else f"p{n}",
            "completion": spoken(f"c{n}", first="assistant") if turns else f"c{n}",
            "label": n % 2 == 0,
        }
        for n in range(20)
    ]
    table = read_table("\n".join(map(json.dumps, rows)).encode())
    columns = Columns("input", "target") if turns else Columns("prompt", "completion")
    examples, faults = usable_rows(table, columns)
    assert [example.target for example in examples] == [f"c{n}" for n in range(0, 20, 2)]
    assert len(faults) == 10 and all(fault.column == "label" and "bad" in fault.problem for fault in faults)
    assert guess_columns(table)[0] == columns


def test_chats_that_end_alike_are_neither_one_unit_nor_in_conflict():
    """Where earlier turns, or what the system says, differ, “go on” is another question."""
    chats = [{"messages": spoken(f"topic {n}", f"about {n}", "go on", f"more {n}")} for n in range(20)]
    systems = [
        {"messages": [{"role": "system", "content": f"w{n} x{n} y{n}"}, *spoken("go on", f"m{n}")]} for n in range(20)
    ]
    for rows in (chats, systems):
        table = read_table("\n".join(map(json.dumps, rows)).encode())
        found = examine(table, Columns("input", "target"))
        assert not found.obstacle and found.conflicting == found.near_duplicates == 0
    task = task_from_table(table, Columns("input", "target"))
    assert {turn["role"] for turn in task.messages(task.splits["train"][0])} == {"system", "user"}


def test_a_column_of_the_system_is_a_turn_of_its_own():
    """Another instruction stands before the input, in the user's turn."""
    rows = [(f"s{n}", f"q{n}", f"a{n}") for n in range(12)]
    for name, turns in (("System prompt", (("system", "s0"), ("user", "q0"))), ("instruction", ())):
        table = read_table(written(rows, header=(name, "question", "answer")).encode())
        examples, _ = usable_rows(table, guess_columns(table)[0])
        assert (examples[0].turns, examples[0].input) == (turns, "q0" if turns else "s0\n\nq0")


def test_the_content_decides_and_the_name_is_a_hint():
    """JSON named .csv is JSON, CSV named .jsonl is CSV, and a single column stays one."""
    assert read_table(b'{"a": 1, "b": 2}\n', "data.csv").format == "jsonl"
    assert read_table(b"a,b\n1,2\n", "data.jsonl").format == "csv"
    assert read_table(b"word\none\ntwo\n", "data.tsv").columns == ("word",)
    assert read_table(b"sep=;\na;b\n1,5;2\n").rows == (("1,5", "2"),)


def test_rows_that_cannot_be_read_are_numbered_and_the_others_kept():
    """One broken row costs one row."""
    text = 'q,a\n1,one\nragged\n2,"two"x\n\n3,three\n4,a,b\n5,five\n'
    table = read_table(text.encode())
    assert table.rows == (("1", "one"), ("3", "three"), ("5", "five"))
    assert table.numbers == (1, 4, 6)
    assert [(fault.row, fault.line) for fault in table.faults] == [(2, 3), (3, 4), (5, 7)]


def test_a_quote_that_is_never_closed_costs_its_row_alone():
    """Reading goes on at the next line; the end of a broken cell is not taken for a row."""
    lines = [f"{n},text {n}" for n in range(50)]
    lines[7] = '7,"never closed'
    lines[20:21] = ['20,"He said "hi" to', 'me",x']
    table = read_table("\n".join(["q,a", *lines]).encode())
    assert len(table.rows) == 48 and {fault.row for fault in table.faults} == {8, 21, 22}


def test_a_few_bytes_that_are_not_utf8_are_faults_and_a_whole_file_is_cp1252():
    """A mended file of mixed encodings keeps its good rows; an old one is read as what it is."""
    mixed = "q,a\n" + "Grüße,süß\n" * 9
    table = read_table(mixed.encode() + "Grüße,süß\n".encode("cp1252"))
    assert table.encoding == "utf-8" and len(table.rows) == 9
    assert "0xfc" in table.faults[0].problem and table.faults[0].row == 10
    assert read_table(mixed.encode("cp1252")).encoding == "cp1252"
    assert read_table(b"q,a\n\x81\xe9t\xe9,x y z\n" + b"a,b\n" * 20).encoding == "latin-1"


def test_columns_get_names_that_are_told_apart():
    """Empty and repeated headers."""
    assert read_table(b"a,,a,a\n1,2,3,4\n").columns == ("a", "column 2", "a (2)", "a (3)")


def zipped() -> bytes:
    """A zip archive of zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.csv", "0" * 1_000_000)
    return stream.getvalue()


REFUSED = {
    "empty": (b"", "is empty"),
    "null bytes": (b"\x00" * 100, "is empty"),
    "zip": (zipped(), "zip archive or an Excel file"),
    "pickle": (pickle.dumps({"a": 1}), "pickle, which can run code"),
    "program": (b"\x7fELF" + bytes(60), "a program"),
    "Windows program": (b"MZ" + bytes(200), "a program"),
    "script": (b"#!/bin/sh\nrm -rf /\n", "a script"),
    "page": (b"<!DOCTYPE html><html></html>", "HTML or XML"),
    "noise": (bytes(range(256)) * 20, "binary file"),
    "header alone": (b"a,b\n", "a header and no rows"),
    "all rows broken": (b"a,b\n1\n2\n", "no row that is whole; row 1: has 1 cells"),
    "columns": (b",".join(b"c" for _ in range(201)) + b"\n", "201 columns, more than the cap of 200"),
    "cut array": (b'[{"a": ', "not valid JSON"),
    "Parquet": (b"PAR1 and more PAR1", "not a readable Parquet file"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_table_is_refused_in_one_sentence(content, words):
    """Whatever its name says."""
    with pytest.raises(InputError, match=words) as caught:
        read_table(content, "data.csv")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and "data.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        (Caps(bytes=50), "more than the cap of 50"),
        (Caps(rows=5), "more than 5 rows"),
        (Caps(columns=1), "2 columns"),
        (Caps(cells=9), "9 cells|more than the caps"),
    ],
)
def test_caps_are_kept_by_every_format(caps, words):
    """A cap that one format forgot would be none."""
    rows = [{"q": f"question {n}", "a": f"answer {n}"} for n in range(20)]
    contents = [written([tuple(row.values()) for row in rows]).encode(), parquet(pa.Table.from_pylist(rows))]
    contents += [] if caps.columns == 1 else ["\n".join(map(json.dumps, rows)).encode()]
    for content in contents:
        with pytest.raises(InputError, match=words):
            read_table(content, caps=caps)


def test_a_long_cell_is_a_fault_of_its_column():
    """The row is left out, the file is not."""
    table = read_table(b"q,a\nshort,x\n" + b"y" * 11 + b",x\n", caps=Caps(cell_chars=10))
    assert len(table.rows) == 1 and (table.faults[0].row, table.faults[0].column) == (2, "q")


def test_a_cell_of_megabytes_costs_its_row_alone():
    """However many lines it has, and whatever they look like."""
    for line in ("x,\n", "x\n", 'say ""hi""\n'):
        text = 'q,a\n1,one\n2,"' + line * 400_000 + '"\n3,three\n'
        table = read_table(text.encode())
        assert table.rows == (("1", "one"), ("3", "three")) and [fault.row for fault in table.faults] == [2]


def test_parquet_that_unpacks_to_gigabytes_is_refused_soon():
    """Ninety kilobytes repeated two hundred thousand times fit into some hundred bytes."""
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 90_000]))
    content = parquet(pa.table({"q": dictionary, "a": ["y"] * 200_000}))
    assert len(content) < 100_000
    began = time.monotonic()
    with pytest.raises(InputError, match="more than 100,000,000 characters"):
        read_table(content)
    assert time.monotonic() - began < 60


def test_parquet_whose_values_repeat_the_one_before_is_read():
    """Delta encoding is rare, and cannot be had as dictionaries."""
    stream = io.BytesIO()
    table = pa.table({"q": [f"question {n}" for n in range(3000)], "a": ["y"] * 3000})
    pq.write_table(table, stream, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    assert read_table(stream.getvalue()).rows[2999] == ("question 2999", "y")


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("question,answer", Columns("question", "answer")),
        ("id,document,summary", Columns("document", "summary")),
        ("instruction,input,output", Columns("input", "output", "instruction")),
        ("instruction,output", Columns("instruction", "output")),
        ("author,text,label", Columns("text", "label", None, "author")),
        ("a,b", Columns("a", "b")),
        ("SQL,Question", Columns("Question", "SQL")),
        ("author,b", Columns("author", "b")),
    ],
)
def test_columns_are_guessed_by_name_then_by_length(header, wanted):
    """The guess is only shown; it must be the obvious one where there is one."""
    cells = ",".join("some words" for _ in header.split(","))
    found, why = guess_columns(read_table(f"{header}\n{cells}\n{cells}\n".encode()))
    assert found == wanted and why.endswith(".")


def test_a_column_whose_values_all_differ_is_no_group():
    """It would keep nothing together; one value that comes twice is enough."""
    for names, group in (("ada,bob,eve", None), ("ada,bob,ada", "author")):
        rows = "".join(f"{name},a question,an answer\n" for name in names.split(","))
        assert guess_columns(read_table(f"author,question,answer\n{rows}".encode()))[0].group == group


# --- a table as a task -----------------------------------------------------------------------------------------


def test_a_task_leaves_out_faulty_rows_and_keeps_their_numbers():
    """Empty cells are faults of the mapped columns alone."""
    rows = [(*pair, "") for pair in pairs(30)]
    rows[4] = ("", "no question", "")
    rows[9] = ("no answer", " ", "x")
    table = read_table(written(rows, header=("question", "answer", "note")).encode())
    examples, faults = usable_rows(table, COLUMNS)
    assert [(fault.row, fault.column) for fault in faults] == [(5, "question"), (10, "answer")]
    task = task_from_table(table, COLUMNS)
    ids = {one.id for split in task.splits.values() for one in split}
    assert ids == {one.id for one in examples} and "row-000005" not in ids and len(ids) == 28
    assert task.splits == split_examples(examples)


def test_a_column_that_is_none_is_refused_in_a_sentence_however_many_there_are():
    """A table may have a hundred, with names as long as a cell."""
    header = [f"c{at}" + "x" * 5000 for at in range(90)]
    table = read_table("\n".join([",".join(header), *[",".join("y" * 90)] * 12]).encode())
    with pytest.raises(InputError, match=r"no column 'z+…': the columns are 'c0x+…', .* and 78 more") as refused:
        usable_rows(table, Columns("z" * 5000, "c1"))
    assert len(str(refused.value)) < 800


def test_the_hash_names_content_and_settings():
    """Two tasks with one hash would share records; the same choice made twice must."""
    rows = [(q, a, f"g{n % 7}") for n, (q, a) in enumerate(pairs(40))]
    table = read_table(written(rows, header=("question", "answer", "who")).encode())
    variants = [
        {},
        {"split": Split(seed=1)},
        {"split": Split(fractions=(0.6, 0.2, 0.2))},
        {"columns": Columns("question", "answer", group="who")},
        {"columns": Columns("question", "answer", instruction="who")},
        {"columns": Columns("answer", "question")},
        {"instruction": "Say: {input}"},
        {"table": read_table(written(rows[1:], header=("question", "answer", "who")).encode())},
    ]
    default = {"table": table, "columns": COLUMNS}
    tasks = [task_from_table(**(default | variant)) for variant in variants]
    assert len({task.data_sha256 for task in tasks}) == len(variants)
    assert task_from_table(**default) == tasks[0] and tasks[1].splits != tasks[0].splits
    short = read_table(written(rows, header=("question", "answer", "who")).encode(), caps=Caps(cell_chars=20))
    assert len(short.faults) and task_from_table(short, COLUMNS).data_sha256 != tasks[0].data_sha256


def test_an_instruction_column_stands_before_the_input():
    """An Alpaca row without an input is its instruction alone."""
    rows = [(f"Do {n}", f"with {n}" if n % 2 else "", f"done {n}") for n in range(20)]
    table = read_table(written(rows, header=("instruction", "input", "output")).encode())
    examples, faults = usable_rows(table, guess_columns(table)[0])
    assert not faults and examples[0].input == "Do 0" and examples[1].input == "Do 1\n\nwith 1"


def test_findings_count_what_is_repeated_and_what_leaks():
    """Each count against a table in which it is known."""
    rows = pairs(60)
    clean = examine(read_table(written(rows).encode()), COLUMNS)
    assert (clean.rows, clean.usable, clean.duplicates, clean.conflicting, clean.near_duplicates) == (60, 60, 0, 0, 0)
    assert clean.splits == {"train": 48, "validation": 6, "test": 6} and clean.shared_targets == 0
    doubled = [*rows, *rows[:5], *((q, "another") for q, _ in rows[10:13])]
    found = examine(read_table(written(doubled).encode()), COLUMNS)
    assert (found.duplicates, found.conflicting) == (5, 6)
    long = [(f"{' '.join(f'word{n}_{k}' for k in range(20))} {end}", f"{n}{end}") for n in range(60) for end in "ab"]
    leaking = examine(read_table(written(long).encode()), COLUMNS)
    assert leaking.near_duplicates > 0 and leaking.compared == leaking.splits["test"]
    same = examine(read_table(written([(q, "yes") for q, _ in rows]).encode()), COLUMNS)
    assert same.shared_targets == same.splits["test"]
    assert clean.labels == same.labels == 0
    five = examine(read_table(written([(q, f"kind {n % 5}") for n, (q, _) in enumerate(rows)]).encode()), COLUMNS)
    assert five.labels == 5 and "5 labels: decide by exact match" in str(cautions(five, "{input}"))


def test_too_few_rows_are_an_obstacle_and_not_a_crash():
    """The page still shows what is there."""
    table = read_table(written(pairs(4)).encode())
    found = examine(table, COLUMNS)
    assert "4 usable rows" in found.obstacle and not found.splits
    with pytest.raises(InputError, match="at least 10"):
        task_from_table(table, COLUMNS)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns("question", "question"), "'question' is chosen twice"),
        (Columns("question", "answer", "answer"), "'answer' is chosen twice"),
        (Columns("question", "nothing"), "no column 'nothing'"),
        (Columns("question", "answer", group="nobody"), "no column 'nobody'"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns, words):
    """In one sentence that names the column."""
    with pytest.raises(InputError, match=words):
        examine(read_table(written(pairs(20)).encode()), columns)


words = st.lists(st.sampled_from([f"w{n}" for n in range(12)]), min_size=1, max_size=12).map(" ".join)


@given(st.lists(words, max_size=12), st.lists(words, max_size=12))
def test_near_duplicates_equal_brute_force(texts, others):
    """The index leaves out no pair."""
    sets, known = map(similarity.text_tokens, texts), [similarity.text_tokens(text) for text in others]
    wanted = [any(similarity.jaccard(one, other) >= 0.8 for other in known) for one in sets]
    assert similarity.near_duplicates(texts, others) == wanted


@given(st.lists(words, max_size=16))
def test_clusters_are_the_connected_components_of_near_duplicates(texts):
    """By brute force: the relation, closed by squaring."""
    sets = [similarity.text_tokens(text) for text in texts]
    joined = np.array([[similarity.jaccard(one, other) >= 0.8 for other in sets] for one in sets], dtype=int)
    for _ in range(5):
        joined = np.minimum(joined @ joined, 1) if texts else joined
    names = similarity.duplicate_clusters(texts)
    assert [[a == b for b in names] for a in names] == joined.astype(bool).tolist()


def test_near_duplicates_are_counted_in_bounded_time():
    """Many short texts of few words are the worst case for an index by token."""
    texts = [f"{n % 97} {n % 89} {n % 83} {n % 7}" for n in range(40_000)]
    began = time.process_time()
    assert similarity.near_duplicates(texts[:8000], texts[8000:]) and time.process_time() - began < 15
    began = time.process_time()
    assert len(similarity.duplicate_clusters(texts)) == len(texts) and time.process_time() - began < 15


def test_texts_of_any_script_have_tokens():
    """Words of letters beyond ASCII, and single signs where no spaces divide words."""
    assert similarity.text_tokens("Привет, мир") == {"привет", ",", "мир"}
    assert similarity.text_tokens("漢字だ") == {"漢", "字", "だ"}
    assert docstrings_build.jaccard is similarity.jaccard


def doubled_rows(count: int = 60) -> list[tuple[str, str]]:
    """Rows of which every second comes again, but for one word of its twenty."""
    rows = [(" ".join(f"word{n}_{k}" for k in range(20)), f"answer {n}") for n in range(count)]
    return [*rows, *((f"{text} again", target) for text, target in rows[::2])]


def test_near_copies_stay_together_or_are_left_out():
    """No test row leaks either way; together all rows stay, left out each copy but the first goes; also of later rows,
    which came for training alone.
    """
    table = read_table(written(doubled_rows()).encode())
    usual, together, out = (examine(table, COLUMNS, Split(near_copies=how)) for how in ("any", "together", "out"))
    assert usual.leaked and not together.leaked and not out.leaked
    assert (together.usable, together.copies, out.usable, out.copies) == (90, 0, 60, 30)
    keys = {task_from_table(table, COLUMNS, Split(near_copies=how)).data_sha256 for how in ("any", "together", "out")}
    assert len(keys) == 3
    later = task_from_table(table, COLUMNS, Split(first=60, near_copies="together")).splits
    held = {row.input.removesuffix(" again") for name in ("validation", "test") for row in later[name]}
    assert held.isdisjoint(row.input.removesuffix(" again") for row in later["train"])
    assert len(later["train"]) > 48
    with pytest.raises(InputError, match=r"'near'.*any, together, out"):
        task_from_table(table, COLUMNS, Split(near_copies="near"))


@given(GROUPED, GROUPED, st.integers(0, 3))
def test_later_rows_are_trained_on_and_change_nothing_else(first, later, seed):
    """Validation and test are those of the first rows alone; no later row there comes into training, by input or
    group; every other one does, behind the rows that were there.
    """
    rows = [TaskExample(f"r{at}", *one) for at, one in enumerate([*((w, w, "") for w in "stuvw"), *first, *later])]
    count = 5 + len(first)
    alone = split_rows(rows[:count], Split(seed, (0.6, 0.2, 0.2)))
    both = split_rows(rows, Split(seed, (0.6, 0.2, 0.2), count if later else 0))
    assert both["validation"] == alone["validation"] and both["test"] == alone["test"]
    held = (*both["validation"], *both["test"])
    assert not {one.input for one in held} & {one.input for one in both["train"]}
    assert not {one.group for one in held} & {one.group for one in both["train"] if one.group}
    assert both["train"][: len(alone["train"])] == alone["train"]
    left = set(rows[count:]) - set(both["train"])
    assert all(one.input in {row.input for row in held} or one.group in {row.group for row in held} for one in left)
    with pytest.raises(InputError, match="are to be split"):
        split_rows(rows, Split(first=len(rows) + 1))
