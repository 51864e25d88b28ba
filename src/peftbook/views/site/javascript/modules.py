"""Modules as syntax trees: what they define, what they import, and where a name comes from. Nothing is run."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = "peftbook"
Key = tuple[str, str]  # module, name


class UntranslatedError(Exception):
    """A construct that is not translated: the file, the line and what it is."""


@dataclass
class Module:
    """A module's syntax tree by name: what it defines, and what its names are imported from."""

    name: str
    path: Path
    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, Key] = field(default_factory=dict)


@functools.cache
def module(name: str) -> Module:
    """A module of the package, read and not run."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, name
    found = Module(name, Path(spec.origin))
    for statement in ast.parse(found.path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.FunctionDef(name=known) | ast.ClassDef(name=known):
                found.defined[known] = [statement]
            case ast.Assign(targets=targets):
                for target in ast.walk(ast.Tuple(targets)):
                    if isinstance(target, ast.Name):
                        found.defined[target.id] = [statement]
            case ast.AnnAssign(target=ast.Name(id=known)):
                found.defined[known] = [statement]
            case ast.AugAssign(target=ast.Name(id=known)):
                found.defined[known].append(statement)
            case ast.Import() | ast.ImportFrom():
                found.imported |= imports(statement)
    return found


def imports(statement: ast.Import | ast.ImportFrom) -> dict[str, Key]:
    """Name → (module, name in it, or nothing where the module itself is meant)."""
    if isinstance(statement, ast.ImportFrom):
        return {one.asname or one.name: (statement.module or "", one.name) for one in statement.names}
    return {one.asname or one.name: (one.name, "") for one in statement.names}


def origin(where: str, name: str) -> Key:
    """Where a name of a module is defined: in a module of the package, or in one of Python's."""
    while ours(where):
        here = module(where)
        if name in here.defined or name not in here.imported:
            break
        where, name = here.imported[name]
    return where, name


def ours(where: str) -> bool:
    """Whether a module is of the package, so that its code is translated."""
    return where.split(".")[0] == ROOT


def key_of(call: str) -> Key:
    """Module and name."""
    where, _, name = call.rpartition(".")
    return where, name


def line(key: Key) -> int:
    """Where in its module a definition stands."""
    return module(key[0]).defined[key[1]][-1].lineno


@functools.cache
def imported_first(name: str) -> tuple[str, ...]:
    """Modules of the package in the order in which Python runs them, this one the last."""
    order: dict[str, None] = {}
    for where, _ in module(name).imported.values():
        if ours(where) and where != name and importlib.util.find_spec(where):
            order |= dict.fromkeys(imported_first(where))
    return (*order, name)


def in_order(names: Iterable[str]) -> list[str]:
    """All modules that these need, each after those that it imports."""
    return list(dict.fromkeys(one for name in names for one in imported_first(name)))


@functools.cache
def methods_of(name: str) -> frozenset[str]:
    """The names of all methods of classes of a module and of those that it imports."""
    trees = [one for where in imported_first(name) for body in module(where).defined.values() for one in body]
    bodies = [one for tree in trees if isinstance(tree, ast.ClassDef) for one in tree.body]
    return frozenset(one.name for one in bodies if isinstance(one, ast.FunctionDef) and not one.decorator_list)
