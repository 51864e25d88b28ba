"""The reference pages, made from the code: what each command takes, and what each module offers."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

import peftbook
from peftbook.core.tracking import record_lookups
from peftbook.site.display import Shown

PACKAGE = Path(peftbook.__file__).parent
GROUPS = ("", "scratch", "memory", "tasks", "studies", "training", "figures")


def commands(parser: argparse.ArgumentParser) -> Shown:
    """Every command with its options, folded."""
    parts = [
        fold(f"command-{name.replace(' ', '-')}", f"peftbook {name}", command.description or "", options(command))
        for name, command in subcommands(parser)
    ]
    return Shown("".join(parts), "")


def fold(anchor: str, name: str, text: str, lines: Iterable[str]) -> str:
    """A name and what it is, with its list folded."""
    return (
        f'<details class="fold" id="{anchor}"><summary><code class="fold-name">{name}</code>'
        f'<span class="fold-text">{prose(text)}</span></summary><dl>{"".join(lines)}</dl></details>'
    )


def prose(text: str) -> str:
    """HTML of a line in which backquotes mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def subcommands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Name and parser of every command that does something."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield before, parser
    for group in groups:
        for name, command in group.choices.items():
            yield from subcommands(command, f"{before} {name}".strip())


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
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
        yield f"<dt><code>{escape(name + value)}</code></dt><dd>{prose(meaning)}</dd>"


def library() -> Shown:
    """The modules of each package with what they offer, folded; one line each, from the docstrings.

    The page rests on all these files, of which few are imported.
    """
    parts = []
    for group in GROUPS:
        record_lookups([PACKAGE / group, *(PACKAGE / group).glob("*.py")])
        for path in sorted((PACKAGE / group).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if path.stem.startswith("__") or not (offered := public(tree)):
                continue
            name = ".".join(filter(None, ("peftbook", group, path.stem)))
            lines = (f"<dt><code>{escape(signature)}</code></dt><dd>{prose(text)}</dd>" for signature, text in offered)
            parts.append(fold(name, name, first_line(tree), lines))
    return Shown("".join(parts), "")


def public(tree: ast.Module) -> list[tuple[str, str]]:
    """Signature and first line of the functions and classes that a module names in __all__."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            names = set(ast.literal_eval(node.value))
    offers = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            offers.append((f"{node.name}({ast.unparse(node.args)})", first_line(node)))
        elif isinstance(node, ast.ClassDef) and node.name in names:
            offers.append((f"class {node.name}", first_line(node)))
    return offers


def first_line(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """The first line of a docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0]
