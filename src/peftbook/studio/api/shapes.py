"""Bodies and answers of the API. Times are seconds since 1970; ids are the store's."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, create_model, model_validator
from pydantic_core import PydanticCustomError

from peftbook.core import specs
from peftbook.core.base_models import model_named
from peftbook.core.options import options_of
from peftbook.decision.power import Sight
from peftbook.studio.data_checks import notes_of
from peftbook.studio.preflight import Check
from peftbook.studio.settings import Reading, Settings
from peftbook.tasks.files import TableFindings
from peftbook.tasks.rows import Fault

Number = StrictInt | StrictFloat
FAULTS = 100  # that are listed
MOST_LEVELS = 100  # of lists and dictionaries in one another, as in a schema of JSON


class Body(BaseModel):
    """What is sent: a field that is none is refused, and what no file and no database can hold."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def can_be_held(cls, said: Any) -> Any:
        """JSON can nest without end, and can say half of a surrogate pair, which is no character: RFC 8259, 8.2."""
        if depth(said) > MOST_LEVELS:
            raise PydanticCustomError("deep", "Input should not be nested so deep")
        try:
            json.dumps(said, ensure_ascii=False, default=repr).encode()
        except UnicodeEncodeError as error:
            words = f"Input should be of whole characters, not have {error.object[error.start]!a}"
            raise PydanticCustomError("half", words) from None
        return said


def depth(tree: Any) -> int:
    """How deep lists and dictionaries lie in one another; 0 for a leaf."""
    levels, level = -1, [tree]
    while level:
        levels += 1
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for part in inner for one in part]
    return levels


def body_of(name: str, model: type, **other: Any) -> type[Body]:
    """A body with the fields, words, bounds and defaults of a dataclass's options. other: types in place of its own.

    A number of any kind is taken where there are bounds: the options themselves say what it must be.
    """
    hints, said = get_type_hints(model), options_of(model)
    made: dict[str, Any] = {}
    for field in fields(model):
        option, bound = said[field.name], said[field.name].bound
        words = option.help.removesuffix(", with commas")  # which a list has not
        optional = field.default is None
        kind = (Number | None if optional else Number) if bound else other.get(field.name, hints[field.name])
        usual: Any = list(DEFAULTS[field.name]) if field.name in DEFAULTS else field.default
        limits: dict[str, Any] = {"minimum": bound.least, "maximum": bound.most} if bound else {}
        default = Field(description=words, json_schema_extra=limits)
        if usual is not MISSING:
            default = Field(usual, description=words, json_schema_extra=limits)
        elif field.default_factory is not MISSING:
            factory: Any = field.default_factory
            default = Field(default_factory=factory, description=words)
        made[field.name] = kind, default
    return create_model(name, __base__=Body, **made)


DEFAULTS = {"models": (specs.EMBEDDED_MODEL,), "methods": Settings.methods}
ReadingBody = body_of("Reading", Reading)
SettingsBody = body_of("Settings", Settings, models=list[str], methods=list[str], learning_rates=dict[str, float])


def reading_of(body: BaseModel) -> Reading:
    said = {field.name: getattr(body, field.name) for field in fields(Reading)}
    return Reading(**said)


def settings_of(body: BaseModel) -> Settings:
    """The settings that a body says. Raises InputError for a model that is none."""
    said = {field.name: whole_as_int(getattr(body, field.name)) for field in fields(Settings)}
    said["models"] = tuple(map(model_named, said["models"]))
    return Settings(**said | {"methods": tuple(said["methods"])})


def whole_as_int(value: Any) -> Any:
    """3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --- answers ---------------------------------------------------------------------------------------------------


class Shape(BaseModel):
    @classmethod
    def about(cls, thing: object, **more: Any) -> Self:
        """The attributes of a thing that have the names of fields, and more that it has not."""
        return cls(**{name: getattr(thing, name) for name in cls.model_fields if name not in more}, **more)


class FileShape(Shape):
    """An upload. offset: bytes that are here.  whole: whether all are."""

    id: str
    filename: str
    created: float
    bytes: int | None
    offset: int
    whole: bool


class ProjectShape(Shape):
    """A file and how it is read. jobs: how many there are in each state."""

    id: str
    name: str
    created: float
    filename: str
    sha256: str
    reading: dict[str, Any]
    jobs: dict[str, int]


class Note(BaseModel):
    """A sentence about a file. kind: info, good or warn."""

    kind: str
    words: str


class FindingsShape(Shape):
    """What is in a file as it is read. faults: of rows that are left out, at most a hundred.  obstacle: why it is no
    task yet, or nothing.
    """

    rows: int
    usable: int
    left_out: int
    faults: list[Fault]
    splits: dict[str, int]
    duplicates: int
    conflicting: int
    near_duplicates: int
    shared_targets: int
    labels: int
    notes: list[Note]
    obstacle: str

    @classmethod
    def of_file(cls, seen: TableFindings, instruction: str) -> FindingsShape:
        notes = [Note(kind=kind, words=words) for words, kind in notes_of(seen, instruction)]
        return cls.about(seen, left_out=len(seen.faults), faults=seen.faults[:FAULTS], notes=notes)


class AnswerShape(Shape):
    """What an assistant computes. state: queued, running, done, failed or cancelled.  text: what has been written so
    far.  error: why it failed, in a sentence.
    """

    id: str
    state: str
    text: str = ""
    error: str = ""


class CheckedShape(AnswerShape):
    """A check of a plan. seconds: until the last of its runs would end, None where that is unknown.  words: what should
    be known before the plan is queued.  sights: what its test rows can see with its seeds, and with more.
    """

    checks: list[Check] = Field(default_factory=list)
    sights: list[Sight] = Field(default_factory=list)
    seconds: float | None = None
    words: list[str] = Field(default_factory=list)


class PlanShape(Shape):
    """What was queued together. jobs: their ids.  states: how many of them are in each.

    words: of a plan whose learning rates are raced which one each method was given, as far as it is known.
    """

    id: str
    project: str
    name: str
    created: float
    jobs: list[str]
    states: dict[str, int]
    words: list[str]
