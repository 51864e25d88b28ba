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
from peftbook.core.records import write_atomically
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.views.export.xhtml import Chapter, chapter, framed
from peftbook.views.html import TEMPLATES, fill
from peftbook.views.site import identity

NAME = "peftbook.epub"
STYLE = Path(__file__).with_name("epub.css")
MADE_BY = (*(Path(__file__).with_name(name) for name in ("epub.py", "epub.css", "xhtml.py", "cover.py")),
           *TEMPLATES.iterdir())  # fmt: skip
CONTENTS = "_toc.yml"
KINDS = {
    ".xhtml": "application/xhtml+xml", ".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg",
    ".webp": "image/webp", ".css": "text/css",
}  # fmt: skip


class BookPart(NamedTuple):
    """A part of the book and its pages; the first page of all stands in a part without a caption."""

    caption: str
    pages: list[str]


def contents(root: Path) -> list[BookPart]:
    """Parts and pages in their order, as the site's table of contents has them."""
    import yaml

    table = yaml.safe_load((root / CONTENTS).read_text(encoding="utf-8"))
    parts = [BookPart(part["caption"], [chapter["file"] for chapter in part["chapters"]]) for part in table["parts"]]
    return [BookPart("", [table["root"]]), *parts]


def write_epub(site: Path, parts: list[BookPart], out: Path) -> Path:
    """Convert the pages of `site` and pack them. Raises InputError if a page is missing."""
    pages = [page for part in parts for page in part.pages]
    if absent := [page for page in pages if not (site / f"{page}.html").is_file()]:
        raise InputError(f"The site lacks page {absent[0]!r}: build the book, then run this again.")

    def read(path: str) -> bytes:
        return (site / path).read_bytes()

    chapters = {page: chapter(page, (site / f"{page}.html").read_text("utf-8"), pages, read) for page in pages}
    files = {
        "cover.xhtml": framed(identity.TITLE, fill("cover.xhtml", book=identity), "cover"),
        "title.xhtml": framed(identity.TITLE, fill("title.xhtml", book=identity), "titlepage"),
        "contents.xhtml": framed("Contents", fill("contents.xhtml", parts=parts, chapters=chapters)),
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
    from peftbook.views.figures.style import mode_context

    stream, authors = io.BytesIO(), f"{', '.join(identity.AUTHORS)}  ·  version {identity.version()}"
    with mode_context("light"):
        cover(identity.TITLE, authors).savefig(stream, format="png", dpi=200, metadata={"Software": None})
    return stream.getvalue()


def package(files: dict[str, bytes], chapters: list[Chapter]) -> Markup:
    """The package document: what the book is, all of its files, and the order in which they are read."""
    properties = {chapter.name: " ".join(chapter.properties) for chapter in chapters if chapter.properties}
    properties |= {"contents.xhtml": "nav", "images/cover.png": "cover-image"}
    items = {name: (number, KINDS[Path(name).suffix], properties.get(name, "")) for number, name in enumerate(files)}
    order = ["cover.xhtml", "title.xhtml", "contents.xhtml", *(chapter.name for chapter in chapters)]
    return fill("package.opf", book=identity, items=items, order=order)


def pack(files: dict[str, bytes], out: Path) -> None:
    """Write the archive: its type first and uncompressed, no dates, so that equal files give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), "application/epub+zip", zipfile.ZIP_STORED)
        every = {"META-INF/container.xml": fill("container.xml").encode()}
        every |= {f"book/{name}": body for name, body in files.items()}
        for name, body in every.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, body, zipfile.ZIP_DEFLATED, compresslevel=9)
    write_atomically(out, stream.getvalue())


def write_beside_site(app: Any, error: Exception | None) -> None:
    """At the end of a build of the site: its EPUB, unless it was made from these pages."""
    source = Path(app.srcdir)
    if error is not None or app.builder.name != "html" or not (source / CONTENTS).is_file():
        return
    built, site = app.env.all_docs, Path(app.outdir)  # a page added while the build runs is for the next one
    parts = [BookPart(part.caption, [page for page in part.pages if page in built]) for part in contents(source)]
    parts = [part for part in parts if part.pages]
    inputs = inputs_hash([*MADE_BY, *(site / f"{page}.html" for part in parts for page in part.pages)], repr(parts))
    stamp = site / f".{NAME}.stamp"
    if not (site / NAME).is_file() or not is_fresh(stamp, inputs):
        write_epub(site, parts, site / NAME)
        write_stamp(stamp, inputs)


def setup(app: Any) -> None:
    """Write the EPUB after the pages."""
    app.connect("build-finished", write_beside_site)
