"""The PDF: cover and contents before the chapters, links that lead out of it to the site, a small page printed."""

from __future__ import annotations

import pytest

from peftbook.core.errors import InputError
from peftbook.views.export import pdf
from peftbook.views.site import identity

PAGE = (
    '<html data-x="1"><head><title>Book</title></head><body><article class="bd-article"><h1>Index</h1>'
    '<span id="document-book/one"></span><section><h2>One<a class="headerlink" href="#one">#</a></h2>'
    '<a class="run-link" href="runs/abc.html">abc</a></section>'
    '<span id="document-book/two"></span><section><h2>Two<a class="headerlink" href="#two">#</a></h2></section>'
    "</article></body></html>"
)


def test_cover_and_contents_come_first_and_run_pages_are_on_the_site():
    """Every chapter is linked to in its order."""
    html = pdf.for_print(PAGE)
    assert html.index("pdf-cover") < html.index("pdf-contents") < html.index("<h1>Index")
    assert '<li><a href="#document-book/one">One</a></li><li><a href="#document-book/two">Two</a></li>' in html
    assert f'href="{identity.PUBLIC_ADDRESS}book/runs/abc.html"' in html
    assert html.count("<html") == 1 and 'class="pdf"' in html


def test_without_chromium_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="install chromium"):
        pdf.find_chromium()


def test_a_page_is_printed(tmp_path, chromium, monkeypatch):
    """What Chromium writes is a PDF."""
    monkeypatch.setattr(pdf, "find_chromium", lambda: chromium)
    folder = tmp_path / "single/book"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(PAGE, encoding="utf-8")
    out = pdf.print_page(folder / "index.html", tmp_path / "book.pdf")
    assert out.read_bytes().startswith(b"%PDF")
