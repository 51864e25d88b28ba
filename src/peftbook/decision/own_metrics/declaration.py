"""Declarations: the kinds of metric, as validated models; read from one line, from JSON or from a TOML file."""

from __future__ import annotations

import json
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError, field_validator

from peftbook.core.canonical import Spec
from peftbook.core.errors import InputError, need
from peftbook.core.options import listed

MOST_METRICS = 8
MOST_BYTES = 1_000_000  # of a file of declarations
MOST_SCHEMA, MOST_CELLS = 20_000, 100_000  # characters, values
TAKEN = {  # by columns of a comparison's table
    "bertscore_f1", "encoder", "exact_match", "failure", "hardware", "method", "model", "perplexity", "rouge1",
    "rouge2", "rougel", "runs", "seeds", "test_examples",
}  # fmt: skip
Fold = Literal["case", "space", "punctuation", "articles"]
Cell = str | int | float | None
Word = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class Metric(Spec):
    """A metric. name: what table and command line call it.  margin: differences below it do not matter."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    margin: float = Field(default=0.02, ge=0, le=1)

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in TAKEN:
            raise ValueError("a column of the table is called so: choose another name")
        return name

    @property
    def words(self) -> str:
        """What it asks of an answer."""
        raise NotImplementedError

    def text(self) -> str:
        """The declaration as JSON."""
        return self.model_dump_json(by_alias=True)


class Regex(Metric):
    """1 where the pattern matches the whole answer; with brackets in it, where it finds in the answer what it finds in
    the target between the first of them.
    """

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=1000)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"it is no regular expression ({error})") from None
        return pattern

    @property
    def words(self) -> str:
        if re.compile(self.pattern).groups:
            return f"what /{self.pattern}/ finds between its brackets is the target's"
        return f"the whole answer matches /{self.pattern}/"


class Number(Metric):
    """1 where the last numbers, a of the answer and b of the target, have |a − b| ≤ max(absolute, relative · |b|)."""

    kind: Literal["number"] = "number"
    relative: float = Field(default=0.0, ge=0, le=1, validation_alias=AliasChoices("relative", "rel"))
    absolute: float = Field(default=0.0, ge=0, validation_alias=AliasChoices("absolute", "abs"))

    @property
    def words(self) -> str:
        parts = [f"{self.absolute:g}"] * bool(self.absolute) + [f"{100 * self.relative:g} %"] * bool(self.relative)
        within = f"within {' or '.join(parts)} of " if parts else ""
        return f"the last number is {within}the target's"


class Json(Metric):
    """1 where the answer is JSON and, with a schema, valid by it; with fields the share of them that are the target's.

    schema_: JSON Schema, draft 2020-12, without references to elsewhere.  fields: of an object; `*` is all that the
    answer or the target has.  An answer may stand in a fenced block.
    """

    kind: Literal["json"] = "json"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    fields: tuple[str, ...] = Field(default=(), max_length=100)

    @field_validator("schema_")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        need("jsonschema", "A metric with a JSON schema")
        import jsonschema

        if len(json.dumps(schema)) > MOST_SCHEMA:
            raise ValueError(f"it has more than {MOST_SCHEMA:,} characters: say less")
        if far := next((one for one in references_in(schema) if not one.startswith("#")), ""):
            raise ValueError(f"it refers to {far[:80]!r}, and nothing is fetched: put that into it")
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"it is no JSON schema ({error.message[:200]})") from None
        return schema

    @property
    def words(self) -> str:
        if self.fields:
            which = "fields" if "*" in self.fields else f"fields {', '.join(self.fields)}"
            return f"the share of the {which} that equal the target's" + " in valid JSON" * (self.schema_ is not None)
        return "the answer is JSON" + " and valid by the schema" * (self.schema_ is not None)


class Exact(Metric):
    """1 where the answer is the target, but for what is ignored."""

    kind: Literal["exact"] = "exact"
    ignore: tuple[Fold, ...] = ("case", "space")

    @property
    def words(self) -> str:
        return "the answer is the target" + f", but for {' and '.join(self.ignore)}" * bool(self.ignore)


class Table(Spec):
    """A table of a small database. columns: SQLite type by name.  rows: values in that order."""

    columns: dict[Word, Literal["TEXT", "INTEGER", "REAL"]] = Field(min_length=1, max_length=64)
    rows: tuple[tuple[Cell, ...], ...] = ()

    @field_validator("rows")
    @classmethod
    def _fit(cls, rows: tuple[tuple[Cell, ...], ...], info) -> tuple[tuple[Cell, ...], ...]:
        wide = len(info.data.get("columns", ()))
        if wrong := next((at for at, row in enumerate(rows, 1) if len(row) != wide), 0):
            raise ValueError(f"row {wrong} has {len(rows[wrong - 1])} values for {wide} columns")
        if wide * len(rows) > MOST_CELLS:
            raise ValueError(f"it has more than {MOST_CELLS:,} values")
        return rows


class Sql(Metric):
    """1 where the answer's query gives on these tables what the target's does; in its order, if that one sorts."""

    kind: Literal["sql"] = "sql"
    tables: dict[Word, Table] = Field(min_length=1, max_length=20)

    @property
    def words(self) -> str:
        return f"the query gives the target's result on {', '.join(self.tables)}"


Declared = Annotated[Regex | Number | Json | Exact | Sql, Field(discriminator="kind")]
KINDS: TypeAdapter[Any] = TypeAdapter(Declared)
NAMES = "regex, number, json, exact or sql"


def references_in(schema: Any) -> list[str]:
    """What a schema refers to."""
    if isinstance(schema, list):
        return [one for value in schema for one in references_in(value)]
    if not isinstance(schema, Mapping):
        return []
    own = [value for name, value in schema.items() if name in ("$ref", "$dynamicRef") and isinstance(value, str)]
    return own + [one for value in schema.values() for one in references_in(value)]


def declared(said: Mapping[str, Any]) -> Metric:
    """The metric that a declaration is. Raises InputError, one sentence, for one that is none."""
    name = str(said.get("name", ""))[:40]
    try:
        return KINDS.validate_python(dict(said))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
            raise InputError(
                f"Metric {name!r} has kind {str(said.get('kind'))[:40]!r}: choose one of {NAMES}."
            ) from None
        where = ".".join(map(str, first["loc"][1:])) or "the whole"
        why = first["msg"].removeprefix("Value error, ")
        raise InputError(f"Metric {name!r}: {where} = {str(first.get('input'))[:80]!r} is not valid: {why}.") from None
    except RecursionError:
        raise InputError(f"Metric {name!r} is nested too deeply: say less.") from None


def parse_metric(text: str, *, files: bool = True) -> Metric:
    """The metric of one line, `name=kind:…`, or of a JSON object. files: whether it may name files to be read.

    Raises InputError for another text.
    """
    if text.lstrip().startswith("{"):
        return declared(read_json(text, "The declaration"))
    name, sign, rest = text.partition("=")
    kind, _, argument = rest.partition(":")
    if not sign or not name.strip():
        raise InputError(f"{text[:80]!r} declares no metric: write it as name=kind:…, with a kind of {NAMES}.")
    said = {"name": name.strip(), "kind": kind.strip()}
    return declared(said | options_of(kind.strip(), argument, files))


def options_of(kind: str, argument: str, files: bool) -> dict[str, Any]:
    """What stands behind the colon of one line."""
    if kind == "regex":
        return {"pattern": argument}
    if kind == "exact":
        return {"ignore": [*listed(argument)]} if argument else {}
    if kind == "sql":
        return {"tables": read_file(Path(argument), files)}
    if kind == "json" and argument.startswith("fields="):
        return {"fields": [*listed(argument.removeprefix("fields="))]}
    pairs = dict(part.partition("=")[::2] for part in listed(argument))
    if kind == "json" and "schema" in pairs:
        pairs["schema"] = read_file(Path(pairs["schema"]), files)
    return pairs


def read_metrics(texts: Sequence[str], *, files: bool = True) -> tuple[Metric, ...]:
    """The metrics of lines, of JSON objects and of files with a list `metric` of them, in TOML or JSON.

    Raises InputError for what declares none, for two of one name and for too many.
    """
    found: list[Metric] = []
    for text in texts:
        if files and "=" not in text and not text.lstrip().startswith("{"):
            said = read_file(Path(text), files)
            each = said.get("metric", said) if isinstance(said, dict) else said
            each = each if isinstance(each, list) else [each]
            if not each or not all(isinstance(one, dict) for one in each):
                raise InputError(f"{text} declares no metric: give it a list `metric` of objects with name and kind.")
            found += map(declared, each)
        else:
            found.append(parse_metric(text, files=files))
    return check_metrics(found)


def check_metrics(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """The metrics. Raises InputError for two of one name and for too many."""
    names = [one.name for one in metrics]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InputError(f"Two metrics are called {twice!r}: give each a name of its own.")
    if len(metrics) > MOST_METRICS:
        raise InputError(f"{len(metrics)} metrics are declared: choose at most {MOST_METRICS}, all are shown at once.")
    return tuple(metrics)


def read_file(path: Path, files: bool) -> Any:
    """What a JSON or TOML file holds. Raises InputError where none may be read, and for one that holds neither."""
    if not files:
        raise InputError(f"{str(path)[:80]!r} names a file, which is not read here: send the declaration as JSON.")
    try:
        content = path.read_bytes()
        if len(content) > MOST_BYTES:
            raise InputError(f"{path} has more than {MOST_BYTES:,} bytes: declare less.")
        text = content.decode()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read ({error}): name a file with declarations, or write name=kind:…."
        ) from None
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"{path} is no TOML ({error}): correct it.") from None
    return read_json(text, str(path))


def read_json(text: str, what: str) -> Any:
    """The value of a JSON text. Raises InputError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is no JSON ({str(error)[:200]}): correct it.") from None
