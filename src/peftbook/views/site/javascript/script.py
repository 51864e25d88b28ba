"""A script of all that some functions reach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from peftbook.views.site.javascript.expressions import js_name
from peftbook.views.site.javascript.modules import Key, in_order, key_of, line, module
from peftbook.views.site.javascript.statements import Translation


def script(
    calls: Iterable[str], tables: Mapping[str, Mapping[str, Any]], given: Iterable[str] = (), unused: Iterable[str] = ()
) -> str:
    """JavaScript that returns an object with the functions of `calls`, each "module.name", by their last names.

    tables: functions of one text that are not translated, with all their values; they are None for another text.
    given: functions that the page has itself: `given.name`.  unused: methods, each "Class.name", that nothing calls and
    whose names others have too.
    Raises Unknown where the code that they reach is not of the language that is translated.
    """
    wanted = [key_of(call) for call in calls]
    kept = {key_of(name): f"py.table({literal(table)})" for name, table in tables.items()}
    kept |= {key_of(name): f"(...known) => given.{name.rpartition('.')[2]}(...known)" for name in given}
    units = reached(wanted, kept, frozenset(unused))
    modules = in_order([where for where, _ in wanted])
    order = sorted(units, key=lambda key: (modules.index(key[0]), line(key)) if key[0] in modules else (-1, 0))
    ends = ", ".join(f"{name}: {js_name((where, name))}" for where, name in wanted)
    return "\n".join([*(f"const {js_name(key)} = {units[key]};" for key in order), f"return {{{ends}}};"])


def literal(value: Any) -> str:
    """A value of Python as an expression: dictionaries as `Dict`, tuples as lists."""
    if isinstance(value, Mapping):
        return f"py.dict([{', '.join(f'[{literal(key)}, {literal(one)}]' for key, one in value.items())}])"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return json.dumps(value, ensure_ascii=False)


def reached(wanted: Iterable[Key], kept: Mapping[Key, str], unused: frozenset[str]) -> dict[Key, str]:
    """The translation of all definitions that are reached. Of a class the methods whose names occur anywhere."""
    units: dict[Key, str] = {}
    attributes: set[str] = set()
    known = -1
    while known != len(units) + len(attributes):  # until nothing joins
        known = len(units) + len(attributes)
        queue = [*wanted]
        seen: set[Key] = set()
        while queue:
            key = queue.pop()
            if key in seen:
                continue
            seen.add(key)
            if key in kept:
                units[key] = kept[key]
                continue
            translation = Translation(module(key[0]), attributes, unused, kept)
            units[key] = translation.definition(key[1])
            attributes |= translation.attributes
            queue += sorted(translation.needs)
    return units
