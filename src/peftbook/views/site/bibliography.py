"""Short names of the works in `book/references.bib`: "Hu et al. 2021"."""

from __future__ import annotations

import re
from functools import cache

from peftbook.core.folders import PACKAGE

BIBLIOGRAPHY = PACKAGE.parents[1] / "book" / "references.bib"


@cache
def entries() -> dict[str, tuple[str, str]]:
    """Key → (authors' surnames as short text, year); empty outside a checkout."""
    if not BIBLIOGRAPHY.is_file():
        return {}
    from pybtex.database import parse_file

    works = {}
    for key, entry in parse_file(str(BIBLIOGRAPHY), bib_format="bibtex").entries.items():
        people = entry.persons.get("author", [])
        names = [re.sub(r"[{}\\\\\"]", "", " ".join([*person.prelast_names, *person.last_names])) for person in people]
        short = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        works[key] = (short, str(entry.fields.get("year", "")))
    return works


def short_name(key: str) -> str | None:
    """`hu2021` → "Hu et al. 2021", or None for a key that is not in the bibliography."""
    entry = entries().get(key)
    return None if entry is None else " ".join(entry)
