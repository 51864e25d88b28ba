"""How to cite a chapter, for its templates: the block at its foot, Highwire and Open Graph tags, the description."""

from __future__ import annotations

from typing import Any

from docutils import nodes

from peftbook.views.site import identity

DESCRIPTION_LENGTH = 155


def describe(doctree: nodes.document | None) -> str:
    """The first paragraph of running text, cut at a word."""
    if doctree is None:
        return ""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            if len(text) <= DESCRIPTION_LENGTH:
                return text
            return text[:DESCRIPTION_LENGTH].rpartition(" ")[0].rstrip(",;:") + " …"
    return ""


def add_citation(app: Any, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Give the templates what the tags in the head and the block at the foot say of the page."""
    title = app.env.titles[page].astext() if page in app.env.titles else context.get("title", identity.TITLE)
    context["citation"] = {
        "title": title,
        "description": describe(doctree) or f"{title}: {identity.TITLE}.",
        "address": f"{identity.PUBLIC_ADDRESS}{page}.html",
        "key": "peftbook-" + page.rpartition("/")[2],
        "is_chapter": doctree is not None and page.startswith("book/"),
    }
    context["book"] = identity


def setup(app: Any) -> None:
    """Connect to page rendering."""
    app.connect("html-page-context", add_citation, priority=500)
