"""The built site in a real browser: self-contained, quiet, readable on a phone, dark when asked, searchable."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
NOT_LOADED = {"canonical", "license", "next", "prev", "index", "search", "author"}
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


class Loads(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in LOADING and not set((attributes.get("rel") or "").split()) & NOT_LOADED:
            self.addresses.append(attributes.get(LOADING[tag]) or "")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_):
        pass


def pages() -> list[str]:
    """Every page of the table of contents."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [contents["root"], *[chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]]


@pytest.fixture(scope="module")
def address(built_site):
    """The site on localhost."""
    handler = functools.partial(Quiet, directory=str(built_site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(chromium):
    """One Chromium for all tests of this module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        with playwright.chromium.launch(executable_path=chromium, args=options) as browser:
            yield browser


@pytest.fixture
def open_page(browser, address):
    """Opens a page and returns it with all that it complained about or asked other hosts for."""
    contexts = []

    def open_page(path, viewport=DESKTOP, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page, troubles = context.new_page(), []
        page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.on("request", lambda r: troubles.append(r.url) if not r.url.startswith((address, "data:")) else None)
        page.goto(address + path, wait_until="networkidle")
        return page, troubles

    yield open_page
    for context in contexts:
        context.close()


def test_no_page_names_a_resource_of_another_host(built_site):
    """Fonts, mathematics, scripts and images come from the site's own host; links may lead away."""
    for path in built_site.rglob("*.html"):
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        outside = [name for name in loads.addresses if re.match(r"(https?:)?//", name)]
        assert not outside, f"{path.relative_to(built_site)} loads {outside}"


def test_no_style_sheet_names_a_resource_of_another_host(built_site):
    """Nor do style sheets load or import from elsewhere."""
    for path in built_site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^;)]*", path.read_text(encoding="utf-8"))
        assert not outside, f"{path.name}: {outside}"


def test_every_local_link_leads_to_a_file_and_an_anchor(built_site):
    """No dead link inside the site, run pages included."""
    anchors = {}
    dead = set()
    for path in built_site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for href in re.findall(r'<a [^>]*?href="([^"]*)"', text):
            if re.match(r"[a-z]+:|//", href):
                continue
            name, _, anchor = href.partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            if target not in anchors:
                found = target.read_text(encoding="utf-8") if target.suffix == ".html" and target.is_file() else ""
                anchors[target] = set(re.findall(r'\b(?:id|name)="([^"]+)"', found)) if target.is_file() else None
            if anchors[target] is None or (anchor and target.suffix == ".html" and anchor not in anchors[target]):
                dead.add(f"{path.relative_to(built_site)} → {href}")
    assert not dead, "\n".join(sorted(dead))


def test_every_chapter_can_be_cited_and_described(built_site):
    """Highwire tags, a description, a favicon, a canonical address, and the block at the foot."""
    for name in pages():
        text = (built_site / f"{name}.html").read_text(encoding="utf-8")
        for needed in ('name="citation_title"', 'name="citation_author"', 'name="description"', 'property="og:title"'):
            assert text.count(needed) == 1, (name, needed)
        assert 'rel="icon"' in text and 'rel="canonical"' in text and 'id="cite-bibtex"' in text, name


@pytest.mark.browser
@pytest.mark.parametrize("page", pages())
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_quiet_self_contained_and_fits_a_phone(open_page, page, scheme):
    """No request to another host, no console error, no sideways scrolling at 360 pixels."""
    opened, troubles = open_page(f"{page}.html", PHONE, scheme)
    assert troubles == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.browser
def test_a_run_page_is_quiet_and_fits_a_phone(open_page, built_site):
    """Run pages are made outside Sphinx's reading: look at one as well."""
    found = sorted((built_site / "book/runs").glob("*.html"))
    opened, troubles = open_page(f"book/runs/{found[0].name}", PHONE)
    assert troubles == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.browser
def test_figures_follow_the_colour_mode(open_page, built_site):
    """Of each pair exactly one image is displayed, before and after the switch is pressed."""
    name = next(name for name in pages() if "book-figure" in (built_site / f"{name}.html").read_text(encoding="utf-8"))
    page, _ = open_page(f"{name}.html")
    shown = "[...document.querySelectorAll('.book-figure img')].filter(i => i.offsetParent).map(i => i.className)"
    figures = page.locator(".book-figure").count()
    assert page.evaluate(shown) == ["figure-light"] * figures
    for _ in range(3):
        page.locator(".article-header-buttons .theme-switch-button").click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate(shown) == ["figure-dark"] * figures


@pytest.mark.browser
def test_search_finds_a_chapter(open_page):
    """Search runs in the page, over an index that the site carries."""
    page, troubles = open_page("search.html?q=rank")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    assert "book/" in page.locator("#search-results li a").first.get_attribute("href")
    assert troubles == []


@pytest.mark.browser
def test_the_citation_can_be_copied(open_page):
    """The button answers, with the clipboard or by selecting the text."""
    page, _ = open_page(f"{pages()[1]}.html")
    page.locator("[data-copies=cite-bibtex]").click()
    page.wait_for_function("document.querySelector('.copy-answer').textContent !== ''")
