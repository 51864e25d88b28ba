"""The EPUB: laws of the format, and that nothing of the pages is lost, for a small book and for the whole one."""

from __future__ import annotations

import base64
import io
import posixpath
import subprocess
import zipfile
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lxml import etree, html

from peftbook.core.errors import InputError
from peftbook.views.export import epub, xhtml
from peftbook.views.export.cover import cover
from peftbook.views.site import identity
from peftbook.views.site.mathematics import render_tex

KATEX = Path(__file__).resolve().parents[1] / "book/assets/katex/katex.min.js"
SPACES = {
    "h": xhtml.XHTML,
    "m": xhtml.MATHML,
    "e": "http://www.idpf.org/2007/ops",
    "o": "http://www.idpf.org/2007/opf",
    "c": "urn:oasis:names:tc:opendocument:xmlns:container",
}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"><path d="M0 0h2"/></svg>'
PARTS = [epub.BookPart("", ["book/index"]), epub.BookPart("Methods & more", ["book/one", "book/two"])]


def picture(mode: str) -> str:
    """An image as `display.show` writes it."""
    data = base64.b64encode(SVG.replace("M0", {"light": "M0", "dark": "M1"}[mode]).encode()).decode()
    return f'<img class="figure-{mode}" alt="A line &amp; more" width="2" src="data:image/svg+xml;base64,{data}">'


def page(title: str, body: str) -> str:
    """A page as the theme frames it."""
    return (
        '<!DOCTYPE html><html><head><script src="x.js"></script></head><body><nav>x</nav><article class="bd-article">'
        f'<section id="top"><h1>{title}<a class="headerlink" href="#top">#</a></h1>{body}</section></article></body>'
        "</html>"
    )


INLINE = f'<span class="math">{render_tex("r < d", False, KATEX)}</span>'
BLOCK = (
    '<div class="math-block" id="equation-w"><div class="math-scroll" tabindex="0">'
    + render_tex(r"W + \tfrac{\alpha}{r} B A", True, KATEX)
    + '</div><a class="eqno" href="#equation-w">(1)</a></div>'
)
PAGES = {
    "book/index": page(
        escape(identity.TITLE),
        '<p>Read <a href="one.html#part">one</a>.</p><table><tr><td>1<br>2</td></tr></table>',
    ),
    "book/one": page(
        "One",
        f'<p>Let {INLINE} be small, then&nbsp;read on.</p>{BLOCK}<section id="part"><h2>Part</h2>'
        '<p id="x">A</p><p id="x">B</p>'
        f'<figure class="book-figure" id="fig-a">{picture("light")}{picture("dark")}<figcaption>A line.'
        '<a class="run-link" href="runs/abc.html">abc</a></figcaption></figure><button>Copy</button></section>',
    ),
    "book/two": page(
        "Two",
        '<p><a class="measured" href="runs/study-a.html#b">3</a> <a href="one.html#equation-w">(1)</a> '
        '<a href="../_sources/book/two.ipynb">notebook</a> <a href="https://example.org/">away</a></p>'
        '<details><summary><p>Solution</p></summary><p>Two.</p></details>'
        '<svg viewBox="0 0 1 1"><path d="M0 0"></path></svg>',
    ),
}  # fmt: skip


class Book:
    """An EPUB that was read back, with the pages that it was made from."""

    def __init__(self, data, site, parts):
        self.archive = zipfile.ZipFile(io.BytesIO(data))
        self.site, self.parts = site, parts
        self.files = {name: self.archive.read(name) for name in self.archive.namelist()}
        self.pages = {name: etree.fromstring(body) for name, body in self.files.items() if name.endswith(".xhtml")}
        self.package = etree.fromstring(self.files["book/package.opf"])

    def select(self, path):
        """(page, element) of every match on every page."""
        return [(name, node) for name, tree in self.pages.items() for node in tree.xpath(path, namespaces=SPACES)]


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    """Three pages as Sphinx would write them."""
    site = tmp_path_factory.mktemp("site")
    (site / "book").mkdir()
    for name, text in PAGES.items():
        (site / f"{name}.html").write_text(text, encoding="utf-8")
    return site


@pytest.fixture(scope="module", params=["three pages", "the book"])
def book(request, small_site):
    """The small book and the whole one."""
    if request.param == "three pages":
        out = epub.write_epub(small_site, PARTS, small_site / epub.NAME)
        return Book(out.read_bytes(), small_site, PARTS)
    site = request.getfixturevalue("built_site")
    return Book((site / epub.NAME).read_bytes(), site, epub.contents(site.parents[1]))


def test_the_archive_says_first_what_it_is(book):
    """The type stands first and uncompressed; the container names the package document."""
    first = book.archive.infolist()[0]
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    assert book.files["mimetype"] == b"application/epub+zip"
    root = etree.fromstring(book.files["META-INF/container.xml"]).find(".//c:rootfile", SPACES)
    assert root.get("full-path") == "book/package.opf"


def test_manifest_and_archive_name_the_same_files(book):
    """No file is missing, none is left over; of each the kind is said."""
    items = book.package.findall(".//o:item", SPACES)
    named = [f"book/{item.get('href')}" for item in items]
    assert len(named) == len(set(named))
    assert {*named, "mimetype", "META-INF/container.xml", "book/package.opf"} == set(book.files)
    assert {item.get("properties") for item in items} >= {"nav", "cover-image"}


def test_every_page_is_read_in_its_order(book):
    """The spine holds each page once: cover, title, contents, then the chapters as the table of contents has them."""
    names = {item.get("id"): item.get("href") for item in book.package.findall(".//o:item", SPACES)}
    spine = [names[item.get("idref")] for item in book.package.findall(".//o:itemref", SPACES)]
    chapters = [xhtml.file_name(page) for part in book.parts for page in part.pages]
    assert spine == ["cover.xhtml", "title.xhtml", "contents.xhtml", *chapters]
    assert {f"book/{name}" for name in spine} == set(book.pages)


def test_the_contents_lead_to_every_chapter_in_order(book):
    """Parts by their captions, chapters by their titles."""
    toc = book.pages["book/contents.xhtml"].find(".//h:nav[@e:type='toc']", SPACES)
    links = [link.get("href") for link in toc.iterfind(".//h:a", SPACES) if "#" not in link.get("href")]
    assert links == [xhtml.file_name(page) for part in book.parts for page in part.pages]
    assert [part.text for part in toc.iterfind(".//h:span", SPACES)] == [part.caption for part in book.parts[1:]]
    assert all("".join(link.itertext()).strip() for link in toc.iterfind(".//h:a", SPACES))


def test_every_link_leads_somewhere(book):
    """Inside the book to a file and an anchor that exist; else to the public site or further."""
    anchors = {name: set(tree.xpath("//@id")) for name, tree in book.pages.items()}
    dead = []
    for name, link in book.select("//h:a[@href]"):
        parts = urlsplit(link.get("href"))
        if parts.scheme:
            assert parts.scheme in ("http", "https", "mailto") and "localhost" not in parts.netloc
            continue
        target = posixpath.join("book", parts.path) if parts.path else name
        if target not in anchors or (parts.fragment and parts.fragment not in anchors[target]):
            dead.append(f"{name} → {link.get('href')}")
    assert not dead, "\n".join(dead)


def test_identifiers_are_unique(book):
    """Each page's anchors name one place."""
    for name, tree in book.pages.items():
        identifiers = tree.xpath("//@id")
        assert len(identifiers) == len(set(identifiers)), name


def test_every_image_is_in_the_archive_and_described(book):
    """No data address, nothing from another host, and what a reader who cannot see it needs."""
    for name, image in book.select("//h:img"):
        assert image.get("alt", "").strip(), name
        assert f"book/{image.get('src')}" in book.files, name
    loading = "//*[@src or self::h:link or self::h:script or self::h:iframe or self::h:object]"
    for name, node in book.select(loading):
        assert not urlsplit(node.get("src") or node.get("href") or "").scheme, name
        assert not node.tag.endswith("script"), name
    assert b"url(" not in book.files["book/book.css"] and b"@import" not in book.files["book/book.css"]
    for name, body in book.files.items():
        if name.endswith(".svg"):
            assert etree.fromstring(body).tag.endswith("}svg") and b'href="http' not in body, name


def test_every_formula_is_mathml(book):
    """As many as on the page of the site, each with its TeX, and no trace of the drawing for browsers."""
    for part in book.parts:
        for page in part.pages:
            tree = book.pages[f"book/{xhtml.file_name(page)}"]
            source = html.fromstring((book.site / f"{page}.html").read_text(encoding="utf-8"))
            wanted = source.xpath("//article//*[@class='katex']//annotation")
            formulas = tree.xpath("//m:math", namespaces=SPACES)
            assert [formula.get("alttext") for formula in formulas] == [
                " ".join(formula.text.split()) for formula in wanted
            ]
            assert all(len(formula) for formula in formulas)
            item = book.package.find(f".//o:item[@href='{xhtml.file_name(page)}']", SPACES)
            assert ("mathml" in (item.get("properties") or "").split()) == bool(formulas)
    assert not book.select("//*[contains(@class, 'katex')] | //m:annotation | //h:math")


def test_nothing_to_read_is_lost(book):
    """Paragraphs, headings, cells, code and light figures are as many as on the site, without controls of scripts."""
    for part in book.parts:
        for page in part.pages:
            tree = book.pages[f"book/{xhtml.file_name(page)}"]
            source = html.fromstring((book.site / f"{page}.html").read_text(encoding="utf-8")).xpath("//article")[0]
            for tag in ("p", "h1", "h2", "h3", "li", "td", "th", "pre", "figcaption", "details"):
                there = source.xpath(f".//{tag}[not(parent::summary or ancestor::*[@class='explorer'][../@data-live])]")
                assert len(tree.findall(f".//h:{tag}", SPACES)) == len(there), (page, tag)
            shown = source.xpath(".//img[not(@class = 'figure-dark')]")
            assert len(tree.findall(".//h:img", SPACES)) == len(shown), page


def test_it_is_small_enough_to_mail(book):
    """Fonts are the reader's own, figures are drawings."""
    assert sum(info.compress_size for info in book.archive.infolist()) < 20e6


def test_links_to_runs_lead_to_the_site(small_site):
    """And those between chapters stay inside, whatever folder they lie in on the site."""
    pages = list(PAGES)
    there = identity.PUBLIC_ADDRESS
    assert xhtml.address_inside("runs/a.html#b", "book/two", pages) == f"{there}book/runs/a.html#b"
    assert xhtml.address_inside("../_sources/book/two.ipynb", "book/two", pages) == f"{there}_sources/book/two.ipynb"
    assert xhtml.address_inside("one.html#part", "book/two", pages) == "one.xhtml#part"
    assert xhtml.address_inside("#here", "book/two", pages) == "#here"


def test_drawings_keep_the_case_that_xml_asks_for(small_site):
    """HTML does not mind `viewbox`; SVG does."""
    text = xhtml.chapter("book/two", PAGES["book/two"], list(PAGES), lambda path: b"").text
    assert b'viewBox="0 0 1 1"' in text and b"viewbox" not in text


def test_letters_of_other_alphabets_are_characters():
    """MathML has given up the attribute that KaTeX writes for them."""
    assert [xhtml.styled(*letter) for letter in (("R", "DOUBLE-STRUCK"), ("L", "SCRIPT"), ("x", "BOLD"))] == [
        "ℝ",
        "ℒ",
        "𝐱",
    ]
    assert xhtml.styled("1", "BOLD") == "𝟏" and xhtml.styled("+", "BOLD") == "+"
    formula = render_tex(r"\operatorname{rank} M \in \mathbb{R}", False, KATEX)
    text = xhtml.chapter("book/one", page("One", f"<p>{formula}</p>"), [], lambda path: b"").text.decode()
    assert "<mi>ℝ</mi>" in text and "double-struck" not in text and 'rspace="0.1667em"' in text


def test_the_same_pages_give_the_same_bytes(small_site, tmp_path):
    """No date and no chance in it."""
    first, second = (epub.write_epub(small_site, PARTS, tmp_path / name).read_bytes() for name in ("a.epub", "b.epub"))
    assert first == second


def test_a_missing_page_is_named(small_site, tmp_path):
    """And nothing is written."""
    with pytest.raises(InputError, match="book/three"):
        epub.write_epub(small_site, [*PARTS, epub.BookPart("More", ["book/three"])], tmp_path / "a.epub")
    assert not list(tmp_path.iterdir())


def test_a_page_without_an_article_is_named():
    """A theme that frames pages differently is noticed."""
    with pytest.raises(InputError, match="book/one"):
        xhtml.chapter("book/one", "<html><body><p>1</p></body></html>", [], lambda path: b"")


def test_an_image_of_another_kind_is_refused():
    """Reading systems need not show it."""
    text = page("One", '<img alt="a" src="a.bmp">')
    with pytest.raises(InputError, match=r"a\.bmp"):
        xhtml.chapter("book/one", text, [], lambda path: b"")


def test_the_cover_holds_the_title():
    """Every line of it, whatever its length."""
    texts = [text.get_text() for text in cover(identity.TITLE, "Authors").axes[0].texts]
    assert " ".join(texts) == f"{identity.TITLE} Authors"
    assert [text.get_text() for text in cover("Short", "A").axes[0].texts] == ["Short", "A"]


@pytest.mark.epubcheck
def test_the_official_validator_finds_nothing(book, tmp_path):
    """EPUBCheck, which book shops run: no error and no warning."""
    path = tmp_path / "book.epub"
    path.write_bytes(book.archive.fp.getvalue())
    answer = subprocess.run(["epubcheck", "--failonwarnings", str(path)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-4000:]
