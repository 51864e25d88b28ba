r"""The roles that print numbers: {measured}`study.name` from runs, {cited}`name` from the literature.

{measured}`study.name` prints value and interval and links to the study's page; {measured}`study.name;value` prints the
value and its unit alone, `;bound` the interval in words. A quantity without records fails the build and names the
command that computes it.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole
from sphinx.util.osutil import relative_uri

from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.evidence.literature import published, published_values
from peftbook.evidence.results import format_bound, format_quantity, quantity
from peftbook.studies import Quantity, get_study
from peftbook.views.html import piece, pluralize
from peftbook.views.site.bibliography import short_name
from peftbook.views.site.identity import PUBLIC_ADDRESS

LOGGER = logging.getLogger(__name__)
FORMS = ("", "value", "bound")
Answer = tuple[str, str, str, str]  # text, tooltip, and the page and anchor of what is behind it


class MeasuredNumber(nodes.Inline, nodes.TextElement):
    """A number computed from runs; `page` and `anchor` say where its runs are listed."""


class CitedNumber(nodes.Inline, nodes.TextElement):
    """A number quoted from a paper; `page` and `anchor` say where the paper is listed."""


def printed(name: str, form: str, store: Store | None = None) -> tuple[str, str]:
    """Text and tooltip of the quantity `study.name`; form `value` leaves the interval out, `bound` is it in words.

    Raises InputError.
    """
    if form not in FORMS:
        raise InputError(f"Unknown form {form!r} of {name!r}: write {name!r}, '{name};value' or '{name};bound'.")
    measured = quantity(name, store)
    text = format_bound(measured) if form == "bound" else format_quantity(measured, interval=not form)
    return text, describe(name, measured)


def describe(name: str, measured: Quantity) -> str:
    """The tooltip: what is behind the number."""
    interval = "95 % interval" * (measured.low is not None)
    n = f"n = {measured.n:,}" if measured.n else ""
    seeds = pluralize(measured.seeds, "seed") if measured.seeds else ""
    runs = pluralize(len(measured.runs), "run") if measured.runs or not others(name) else "runs of others"
    return "; ".join(filter(None, (name, interval, n, seeds, runs, measured.note)))


def others(name: str) -> bool:
    """Whether other people made the runs behind `study.name`."""
    return get_study(name.partition(".")[0]).others


class NumberRole(SphinxRole):
    """Print a study's quantity, or a published value, and link to what is behind it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        answer = ANSWERS[self.name](self.text)
        _numbers(self.env).setdefault(self.env.docname, {})[self.name, self.text] = answer
        if isinstance(answer, str):
            LOGGER.error(answer, location=self.get_location(), type="peftbook", subtype="number")
            return [nodes.inline("", f"[{self.text}: missing]", classes=["number-missing"])], []
        text, title, page, anchor = answer
        return [NODES[self.name]("", "", *raised(text), page=page, anchor=anchor, title=title)], []


def raised(text: str) -> list[nodes.Node]:
    """A printed number with its powers of ten raised: `5 × 10^−5` as text and a superscript."""
    parts = re.split(r"(?<=10)\^([−-]?\d+)", text)
    return [nodes.superscript("", part) if at % 2 else nodes.Text(part) for at, part in enumerate(parts) if part]


def _measured_answer(text: str) -> Answer | str:
    name, _, form = text.partition(";")
    study, _, short = name.partition(".")
    try:
        return (*printed(name, form), f"book/runs/study-{study}", short)
    except InputError as error:
        return str(error)


def _cited_answer(text: str) -> Answer | str:
    try:
        value = published(text)
    except InputError as error:
        return str(error)
    title = f"{value.what}; {short_name(value.key) or value.key}, {value.where}"
    return str(value), title, "book/bibliography", f"ref-{value.key}"


ANSWERS = {"measured": _measured_answer, "cited": _cited_answer}
NODES = {"measured": MeasuredNumber, "cited": CitedNumber}


def _numbers(env: Any) -> dict[str, dict[tuple[str, str], Answer | str]]:
    """Page → {(role, text): what was printed, or the sentence about what is missing}; kept with the environment, so
    that the next build sees whether it still holds.
    """
    if not hasattr(env, "peftbook_numbers"):
        env.peftbook_numbers = {}
    return env.peftbook_numbers


def _visit_html(translator: Any, node: nodes.Element) -> None:
    kind = "measured" if isinstance(node, MeasuredNumber) else "cited"
    builder = translator.builder
    if builder.name == "html" or node["page"] in builder.env.all_docs:
        here, there = builder.get_target_uri(builder.current_docname), builder.get_target_uri(node["page"])
        href = f"{relative_uri(here, there)}#{node['anchor']}"
    else:  # run pages are on the site alone
        href = f"{PUBLIC_ADDRESS}{node['page']}.html#{node['anchor']}"
    translator.body.append(str(piece('<a class="{}" href="{}" title="{}">', kind, href, node["title"])))


def _outdated(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Pages on which a number is missing, or would be printed differently now."""
    published_values.cache_clear()
    return [
        page
        for page, answers in _numbers(env).items()
        if page in env.all_docs
        and any(isinstance(old, str) or ANSWERS[role](text) != old for (role, text), old in answers.items())
    ]


def _fail_on_missing(app: Any, error: Exception | None) -> None:
    if error is not None or getattr(app, "env", None) is None:
        return
    lines = [
        f"  {page}: {answer}"
        for page, answers in sorted(_numbers(app.env).items())
        for answer in answers.values()
        if isinstance(answer, str)
    ]
    if lines:
        raise ExtensionError("Numbers without a source:\n" + "\n".join(lines))


def setup(app: Any) -> None:
    """Register both roles, their nodes and the check that fails the build."""
    for name, node in NODES.items():
        app.add_node(node, html=(_visit_html, lambda translator, _: translator.body.append("</a>")))
        app.add_role(name, NumberRole())
    app.connect("env-purge-doc", lambda app, env, page: _numbers(env).pop(page, None))
    app.connect("env-get-outdated", _outdated)
    app.connect("build-finished", _fail_on_missing)
