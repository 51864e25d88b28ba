"""The whole book as one EPUB, made from the pages of the built site: cover, contents, chapters, figures, MathML.

Every build of the site leaves `peftbook.epub` beside its pages. The same pages give the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from peftbook.core.errors import InputError
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.views.export.xhtml import Chapter, chapter, file_name, framed
from peftbook.views.html import joined, link, piece
from peftbook.views.site import identity

NAME = "peftbook.epub"
STYLE = Path(__file__).with_name("epub.css")
MADE_BY = (Path(__file__), STYLE, Path(__file__).with_name("xhtml.py"), Path(__file__).with_name("cover.py"))
CONTENTS = "_toc.yml"
KINDS = {
    ".xhtml": "application/xhtml+xml", ".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg",
    ".webp": "image/webp", ".css": "text/css",
}  # fmt: skip
CONTAINER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<container version="1.0" '
    'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="book/package.opf" '
    'media-type="application/oebps-package+xml"/></rootfiles></container>\n'
)
ACCESS = (
    ("accessMode", "textual"), ("accessMode", "visual"), ("accessModeSufficient", "textual"),
    ("accessibilityFeature", "alternativeText"), ("accessibilityFeature", "MathML"),
    ("accessibilityFeature", "structuralNavigation"), ("accessibilityFeature", "tableOfContents"),
    ("accessibilityHazard", "none"),
    ("accessibilitySummary", "Figures have alternative text and formulas are MathML with their TeX beside it."),
)  # fmt: skip


class Part(NamedTuple):
    """A part of the book and its pages; the first page of all stands in a part without a caption."""

    caption: str
    pages: list[str]


def contents(root: Path) -> list[Part]:
    """Parts and pages in their order, as the site's table of contents has them."""
    import yaml

    table = yaml.safe_load((root / CONTENTS).read_text(encoding="utf-8"))
    parts = [Part(part["caption"], [chapter["file"] for chapter in part["chapters"]]) for part in table["parts"]]
    return [Part("", [table["root"]]), *parts]


def write_epub(site: Path, parts: list[Part], out: Path) -> Path:
    """Convert the pages of `site` and pack them. Raises InputError if a page is missing."""
    pages = [page for part in parts for page in part.pages]
    if absent := [page for page in pages if not (site / f"{page}.html").is_file()]:
        raise InputError(f"The site lacks page {absent[0]!r}: build the book, then run this again.")

    def read(path: str) -> bytes:
        return (site / path).read_bytes()

    chapters = {page: chapter(page, (site / f"{page}.html").read_text("utf-8"), pages, read) for page in pages}
    files = {
        "cover.xhtml": framed(identity.TITLE, cover_page(), "cover"),
        "title.xhtml": framed(identity.TITLE, title_page(), "titlepage"),
        "contents.xhtml": framed("Contents", navigation(parts, chapters)),
        **{document.name: document.text for document in chapters.values()},
        "book.css": STYLE.read_bytes(),
        "images/cover.png": cover(),
    }
    for document in chapters.values():
        files |= document.images
    files["package.opf"] = package(files, list(chapters.values())).encode()
    pack(files, out)
    return out


def cover() -> bytes:
    """The cover as PNG, 1200 by 1800 pixels."""
    from peftbook.views.export.cover import cover
    from peftbook.views.figures.style import render_png

    return render_png(cover, identity.TITLE, f"{', '.join(identity.AUTHORS)}  ·  version {identity.version()}")


def cover_page() -> Markup:
    template = '<section class="cover"><img src="images/cover.png" alt="Cover: {}, by {}"/></section>'
    return piece(template, identity.TITLE, ", ".join(identity.AUTHORS))


def title_page() -> Markup:
    """Title, edition, licences, and where the runs are."""
    when = f", {day.isoformat()}" if (day := identity.released()) else ""
    return piece(
        '<section class="title-page"><h1>{}</h1><p>{}</p><p>Version {}{}. Text and figures {}, code {}.</p>'
        "<p>Numbers are links. An underlined one was measured and leads to its runs, which are on the site: {}. A "
        "dotted one is quoted and leads to the bibliography. Figures that respond on the site stand still "
        "here.</p></section>",
        identity.TITLE, ", ".join(identity.AUTHORS), identity.version(), when,
        link(identity.TEXT_LICENCE_ADDRESS, identity.TEXT_LICENCE), identity.CODE_LICENCE,
        link(identity.PUBLIC_ADDRESS, identity.PUBLIC_ADDRESS),
    )  # fmt: skip


def navigation(parts: list[Part], chapters: dict[str, Chapter]) -> Markup:
    """The table of contents that reading systems show: parts, chapters, sections."""

    def line(page: str) -> Markup:
        name, title, *_ = chapter = chapters[page]
        below = joined((link(f"{name}#{anchor}", words) for anchor, words in chapter.sections), "</li><li>")
        return piece("<li>{}{}</li>", link(name, title), piece("<ol><li>{}</li></ol>", below) if below else "")

    lines = Markup()
    for part in parts:
        inside = joined(map(line, part.pages))
        lines += piece("<li><span>{}</span><ol>{}</ol></li>", part.caption, inside) if part.caption else inside
    return piece(
        '<nav epub:type="toc" id="toc" role="doc-toc"><h1>Contents</h1><ol>{}</ol></nav>'
        '<nav epub:type="landmarks" hidden="hidden"><h2>Places</h2><ol>'
        '<li><a epub:type="cover" href="cover.xhtml">Cover</a></li>'
        '<li><a epub:type="toc" href="contents.xhtml">Contents</a></li>'
        '<li><a epub:type="bodymatter" href="{}">Beginning</a></li></ol></nav>',
        lines, file_name(parts[0].pages[0]),
    )  # fmt: skip


def package(files: dict[str, bytes], chapters: list[Chapter]) -> Markup:
    """The package document: what the book is, all of its files, and the order in which they are read."""
    properties = {chapter.name: " ".join(chapter.properties) for chapter in chapters if chapter.properties}
    properties |= {"contents.xhtml": "nav", "images/cover.png": "cover-image"}
    names = {file: f"f{number}" for number, file in enumerate(files)}
    items = Markup()
    for file, name in names.items():
        more = piece(' properties="{}"', properties[file]) if file in properties else ""
        items += piece('<item id="{}" href="{}" media-type="{}"{}/>\n', name, file, KINDS[Path(file).suffix], more)
    order = ["cover.xhtml", "title.xhtml", "contents.xhtml", *(chapter.name for chapter in chapters)]
    return piece(
        '<?xml version="1.0" encoding="UTF-8"?>\n<package xmlns="http://www.idpf.org/2007/opf" version="3.0" '
        'unique-identifier="book" xml:lang="en" prefix="schema: http://schema.org/">\n'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">\n<dc:identifier id="book">{address}#{version}'
        "</dc:identifier>\n<dc:title>{title}</dc:title><dc:language>en</dc:language>{people}\n<dc:date>{day}</dc:date>"
        "<dc:rights>Text and figures {text}, code {code}</dc:rights>\n"
        '<meta property="dcterms:modified">{day}T00:00:00Z</meta>\n{access}</metadata>\n'
        "<manifest>\n{items}</manifest>\n<spine>\n{spine}</spine>\n</package>\n",
        address=identity.PUBLIC_ADDRESS, version=identity.version(), title=identity.TITLE,
        people=joined(identity.AUTHORS, template="<dc:creator>{}</dc:creator>"),
        day=released.isoformat() if (released := identity.released()) else "1970-01-01", text=identity.TEXT_LICENCE,
        code=identity.CODE_LICENCE,
        access=joined(piece('<meta property="schema:{}">{}</meta>\n', *each) for each in ACCESS), items=items,
        spine=joined((names[file] for file in order), template='<itemref idref="{}"/>\n'),
    )  # fmt: skip


def pack(files: dict[str, bytes], out: Path) -> None:
    """Write the archive: its type first and uncompressed, no dates, so that equal files give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), "application/epub+zip", zipfile.ZIP_STORED)
        every = {"META-INF/container.xml": CONTAINER.encode(), **{f"book/{name}": body for name, body in files.items()}}
        for name, body in every.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, body, zipfile.ZIP_DEFLATED, compresslevel=9)
    draft = out.with_suffix(".new")
    draft.write_bytes(stream.getvalue())
    draft.replace(out)


def write_beside_site(app: Any, error: Exception | None) -> None:
    """At the end of a build of the site: its EPUB, unless it was made from these pages."""
    source = Path(app.srcdir)
    if error is not None or app.builder.name != "html" or not (source / CONTENTS).is_file():
        return
    built, site = app.env.all_docs, Path(app.outdir)  # a page added while the build runs is for the next one
    parts = [Part(part.caption, [page for page in part.pages if page in built]) for part in contents(source)]
    parts = [part for part in parts if part.pages]
    inputs = inputs_hash([*MADE_BY, *(site / f"{page}.html" for part in parts for page in part.pages)], repr(parts))
    stamp = site / f".{NAME}.stamp"
    if not (site / NAME).is_file() or not is_fresh(stamp, inputs):
        write_epub(site, parts, site / NAME)
        write_stamp(stamp, inputs)


def setup(app: Any) -> None:
    """Write the EPUB after the pages."""
    app.connect("build-finished", write_beside_site)
