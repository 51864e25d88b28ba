"""Laws of the SQL task: unseen test tables, certain answers, a judge that only reads, and data that can be rebuilt."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from contextlib import closing

import pyarrow.parquet as pq
import pytest
import sql_build as build
from docstrings_packages import PERMITTED
from hypothesis import given
from hypothesis import strategies as st
from sql_forms import FORMS
from sql_sources import MAX_COLUMNS, MAX_ROWS
from sql_sources import TABLES as SOURCES

from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.tasks import SPLITS, TaskExample, get_task, sql

TABLES = sql.load_tables()
ROWS = pq.read_table(sql.PATH).to_pylist()
FACTS = json.loads(sql.TABLES_PATH.read_text(encoding="utf-8"))
KINDS = {"TEXT": str, "INTEGER": int, "REAL": float}


def ask(table: str, text: str) -> list:
    """The rows of a query on a shipped table."""
    with closing(sql.connect(TABLES[table])) as connection:
        return sql.query(connection, text, 1000)


def judged(text: str, gold: str, table: str = "states") -> float:
    (score,) = sql.execution_match([text], [TaskExample("x", "", gold, table)])
    return score


# --- data ------------------------------------------------------------------------------------------------------


def test_tables_are_small_typed_and_without_gaps():
    """A prompt must hold the schema, and a query must not stumble over a missing value."""
    for table in TABLES.values():
        assert 10 <= len(table.rows) <= MAX_ROWS and 3 <= len(table.columns) <= MAX_COLUMNS
        for row in table.rows:
            assert all(type(value) is KINDS[kind] for value, (_, kind) in zip(row, table.columns, strict=True))
            assert all(math.isfinite(value) for value in row if isinstance(value, float))
    assert sum(path.stat().st_size for path in DATA.glob("sql.*")) < 400_000


def test_every_split_has_its_own_tables():
    """A test question about a training table would not need the schema."""
    tables = {split: {row["table"] for row in ROWS if row["split"] == split} for split in SPLITS}
    assert set.union(*tables.values()) == set(TABLES) and sum(map(len, tables.values())) == len(TABLES) >= 10
    forms = {split: {row["form"] for row in ROWS if row["split"] == split} for split in SPLITS}
    assert len(forms["test"]) >= 30 and forms["test"] <= forms["train"]


def test_questions_are_distinct_and_counted():
    """The same question twice would weigh twice, and in two splits would leak."""
    assert len({(row["table"], row["question"]) for row in ROWS}) == len(ROWS) == len({row["id"] for row in ROWS})
    assert len({(row["table"], row["sql"]) for row in ROWS}) == len(ROWS)
    by_form = Counter(row["form"] for row in ROWS)
    assert FACTS["forms"] == {form.name: by_form[form.name] for form in FORMS}
    assert FACTS["splits"] == Counter(row["split"] for row in ROWS)
    assert all(FACTS["tables"][name]["questions"] == n for name, n in Counter(r["table"] for r in ROWS).items())


def test_every_reference_query_has_a_certain_answer():
    """Not empty, not NULL, not a count of zero, and the same where the table is stored backwards."""
    for name, table in TABLES.items():
        backwards = sql.SqlTable(name, table.columns, table.rows[::-1])
        with closing(sql.connect(table)) as there, closing(sql.connect(backwards)) as mirrored:
            for row in (row for row in ROWS if row["table"] == name):
                result = sql.query(there, row["sql"], 1000)
                assert 1 <= len(result) <= build.MAX_RESULT_ROWS and result != [(0,)]
                assert all(value is not None for line in result for value in line)
                assert sql.same_result(sql.query(mirrored, row["sql"], 1000), result, " ORDER BY " in row["sql"])


def test_queries_compute_what_plain_python_computes():
    """The reference answers against an oracle that is not SQLite."""
    checked = 0
    for row in ROWS:
        table = TABLES[row["table"]]
        names = [name for name, _ in table.columns]
        words = row["sql"].replace("(", " ").replace(")", " ").split()
        if row["form"] in ("average", "maximum", "minimum", "total"):
            values = [line[names.index(words[2])] for line in table.rows]
            oracle = {"AVG": lambda v: math.fsum(v) / len(v), "MAX": max, "MIN": min, "SUM": math.fsum}[words[1]]
            assert sql.same_result(ask(table.name, row["sql"]), [(oracle(values),)], False)
            checked += 1
        elif row["form"] == "top":
            shown, by, count = names.index(words[1]), names.index(words[6]), int(words[9])
            best = sorted(table.rows, key=lambda line: -line[by])[:count]
            assert sql.same_result(ask(table.name, row["sql"]), [(line[shown],) for line in best], True)
            checked += 1
    assert checked > 100


def test_sources_are_permitted_and_named():
    """Shipped data need a licence and its text."""
    for package in FACTS["packages"].values():
        assert package["licence"] in PERMITTED and len(package["notice"]) > 100
    for table in FACTS["tables"].values():
        assert table["rights"] and table["package"] in FACTS["packages"] and table["file"]


@pytest.mark.parametrize("name", ["harvests", "power", "casualties"])
def test_questions_are_rebuilt_from_the_shipped_tables(name):
    """The seed fixes every question; without this the file could not be rebuilt."""
    (source,) = (each for each in SOURCES if each.name == name)
    again = build.questions(source, TABLES[name], build.QUESTIONS_PER_TABLE[source.split])
    shipped = {row["id"]: (row["question"], row["sql"], row["form"]) for row in ROWS if row["table"] == name}
    assert {question.id: (question.question, question.sql, question.form) for question in again} == shipped


def test_loading_is_pinned_and_shows_the_schema():
    """The hash in a run's key is the hash of both files; the prompt names every column and no row is lost."""
    task = get_task("sql")
    assert task == sql.load()
    assert task.data_sha256 == hashlib.sha256(sql.TABLES_PATH.read_bytes() + sql.PATH.read_bytes()).hexdigest()
    for split in SPLITS:
        for example in task.splits[split]:
            assert all(f"{name} {kind}" in example.input for name, kind in TABLES[example.group].columns)
            assert len(example.input) < 450


def test_changed_or_missing_data_are_refused(tmp_path, monkeypatch):
    """A run on other data must not pass for this one."""
    monkeypatch.setattr(sql, "PATH", tmp_path / "sql.parquet")
    with pytest.raises(InputError, match=r"sql.parquet is missing: run"):
        sql.load()
    (tmp_path / "sql.parquet").write_bytes(b"other")
    with pytest.raises(InputError, match=r"not the pinned [0-9a-f]{64}: run"):
        sql.load()


# --- judge -----------------------------------------------------------------------------------------------------


def test_the_reference_scores_one_and_another_query_zero():
    """Both ends of the scale, over all test questions; the other query is right SQL on the right table."""
    examples = get_task("sql").splits["test"]
    assert sql.execution_match([example.target for example in examples], examples) == [1.0] * len(examples)
    assert sql.execution_match(["SELECT 'nothing'"] * len(examples), examples) == [0.0] * len(examples)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("select name from states where murder > 8", 1.0),
        ("SELECT name FROM states WHERE murder > 8 ORDER BY name DESC;", 1.0),
        ("Here it is:\n```sql\nSELECT s.name FROM states AS s WHERE NOT s.murder <= 8;\n```\nIt lists them.", 1.0),
        ("WITH t AS (SELECT * FROM states) SELECT name FROM t WHERE murder > 8", 1.0),
        ("SELECT name FROM states WHERE murder > 9", 0.0),
        ("SELECT name, murder FROM states WHERE murder > 8", 0.0),
        ("SELECT name FROM states", 0.0),
        ("SELECT name FROM countries", 0.0),
        ("The answer is Louisiana.", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_result_counts(text, score):
    """Another wording with the same result is right; the same words with another result are not."""
    assert judged(text, "SELECT name FROM states WHERE murder > 8") == score


def test_order_counts_only_where_the_question_asks_for_it():
    """The reference sorts exactly then."""
    top = "SELECT name FROM states ORDER BY murder DESC LIMIT 3"
    names = [name for (name,) in ask("states", top)]
    turned = f"SELECT * FROM (SELECT name FROM states WHERE name IN {tuple(names)} ORDER BY murder)"
    assert judged(top, top) == 1.0 and judged(turned, top) == 0.0
    assert judged(turned, f"SELECT name FROM states WHERE name IN {tuple(names)}") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM states",
        "DROP TABLE states",
        "INSERT INTO states SELECT * FROM states",
        "WITH t AS (SELECT 1) DELETE FROM states",
        "PRAGMA query_only = OFF",
        "ATTACH 'other.db' AS other",
        "CREATE TABLE t AS SELECT * FROM states",
        "SELECT load_extension('x')",
        "SELECT random()",
        "SELECT zeroblob(1000000000)",
        "SELECT hex(zeroblob(900)) || hex(zeroblob(900))",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
        "SELECT COUNT(*) FROM states a, states b, states c, states d, states e WHERE a.murder + b.murder > e.murder",
        "SELECT SUM(instr(hex(zeroblob(450)), hex(zeroblob(225)) || b.name)) FROM states, states b, states c, states d",
        "SELECT " + "- " * 500 + "1",
        "SELECT name FROM states WHERE name = '\0'",
        "SELECT '\ud800'",
        "SELECT 1 SELECT 2",
    ],
)
def test_what_is_not_a_cheap_query_is_refused(text):
    """The model's text is executed, so it must not write, wait, fill the memory or leave the database."""
    with closing(sql.connect(TABLES["states"])) as connection:
        before = sql.query(connection, "SELECT * FROM states", 1000)
        with pytest.raises(InputError):
            sql.query(connection, text, 1000)
        assert sql.query(connection, "SELECT * FROM states", 1000) == before
    assert judged(text, "SELECT name FROM states WHERE murder > 8") == 0.0


@pytest.mark.parametrize("text", ["SELECT printf('%1000000000d', 1)", "SELECT " + "(" * 300 + "1" + ")" * 300])
def test_what_only_looks_expensive_is_a_wrong_answer(text):
    """SQLite itself gives NULL for a text over the limit, and brackets add no depth."""
    assert ask("states", text)[0][0] in (None, 1)
    assert judged(text, "SELECT name FROM states WHERE murder > 8") == 0.0


def test_a_second_statement_is_not_run():
    """What follows the first semicolon is ignored."""
    gold = "SELECT name FROM states WHERE murder > 8"
    assert judged(f"{gold}; DROP TABLE states", gold) == 1.0


VALUE = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from(["a", "b", ""]), st.sampled_from([0.5, 1.0, 1e6]))


@given(st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_results_compare_as_multisets(rows, random):
    """Rows in any order are equal; a row less, or twice, is not; order matters when asked."""
    shuffled = random.sample(rows, len(rows))
    assert sql.same_result(shuffled, rows, ordered=False)
    assert sql.same_result(shuffled, rows, ordered=True) == all(map(sql.same_row, shuffled, rows))
    assert not sql.same_result(rows[1:], rows, ordered=False)
    assert not sql.same_result([*rows, rows[0]], rows, ordered=False)


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        (1, 1.0, True), (1.0, 1.0 + 1e-9, True), (1.0, 1.001, False), (0.0, 1e-12, True),
        (None, None, True), (None, 0, False), (None, "", False), ("1", 1, False), ("a", "A", False),
    ],
)  # fmt: skip
def test_values_compare_with_tolerance_and_without_casts(one, two, equal):
    """A sum in another order is the same number; text is not a number and NULL is not zero."""
    assert sql.same_result([(one,)], [(two,)], False) is equal
