"""The deck on the site: deck and handout for download, and each chapter's link to its slides."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

FILES = ("peft.pptx", "peft-handout.pdf")
PROMISED = "PEFTBOOK_PROMISED"  # names the files that are made while the site is built


def slides_of(page: str, outline: Path) -> list[int]:
    """Numbers of the slides whose chapter is this page, in the lecture's order."""
    slides = tomllib.loads(outline.read_text(encoding="utf-8"))["slide"]
    return [at for at, slide in enumerate(slides, 1) if f"book/{slide['chapter'].partition('#')[0]}" == page]


def add_lecture(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the chapter's foot the numbers of its slides and the files that are, or will be, beside the outline."""
    folder = Path(app.srcdir) / "slides"
    context["lecture"] = None
    promised = os.environ.get(PROMISED, "")
    offered = promised.split(os.pathsep) if promised else [name for name in FILES if (folder / name).is_file()]
    if doctree is None or not (folder / "outline.toml").is_file() or FILES[0] not in offered:
        return
    root = context["pathto"]("slides", 1)
    deck, handout = (f"{root}/{name}" if name in offered else "" for name in FILES)
    numbers = slides_of(page, folder / "outline.toml")
    if numbers or page == context.get("root_doc"):
        context["lecture"] = {"numbers": numbers, "deck": deck, "handout": handout}


def copy_lecture(folder: Path, site: Path) -> None:
    """Put deck and handout, where they were built, under `slides/` of the site."""
    for name in FILES:
        if (folder / name).is_file():
            (site / "slides").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, site / "slides" / name)


def copy_after(app: Any, error: Exception | None) -> None:
    """The files that the pages link to, once the pages are written."""
    if error is None and app.builder.format == "html":
        copy_lecture(Path(app.srcdir) / "slides", Path(app.outdir))


def setup(app: Any) -> None:
    """Connect to page rendering and to the end of the build."""
    app.connect("html-page-context", add_lecture, priority=500)
    app.connect("build-finished", copy_after)
