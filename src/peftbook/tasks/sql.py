"""SQL: a question over one small real table → the query that answers it, judged by executing it in SQLite.

The data are built by tests/tools/sql_build.py and described in the book's data sheet. No table is in two splits,
so every validation and test question is about a table that training never saw.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.tasks import TaskData, TaskExample, how_to_restore, task_of

PATH = DATA / "sql.parquet"
TABLES_PATH = DATA / "sql.json"
# SHA-256 over the bytes of sql.json followed by those of sql.parquet.
DATA_SHA256 = "6049a3ae6d73d93fb45bf911c0b212d8aa85c5dd5879171e7e796357452ffb6f"
SPEC = specs.Task(name="sql", data_sha256=DATA_SHA256, version=1)
INSTRUCTION = "Write one SQLite query that answers the question.\n\n{input}"

Row = tuple[Any, ...]

# A query is stopped after so many steps of SQLite's virtual machine: the same on every machine, unlike seconds.
STEPS_BETWEEN_CHECKS = 1_000
MAX_CHECKS = 1_000
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000,  # bytes of a value or a row: no function can fill the memory or take long
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 64,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 64,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 8,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
ALLOWED_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
RANDOM_FUNCTIONS = {"random", "randomblob"}  # an answer by chance is no answer
RELATIVE, ABSOLUTE = 1e-6, 1e-9


@dataclass(frozen=True)
class SqlTable:
    """A table as it is shipped. columns: (name, SQLite type) pairs; rows: values in that order."""

    name: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]

    @property
    def schema(self) -> str:
        """One line: `name(column TYPE: value, value; …)`, the first two different texts or the first number of each."""
        parts = []
        for at, (column, kind) in enumerate(self.columns):
            values = list(dict.fromkeys(row[at] for row in self.rows))[: 2 if kind == "TEXT" else 1]
            parts.append(f"{column} {kind}: {', '.join(map(str, values))}")
        return f"{self.name}({'; '.join(parts)})"


def connect(*tables: SqlTable) -> sqlite3.Connection:
    """An in-memory database that holds the tables and from now on only answers SELECT, within fixed limits."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for table in tables:
        columns = ", ".join(f'"{name}" {kind}' for name, kind in table.columns)
        connection.execute(f'CREATE TABLE "{table.name}" ({columns})')
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', table.rows)
    connection.execute("PRAGMA query_only = ON")
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(authorise)
    return connection


def authorise(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """SQLite's question before each action of a statement: reading is allowed, all else, also recursion, is denied."""
    allowed = action in ALLOWED_ACTIONS and not (action == sqlite3.SQLITE_FUNCTION and second in RANDOM_FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def query(connection: sqlite3.Connection, sql: str, max_rows: int) -> list[Row]:
    """The rows of one SELECT statement, at most `max_rows` of them.

    Raises InputError for another statement, an error of SQLite, or a query that takes more than MAX_CHECKS ×
    STEPS_BETWEEN_CHECKS steps of SQLite's virtual machine.
    """
    if not re.match(r"\s*(select|with)\b", sql, re.I):
        raise InputError(f"{sql[:40]!r} is not a query: begin it with SELECT.")
    checks = iter(range(MAX_CHECKS))
    connection.set_progress_handler(lambda: next(checks, None) is None, STEPS_BETWEEN_CHECKS)
    try:
        return connection.execute(sql).fetchmany(max_rows)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: a null character, a lone surrogate
        raise InputError(f"The query {sql[:80]!r} fails ({error}): correct it.") from None
    finally:
        connection.set_progress_handler(None, 0)


def extract_query(text: str) -> str:
    """The query in a model's answer: the first fenced block if there is one, up to the first semicolon."""
    fenced = re.search(r"```(?:sql\w*)?\s*\n(.*?)(?:```|\Z)", text, re.S | re.I)
    return (fenced[1] if fenced else text).partition(";")[0].strip()


def same_value(left: Any, right: Any) -> bool:
    """Equal values: NULL only with NULL, text only with the same text, numbers within a relative 1e-6."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return type(left) is type(right) and left == right


def same_row(left: Row, right: Row) -> bool:
    return len(left) == len(right) and all(map(same_value, left, right))


def same_result(rows: Sequence[Row], gold: Sequence[Row], ordered: bool) -> bool:
    """Whether two results are equal: the same rows as often, columns in the same order; row order only if `ordered`."""
    if len(rows) != len(gold):
        return False
    if ordered:
        return all(map(same_row, rows, gold))
    left = list(gold)
    for row in rows:
        at = next((at for at, other in enumerate(left) if same_row(row, other)), None)
        if at is None:
            return False
        left.pop(at)
    return True


def execution_match(texts: Sequence[str], examples: Sequence[TaskExample]) -> list[float]:
    """1 where the query in the text gives the result of the example's own query on its table, else 0.

    The order of rows counts where the example's query sorts, because then its question asks for an order. A text
    without a query, a statement that is not a SELECT, an error and a query over the limits score 0. Source: execution
    accuracy, Zhong, Xiong and Socher 2017, arXiv:1709.00103.
    """
    return [float(answers(text, example)) for text, example in zip(texts, examples, strict=True)]


def answers(text: str, example: TaskExample) -> bool:
    gold = gold_result(example.group, example.target)
    with closing(connect(load_tables()[example.group])) as connection:
        try:
            rows = query(connection, extract_query(text), len(gold) + 1)
        except InputError:
            return False
    return same_result(rows, gold, ordered=" ORDER BY " in example.target)


@functools.lru_cache(maxsize=4096)
def gold_result(table: str, sql: str) -> tuple[Row, ...]:
    """All rows of a reference query."""
    with closing(connect(load_tables()[table])) as connection:
        return tuple(query(connection, sql, 1_000_000))


def read_checked() -> tuple[bytes, bytes]:
    """The bytes of both files. Raises InputError if one is missing or they are not the pinned ones."""
    remedy = how_to_restore("sql")
    for path in (TABLES_PATH, PATH):
        if not path.is_file():
            raise InputError(f"The data file {path} is missing: {remedy}.")
    tables, questions = TABLES_PATH.read_bytes(), PATH.read_bytes()
    digest = hashlib.sha256(tables + questions).hexdigest()
    if digest != DATA_SHA256:
        raise InputError(
            f"{TABLES_PATH.name} and {PATH.name} have SHA-256 {digest}, not the pinned {DATA_SHA256}: {remedy}."
        )
    return tables, questions


@functools.cache
def load_tables() -> dict[str, SqlTable]:
    """The shipped tables by name. Raises InputError if a data file is missing or not the pinned one."""
    return {
        name: SqlTable(name, tuple(map(tuple, each["columns"])), tuple(map(tuple, each["rows"])))
        for name, each in json.loads(read_checked()[0])["tables"].items()
    }


def load() -> TaskData:
    """The task, its splits in the file's order. Raises InputError if a data file is missing or not the pinned one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = {name: table.schema for name, table in load_tables().items()}
    rows = []
    for row in pq.ParquetFile(pa.BufferReader(read_checked()[1])).read().to_pylist():  # `read_table` imports pandas
        text = f"{schemas[row['table']]}\nQuestion: {row['question']}"
        rows.append((row["split"], TaskExample(row["id"], text, row["sql"], row["table"])))
    judge = {"judge": execution_match, "judge_name": "execution_match"}
    return task_of(SPEC, INSTRUCTION, ("exact_match",), rows, **judge)
