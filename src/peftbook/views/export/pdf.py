"""The whole book as one PDF: Sphinx writes one page, Chromium prints it, with a cover, contents and bookmarks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from peftbook.core.errors import InputError, need
from peftbook.views.html import fill
from peftbook.views.site import identity

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """The Chromium or Chrome of this machine. Raises InputError where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise InputError("The PDF is printed by Chromium, and there is none here: install chromium, then run this again.")


def for_print(html: str) -> str:
    """The one page with a cover and contents, and with links to what only the site has."""
    chapters = re.findall(r'<span id="document-([^"]+)"></span>.*?<h\d>(.*?)<a class="headerlink"', html, re.DOTALL)
    cover = fill("print_cover.html", book=identity, chapters=chapters)
    html = re.sub(r"(<article[^>]*>)", lambda match: f"{match[1]}{cover}", html, count=1)
    html = re.sub(r'href="runs/', f'href="{identity.PUBLIC_ADDRESS}book/runs/', html)
    return re.sub(r"<html[^>]*>", '<html lang="en" data-theme="light" data-mode="light" class="pdf">', html, count=1)


def print_page(page: Path, out: Path) -> Path:
    """Print the one page that Sphinx wrote. Raises InputError without Chromium or playwright."""
    chromium = find_chromium()
    need("playwright", "The PDF")
    from playwright.sync_api import sync_playwright

    ready = page.parents[1] / "print.html"  # Sphinx names files of the page as if it lay at the top
    ready.write_text(for_print(page.read_text(encoding="utf-8")), encoding="utf-8")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--generate-pdf-document-outline"]
        with playwright.chromium.launch(executable_path=chromium, args=options) as browser:
            context = browser.new_context(java_script_enabled=False)
            opened = context.new_page()
            opened.goto(ready.as_uri(), wait_until="load", timeout=300_000)
            opened.pdf(
                path=str(out),
                format="A4",
                print_background=True,
                outline=True,
                tagged=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=fill("print_foot.html", book=identity),
                margin={"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"},
            )
    return out
