"""HTML from pieces on markupsafe: what is put into a piece is escaped unless it is a piece itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape


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


def fact_table(rows: Iterable[tuple[object, object]]) -> Markup:
    """Names and values, a row each."""
    body = joined(piece('<tr><th scope="row">{}</th><td>{}</td></tr>', *row) for row in rows)
    template = '<div class="table-scroll" tabindex="0"><table class="table facts"><tbody>{}</tbody></table></div>'
    return piece(template, body)


def grid(heads: Iterable[str], rows: Iterable[Iterable[object]], kind: str = "") -> Markup:
    """A table with a head, repeated on each cell: on a phone rows are shown as cards. It scrolls in its own box."""
    heads, rows = list(heads), [list(row) for row in rows]
    if not rows:
        return Markup('<p class="nothing">None yet.</p>')
    cell = '<td data-head="{}">{}</td>'
    body = joined(
        (joined(piece(cell, *pair) for pair in zip(heads, row, strict=True)) for row in rows), template="<tr>{}</tr>"
    )
    template = (
        '<div class="table-scroll" tabindex="0"><table class="table {}"><thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div>"
    )
    return piece(template, kind, joined(heads, template='<th scope="col">{}</th>'), body)


def details(summary: object, body: object) -> Markup:
    """A fold: its body shows when a reader opens it."""
    return piece('<details class="fold"><summary>{}</summary>{}</details>', summary, body)


def command_block(text: str) -> Markup:
    """A command on its own line."""
    return piece('<div class="highlight"><pre tabindex="0"><span></span>{}</pre></div>', text)


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
