"""HTML of pages, report and API page: jinja2 templates, which escape every value, and the drawing of a curve."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peftbook.core.progress import duration
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.results import format_value
from peftbook.evidence.svg import Frame, svg
from peftbook.studio.formats import ago, clipped, number, size, time_range, typeset

HERE = Path(__file__).parent
MOST_POINTS = 160  # of a curve that is drawn
FILTERS = {"ago": ago, "clipped": clipped, "number": number, "size": size, "duration": duration,
           "time_range": time_range, "typeset": typeset,
           "value": format_value}  # fmt: skip


@functools.cache
def own_file(name: str) -> tuple[bytes, str]:
    """A static file of the pages, and its address, which names the content and may be cached for ever."""
    content = HERE.joinpath(name).read_bytes()
    return content, f"/studio/{name}?v={hashlib.blake2b(content, digest_size=8).hexdigest()}"


@functools.cache
def environment() -> Environment:
    """The templates, with the formats as filters."""
    found = Environment(
        loader=FileSystemLoader([HERE / "templates", HERE]),
        autoescape=lambda name: not str(name).endswith(".md"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= FILTERS
    return found


def fill(template: str, **values: object) -> Markup:
    """A template of `templates/`, filled; in HTML whatever is put into it is escaped unless it is markup itself."""
    return Markup(environment().get_template(template).render(values))


def part(macro: str, *values: object, **named: object) -> Markup:
    """A macro of `templates/parts.html`, filled."""
    return getattr(environment().get_template("parts.html").module, macro)(*values, **named)


def curve(losses: Sequence[tuple[int, float]], steps: int, label: str) -> Markup:
    """Training loss against step as a small drawing in the colours of the page."""
    finite = thinned(losses, MOST_POINTS)
    if len(finite) < 2:
        return Markup("")
    x, values = [float(step) for step, _ in finite], [loss for _, loss in finite]
    path, last = Series("loss", values, x=x, marks=False), Series("last", values[-1:], x=x[-1:], line=False)
    chart = Chart([path, last], "step", "", x_range=(1, max(steps, x[-1])), alt=label)
    return Markup(svg(chart, Frame(320, 112, left=40, right=16, top=8, bottom=38), "curve"))


def thinned(losses: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """The finite losses, evenly thinned to at most so many."""
    finite = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(finite) <= most:
        return finite
    return [finite[round(at * (len(finite) - 1) / (most - 1))] for at in range(most)]
