"""The search: each section's words as data for the page `search.html`, which ranks sections by BM25 (MiniSearch).

Sphinx's own search only asks whether a section has a word, not how often, and takes the source of formulas for words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes

FILE = "sections.js"
LEFT_OUT = (nodes.math_block, nodes.comment, nodes.raw, nodes.literal_block, nodes.image)
ELSEWHERE = ("book/bibliography", "book/changes")  # lists of everything, which a word would find first


def sections(doctree: nodes.document, page: str) -> Iterator[dict[str, str]]:
    """Page, chapter, title and text of each section, without formulas and blocks of code."""
    chapter = ""
    for section in filter(is_titled, doctree.findall(nodes.section)):
        title = section[0].astext()
        chapter = chapter or title
        anchor = f"#{section['ids'][0]}" if title != chapter else ""
        text = " ".join(words for node in section[1:] for words in texts(node))
        yield {"page": f"{page}.html", "anchor": anchor, "chapter": chapter, "title": title, "text": text}


def is_titled(node: nodes.Node) -> bool:
    """Whether a node is a section of its own; the inside of an exercise is a section without a title."""
    return isinstance(node, nodes.section) and isinstance(node[0], nodes.title)


def texts(node: nodes.Node) -> Iterator[str]:
    """The texts under a node, without sections of their own and what is left out."""
    if isinstance(node, nodes.Text):
        yield " ".join(node.split())
    elif isinstance(node, nodes.math):
        yield "…"
    elif not isinstance(node, LEFT_OUT) and not is_titled(node):
        for child in node.children:
            yield from texts(child)


def disable_sphinx_index(app: Any) -> None:
    """Sphinx makes no index of the site."""
    if app.builder.name == "html":
        app.builder.search = False


def add_page(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page that searches, which Sphinx writes only with its own index."""
    if app.builder.name == "html":
        yield "search", {}, "search.html"


def write_sections(app: Any, error: Exception | None) -> None:
    """All sections of all pages, at the end of a build."""
    if error is None and app.builder.name == "html":
        pages = sorted(set(app.env.found_docs) - {*ELSEWHERE})
        found = [part for page in pages for part in sections(app.env.get_doctree(page), page)]
        (Path(app.outdir) / FILE).write_text(f"const SECTIONS = {json.dumps(found)};\n", encoding="utf-8")


def setup(app: Any) -> None:
    """Connect to the builder, to the pages that are no documents, and to the end of the build."""
    app.connect("builder-inited", disable_sphinx_index)
    app.connect("html-collect-pages", add_page)
    app.connect("build-finished", write_sections)
