"""Values from the literature: one table, each with its unit, its bibliography key and where it is printed."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache

from peftbook.core.errors import InputError
from peftbook.core.folders import DATA

LITERATURE_FILE = DATA / "literature.toml"


@dataclass(frozen=True)
class PublishedValue:
    """A number as a paper prints it.

    value: the text to print, with the paper's own precision.   unit: appended after a thin space, may be empty.
    what: what was measured, in one clause.   where: table, section or footnote.
    key: the entry in `book/references.bib`.
    """

    name: str
    value: str
    unit: str
    what: str
    key: str
    where: str

    def __str__(self) -> str:
        space = "" if not self.unit or self.unit.startswith("×") else "\N{NO-BREAK SPACE}"
        return f"{self.value}{space}{self.unit}"


@cache
def published_values() -> dict[str, PublishedValue]:
    """Every value in the table, by name."""
    table = tomllib.loads(LITERATURE_FILE.read_text(encoding="utf-8"))
    return {name: PublishedValue(name=name, **row) for name, row in table.items()}


def published(name: str) -> PublishedValue:
    """One value. Raises InputError with the nearest name for an unknown one."""
    values = published_values()
    if name not in values:
        near = difflib.get_close_matches(name, values, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "add it to src/peftbook/data/literature.toml."
        raise InputError(f"Unknown published value {name!r}: {hint}")
    return values[name]
