"""One style sheet for the site: those of Sphinx, its extensions and the book joined, less the rules that match nothing.

A rule matches nothing if it needs a class that no page and no script names. A dozen sheets of which nine tenths go
unused are what a phone waits for before it shows a word.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

__all__ = ["blocks", "lean", "moved", "setup"]

SHEET = "site.css"
FIRST = ("basic.css", "styles/pydata-sphinx-theme.css")  # the theme names them outside Sphinx's list
WHOLE = ("css/", "katex/")  # the book's own
ADDRESS = re.compile(r"""url\((["']?)(?!data:|#|/|https?:)([^"')]+)\1\)""")
TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[{};]', re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
CLASS = re.compile(r"\.(-?[A-Za-z_][\w-]*)")
WORD = re.compile(r"[A-Za-z_][\w-]*")
GROUPS = ("@media", "@supports", "@layer", "@container")


def blocks(css: str) -> Iterator[tuple[str, str | None]]:
    """What stands before and inside each pair of outermost braces; (statement, None) for one without braces."""
    start = opened = depth = 0
    for token in TOKEN.finditer(css):
        if token[0] == "{":
            depth += 1
            if depth == 1:
                opened = token.start()
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                yield css[start:opened].strip(), css[opened + 1 : token.start()]
                start = token.end()
        elif token[0] == ";" and depth == 0:
            yield css[start : token.start()].strip(), None
            start = token.end()


def lean(css: str, known: Collection[str]) -> str:
    """The rules that can match where only the classes `known` occur, and no font of icons."""
    kept = []
    for before, inside in blocks(COMMENT.sub("", css)):
        if inside is None:
            kept.append(f"{before};")
        elif before.startswith(GROUPS):
            if rules := lean(inside, known):
                kept.append(f"{before}{{{rules}}}")
        elif before.startswith("@"):
            if not re.search(r"Font ?Awesome", inside):
                kept.append(f"{before}{{{inside}}}")
        elif selectors := [one for one in alternatives(before) if may_match(one, known)]:
            kept.append(f"{','.join(selectors)}{{{inside}}}")
    return "".join(kept)


def alternatives(selectors: str) -> list[str]:
    """A list of selectors split at the commas that no parenthesis or bracket holds."""
    parts, depth = [""], 0
    for letter in selectors:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def may_match(selector: str, known: Collection[str]) -> bool:
    """Whether all classes that the selector needs are known; those in parentheses may be alternatives or negations."""
    while (bare := re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "", selector)) != selector:
        selector = bare
    # Bootstrap joins names that begin with bs- when it runs.
    return "\\" in selector or all(name in known or name.startswith("bs-") for name in CLASS.findall(selector))


def known_classes(site: Path) -> set[str]:
    """Classes of the chapters, and every word of the scripts and of the modules that write the other pages."""
    known: set[str] = set()
    for path in [*site.glob("*.html"), *site.glob("book/*.html")]:
        for names in re.findall(r'class="([^"]*)"', path.read_text(encoding="utf-8")):
            known.update(names.split())
    for path in [*site.glob("_static/**/*.js"), *Path(__file__).parent.glob("*.py")]:
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
    """At the end of a build: write that sheet."""
    if error is not None or app.builder.name != "html":
        return
    static, known, parts = Path(app.outdir) / "_static", known_classes(Path(app.outdir)), []
    for name in app.peftbook_sheets:
        css = (static / name).read_text(encoding="utf-8")
        css = css if name.startswith(WHOLE) else lean(css, known)
        parts.append(moved(re.sub(r"@charset [^;]*;", "", css), posixpath.dirname(name)))
    (static / SHEET).write_text('@charset "utf-8";\n' + "\n".join(parts), encoding="utf-8")


def setup(app: Any) -> None:
    """Connect to page rendering, after whatever adds or drops a sheet, and to the end of the build."""
    app.connect("html-page-context", name_one_sheet, priority=950)
    app.connect("build-finished", join_sheets, priority=900)  # the theme writes pygments.css at that moment
