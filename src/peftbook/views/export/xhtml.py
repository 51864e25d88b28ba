"""A page of the built site as a chapter of an EPUB: XHTML, formulas as MathML, figures as files, links that work there.

What only a browser does is left out: scripts, buttons, the dark figures, the second drawing of every formula.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lxml import etree, html
from markupsafe import Markup

from peftbook.core.errors import InputError
from peftbook.views.html import fill
from peftbook.views.site import identity

XHTML = "http://www.w3.org/1999/xhtml"
MATHML = "http://www.w3.org/1998/Math/MathML"
SVG = "http://www.w3.org/2000/svg"
LEFT_OUT = (
    "//script", "//button", "//template", "//comment()", "//a[contains(@class, 'headerlink')]",
    "//img[@class='figure-dark']", "//fieldset[@class='claim-filter']", "//*[contains(@class, 'katex-html')]",
    "//*[@id='jb-print-docs-body']", "//*[@data-live]/*[@class='explorer']",
)  # fmt: skip
DATA = re.compile(r"data:(image/[a-z+]+);base64,(.*)", re.DOTALL)
ENDINGS = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
ALPHABETS = {"double-struck": "DOUBLE-STRUCK", "bold": "BOLD", "script": "SCRIPT", "fraktur": "FRAKTUR"}
IDLE = ("tabindex", "onclick", "loading", "data-explorer", "data-fit", "data-live", "data-toggle", "data-copies")
APPLIED = "\N{FUNCTION APPLICATION}"
CASED = {"viewbox": "viewBox", "preserveaspectratio": "preserveAspectRatio", "textlength": "textLength"}


class Chapter(NamedTuple):
    """One page, converted. images: file name → bytes. sections: (anchor, title) of those below the page's own."""

    name: str
    title: str
    text: bytes
    images: dict[str, bytes]
    sections: list[tuple[str, str]]
    properties: list[str]


def file_name(page: str) -> str:
    """Where a page lies in the EPUB: book/lora → lora.xhtml."""
    return f"{page.rpartition('/')[2]}.xhtml"


def chapter(page: str, source: str, pages: Collection[str], read: Callable[[str], bytes]) -> Chapter:
    """Convert the HTML of `page`; `pages` are those of the EPUB, `read` gives the bytes of a file of the site.

    Raises InputError for a page without an article, or an image that is neither SVG, PNG, JPEG nor WebP.
    """
    articles = html.document_fromstring(source).xpath("//article[contains(@class, 'bd-article')]")
    if not articles:
        raise InputError(f"Page {page!r} of the site has no article: build the site again.")
    article = articles[0]
    for path in LEFT_OUT:
        for element in article.xpath(f".{path}"):
            element.drop_tree()
    for formula in article.xpath(".//*[local-name() = 'math']"):
        set_formula(formula)
    images = dict(take_images(article, page, read))
    for link in article.xpath(".//a[@href]"):
        link.set("href", address_inside(link.get("href"), page, pages))
    tidy(article)
    heading = article.find(".//h1")
    title = text_of(heading) if heading is not None else identity.TITLE
    sections = [(part.get("id"), text_of(part.find("h2"))) for part in article.xpath(".//section[h2][@id!='']")]
    properties = [name for name in ("math", "svg") if article.xpath(f".//*[local-name() = '{name}']")]
    named = [{"math": "mathml"}.get(name, name) for name in properties]
    body = etree.tostring(qualified(article, XHTML), encoding="unicode")
    return Chapter(file_name(page), title, framed(title, body), images, sections, named)


def set_formula(formula: Any) -> None:
    """Put MathML where KaTeX's two versions were; its TeX becomes the alternative text."""
    tex = formula.xpath(".//annotation")
    if tex:
        formula.set("alttext", " ".join((tex[0].text or "").split()))
        tex[0].drop_tree()
    for wrapper in formula.xpath("./semantics"):
        wrapper.drop_tag()
    for letters in formula.xpath(".//*[@mathvariant]"):
        if alphabet := ALPHABETS.get(letters.get("mathvariant")):
            del letters.attrib["mathvariant"]  # which no longer says anything in MathML
            letters.text = "".join(styled(letter, alphabet) for letter in letters.text or "")
    for operator in formula.xpath(f".//mo[text() = '{APPLIED}']"):
        after = operator.getnext()
        if after is not None and not "".join(after.itertext()).startswith(("(", "[", "{")):
            operator.set("lspace", "0")
            operator.set("rspace", "0.1667em")  # "rank M", not "rankM"
    outer = formula
    while (parent := outer.getparent()) is not None and "katex" in parent.get("class", ""):
        outer = parent
    if outer is not formula:
        formula.tail = outer.tail
        outer.getparent().replace(outer, formula)


def styled(letter: str, alphabet: str) -> str:
    """The character of a letter or digit in one of Unicode's mathematical alphabets, or itself where there is none."""
    case = "DIGIT" if letter.isdigit() else "CAPITAL" if letter.isupper() else "SMALL"
    name = unicodedata.name(letter, "").rpartition(" ")[2]
    for before in ("MATHEMATICAL ", ""):  # ℝ and ℒ are older than the alphabets
        try:
            return unicodedata.lookup(f"{before}{alphabet} {case} {name}")
        except KeyError:
            continue
    return letter


def take_images(article: Any, page: str, read: Callable[[str], bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image, which its element then names; those inside the page become files."""
    for image in article.xpath(".//img"):
        inside = DATA.fullmatch(image.get("src", ""))
        if inside:
            body, ending = base64.b64decode(inside[2]), ENDINGS.get(inside[1], "")
        else:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), image.get("src", "")))
            body, ending = read(path), posixpath.splitext(path)[1].removeprefix(".").replace("jpeg", "jpg")
        if ending not in ENDINGS.values():
            shown = image.get("src", "")[:60]
            raise InputError(f"An image of page {page!r} is neither SVG, PNG, JPEG nor WebP: {shown!r}.")
        name = f"images/{hashlib.sha256(body).hexdigest()[:16]}.{ending}"
        image.set("src", name)
        yield name, body


def address_inside(href: str, page: str, pages: Collection[str]) -> str:
    """A link to a page of the book stays inside it; any other of the site leads to the public one."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or not parts.path:
        return href
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), parts.path))
    anchor = f"#{parts.fragment}" if parts.fragment else ""
    name = path.removesuffix(".html")
    return f"{file_name(name)}{anchor}" if name in pages else f"{identity.PUBLIC_ADDRESS}{path}{anchor}"


def tidy(article: Any) -> None:
    """Drop what has no meaning without a browser, what the format forbids, and the second use of an identifier."""
    for paragraph in article.xpath(".//summary/p"):
        paragraph.tag = "span"
    for matrix in article.xpath(".//mtable[@columnspacing='']"):
        del matrix.attrib["columnspacing"]
    seen: set[str] = set()
    for element in article.iter(etree.Element):
        for name in IDLE:
            element.attrib.pop(name, None)
        anchor = element.get("id")
        if anchor is not None:
            if anchor in seen:
                del element.attrib["id"]
            seen.add(anchor)


def text_of(heading: Any) -> str:
    """A heading as text, formulas by their letters."""
    return " ".join("".join(heading.itertext()).split())


def framed(title: str, body: str, kind: str = "") -> bytes:
    """A whole document; kind: what EPUB calls a page that is no chapter."""
    return fill("frame.xhtml", title=title, body=Markup(body), kind=kind).encode()


def qualified(element: Any, space: str) -> Any:
    """A copy of an element of HTML, formulas and drawings in their own name spaces."""
    space = {"math": MATHML, "svg": SVG}.get(element.tag, space)
    names = {None: space} if space != XHTML else None
    copy = etree.Element(f"{{{space}}}{element.tag}", nsmap=names)
    for name, value in element.attrib.items():
        if name == "xmlns" or ":" in name:
            continue
        copy.set(CASED.get(name, name) if space == SVG else name, value)
    copy.text, copy.tail = element.text, element.tail
    copy.extend(qualified(child, space) for child in element if isinstance(child.tag, str))
    return copy
