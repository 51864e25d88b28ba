"""Pieces of the studio's pages as HTML. Whatever is put into a piece is escaped unless it is a piece itself."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from peftbook.core.progress import duration as span  # noqa: F401 — pages and tables take it from here
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.svg import Frame, svg
from peftbook.results import format_value

SHOWN_CHARS = 280
MOST, LISTED = 160, 12  # points of a curve, and of its table


@functools.cache
def own_file(name: str) -> tuple[bytes, str]:
    """A file of the pages themselves, and its address, which names the content and may be kept for good."""
    content = Path(__file__).with_name(name).read_bytes()
    return content, f"/studio/{name}?v={hashlib.blake2b(content, digest_size=8).hexdigest()}"


def piece(template: str, *values: object, **named: object) -> Markup:
    """A template of ours with values put in, escaped: `piece("<td>{}</td>", text)`."""
    return Markup(template).format(*values, **named)


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Pieces in a row."""
    return Markup(between).join(piece("{}", one) for one in parts)


def note(words: object, kind: str = "info") -> Markup:
    """A sentence that stands out. kind: info, good, warn or trouble."""
    sign = {"info": "i", "good": "✓", "warn": "!", "trouble": "✕"}[kind]
    role = "alert" if kind == "trouble" else "status"
    template = '<p class="note note-{}" role="{}"><span aria-hidden="true">{}</span><span>{}</span></p>'
    return piece(template, kind, role, sign, words)


def trouble(words: object) -> Markup:
    """What went wrong, in place, in one sentence."""
    return note(str(words), "trouble")


def empty(title: str, words: str) -> Markup:
    """What stands where nothing is yet, and what to do about it."""
    return piece('<div class="empty"><h2>{}</h2><p>{}</p></div>', title, words)


def loading(words: str, *, timed: bool = False) -> Markup:
    """Something is under way. timed: the page counts the seconds since it appeared."""
    seconds = Markup('<span class="fine" data-since aria-hidden="true"></span>' if timed else "")
    return piece(
        '<p class="loading" role="status"><span class="spinner" aria-hidden="true"></span>{}{}</p>', words, seconds
    )


def badge(state: str, words: str = "") -> Markup:
    """A state, told by sign and word as well as colour."""
    signs = {"done": "✓", "failed": "✕", "cancelled": "–", "running": "▸", "queued": "…", "refused": "✕", "fits": "✓"}
    template = '<span class="badge badge-{}"><span aria-hidden="true">{}</span> {}</span>'
    return piece(template, state, signs.get(state, "·"), words or state)


def button(words: str, name: str, value: str, *, kind: str = "plain", label: str = "", form: str = "") -> Markup:
    """A button that sends its form with a name and a value. label: what it is called where its words are not enough.

    form: the id of its form, if it stands outside.
    """
    more = joined(piece(' {}="{}"', *pair) for pair in (("aria-label", label), ("form", form)) if pair[1])
    return piece('<button class="act act-{}" name="{}" value="{}"{}>{}</button>', kind, name, value, more, words)


def link(words: str, address: str, *, file: str = "", label: str = "") -> Markup:
    """A link to a file of the studio. file: what it is called where it is kept."""
    more = joined(piece(' {}="{}"', *pair) for pair in (("download", file), ("aria-label", label)) if pair[1])
    return piece('<a class="file" href="{}"{}>{}</a>', address, more, words)


def bar(share: float | None, label: str) -> Markup:
    """How much is done, 0 to 1; None where nobody knows."""
    known = "" if share is None else piece(' value="{:.0f}"', 100 * min(max(share, 0.0), 1.0))
    return piece('<progress class="bar" max="100"{} aria-label="{}"></progress>', known, label)


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and values, side by side."""
    rows = (piece("<div><dt>{}</dt><dd>{}</dd></div>", name, value) for name, value in pairs)
    return piece('<dl class="facts">{}</dl>', joined(rows))


class Cell(NamedTuple):
    """A cell of a table that is sorted by a value, not by its words."""

    content: object
    value: float | str


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    kind: str = "",
    caption: str = "",
    numeric: Sequence[int] = (),
    sortable: bool = False,
) -> Markup:
    """A table that scrolls inside its own box; on a phone its rows become cards. numeric: columns set to the right.

    sortable: the page's script lets heads sort, by the value of a `Cell` or by the words.
    """
    sides = [Markup(' class="num"' if at in numeric else "") for at in range(len(header))]
    head = '<th scope="col" data-sort{}>{}</th>' if sortable else '<th scope="col"{}>{}</th>'
    heads = joined(piece(head, *one) for one in zip(sides, header, strict=True))
    body = joined(piece("<tr>{}</tr>", joined(map(cell_of, header, row, sides))) for row in rows)
    said = piece("<caption>{}</caption>", caption) if caption else Markup("")
    return piece(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table class="{}">{}<thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>", caption or "Table", kind, said, heads, body,
    )  # fmt: skip


def cell_of(head: str, content: object, right: str) -> Markup:
    """One cell, with the head that stands before it on a phone."""
    value: object = ""
    if isinstance(content, Cell):
        value = piece(' data-value="{}"', content.value)
        content = content.content
    return piece('<td{} data-head="{}"{}>{}</td>', right, head, value, content)


def clipped(text: str, chars: int = SHOWN_CHARS) -> str:
    """The start of a long text."""
    return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format_value(value, digits, unit)


def size(value: float | None) -> str:
    """Bytes for people."""
    return number(value, unit="bytes")


def ago(when: float) -> str:
    """How long it is since then."""
    seconds = max(0.0, time.time() - when)
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    day = time.localtime(when)
    return f"{day.tm_mday} {time.strftime('%B %Y', day)}"


def curve(losses: Sequence[tuple[int, float]], steps: int, label: str) -> Markup:
    """Training loss against step as a small drawing in the colours of the page."""
    finite = thinned(losses, MOST)
    if len(finite) < 2:
        return Markup("")
    x, values = [float(step) for step, _ in finite], [loss for _, loss in finite]
    path, last = Series("loss", values, x=x, marks=False), Series("last", values[-1:], x=x[-1:], line=False)
    chart = Chart([path, last], "step", "", x_range=(1, max(steps, x[-1])), alt=label)
    return Markup(svg(chart, Frame(320, 112, left=40, right=16, top=8, bottom=38), "curve"))


def points(losses: Sequence[tuple[int, float]], label: str) -> Markup:
    """The same in numbers, some of them, to be unfolded."""
    rows = [(number(step), format_value(loss, 3)) for step, loss in thinned(losses, LISTED)]
    if len(rows) < 2:
        return Markup("")
    return unfolded("In numbers", table(["Step", "Loss"], rows, caption=label, numeric=(0, 1)))


def thinned(losses: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """The finite ones, at even spacing where there are more."""
    finite = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(finite) <= most:
        return finite
    return [finite[round(at * (len(finite) - 1) / (most - 1))] for at in range(most)]


def unfolded(words: str, content: object) -> Markup:
    """What is shown when it is asked for."""
    return piece("<details><summary>{}</summary>{}</details>", words, content)
