"""`peftbook book`: site, figures and deck from the records at hand; what is up to date is left alone."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from peftbook.core.errors import InputError, need
from peftbook.core.folders import PACKAGE
from peftbook.core.progress import show_progress
from peftbook.core.records import default_store
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.runtime.processes import Child
from peftbook.views.site import freshness, identity
from peftbook.views.site.lecture import FILES, PROMISED, copy_lecture

KERNEL_HINT = "Kernel is running over TCP without encryption"  # on one machine


def build_book(root: Path, *, strict: bool = False) -> dict[str, Path]:
    """Build the site under _build/html, the figures and the deck; returns the three places.

    The deck is made beside the site, which leaves a core idle while it is read and written; the figures are those of
    the pages, and the few that no page shows are drawn.

    strict: rebuild every page and treat warnings as errors. Raises InputError outside a checkout or if a page fails.
    """
    check_checkout(root)
    need("matplotlib", "A figure")
    places = {"site": root / "_build/html/index.html", "figures": root / "figures", "deck": root / "slides/peft.pptx"}
    drawn = [
        *PACKAGE.glob("views/figures/*.py"),
        *PACKAGE.glob("studies/*.py"),
        *PACKAGE.glob("evidence/*.py"),
        *PACKAGE.glob("records/*.json*"),
        *PACKAGE.glob("data/*"),
    ]
    told = [*drawn, *PACKAGE.glob("views/slides/*.py")]
    told += [path for kind in ("*.toml", "stills/*") for path in (root / "slides").glob(kind)]
    inputs = {
        "figures": inputs_hash(drawn),
        "deck": inputs_hash(told),
    }  # what is edited meanwhile is for the next build
    fresh = {part: is_fresh(stamp_of(root, part), known) for part, known in inputs.items()}
    if not all(fresh.values()):
        cache_verdicts()
    with contextlib.ExitStack() as beside:
        promised: list[str] = []
        if not fresh["deck"] or not places["deck"].is_file():
            promised = lecture_files()
            beside.enter_context(deck_beside(places["deck"]))
        places["site"] = build_site(root, strict=strict, promised=promised)
    if not fresh["figures"]:
        from peftbook.views.figures import render_all
        from peftbook.views.site.pictures import drawn_figures

        render_all(places["figures"], default_store(), drawn_figures(places["site"].parent))
    for part, known in inputs.items():
        write_stamp(stamp_of(root, part), known)
    copy_lecture(root / "slides", places["site"].parent)
    return places


def cache_verdicts() -> None:
    """Fill the cache of verdicts, so that the processes that follow do not each compute the same.

    If that fails, the process that needs a verdict says why.
    """
    with Child("-m", "peftbook", "claims") as child, show_progress("Claims", "judging the runs"):
        child.wait()


@contextlib.contextmanager
def deck_beside(out: Path) -> Iterator[None]:
    """Make the deck in a process beside what is done inside, which has the cores first, and wait for it.

    Raises InputError if it cannot be made.
    """
    with Child("-m", "peftbook", "slides", "--out", str(out)) as child:
        psutil.Process(child.process.pid).nice(10)
        yield
        with show_progress("Slides", "drawing the rest"):
            child.wait()
        if child.status:
            raise InputError(f"The slides could not be made: {child.last_error_line() or child.failure()}")


def lecture_files() -> list[str]:
    """Names of what `build_deck` will write for readers: without LibreOffice no handout."""
    need("pptx", "The deck")
    from peftbook.views import slides

    return list(FILES if slides.find_office() else FILES[:1])


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


def build_site(root: Path, *, strict: bool = False, promised: Sequence[str] = ()) -> Path:
    """Build the site unless it is that of the present sources; returns its first page.

    promised: files of the lecture that are made meanwhile, and that the pages offer.
    """
    check_checkout(root)
    need("jupyter_book", "The site")
    site = root / "_build/html"
    if strict or not freshness.is_fresh(site, root):
        run_jupyter_book(root, "site", "--keep-going", *["--all", "-W", "-n"] * strict, promised=promised)
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
    run_jupyter_book(root, "book", "--builder", "custom", "--custom-builder", "singlehtml")
    return print_page(root / "_build/singlehtml/book/index.html", root / "_build/peftbook.pdf")


def run_jupyter_book(root: Path, what: str, *options: str, promised: Sequence[str] = ()) -> None:
    """Run Jupyter Book offline and pass on its warnings and errors. Raises InputError if it fails.

    Its banner goes to standard output, and is dropped with it; so is a hint that every kernel repeats.
    """
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root), "--quiet", *options]
    variables = {"HF_HUB_OFFLINE": "1", PROMISED: os.pathsep.join(promised)}
    with subprocess.Popen(
        command, cwd=root, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        with show_progress("Site", "starting Jupyter Book"):
            first = process.stderr.readline()
        for line in itertools.chain([first], process.stderr):
            if KERNEL_HINT not in line:
                sys.stderr.write(line)
    if process.returncode:
        raise InputError(f"The {what} did not build: the messages above name the page; fix it and run this again.")


def stamp_of(root: Path, part: str) -> Path:
    """The stamp of a part of the book."""
    return root / "_build" / "stamps" / part


def report(places: dict[str, Path], began: float) -> str:
    """What `make book` prints at the end."""
    lines = [f"Built in {time.monotonic() - began:.1f} s:"]
    return "\n".join([*lines, *(f"  {name:<8} {path}" for name, path in places.items())])
