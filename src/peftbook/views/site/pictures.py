"""Figures of the site as files, which a browser fetches as they come into view, and of each pair only the one it shows.

In the executed notebook a figure stands inside its page, so that the notebook holds it too; a page of the site would
carry both colour modes of every figure, in a form that compresses badly.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "_images"
DRAWN = re.compile(r'<figure [^>]*data-drawing="(\w+)"[^>]*>\s*<img class="figure-light"[^>]* src="[^"]*?(\w+\.svg)"')
INSIDE = re.compile(r'src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)"')


def extract_images(html: str, write: Callable[[str, bytes], str]) -> str:
    """Replace each embedded figure by a file; `write` stores its name and bytes and returns its address."""

    def put(match: re.Match[str]) -> str:
        body = base64.b64decode(match[1])
        return f'src="{write(f"{hashlib.sha256(body).hexdigest()[:16]}.svg", body)}" loading="lazy"'

    return INSIDE.sub(put, html)


def move_figures(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Write a page's figures beside the site's other images. The one page that is printed keeps them inside."""
    if app.builder.name != "html" or "body" not in context:
        return
    folder = Path(app.outdir) / FOLDER

    def write(name: str, body: bytes) -> str:
        folder.mkdir(exist_ok=True)
        if not (folder / name).is_file():
            (folder / name).write_bytes(body)
        return str(context["pathto"](f"{FOLDER}/{name}", 1))

    context["body"] = extract_images(context["body"], write)


def drawn_figures(site: Path) -> dict[str, Path]:
    """The files of the registered figures that chapters show as they are drawn by default, by name."""
    pages = (page.read_text(encoding="utf-8") for page in site.glob("book/*.html"))
    return {name: site / FOLDER / file for page in pages for name, file in DRAWN.findall(page)}


def setup(app: Any) -> None:
    """Connect to page rendering."""
    app.connect("html-page-context", move_figures)
