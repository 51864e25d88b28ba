"""Numbers for the figures that `display.show` prints, counted per page, and the {fig}`name` role for them."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

LOGGER = logging.getLogger(__name__)
PLACEHOLDER = re.compile(r'<span class="figure-number" data-figure="([\w-]+)">Figure</span>')


class FigureReference(nodes.Inline, nodes.TextElement):
    """A reference to a figure of the same page, until it is numbered."""


class FigureRole(SphinxRole):
    """{fig}`name`: the number of a figure on this page, as a link."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        node = FigureReference("", self.text, target=self.text)
        self.set_source_info(node)
        return [node], []


def number_figures(app: Any, doctree: nodes.document) -> None:
    """Give each figure its number in order of appearance, then resolve the references."""
    numbers: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        number = numbers.setdefault(match[1], len(numbers) + 1)
        return f'<span class="figure-number">Figure {number}</span>'

    for node in list(doctree.findall(nodes.raw)):
        if 'data-figure="' in node.astext():
            text = PLACEHOLDER.sub(numbered, node.astext())
            node.children = [nodes.Text(text)]
            node.rawsource = text
    for node in list(doctree.findall(FigureReference)):
        name = node["target"]
        if name in numbers:
            node.replace_self(
                nodes.reference("", f"Figure\N{NO-BREAK SPACE}{numbers[name]}", refid=f"fig-{name}", internal=True)
            )
        else:
            known = ", ".join(numbers) or "none"
            LOGGER.warning("unknown figure %r: this page has %s", name, known, location=node, type="peftbook")
            node.replace_self(nodes.inline("", f"[figure {name}]", classes=["number-missing"]))


def setup(app: Any) -> None:
    """Register the role and the numbering."""
    app.add_node(FigureReference)
    app.add_role("fig", FigureRole())
    app.connect("doctree-read", number_figures)
