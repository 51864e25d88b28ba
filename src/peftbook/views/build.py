"""`peftbook book`: deck and site from the records at hand; what is up to date is left alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from peftbook.core.errors import InputError, need
from peftbook.core.folders import PACKAGE
from peftbook.core.progress import show_progress
from peftbook.core.records import default_store
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.views.site import freshness, identity
from peftbook.views.site.lecture import copy_lecture

KERNEL_HINT = "Kernel is running over TCP without encryption"  # on one machine


def build_book(root: Path, *, strict: bool = False) -> dict[str, Path]:
    """Build the deck, and the site under _build/html, which offers it; returns the two places.

    strict: rebuild every page and treat warnings as errors. Raises InputError outside a checkout or if a page fails.
    """
    check_checkout(root)
    need("jupyter_book", "The site")
    deck, stamp = root / "slides/peft.pptx", root / "_build/stamps/deck"
    drawn = [f"{room}/*.py" for room in ("views/figures", "views/slides", "studies", "evidence")]
    told = [path for kind in (*drawn, "records/*.json*", "data/*") for path in PACKAGE.glob(kind)]
    told += [path for kind in ("*.toml", "stills/*") for path in (root / "slides").glob(kind)]
    inputs = inputs_hash(told)  # what is edited meanwhile is for the next build
    if not deck.is_file() or not is_fresh(stamp, inputs):
        with show_progress("Slides", "judging the runs and drawing"):
            build_deck(deck)
        write_stamp(stamp, inputs)
    site = build_site(root, strict=strict)
    copy_lecture(root / "slides", site.parent)
    return {"site": site, "deck": deck}


def check_checkout(root: Path) -> None:
    """Raise InputError outside a checkout of the book."""
    if not (root / "_config.yml").is_file():
        raise InputError(f"{root} holds no _config.yml: run this in a checkout of the book.")


def build_deck(out: Path, sections: Sequence[str] = (), accent: str = "") -> list[Path]:
    """The deck and, where LibreOffice is, its handout beside it; returns what was written.

    sections: only these, after the cover.  accent: `#rrggbb` in place of the book's.
    """
    need("pptx", "The deck")
    from peftbook.views import slides

    out.parent.mkdir(parents=True, exist_ok=True)  # fails before anything is drawn
    written = [
        slides.build(
            out, default_store(), address=identity.PUBLIC_ADDRESS, version=identity.version(), sections=sections,
            accent=accent or slides.ACCENT,
        )
    ]  # fmt: skip
    pages = out.with_name(f"{out.stem}-handout.pdf")
    if slides.find_office():
        return [*written, slides.handout(out, pages)]
    pages.unlink(missing_ok=True)  # of an older deck
    return written


def build_site(root: Path, *, strict: bool = False) -> Path:
    """Build the site unless it is that of the present sources; returns its first page."""
    check_checkout(root)
    need("jupyter_book", "The site")
    site = root / "_build/html"
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root), "--quiet", "--keep-going"]
    command += ["--all", "-W", "-n"] if strict else []
    if (strict or not freshness.is_fresh(site, root)) and run_quietly(command, root):
        raise InputError("The site did not build: the messages above name the page; fix it and run this again.")
    return site / "index.html"


def build_epub(root: Path) -> Path:
    """All chapters as an EPUB, which lies beside the site's pages. Raises InputError as `build_book` does."""
    from peftbook.views.export import epub

    site = build_site(root).parent
    if not (site / epub.NAME).is_file():
        epub.write_epub(site, epub.contents(root), site / epub.NAME)
    return site / epub.NAME


def build_pdf(root: Path) -> Path:
    """All chapters as _build/peftbook.pdf, printed by Chromium. Run pages are left out and linked to on the site.

    Raises InputError outside a checkout, without Chromium, or if a page fails.
    """
    from peftbook.views.export.pdf import find_chromium, print_page

    check_checkout(root)
    need("jupyter_book", "The PDF")
    find_chromium()
    builder = ["--builder", "custom", "--custom-builder", "singlehtml"]
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root), "--quiet", *builder]
    if run_quietly(command, root):
        raise InputError("The book did not build: the messages above name the page; fix it and run this again.")
    return print_page(root / "_build/singlehtml/book/index.html", root / "_build/peftbook.pdf")


def run_quietly(command: list[str], root: Path) -> int:
    """Run Jupyter Book offline and pass on its warnings and errors; returns its status.

    Its banner goes to standard output, and is dropped with it; so is a hint that every kernel repeats.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        with show_progress("Site", "starting Jupyter Book"):
            first = process.stderr.readline()
        for line in itertools.chain([first], process.stderr):
            if KERNEL_HINT not in line:
                sys.stderr.write(line)
    return process.returncode


def report(places: dict[str, Path], began: float) -> str:
    """What `make book` prints at the end."""
    lines = [f"Built in {time.monotonic() - began:.1f} s:"]
    return "\n".join([*lines, *(f"  {name:<8} {path}" for name, path in places.items())])
