"""Laws of the tasks: splits do not leak, data are pinned and permitted, and bad files get one clear sentence."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from pathlib import Path

import docstrings_build as build
import groups_build
import numpy as np
import prose_build
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spam_build
import sql_build
from data_build import write_parquet
from docstrings_packages import PACKAGES, PERMITTED
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from peftbook import tasks
from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.tasks import SPLITS, TaskExample, get_task, hub, prose, references, spam, sql
from peftbook.tasks import docstrings as docstrings_task
from peftbook.tasks.columns import Columns
from peftbook.tasks.files import Split, describe_reading, examine, read_file, split_examples, task_from_table


@pytest.fixture(scope="module")
def rows():
    """All columns of the shipped docstring pairs."""
    return pq.read_table(docstrings_task.PATH).to_pylist()


@pytest.fixture(scope="module")
def facts():
    """The counts that the build wrote."""
    return json.loads((DATA / "docstrings.json").read_text(encoding="utf-8"))


# --- docstrings ------------------------------------------------------------------------------------------------


def test_no_package_is_in_two_splits(rows):
    """A split by package is what makes the test code new to fine-tuning."""
    for split in SPLITS:
        others = {row["group"] for row in rows if row["split"] != split}
        assert not others & {row["group"] for row in rows if row["split"] == split}


def test_held_out_splits_hold_several_packages_and_none_dominates(rows):
    """A score must not be one project's style."""
    for split in SPLITS:
        counts = Counter(row["group"] for row in rows if row["split"] == split)
        assert len(counts) >= 4
        assert max(counts.values()) <= 0.15 * sum(counts.values())


def test_no_test_function_is_a_near_duplicate_of_a_training_function(rows):
    """All pairs across splits by one sparse product, as an oracle for the build's indexed search."""
    tokens = [sorted(build.code_tokens(row["input"])) for row in rows]
    column = {token: number for number, token in enumerate(sorted({token for each in tokens for token in each}))}
    sizes = np.array([len(each) for each in tokens])
    places = [column[token] for each in tokens for token in each]
    incidence = sparse.csr_array((np.ones(len(places), "f4"), places, np.concatenate([[0], np.cumsum(sizes)])))
    split = np.array([row["split"] for row in rows])
    for name in ("validation", "test"):
        mine, others = np.flatnonzero(split == name), np.flatnonzero(split != name)
        shared = (incidence[mine] @ incidence[others].T).toarray()
        similarity = shared / (sizes[mine][:, None] + sizes[others] - shared)
        assert 0.5 < similarity.max() < 0.8  # neither blind nor a near-duplicate


def test_no_sentence_occurs_twice(rows):
    """A repeated target could be answered by heart."""
    assert len({row["target"].lower() for row in rows}) == len(rows)


def test_every_row_has_the_permitted_licence_of_its_package(rows, facts):
    """What is redistributed must say under what terms, and its licence text must be there."""
    for row in rows:
        package = PACKAGES[row["group"]]
        assert row["licence"] == package.licence and row["licence"] in PERMITTED
        assert (row["version"], row["split"]) == (package.version, package.split)
        assert len(facts["notices"][facts["packages"][row["group"]]["notice"]]) > 100


def test_rows_keep_the_stated_limits(rows):
    """The filters' rules hold for the file, not only in the build."""
    for row in rows:
        assert 80 <= len(row["input"]) <= 500 and 3 <= len(row["target"].split()) <= 16
        (function,) = ast.parse(row["input"]).body
        assert not function.decorator_list and ast.get_docstring(function) is None
        assert row["target"].endswith(".") and row["target"][0].isupper()


def test_the_counts_add_up(rows, facts):
    """Every function that was seen is either kept or counted by exactly one filter."""
    by_files = {"file_unparsed", "file_other_licence"}
    removed = {name: count for name, count in facts["filters"].items() if name not in by_files | {"functions_seen"}}
    assert sum(removed.values()) == facts["filters"]["functions_seen"]
    assert facts["filters"]["kept"] == len(rows) == sum(facts["splits"].values())
    assert set(facts["filters"]) == set(docstrings_task.FILTERS)


def test_loading_is_deterministic_and_pinned():
    """The hash in a run's key is the hash of the bytes that were loaded."""
    task = get_task("docstrings")
    assert task == docstrings_task.load()
    assert task.data_sha256 == hashlib.sha256(docstrings_task.PATH.read_bytes()).hexdigest()
    assert [len(task.splits[split]) for split in SPLITS] == list(build.SIZES.values())


@pytest.mark.parametrize("module", [docstrings_task, prose])
def test_changed_or_missing_data_are_refused(module, tmp_path, monkeypatch):
    """A run on other data must not pass for this one."""
    changed = tmp_path / "changed.parquet"
    monkeypatch.setattr(module, "PATH", changed)
    with pytest.raises(InputError, match=r"changed.parquet is missing: run"):
        module.load()
    changed.write_bytes(b"other")
    with pytest.raises(InputError, match=r"not the pinned [0-9a-f]{64}: run"):
        module.load()


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return x.\n\nMore.", "Return x."),
        ("Return the sum of\n    the values", "Return the sum of the values."),
        ("Return a :class:`~pkg.mod.Thing` and ``None``. Then stop.", "Return a Thing and None."),
        ("Read units, e.g. metres, from a file. Then stop.", "Read units, e.g. metres, from a file."),
        ("Read `the page <https://x.org>`_ as *text*.", "Read the page as text."),
        ("Check a name against :pep:`508`.\n:param name: it", "Check a name against PEP 508."),
        ("Load it\n\n    Args:\n        x: y", "Load it."),
    ],
)
def test_first_sentence(docstring, sentence):
    """Markup goes, abbreviations do not end a sentence, an unpunctuated summary gets its full stop."""
    assert build.first_sentence(docstring) == sentence


def test_strip_function_removes_decorators_and_docstring_and_keeps_comments():
    """What is left is the same code."""
    text = '''class A:
    @property
    def f(self):
        """Doc.

        More.
        """

        # why
        return 1
'''
    function = ast.parse(text).body[0].body[0]
    assert build.strip_function(text.splitlines(keepends=True), function) == "def f(self):\n    # why\n    return 1"
    one_line = 'def f(): "Doc."; return 1\n'
    assert build.strip_function([one_line], ast.parse(one_line).body[0]) is None


def test_a_wheel_with_another_hash_is_refused(tmp_path):
    """A registry that serves other bytes must stop the build."""
    (tmp_path / f"toolz-{PACKAGES['toolz'].version}-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(InputError, match="not the pinned"):
        build.download_wheel("toolz", PACKAGES["toolz"].version, PACKAGES["toolz"].sha256, tmp_path)


@pytest.mark.parametrize(
    ("path", "row"),
    [
        (docstrings_task.PATH, build.Row),
        (prose.PATH, prose_build.Row),
        (sql.PATH, sql_build.Question),
        (spam.PATH, spam_build.Row),
    ],
)
def test_rows_written_again_are_the_same_bytes(tmp_path, path, row):
    """A table that is rebuilt has the pinned hash, with the locked pyarrow."""
    write_parquet([row(**fields) for fields in pq.read_table(path).to_pylist()], tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_prose_is_whole_texts_with_unique_ids():
    """Perplexity needs running text; the file stays small."""
    texts = prose.load()
    assert len({text.id for text in texts}) == len(texts)
    assert {text.group for text in texts} == {"State of the Union", "Moby-Dick"}
    assert all(len(text.target) > 5_000 and not text.input for text in texts)
    assert prose.PATH.stat().st_size < 300_000


def test_half_of_the_mails_are_spam_and_no_split_shares_words_with_another():
    """Nothing of a message's headers but the subject, nothing that reaches a person, and no group in two splits."""
    task = get_task("spam")
    for rows in task.splits.values():
        assert len(rows) >= 200 and sum(row.target == "spam" for row in rows) * 2 == len(rows)
        assert not any(re.search(r"\S@\S|https?:|^(received|return-path):", row.input, re.I | re.M) for row in rows)
    runs = {split: set().union(*(spam_build.links(row.input) for row in rows)) for split, rows in task.splits.items()}
    assert all(runs[one].isdisjoint(runs[other]) for one, other in itertools.combinations(SPLITS, 2))
    assert spam.PATH.stat().st_size < 300_000


# --- the reader's files ----------------------------------------------------------------------------------------


def load(path: Path, *, seed: int = 0, fractions=(0.8, 0.1, 0.1), instruction: str = "{input}", **columns):
    """A file as a task, as `peftbook train` and `compare` read it."""
    _, table = read_file(path)
    columns = Columns(**({"input": "q", "target": "a"} | columns))
    return task_from_table(table, columns, Split(seed, fractions), instruction)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


@given(
    rows=st.lists(st.tuples(TEXT, TEXT, st.sampled_from(["", "g", "h", "i", "j"])), min_size=10, max_size=60),
    seed=st.integers(0, 5),
)
def test_a_split_divides_no_group_and_no_input_and_loses_no_row(rows, seed):
    """The same text in train and test would make the score a memory test."""
    examples = [TaskExample(str(number), *row) for number, row in enumerate(rows)]
    try:
        splits = split_examples(examples, seed=seed)
    except InputError as error:
        assert "groups that no split may divide" in str(error)
        return
    assert sorted(example.id for each in splits.values() for example in each) == sorted(e.id for e in examples)
    assert all(splits.values())
    for place, split in enumerate(SPLITS):
        others = [example for other in SPLITS[place + 1 :] for example in splits[other]]
        assert not {each.input for each in splits[split]} & {each.input for each in others}
        assert not {each.group for each in splits[split] if each.group} & {each.group for each in others}


def test_the_order_of_the_rows_does_not_change_the_splits():
    """A sorted and a shuffled export are the same data."""
    examples = [TaskExample("x", f"input {number}", "t") for number in range(50)]
    assert split_examples(examples) == split_examples(examples[::-1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"instruction": "no place"}, "'no place' does not say where"),
        ({"fractions": (0.5, 0.5, 0.5)}, r"\(0.5, 0.5, 0.5\)"),
        ({"fractions": (1.0, 0.0, 0.0)}, r"\(1.0, 0.0, 0.0\)"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, "nan"),
    ],
)
def test_a_bad_argument_gets_one_sentence(options, sentence, tmp_path):
    """Arguments are checked as the file is."""
    path = tmp_path / "data.csv"
    path.write_text("q,a\n" + "".join(f"question {n},answer {n}\n" for n in range(12)))
    with pytest.raises(InputError, match=sentence):
        load(path, **options)


def test_rows_that_are_left_out_are_named(tmp_path):
    """Whoever gave the file hears how many rows were used, and why the first of the others were not."""
    path = tmp_path / "d.csv"
    path.write_text("q,a\n" + "".join(f"q{n},a{n}\n" for n in range(12)) + 'only one\n ,y\nz,\nw,x\n"open,x\n')
    _, table = read_file(path)
    lines = describe_reading("d.csv", examine(table, Columns("q", "a")))
    assert lines[0] == "d.csv: 13 rows (train 11, validation 1, test 1), 4 rows left out."
    assert lines[1].startswith("  row 13: has 1 cells") and lines[2] == (
        "  row 14: column 'q' is empty: fill it, or remove the row"
    )
    assert lines[4] == "  …" and len(lines) == 5
    table = dataclasses.replace(table, rows=table.rows[:12], numbers=table.numbers[:12], faults=())
    assert len(describe_reading("d.csv", examine(table, Columns("q", "a")))) == 1


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    """The path is named."""
    for path in (tmp_path / "absent.csv", tmp_path / "folder.csv"):
        if path.stem == "folder":
            path.mkdir()
        with pytest.raises(InputError, match=f"{path.name}' is not a file"):
            load(path)


# --- public data sets ------------------------------------------------------------------------------------------


def _e2e_files(folder: Path) -> None:
    lines = [f"name : P{n} | food : F{n}||P{n} serves F{n} {word} . " for n in range(20) for word in ("well", "daily")]
    (folder / "valid.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["name : T||T is here . ", "name : T||Here is T . ", "name : T||T is here . ", "name : U||U . "]
    (folder / "test.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def e2e_folder(tmp_path, monkeypatch):
    """A tiny copy in E2E's format, with the pins set to it."""
    _e2e_files(tmp_path)
    pins = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in hub.E2E_SHA256}
    monkeypatch.setattr(hub, "E2E_SHA256", pins)
    return tmp_path


def _check_e2e(task) -> None:
    """Inputs are in one split, and a test input is asked once with all its references."""
    inputs = {split: {each.input for each in task.splits[split]} for split in SPLITS}
    assert not inputs["train"] & inputs["validation"] and not inputs["test"] & (inputs["train"] | inputs["validation"])
    assert len(task.splits["test"]) == len(inputs["test"])
    known = references(task)
    assert all(each.target in known[each.id] for split in ("validation", "test") for each in task.splits[split])


def test_e2e_from_its_files(e2e_folder):
    """Train and validation divide the development inputs 9 to 1; test keeps distinct references."""
    task = hub.load_hub("e2e", path=e2e_folder)
    _check_e2e(task)
    assert [len(task.splits[split]) for split in SPLITS] == [36, 4, 2]
    by_input = {each.input: references(task)[each.id] for each in task.splits["test"]}
    assert by_input == {"name : T": ("T is here .", "Here is T ."), "name : U": ("U .",)}
    assert task == hub.load_hub("e2e", path=e2e_folder)


def test_e2e_refuses_other_files(e2e_folder):
    """A run on other data must not pass for E2E."""
    with (e2e_folder / "test.txt").open("a", encoding="utf-8") as stream:
        stream.write("name : V||V . \n")
    with pytest.raises(InputError, match="not the pinned"):
        hub.load_hub("e2e", path=e2e_folder)
    (e2e_folder / "test.txt").unlink()
    with pytest.raises(InputError, match=r"test.txt is missing"):
        hub.load_hub("e2e", path=e2e_folder)


if "PEFTBOOK_E2E" in os.environ:  # the real files cannot ship: CC BY-SA

    def test_e2e_real_files():
        """630 test inputs, as in the paper's test set."""
        task = hub.load_hub("e2e", path=os.environ["PEFTBOOK_E2E"])
        _check_e2e(task)
        assert len(task.splits["test"]) == 630
        assert len({each.input for split in ("train", "validation") for each in task.splits[split]}) == 547
        splits = ("validation", "test")
        names = [each.input.split("|")[0] for split in splits for each in task.splits[split]]
        letters = "".join(tasks.known_groups()["e2e"][split] for split in splits)
        assert len(set(names)) == len(set(letters)) == len(set(zip(names, letters, strict=True)))


def test_groups_come_from_the_data_or_from_nowhere(monkeypatch):
    """Where its data is gone, a task refuses: without groups the errors would be those of single examples."""
    monkeypatch.delenv("PEFTBOOK_E2E", raising=False)
    for split, count in (("validation", 100), ("test", 200)):
        assert 8 < len(set(tasks.split_groups.__wrapped__("e2e", split, count))) < 20
    assert tasks.size_of_test("e2e") == 630
    assert set(tasks.split_groups.__wrapped__("tickets", "test", 60)) - {""}

    def gone(name: str):
        raise InputError(f"{name} is missing")

    monkeypatch.setattr(tasks, "get_task", gone)
    with pytest.raises(InputError, match="tickets is missing"):
        tasks.split_groups.__wrapped__("tickets", "test", 60)


@pytest.mark.parametrize("name", groups_build.READ_BY_PYARROW)
def test_groups_that_are_read_without_pyarrow_are_those_of_the_data(name):
    """Else tests/tools/groups_build.py writes them again."""
    assert tasks.known_groups()[name] == groups_build.groups_in_data(name)


def _parquet_copy(folder: Path, row) -> Path:
    for split in SPLITS:
        (folder / "default" / split).mkdir(parents=True)
        table = pa.Table.from_pylist([row(f"{split} {number}") for number in range(4)])
        pq.write_table(table, folder / "default" / split / "0000.parquet")
    return folder


ROWS = {
    "samsum": lambda text: {"id": text, "dialogue": f"A: {text}", "summary": f"S {text}"},
    "tweetsumm": lambda text: {"conversation": f"user: {text}", "summary": f"S {text}"},
    "wikisql": lambda text: {
        "question": f"Which {text}?",
        "table": {"header": ["No.", "Name"]},
        "sql": {"human_readable": f"SELECT Name FROM table WHERE No. = {text}"},
    },
    "e2e": lambda text: {"meaning_representation": f"name[{text}]", "human_reference": f"S {text}"},
}


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """`datasets` with its cache in the test's folder and without progress bars."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("name", ["samsum", "tweetsumm", "wikisql"])
def test_hub_rows_become_examples(name, tmp_path, datasets_cache):
    """A copy in the layout of the hub's Parquet conversion goes through the real loader."""
    task = hub.load_hub(name, path=_parquet_copy(tmp_path / "copy", ROWS[name]))
    assert [len(task.splits[split]) for split in SPLITS] == [4, 4, 4]
    assert all("test" in each.input and "test" in each.target for each in task.splits["test"])
    assert task.name == f"hub:{name}" and len(task.data_sha256) == 64


@pytest.mark.parametrize("name", sorted(hub.HUB))
def test_the_hub_is_asked_for_the_pinned_parquet_files(name, monkeypatch, datasets_cache):
    """Repository, revision and files go to `load_dataset`, never remote code."""
    asked = {}

    def load_dataset(repo, **options):
        asked.update(options, repo=repo)
        table = {split: [ROWS[name](f"{split} {number}") for number in range(3)] for split in SPLITS}
        return datasets_cache.DatasetDict({s: datasets_cache.Dataset.from_list(each) for s, each in table.items()})

    monkeypatch.setattr(datasets_cache, "load_dataset", load_dataset)
    assert len(hub.load_hub(name).splits["train"]) == 3
    assert asked["repo"] == hub.HUB[name].repo and asked["revision"] == hub.PARQUET_REVISION
    assert set(asked) == {"repo", "revision", "data_files"}


def test_a_hub_out_of_reach_gets_one_sentence(monkeypatch, datasets_cache):
    """Offline is an expected state, not a traceback."""

    def load_dataset(*_args, **_options):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets_cache, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"samsum cannot be loaded from hub repository knkarthick/samsum .* path="):
        hub.load_hub("samsum")


def test_bad_hub_arguments_get_one_sentence(tmp_path, datasets_cache):
    """Unknown names, missing folders, empty folders and other columns are named."""
    with pytest.raises(InputError, match=r"Unknown hub task 'nope': choose one of e2e, samsum"):
        hub.load_hub("nope")
    with pytest.raises(InputError, match="absent is not a folder"):
        hub.load_hub("samsum", path=tmp_path / "absent")
    with pytest.raises(InputError, match="lay the copy out as"):
        hub.load_hub("samsum", path=tmp_path)
    copy = _parquet_copy(tmp_path / "copy", lambda text: {"text": text})
    with pytest.raises(InputError, match="no column or split 'dialogue': its columns are text"):
        hub.load_hub("samsum", path=copy)


def test_references_of_a_plain_task_are_its_targets():
    """One rule for scoring, whether or not an input has several answers."""
    task = get_task("docstrings")
    known = references(task)
    assert all(known[each.id] == (each.target,) for each in task.splits["test"])
