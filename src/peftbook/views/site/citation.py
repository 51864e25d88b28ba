"""How to cite a chapter: the block at its foot, Highwire and Open Graph tags, and the description."""

from __future__ import annotations

from typing import Any

from docutils import nodes

from peftbook.views.html import joined, piece
from peftbook.views.site import identity

DESCRIPTION_LENGTH = 155


def address(page: str) -> str:
    """The public address of a page."""
    return f"{identity.PUBLIC_ADDRESS}{page}.html"


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
    """Give the templates the citation, and the head its tags."""
    title = app.env.titles[page].astext() if page in app.env.titles else context.get("title", identity.TITLE)
    description = describe(doctree) or f"{title}: {identity.TITLE}."
    tags = [
        ("property", "og:site_name", identity.TITLE),
        ("property", "og:title", title),
        ("property", "og:type", "article"),
        ("property", "og:url", address(page)),
        ("property", "og:image", f"{identity.PUBLIC_ADDRESS}_static/images/card.png"),
        ("name", "author", "; ".join(identity.AUTHORS)),
        ("property", "og:description", description),
    ]
    if 'name="description"' not in context.get("metatags", ""):
        tags.append(("name", "description", description))
    context["citation"] = None
    if doctree is not None and page.startswith("book/"):
        key = "peftbook-" + page.rpartition("/")[2]
        context["citation"] = {"title": title, "key": key, "authors": identity.AUTHORS, "address": address(page)}
        tags += [("name", "citation_title", title), ("name", "citation_inbook_title", identity.TITLE)]
        tags += [("name", "citation_author", author) for author in identity.AUTHORS]
        tags += [("name", "citation_public_url", address(page)), ("name", "citation_language", "en")]
        if released := identity.released():
            tags.append(("name", "citation_publication_date", released.strftime("%Y/%m/%d")))
    html = joined(piece('<meta {}="{}" content="{}">\n', *tag) for tag in tags)
    context["metatags"] = context.get("metatags", "") + str(html)
    context["released"] = identity.released()


def setup(app: Any) -> None:
    """Connect to page rendering."""
    app.connect("html-page-context", add_citation, priority=500)
