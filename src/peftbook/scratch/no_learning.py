"""Systems that have learnt nothing: what a score must be held against before it says that something was learnt."""

import re
from collections.abc import Sequence


def turned(sql: str) -> str:
    """The query with < and > exchanged: wrong wherever it compares."""
    return sql.translate(str.maketrans("<>", "><"))


def wrapped(sql: str) -> str:
    """The same query in other words: right wherever it was."""
    return f"SELECT * FROM ({sql})"


def everything(table: str) -> str:
    """The query that reads no question."""
    return f"SELECT * FROM {table}"


def words(text: str) -> frozenset[str]:
    """The different words of a text, lower-cased, without numbers."""
    return frozenset(re.findall("[a-z]+", text.lower()))


def nearest(question: frozenset[str], questions: Sequence[frozenset[str]]) -> int:
    """Index of the words that overlap most with these: |a ∩ b| / |a ∪ b|, the first of equals."""
    return max(range(len(questions)), key=lambda at: len(question & questions[at]) / len(question | questions[at]))


def copied(sql: str, source: str, table: str) -> str:
    """A query on one table with the name of another table in it; its columns stay those of the first."""
    return re.sub(rf"\b{re.escape(source)}\b", table, sql)


def name_in_words(code: str) -> str:
    """A "summary" of a Python function that reads its name and no more: get_user_id → get user id."""
    return " ".join(re.search(r"def (\w+)", code)[1].split("_")).strip()  # type: ignore[index]
