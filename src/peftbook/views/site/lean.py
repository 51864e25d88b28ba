"""One style sheet for the site: those of Sphinx, its extensions and the book joined, less the rules that match nothing.

A rule matches nothing if it needs a class that no page and no script names. Without this module each page loads 14
sheets and 70 kB more, and a phone's first paint comes .5 to .7 s later (Lighthouse, medians of 3 on three pages).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import tinycss2
from tinycss2 import serialize

from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.views.html import TEMPLATES

SHEET = "site.css"
FIRST = ("basic.css", "styles/pydata-sphinx-theme.css")  # the theme names them outside Sphinx's list
WHOLE = ("css/", "katex/")  # the book's own
ADDRESS = re.compile(r"""url\((["']?)(?!data:|#|/|https?:)([^"')]+)\1\)""")
WORD = re.compile(r"[A-Za-z_][\w-]*")
GROUPS = ("media", "supports", "layer", "container")


def lean(css: str | list[Any], known: Collection[str]) -> str:
    """The rules that can match where only the classes `known` occur, without comments and fonts of icons.

    css: a sheet, or the tokens in the block of a group of rules.
    """
    kept = []
    for rule in tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True):
        if rule.type == "qualified-rule":
            selectors = [serialize(part).strip() for part in alternatives(rule.prelude) if may_match(part, known)]
            kept.append(f"{','.join(selectors)}{{{serialize(rule.content)}}}" if selectors else "")
        elif rule.type == "at-rule" and rule.content is not None and rule.lower_at_keyword in GROUPS:
            inside = lean(rule.content, known)
            kept.append(f"@{rule.at_keyword}{serialize(rule.prelude).rstrip()}{{{inside}}}" if inside else "")
        elif rule.type == "at-rule" and not is_icon_font(rule):
            kept.append(rule.serialize())
    return "".join(kept)


def is_icon_font(rule: Any) -> bool:
    """Whether a rule declares a font of icons, which no page uses."""
    return rule.lower_at_keyword == "font-face" and re.search(r"Font ?Awesome", serialize(rule.content)) is not None


def alternatives(selectors: list[Any]) -> list[list[Any]]:
    """The tokens of a list of selectors split at its commas; those in parentheses and brackets are inside a token."""
    return [list(part) for comma, part in groupby(selectors, key=lambda token: token == ",") if not comma]


def may_match(selector: list[Any], known: Collection[str]) -> bool:
    """Whether all classes that the selector needs are known; those in parentheses may be alternatives or negations."""
    classes = (token.value for dot, token in pairwise(selector) if dot == "." and token.type == "ident")
    # Bootstrap joins names that begin with bs- when it runs.
    return all(name in known or name.startswith("bs-") for name in classes)


def known_classes(site: Path) -> set[str]:
    """Classes of the chapters, and every word of the scripts and of the modules that write the other pages."""
    known: set[str] = set()
    for path in [*site.glob("*.html"), *site.glob("book/*.html")]:
        for names in re.findall(r'class="([^"]*)"', path.read_text(encoding="utf-8")):
            known.update(names.split())
    made_here = [*Path(__file__).parent.glob("*.py"), *TEMPLATES.parent.glob("*.py"), *TEMPLATES.glob("*.html")]
    for path in [*site.glob("_static/**/*.js"), *made_here]:
        known.update(WORD.findall(path.read_text(encoding="utf-8")))
    return known


def moved(css: str, folder: str) -> str:
    """The sheet of a folder with its addresses as they are seen from the folder above."""
    return ADDRESS.sub(lambda match: f'url("{posixpath.normpath(posixpath.join(folder, match[2]))}")', css)


def name_one_sheet(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let a page load one sheet, and note which it stands for: every page of the site has the same."""
    if app.builder.name == "html":
        sheets = sorted(context["css_files"], key=lambda sheet: sheet.priority)
        names = [str(sheet.filename).removeprefix("_static/") for sheet in sheets]
        app.peftbook_sheets = [*FIRST, *names]
        context["css_files"] = [f"_static/{SHEET}"]


def join_sheets(app: Any, error: Exception | None) -> None:
    """At the end of a build: write that sheet, unless it was made from the same."""
    if error is not None or not hasattr(app, "peftbook_sheets"):  # no page was written: the sheet stands
        return
    site, static = Path(app.outdir), Path(app.outdir) / "_static"
    known = known_classes(site)
    sheets = {name: (static / name).read_text(encoding="utf-8") for name in app.peftbook_sheets}
    stamp, inputs = site / f".{SHEET}.stamp", inputs_hash([Path(__file__)], f"{sheets}{sorted(known)}")
    if (static / SHEET).is_file() and is_fresh(stamp, inputs):
        return
    parts = []
    for name, sheet in sheets.items():
        css = sheet if name.startswith(WHOLE) else lean(sheet, known)
        parts.append(moved(re.sub(r"@charset [^;]*;", "", css), posixpath.dirname(name)))
    (static / SHEET).write_text('@charset "utf-8";\n' + "\n".join(parts), encoding="utf-8")
    write_stamp(stamp, inputs)


def setup(app: Any) -> None:
    """Connect to page rendering, after whatever adds or drops a sheet, and to the end of the build."""
    app.connect("html-page-context", name_one_sheet, priority=950)
    app.connect("build-finished", join_sheets, priority=900)  # the theme writes pygments.css at that moment
