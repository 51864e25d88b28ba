"""`peftbook book`: site, figures and deck from the records at hand; what is up to date is left alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from peftbook.errors import InputError
from peftbook.records import default_store
from peftbook.site.freshness import is_fresh

__all__ = ["build_book", "build_pdf"]

PACKAGE = Path(__file__).resolve().parent


def build_book(root: Path, *, strict: bool = False) -> dict[str, Path]:
    """Build the site under _build/html, the figures and the deck; returns the three places.

    strict: rebuild every page and treat warnings as errors. Raises InputError outside a checkout or if a page fails.
    """
    if not (root / "_config.yml").is_file():
        raise InputError(f"{root} holds no _config.yml: run this in a checkout of the book.")
    places = {"site": root / "_build/html/index.html", "figures": root / "figures", "deck": root / "slides/peft.pptx"}
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root), "--quiet", "--keep-going"]
    command += ["--all", "-W", "-n"] if strict else []
    build_site = strict or not is_fresh(places["site"].parent, root)
    if build_site and run_quietly(command, root):
        raise InputError("The site did not build: the messages above name the page; fix it and run this again.")
    drawn = [*PACKAGE.glob("figures/*.py"), *PACKAGE.glob("studies/*.py"), *package_data(), PACKAGE / "results.py"]
    if not fresh(root, "figures", drawn):
        from peftbook.figures import render_all

        render_all(places["figures"], default_store())
        remember(root, "figures", drawn)
    told = [*drawn, PACKAGE / "slides.py", *(root / "slides").glob("*.toml")]
    if not fresh(root, "deck", told) or not places["deck"].is_file():
        from peftbook.slides import build

        build(places["deck"], default_store())
        remember(root, "deck", told)
    return places


def build_pdf(root: Path) -> Path:
    """All chapters as _build/peftbook.pdf, printed by Chromium. Run pages are left out and linked to on the site.

    Raises InputError outside a checkout, without Chromium, or if a page fails.
    """
    from peftbook.site.pdf import find_chromium, print_page

    if not (root / "_config.yml").is_file():
        raise InputError(f"{root} holds no _config.yml: run this in a checkout of the book.")
    find_chromium()
    builder = ["--builder", "custom", "--custom-builder", "singlehtml"]
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(root), "--quiet", *builder]
    if run_quietly(command, root):
        raise InputError("The book did not build: the messages above name the page; fix it and run this again.")
    return print_page(root / "_build/singlehtml/book/index.html", root / "_build/peftbook.pdf")


def run_quietly(command: list[str], root: Path) -> int:
    """Run a command offline and pass its messages on, less a hint that every kernel repeats; returns its status."""
    with subprocess.Popen(
        command, cwd=root, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "[IPKernelApp]" not in line:
                sys.stderr.write(line)
    return process.returncode


def package_data() -> list[Path]:
    """Records and data tables: what figures and numbers are made from."""
    return [*PACKAGE.glob("records/*.json*"), *PACKAGE.glob("data/*")]


def digest(paths: Iterable[Path]) -> str:
    """One hash over names and contents."""
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        if path.is_file():
            total.update(f"{path}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def stamp(root: Path, part: str) -> Path:
    return root / "_build" / "stamps" / part


def fresh(root: Path, part: str, paths: Iterable[Path]) -> bool:
    """Whether nothing that this part is made from has changed since it was built."""
    path = stamp(root, part)
    return path.is_file() and path.read_text() == digest(paths)


def remember(root: Path, part: str, paths: Iterable[Path]) -> None:
    path = stamp(root, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(digest(paths))


def report(places: dict[str, Path], began: float) -> str:
    """What `make book` prints at the end."""
    lines = [f"Built in {time.monotonic() - began:.1f} s:"]
    return "\n".join([*lines, *(f"  {name:<8} {path}" for name, path in places.items())])
