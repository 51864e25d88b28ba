"""The reference pages, made from the code: what each command takes, and what each module offers."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator

from markupsafe import Markup

from peftbook.core.folders import PACKAGE
from peftbook.core.imports import imported_names
from peftbook.core.tracking import record_lookups
from peftbook.views.figures import places
from peftbook.views.html import joined, part, prose
from peftbook.views.site.display import Shown

BOOK = PACKAGE.parents[1] / "book"
# Rooms whose modules are listed.
GROUPS = ("core", "evidence", "scratch", "memory", "tasks", "training", "views/export", "views/figures")


def commands(parser: argparse.ArgumentParser) -> Shown:
    """Every command with its options, folded."""
    parts = [
        fold(f"command-{name.replace(' ', '-')}", f"peftbook {name}", command.description or "", options(command))
        for name, command in subcommands(parser)
    ]
    return Shown(joined(parts), "")


def fold(anchor: str, name: str, text: str, rows: Iterable[tuple[str, str]]) -> Markup:
    """A name and what it is, with its list folded."""
    return part("terms", anchor, name, prose(text), [(term, prose(meaning)) for term, meaning in rows])


def subcommands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Name and parser of every command that does something."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield before, parser
    for group in groups:
        if not group.required:
            yield before, parser
        for name, command in group.choices.items():
            yield from subcommands(command, f"{before} {name}".strip())


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each argument with its value, its choices and what it means."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        takes = action.option_strings and action.nargs != 0
        value = f" {action.metavar or action.dest.upper()}" if takes else ""
        meaning = (action.help or "").replace("%%", "%")
        if action.choices:
            value = f" {{{','.join(map(str, action.choices))}}}"
        yield name + value, meaning


def library() -> Shown:
    """The modules of each package with what others use of them, folded; one line each, from the docstrings.

    The page rests on all files of the package, of which few are imported, and on all chapters.
    """
    files = [*PACKAGE.rglob("*.py"), *BOOK.glob("*.md")]
    record_lookups([*(PACKAGE / group for group in GROUPS), *files])
    used = {path: names_used(path.read_text(encoding="utf-8")) for path in files}
    parts = []
    for group in GROUPS:
        for path in sorted((PACKAGE / group).glob("*.py")):
            name = ".".join(("peftbook", *group.split("/"), path.stem))
            others = {one for other, names in used.items() if other != path for one in names}
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if not path.stem.startswith("__") and (offered := public(tree, name, others)):
                parts.append(fold(name, name, first_line(tree), offered))
    return Shown(joined(parts), "")


def names_used(code: str) -> set[str]:
    """What code imports by its full name, and its words with a dot inside, which may be a module and what is in it."""
    return imported_names(code) | set(re.findall(r"\b\w+\.\w+\b", code))


def public(tree: ast.Module, module: str, used: set[str]) -> list[tuple[str, str]]:
    """Signature and first line of a module's figures, and of the functions and classes that others use."""
    stem, offers = module.rpartition(".")[2], []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not used.isdisjoint((f"{module}.{node.name}", f"{stem}.{node.name}")) or places().get(node.name) == stem:
            signed = (
                f"class {node.name}" if isinstance(node, ast.ClassDef) else f"{node.name}({ast.unparse(node.args)})"
            )
            offers.append((signed, first_line(node)))
    return offers


def first_line(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """The first line of a docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0]
