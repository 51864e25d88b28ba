"""Kinds: what each kind of metric makes of one answer and its target, a number from 0 to 1."""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections.abc import Callable
from contextlib import closing
from typing import Any

from peftbook.core.errors import InputError
from peftbook.decision.own_metrics.declaration import Exact, Json, Metric, Number, Regex, Sql
from peftbook.tasks import sql

Score = Callable[[str, str], float]  # of an answer and its target
NUMBER = re.compile(r"(?:(?<![\w)])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
FENCED = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:```|\Z)", re.S)
ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.I)
MOST_ROWS = 1000  # of a target's query


def scorer(metric: Metric) -> Score:
    """The function that scores by a metric."""
    for kind, made in ((Regex, by_pattern), (Number, by_number), (Json, by_json), (Exact, by_text), (Sql, by_query)):
        if isinstance(metric, kind):
            return made(metric)  # type: ignore[arg-type]
    raise InputError(f"Metric {metric.name!r} is of no kind that is known.")


def by_pattern(metric: Regex) -> Score:
    pattern = re.compile(metric.pattern)
    if not pattern.groups:
        return lambda answer, target: float(pattern.fullmatch(answer) is not None)

    def found(text: str) -> str | None:
        match = pattern.search(text)
        return None if match is None else match[1]

    return lambda answer, target: float((one := found(answer)) is not None and one == found(target))


def by_number(metric: Number) -> Score:
    def score(answer: str, target: str) -> float:
        said, wanted = last_number(answer), last_number(target)
        if said is None or wanted is None:
            return 0.0
        return float(said == wanted or abs(said - wanted) <= max(metric.absolute, metric.relative * abs(wanted)))

    return score


def last_number(text: str) -> float | None:
    """The last number of a text, None without one: decimal point, commas between thousands, a power of ten.

    A dash is a sign where no letter, digit or bracket stands before it.
    """
    found = NUMBER.findall(text)
    value = float(found[-1].replace(",", "").replace("−", "-")) if found else math.nan
    return value if math.isfinite(value) else None


def by_json(metric: Json) -> Score:
    valid = validator(metric.schema_)

    def score(answer: str, target: str) -> float:
        try:
            said, wanted = read_answer(answer), read_answer(target) if metric.fields else None
        except (ValueError, RecursionError):
            return 0.0
        if not valid(said):
            return 0.0
        return share_of_fields(said, wanted, metric.fields) if metric.fields else 1.0

    return score


def validator(schema: dict[str, Any] | None) -> Callable[[Any], bool]:
    """Whether a value is valid by a schema; every value is without one. Nothing that it refers to is fetched."""
    if schema is None:
        return lambda value: True
    import jsonschema
    import referencing

    return jsonschema.Draft202012Validator(schema, registry=referencing.Registry()).is_valid


def read_answer(text: str) -> Any:
    """The JSON in a text, or in its first fenced block. Raises ValueError where it is none."""
    fenced = FENCED.search(text)
    return json.loads(fenced[1] if fenced else text, parse_constant=no_number)


def no_number(name: str) -> float:
    """JSON has no word for NaN and infinity."""
    raise ValueError(f"{name} is no JSON")


def share_of_fields(said: Any, wanted: Any, fields: tuple[str, ...]) -> float:
    """Of these fields those that both have with equal values; with `*` of all that either has."""
    if not (isinstance(said, dict) and isinstance(wanted, dict)):
        return 0.0
    asked = list(dict.fromkeys([*wanted, *said])) if "*" in fields else list(dict.fromkeys(fields))
    right = sum(name in said and name in wanted and same_json(said[name], wanted[name]) for name in asked)
    return right / len(asked) if asked else 1.0


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and true is neither."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[name], other[name]) for name in one)
    return one == other


def by_text(metric: Exact) -> Score:
    return lambda answer, target: float(fold(answer, metric.ignore) == fold(target, metric.ignore))


def fold(text: str, ignore: tuple[str, ...]) -> str:
    """A text without what is ignored: case, marks of punctuation, English articles, runs of white space."""
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = "".join(letter for letter in text if unicodedata.category(letter)[0] != "P")
    if "articles" in ignore:
        text = ARTICLES.sub(" ", text)
    return " ".join(text.split()) if "space" in ignore else text


def by_query(metric: Sql) -> Score:

    tables = [sql.SqlTable(name, tuple(table.columns.items()), table.rows) for name, table in metric.tables.items()]

    @functools.cache
    def result(query: str, most: int) -> tuple[sql.Row, ...]:
        with closing(sql.connect(*tables)) as connection:
            return tuple(sql.query(connection, query, most))

    def score(answer: str, target: str) -> float:
        try:
            wanted = result(sql.extract_query(target), MOST_ROWS)
            said = result(sql.extract_query(answer), len(wanted) + 1)
        except InputError:
            return 0.0
        ordered = re.search(r"\border\s+by\b", target, re.I) is not None
        return float(sql.same_result(said, wanted, ordered))

    return score
