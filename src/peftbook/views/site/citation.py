"""How to cite a chapter: the block at its foot, Highwire and Open Graph tags, and the description."""

from __future__ import annotations

from typing import Any

from docutils import nodes

from peftbook.views.html import joined, piece
from peftbook.views.site import identity

DESCRIPTION_LENGTH = 155


def bibtex(page: str, title: str) -> str:
    """A BibTeX entry of one chapter, or of the book for its first page. `page` is its document name."""
    year = released.year if (released := identity.released()) else "n.d."
    key = "peftbook-" + page.rpartition("/")[2]
    whole = title == identity.TITLE
    inside = "" if whole else f"  booktitle = {{{identity.TITLE}}},\n"
    return (
        f"@{'book' if whole else 'incollection'}{{{'peftbook' if whole else key},\n"
        f"  author    = {{{' and '.join(identity.AUTHORS)}}},\n"
        f"  title     = {{{title}}},\n"
        f"{inside}"
        f"  year      = {{{year}}},\n"
        f"  version   = {{{identity.version()}}},\n"
        f"  url       = {{{address(page)}}}\n"
        f"}}"
    )


def apa(page: str, title: str) -> str:
    """The same in APA style, as text."""
    year = released.year if (released := identity.released()) else "n.d."
    authors = ", ".join(identity.AUTHORS)
    inside = "" if title == identity.TITLE else f" In {identity.TITLE}"
    return f"{authors}. ({year}). {title}{'.' * bool(inside)}{inside} (Version {identity.version()}). {address(page)}"


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
        context["citation"] = {"bibtex": bibtex(page, title), "apa": apa(page, title)}
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
