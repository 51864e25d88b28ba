"""Commands that build what is read: book, pdf, epub, figures, slides."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from peftbook.cli.arguments import Add
from peftbook.core.errors import need


def add_commands(add: Add) -> None:
    """The commands and their options."""
    book = add("book", command_book)
    book.add_argument("--strict", action="store_true", help="all pages, warnings are errors")
    add("pdf", command_pdf)
    add("epub", command_epub)
    add("figures", command_figures).add_argument("--out", type=Path, default="figures")
    deck = add("slides", command_slides)
    usual = "default slides/peft.pptx, with sections their names"
    deck.add_argument("--out", type=Path, metavar="FILE.pptx", help=usual)
    deck.add_argument("--sections", default="", metavar="NAME,NAME", help="only these after the cover, like lora,qlora")
    deck.add_argument("--accent", default="", metavar="#RRGGBB", help="colour of rules, heads and links")


def command_book(args: argparse.Namespace) -> int:
    """Build site, figures and deck from the records at hand and print the three places."""
    from peftbook.views.build import build_book, report

    began = time.monotonic()
    print(report(build_book(Path.cwd(), strict=args.strict), began))
    return 0


def command_pdf(args: argparse.Namespace) -> int:
    """Print all chapters as one PDF; needs Chromium."""
    from peftbook.views.build import build_pdf

    print(build_pdf(Path.cwd()))
    return 0


def command_epub(args: argparse.Namespace) -> int:
    """Make all chapters into one EPUB."""
    from peftbook.views.build import build_epub

    print(build_epub(Path.cwd()))
    return 0


def command_figures(args: argparse.Namespace) -> int:
    """Render every figure whose records are there as SVG."""
    need("matplotlib", "A figure")
    from peftbook.core.records import default_store
    from peftbook.views.figures import render_all

    paths = render_all(args.out, default_store())
    print(f"{len(paths)} figures in {args.out}")
    return 0


def command_slides(args: argparse.Namespace) -> int:
    """Build the PowerPoint deck from its outline; with LibreOffice also a handout."""
    from peftbook.views.build import build_deck

    sections = [name.strip() for name in args.sections.split(",") if name.strip()]
    out = args.out or Path("slides", "-".join(["peft", *sections]) + ".pptx")
    began = time.monotonic()
    for made in build_deck(out, sections, args.accent):
        print(made)
    print(f"in {time.monotonic() - began:.1f} s")
    return 0
