"""What helps a reader along a chapter: how long it takes, what a term means, where to say that a section is unclear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from docutils import nodes

from peftbook.views.site import identity, search

WORDS_A_MINUTE = 200  # of dense text with formulas, which take their own time
GLOSSARY = "book/glossary"
SKIPPED = (nodes.title, nodes.reference, nodes.literal, nodes.math, nodes.raw, nodes.FixedTextElement, nodes.Invisible)


def orient(app: Any, doctree: nodes.document, page: str) -> None:
    """Add reading time, terms and links to a numbered chapter of the site."""
    if app.builder.name == "html" and app.env.toc_secnumbers.get(page):
        sections = [one for one in doctree.findall(nodes.section) if isinstance(one[0], nodes.title)]
        for section in sections[1:]:
            if section.parent is sections[0]:
                section += tell_us(page, section[0].astext())
        link_terms(app, doctree, page)
        words = sum(len(part["text"].split()) for part in search.sections(doctree, page))
        minutes = f"{max(1, round(words / WORDS_A_MINUTE))} minutes to read"
        sections[0].insert(1, nodes.paragraph("", minutes, classes=["reading-time"]))


def tell_us(page: str, section: str) -> nodes.paragraph:
    """A link that opens an issue with the place filled in."""
    asked = urlencode(
        {"title": f"{page}: {section}", "body": f"{identity.PUBLIC_ADDRESS}{page}.html\n\nWhat is unclear or wrong:"}
    )
    link = nodes.reference("", "Unclear or wrong? Tell us", refuri=f"{identity.REPOSITORY}/issues/new?{asked}")
    return nodes.paragraph("", "", link, classes=["tell-us"])


def definitions(app: Any) -> dict[str, tuple[str, str]]:
    """Term → (its anchor, its definition), of terms that mean one thing alone: names, long words, several words."""
    found = {}
    for item in app.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        *terms, definition = item.children
        for term in terms:
            name = term.astext()
            if isinstance(term, nodes.term) and (" " in name or len(name) > 6 or name != name.lower()):
                found[name] = term["ids"][0], definition[0].astext()
    return found


def link_terms(app: Any, doctree: nodes.document, page: str) -> None:
    """Link the first occurrence of each term of the glossary, with its definition as the link's title."""
    known = definitions(app)
    for text in list(plain_texts(doctree)):
        pattern = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
        if known and (match := re.search(rf"(?<![\w-])({pattern})s?(?![\w-])", text)):
            anchor, definition = known.pop(match[1])
            address = f"{app.builder.get_relative_uri(page, GLOSSARY)}#{anchor}"
            link = nodes.reference("", match[0], refuri=address, reftitle=definition, classes=["term"], internal=True)
            before, after = text[: match.start()], text[match.end() :]
            text.parent.replace(text, [nodes.Text(before), link, nodes.Text(after)])


def plain_texts(node: nodes.Node) -> Iterator[nodes.Text]:
    """The texts of paragraphs and lists, none of a heading, a link, code or a formula."""
    if isinstance(node, nodes.Text):
        yield node
    elif not isinstance(node, SKIPPED):
        for child in node.children:
            yield from plain_texts(child)


def setup(app: Any) -> None:
    """Connect to resolved pages."""
    app.connect("doctree-resolved", orient)
