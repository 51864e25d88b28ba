"""What pages made from the store are put together from: tables, folds, numbers with their units, commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any


def fact_table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, a row each."""
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<div class="table-scroll" tabindex="0"><table class="table facts"><tbody>{body}</tbody></table></div>'


def grid(heads: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table with a head; on a narrow screen it scrolls by itself."""
    heads, rows = list(heads), [list(row) for row in rows]
    if not rows:
        return '<p class="nothing">None yet.</p>'
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = ""
    for row in rows:  # the head's words again on each cell: on a phone the rows are shown as cards
        cells = "".join(f'<td data-head="{name}">{cell}</td>' for name, cell in zip(heads, row, strict=True))
        body += f"<tr>{cells}</tr>"
    table = f'<table class="table {kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="table-scroll" tabindex="0">{table}</div>'


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as rows with dotted names."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{name}.")
        else:
            yield escape(prefix + name), escape(plain(item))


def plain(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.12g}" if isinstance(value, float) else "—" if value in (None, "") else str(value)


def powers_raised(text: str) -> str:
    """A printed quantity as HTML, its powers of ten raised: `5 × 10^−5`."""
    return re.sub(r"10\^([−-]?\d+)", r"10<sup>\1</sup>", escape(text))


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


def details(summary: str, body: str) -> str:
    """What a reader opens if it is wanted."""
    return f'<details class="fold"><summary>{summary}</summary>{body}</details>'


def command_block(text: str) -> str:
    return f'<div class="highlight"><pre tabindex="0"><span></span>{escape(text)}</pre></div>'
