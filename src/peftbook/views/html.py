"""HTML: jinja2 templates for pages, pieces on markupsafe for a line; what is put into either is escaped unless it is
markup itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).with_name("templates")


@cache
def environment() -> Environment:
    """The templates, which call two functions of this module by themselves."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"flatten": flatten, "pluralize": pluralize}
    return found


def fill(template: str, **values: object) -> Markup:
    """A template of `templates/`, filled."""
    return Markup(environment().get_template(template).render(values))


def part(macro: str, *values: object) -> Markup:
    """A macro of `templates/parts.html`, filled."""
    return getattr(environment().get_template("parts.html").module, macro)(*values)


def piece(template: str, *values: object, **named: object) -> Markup:
    """A template with values put in, escaped: `piece("<td>{}</td>", text)`."""
    return Markup(template).format(*values, **named)


def joined(parts: Iterable[object], between: str = "", template: str = "{}") -> Markup:
    """Pieces in a row, each put into a template."""
    return Markup(between).join(piece(template, part) for part in parts)


def link(address: str, content: object, kind: str = "") -> Markup:
    """A link; kind: its class."""
    return piece('<a{} href="{}">{}</a>', piece(' class="{}"', kind) if kind else "", address, content)


def json_script(value: object) -> Markup:
    """Data for the page's script."""
    text = htmlsafe_json_dumps(value, separators=(",", ":"), ensure_ascii=False)
    return piece('<script type="application/json">{}</script>', text)


def prose(text: str) -> Markup:
    """A line in which backquotes mark code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def powers_raised(text: str) -> Markup:
    """A printed quantity, its powers of ten raised: `5 × 10^−5`."""
    return Markup(re.sub(r"10\^([−-]?\d+)", r"10<sup>\1</sup>", str(escape(text))))


def pluralize(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as rows with dotted names."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{name}.")
        else:
            yield prefix + name, plain(item)


def plain(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.12g}" if isinstance(value, float) else "—" if value in (None, "") else str(value)


def with_unit(name: str, value: float | int | None) -> tuple[str, str]:
    """A measurement for people, its unit beside the value: ("train_seconds", 130) → ("train_time", "2.2 min")."""
    if value is None:
        return name, "—"
    stem, _, unit = name.rpartition("_")
    if unit == "bytes":
        return stem, f"{value / 1e6:,.1f} MB"
    if unit == "seconds":
        return f"{stem}_time", f"{value / 60:,.1f} min" if value >= 120 else f"{value:,.2f} s"
    if unit == "nats":
        return stem, f"{value:.4f} nats"
    if name.endswith("_per_second"):
        return name, f"{value:,.1f}"
    return name, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
