"""Metrics of the user's own: laws of their scores, the same intervals as ROUGE, and bad ones refused."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_decision import record_of

from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.decision import compare
from peftbook.decision.own_metrics import declared, own_scores, parse_metric, read_metrics, scoring
from peftbook.decision.own_metrics.declaration import Metric
from peftbook.decision.own_metrics.kinds import last_number, scorer
from peftbook.evidence import metrics
from peftbook.studio import report, tabular
from peftbook.studio.project_metrics import declare, metrics_of
from peftbook.studio.terminal import as_json, show
from peftbook.tasks import TaskExample, get_task
from peftbook.tasks.sql import load_tables

ROWS = 30
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=40)


def score(line: str, answer: str, target: str) -> float:
    """By a declaration, in this process."""
    return scorer(parse_metric(line))(answer, target)


# --- kinds -----------------------------------------------------------------------------------------------------


@given(WORDS)
def test_a_text_is_right_as_an_answer_to_itself(text):
    """By every way of ignoring, and as JSON once it is quoted."""
    for ignore in ("", ":case", ":space,punctuation", ":case,space,punctuation,articles"):
        assert score(f"same=exact{ignore}", text, text) == 1
    assert score("kept=json:fields=a", json.dumps({"a": text, "b": 1}), json.dumps({"a": text})) == 1


@given(st.lists(WORDS, min_size=1, max_size=3), WORDS)
def test_exact_match_is_the_measure_of_that_name(answers, target):
    """But for the one full stop at the end that the measure forgives."""
    for answer in answers:
        if not (answer.rstrip().endswith(".") or target.rstrip().endswith(".")):
            answer, target = answer.lower(), target.lower()
            assert score("same=exact:space", answer, target) == metrics.exact_match([answer], [target])[0]


@given(st.floats(-1e6, 1e6), st.floats(0, 0.5), st.floats(-2, 2))
def test_a_number_is_right_within_its_tolerance(wanted, relative, steps):
    """|a − b| ≤ relative · |b|, away from the edge itself."""
    allowed = relative * abs(wanted)
    said = wanted + steps * allowed
    if abs(abs(said - wanted) - allowed) > 1e-9 * max(1, abs(wanted)):
        right = abs(said - wanted) <= allowed
        answer = f"First 7, then: {said!r} kg."
        assert score(f"total=number:rel={relative!r}", answer, f"{wanted!r}") == float(right)


@given(st.integers(-(10**12), 10**12))
def test_numbers_are_read_as_people_write_them(value):
    """With commas between thousands, a typeset minus, as a range's end, in the middle of a word."""
    assert last_number(f"about {value:,} now") == value == last_number(f"{value}".replace("-", "−"))
    assert last_number(f"5-{abs(value)}") == abs(value) == last_number(f"B{abs(value)}.")
    assert last_number("no number") is None and last_number("1e999") is None and last_number("of .5") == 0.5


def test_json_is_compared_by_value():
    """Not by the order of keys or the way a number is written; true is no 1, and prose is no JSON."""
    target = json.dumps({"item": "tea", "amount": 2, "gift": True, "tags": ["a", "b"]})
    fenced = 'Here:\n```json\n{"amount": 2.0, "tags": ["a", "b"], "item": "tea", "gift": true}\n```'
    assert score("order=json:fields=*", fenced, target) == 1
    assert score("order=json:fields=*", '{"item": "tea", "amount": 2, "gift": 1, "tags": ["b", "a"]}', target) == 0.5
    assert score("order=json:fields=item,amount", '{"item": "tea", "amount": true}', target) == 0.5
    assert score("order=json:fields=item", "tea", target) == score("order=json", "{item: tea}", target) == 0
    assert score("order=json", "[NaN]", target) == score("order=json", "[" * 100_000, target) == 0


def test_json_is_valid_by_its_schema():
    """As jsonschema says, references inside it and patterns included."""
    schema = {
        "type": "object", "required": ["code"], "properties": {"code": {"$ref": "#/$defs/code"}},
        "$defs": {"code": {"type": "string", "pattern": "^[A-Z]{2}$"}},
    }  # fmt: skip
    metric = declared({"name": "valid", "kind": "json", "schema": schema})
    answers = ['{"code": "AB"}', '{"code": "ab"}', '{"code": 1}', "{}", "AB"]
    assert own_scores(metric, [answers], ['{"code": "XY"}'] * 5) == [[1, 0, 0, 0, 0]]


def test_a_pattern_asks_for_the_whole_answer_or_for_what_it_finds():
    """Without brackets a full match; with them the same text as in the target."""
    assert score("date=regex:\\d{4}-\\d\\d", "2026-11", "2026-12") == 1
    assert score("date=regex:\\d{4}-\\d\\d", "in 2026-11", "2026-12") == 0
    label = "label=regex:label:\\s*(\\w+)"
    assert score(label, "I think: label: red!", "label:red") == 1
    assert score(label, "label: redder", "label: red") == score(label, "red", "label: red") == 0


def test_queries_are_judged_as_the_books_sql_task_judges_them():
    """On one of its tables: each target by itself, another one's, and what is no query."""
    task = get_task("sql")
    name = task.splits["test"][0].group
    rows = [one for one in task.splits["test"] if one.group == name][:6]
    table = load_tables()[name]
    said = {"columns": dict(table.columns), "rows": table.rows}
    metric = declared({"name": "query", "kind": "sql", "tables": {name: said}})
    targets = [one.target for one in rows]
    turned = [*targets[1:], targets[0]]
    answers = [targets, turned, [f"```sql\n{one};\n```" for one in targets], ["DROP TABLE x"] * len(rows)]
    assert own_scores(metric, answers, targets) == [task.judge(each, rows) for each in answers]


def test_a_query_may_join_tables_whose_names_are_words_of_sql():
    """Two tables, one of them called order; rows count in the order that the target asks for."""
    tables = {
        "order": {"columns": {"id": "INTEGER", "customer": "INTEGER"}, "rows": [[1, 1], [2, 2]]},
        "customer": {"columns": {"id": "INTEGER", "name": "TEXT"}, "rows": [[1, "Ada"], [2, "Bo"]]},
    }
    metric = declared({"name": "query", "kind": "sql", "tables": tables})
    target = 'SELECT name FROM customer JOIN "order" ON customer.id = customer ORDER BY name'
    other = "SELECT name FROM customer ORDER BY name DESC"
    assert own_scores(metric, [[target], [other], ["SELECT 'Ada' UNION ALL SELECT 'Bo'"]], [target]) == [[1], [0], [1]]
    assert sqlite3.sqlite_version_info >= (3, 0)


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("words", "cannot be read"),
        ("x=", "has kind ''"),
        ("x=python:print(1)", "has kind 'python'"),
        ("x=regex:(", "no regular expression"),
        ("x=regex:" + "(" * 999, "no regular expression"),
        ("x=number:rel=-0.1", "greater than or equal to 0"),
        ("x=number:abs=nan", "finite number"),
        ("x=number:tolerance=1", "tolerance"),
        ("rouge1=exact", "choose another name"),
        ("A name=exact", "should match pattern"),
        ("x=exact:accents", "'accents' is not valid"),
        ('{"name": "x", "kind": "json", "schema": {"type": "animal"}}', "no JSON schema"),
        ('{"name": "x", "kind": "json", "schema": {"$ref": "https://example.org/s"}}', "nothing is fetched"),
        ('{"name": "x", "kind": "json", "schema": ' + '{"not": ' * 990 + "{}" + "}" * 990 + "}", "recursion"),
        ('{"name": "x", "kind": "sql", "tables": {"a; DROP": {"columns": {"b": "TEXT"}}}}', "should match pattern"),
        ('{"name": "x", "kind": "sql", "tables": {"a": {"columns": {"b": "TEXT"}, "rows": [[1, 2]]}}}', "2 values"),
        ("{", "no JSON"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_sentence(line, words):
    """Which names the value and the fix."""
    with pytest.raises(InputError, match=words) as error:
        read_metrics([line])
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "said",
    [
        {"kind": "regex", "pattern": "(?:a+)+"},
        {"kind": "json", "schema": {"type": "string", "pattern": "^(a+)+$"}},
    ],
)
def test_a_pattern_that_takes_for_ever_holds_up_nobody(said, monkeypatch):
    """Its process is ended, and the sentence says by what."""
    monkeypatch.setattr(scoring, "CPU_SECONDS", 1)
    text = "a" * 40 + "!"
    began = time.monotonic()
    with pytest.raises(InputError, match="repeats within repeats"):
        own_scores(declared({"name": "slow", **said}), [[json.dumps(text) if said["kind"] == "json" else text]],
                   ['"aa"' if said["kind"] == "json" else "aa"])  # fmt: skip
    assert time.monotonic() - began < scoring.SECONDS


def test_a_schema_that_calls_itself_and_a_query_without_end_are_no_right_answers():
    """The first is refused, the second scores 0; neither takes the process along."""
    circle = declared({"name": "circle", "kind": "json", "schema": {"$ref": "#"}})
    with pytest.raises(InputError, match="circle"):
        own_scores(circle, [["1"]], ["1"])
    metric = declared({"name": "query", "kind": "sql", "tables": {"t": {"columns": {"a": "TEXT"}, "rows": [["x"]]}}})
    endless = "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n) SELECT count(*) FROM n"
    assert own_scores(metric, [[endless]], ["SELECT a FROM t"]) == [[0]]


def test_a_target_that_would_be_wrong_is_told_before_any_score():
    """Row and text are named; nothing is scored by such a metric."""
    with pytest.raises(InputError, match="target of row 2 is itself no right answer \\('none'\\)"):
        own_scores(parse_metric("total=number"), [["1", "2"]], ["1", "none"])


def test_declarations_come_from_lines_and_files(tmp_path):
    """A line, a TOML file of several and JSON say the same; two of one name and too many are refused."""
    (tmp_path / "metrics.toml").write_text(
        '[[metric]]\nname = "total"\nkind = "number"\nrel = 0.01\n\n[[metric]]\nname = "same"\nkind = "exact"\n'
    )
    total, same = read_metrics([str(tmp_path / "metrics.toml")])
    assert total == parse_metric("total=number:rel=0.01") == parse_metric(total.text()) and same.words
    with pytest.raises(InputError, match="Two metrics are called 'same'"):
        read_metrics(["same=exact", str(tmp_path / "metrics.toml")])
    with pytest.raises(InputError, match="at most"):
        read_metrics([f"m{at}=exact" for at in range(9)])
    with pytest.raises(InputError, match="names a file"):
        parse_metric(f"x=json:schema={tmp_path / 'metrics.toml'}", files=False)


# --- in a comparison -------------------------------------------------------------------------------------------


def written(seeds: int = 3) -> tuple[list[Record], dict[str, list[str]], tuple[TaskExample, ...]]:
    """Records of three methods with texts, of which a part is right, scored by exact match as a run does it."""
    rng = np.random.default_rng(5)
    rows = tuple(TaskExample(f"r{at}", f"count {at}", f"it is {at}", f"g{at // 2}") for at in range(ROWS))
    records, texts = [], {}
    for kind, share in {"untuned": 0.1, "lora": 0.8, "prompt": 0.5}.items():
        for seed in range(1 if kind == "untuned" else seeds):
            said = [row.target if rng.random() < share else "I do not know" for row in rows]
            one = record_of(kind, seed, np.full(ROWS, 0.5))
            right = metrics.exact_match(said, [row.target for row in rows])
            one = one.model_copy(update={"per_example": {**one.per_example, "exact_match": right}})
            records.append(one)
            texts[one.key] = said
    return records, texts, rows


@pytest.mark.parametrize("grouped", [False, True])
def test_an_own_metric_decides_as_the_same_score_would(grouped):
    """Scores, paired differences, p, detection, Holm, recommendation and what copying is worth: as for a measure that
    every run has. The records are those of a training long ago, and stay what they are.
    """
    records, texts, rows = written()
    rows = rows if grouped else tuple(dataclasses.replace(row, group="") for row in rows)
    before = [record.model_dump_json() for record in records]
    metric = parse_metric('{"name": "right", "kind": "exact", "margin": 0.02}')
    mine = compare(records, texts, rows, measure="right", metrics=[metric])
    usual = compare(records, texts, rows, measure="exact_match")
    assert [row.label for row in mine.rows] == [row.label for row in usual.rows]
    for one, other in zip(mine.rows, usual.rows, strict=True):
        assert one.scores["right"] == other.scores["exact_match"]
        assert one.against_untuned.get("right") == other.against_untuned.get("exact_match")
        assert (one.may_be_best, one.beats_untuned) == (other.may_be_best, other.beats_untuned)
    for pair, same in zip(mine.pairs, usual.pairs, strict=True):
        assert (pair.p, pair.detected) == (same.p, same.detected)
    assert mine.recommendation.kind == usual.recommendation.kind and mine.copying == usual.copying
    assert [record.model_dump_json() for record in records] == before
    assert {"right", "exact_match"} <= {one.name for one in mine.measures}


def test_an_own_metric_stands_in_every_table(tmp_path):
    """Text, JSON, CSV and page have its column and say in words what it asks; a run without texts has a dash."""
    records, texts, rows = written(1)
    store = Store(tmp_path)
    records = [store.save(record, texts[record.key]) for record in records]
    texts = {record.key: store.texts(record) for record in records}
    metric = parse_metric("total=number:rel=0.1")
    found = compare(records, texts, rows, metrics=[metric])
    assert found.measure.name == "rougeL" and not math.isnan(found.rows[0].scores["total"].mean)
    assert "total: the last number is within 10\N{NO-BREAK SPACE}% of the target's." in show(found).replace("\n", " ")
    assert as_json(found)["metrics"][0]["relative"] == 0.1 and "total" in as_json(found)["rows"][0]["scores"]
    assert "total_minus_untuned" in tabular.to_csv(found) and "Own metric total" in report.to_html(
        found, records=records
    )
    del texts[records[-1].key]
    lacking = compare(records, texts, rows, metrics=[metric])
    assert "total" not in next(row for row in lacking.rows if row.label == "Prompt tuning").scores
    with pytest.raises(InputError, match="give the test examples"):
        compare(records, texts, (), metrics=[metric])
    with pytest.raises(InputError, match=r"Unknown measure .totals.*, total\."):
        compare(records, texts, rows, measure="totals", metrics=[metric])


def test_a_project_keeps_its_metrics(tmp_path):
    """They are tried on its targets, kept whole or not at all, and a declaration of the moment goes before them."""
    from studio_home import colours_project

    from peftbook.studio.store import Studio

    studio = Studio(tmp_path)
    project = colours_project(studio)
    assert metrics_of(studio, project.id) == ()
    kept = declare(studio, project.id, [{"name": "first", "kind": "regex", "pattern": "Mix (\\w+)"}])
    assert metrics_of(studio, project.id) == kept and all(isinstance(one, Metric) for one in kept)
    for wrong in ({"name": "sum", "kind": "number"}, {"name": "x", "kind": "regex", "pattern": "("}):
        with pytest.raises(InputError):
            declare(studio, project.id, [wrong])
        assert metrics_of(studio, project.id) == kept
    for damaged in ("[", "3", '[{"name": 1}]', '["x=python:1"]'):
        (studio.folder(project.id) / "metrics.json").write_text(damaged)
        with pytest.raises(InputError, match="declare them again"):
            metrics_of(studio, project.id)
    assert declare(studio, project.id, [{"name": "first", "kind": "regex", "pattern": "Mix (\\w+)"}]) == kept
    once = metrics_of(studio, project.id, ["first=exact", "same=exact"])
    assert [(one.name, type(one).__name__) for one in once] == [("first", "Exact"), ("same", "Exact")]
    with pytest.raises(InputError, match="names a file"):
        metrics_of(studio, project.id, ["x=json:schema=/etc/passwd"])
