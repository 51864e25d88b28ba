"""MyST Markdown as what Jupyter and Colab show: roles and cross references as text and links, directives as blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from peftbook.views.site import identity
from peftbook.views.site.bibliography import entries, short_name
from peftbook.views.site.numbers import ANSWERS

ROLE = re.compile(r"\{([\w:]+)\}`([^`]+)`")
LINK = re.compile(r"\]\((?!https?:)([\w/-]+\.md)?(#[\w-]+)?\)")
LABELLED = re.compile(r"^\$\$ \(([\w-]+)\)$", re.MULTILINE)
OPENING = re.compile(r"^(`{3,}|:{3,})\{([\w:-]+)\}[ \t]*(.*)$")
OPTION = re.compile(r"^:[\w-]+:.*$")


def plain(text: str, page: str, figures: Mapping[str, int], equation: Callable[[str], str]) -> str:
    """A cell's MyST source without roles, targets and directives.

    page: the document, like "book/lora".  figures: name → number on this page.  equation: label → its printed number.
    """
    address = f"{identity.PUBLIC_ADDRESS}{page}.html"

    def role(match: re.Match[str]) -> str:
        name, target = match.groups()
        if name in ANSWERS:
            answer = ANSWERS[name](target)
            return match[0] if isinstance(answer, str) else answer[0]  # what is missing the page has reported
        if name in ("cite", "cite:t"):
            return cited(target.split(","), narrative=name == "cite:t")
        if name == "fig":
            return f"[Figure {figures.get(target, '')}]({address}#fig-{target})"
        if name == "eq":
            return f"[({equation(target)})]({address}#equation-{target})"
        return target.partition(" <")[0]

    def link(match: re.Match[str]) -> str:
        place, anchor = match[1] or "", match[2] or ""
        where = address.rpartition("/")[0] + "/" + place.removesuffix(".md") + ".html" if place else address
        return f"]({where}{anchor})"

    text = LABELLED.sub(lambda match: f"\\tag{{{equation(match[1])}}}\n$$", "\n".join(blocks(text.splitlines())))
    return LINK.sub(link, ROLE.sub(role, text))


def cited(keys: list[str], narrative: bool) -> str:
    """ "(Hu et al. 2021; …)", or in the sentence "Hu et al. (2021)"; each a link to the bibliography."""
    names = []
    for key in map(str.strip, keys):
        people, year = entries()[key]
        name = f"{people} ({year})" if narrative else str(short_name(key))
        names.append(f"[{name}]({identity.PUBLIC_ADDRESS}book/bibliography.html#ref-{key})")
    return "; ".join(names) if narrative else f"({'; '.join(names)})"


def blocks(lines: list[str]) -> Iterator[str]:
    """Lines with directives turned into blocks of Markdown: quotations, folded solutions, code."""
    at = 0
    while at < len(lines):
        opening = OPENING.match(lines[at])
        if opening is None:
            if not re.fullmatch(r"\([\w-]+\)=", lines[at]):
                yield lines[at]
            at += 1
            continue
        fence, name, title = opening.groups()
        end = next((to for to in range(at + 1, len(lines)) if lines[to].rstrip() == fence), len(lines))
        inside = lines[at + 1 : end]
        while inside and OPTION.match(inside[0]):
            inside = inside[1:]
        yield from block(name, title, inside)
        at = end + 1


def block(name: str, title: str, inside: list[str]) -> Iterator[str]:
    """One directive."""
    if name in ("code-cell", "code-block"):
        yield from ("```python", *inside, "```")
    elif name == "solution":
        yield from ("<details><summary>Solution</summary>", "", *blocks(inside), "", "</details>")
    elif name == "exercise":
        yield from (f"**Exercise: {title}.**", "", *blocks(inside))
    elif name == "admonition" or name.startswith("prf"):
        heading = title or name.removeprefix("prf").capitalize()
        yield from (f"> {line}".rstrip() for line in (f"**{heading}**", "", *blocks(inside)))
    else:
        yield from blocks(inside)
