"""Figures: pure functions from records (or from nothing) to a matplotlib Figure, known by their signature.

A function that returns a Figure and needs nothing, or `store` alone, is a figure by its name. With `store` it is drawn
from records, and the runs behind it are those that it is seen to read; without it is computed. Adding a figure means
adding its function.

A module is imported when one of its figures is asked for: a chapter rests on the modules, and the studies, of its own
figures alone.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from matplotlib.figure import Figure

from peftbook.core.errors import InputError
from peftbook.core.records import Missing, Store, write_atomically
from peftbook.core.tracking import track_reads
from peftbook.evidence.results import command_for
from peftbook.views.figures.style import mode_context, render_svg

# Of a figure: a store or not, and at most one option.
SIGNATURE = re.compile(r"^def (\w+)\((?:store: Store)?(?:, )?(?:\w+: [\w\[\]]+ = .+)?\) -> Figure:$", re.MULTILINE)


@functools.cache
def places() -> dict[str, str]:
    """Name of each figure → module of its function, in the order of the files; nothing is imported for it."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {name: one.stem for one in files for name in SIGNATURE.findall(one.read_text(encoding="utf-8"))}


class Figures(Mapping[str, Callable[..., Figure]]):
    """Every figure by the name of its function."""

    def __getitem__(self, name: str) -> Callable[..., Figure]:
        return getattr(importlib.import_module(f"{__name__}.{places()[name]}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(places())

    def __len__(self) -> int:
        return len(places())


FIGURES: Mapping[str, Callable[..., Figure]] = Figures()


def from_records(name: str) -> bool:
    """Whether a figure is drawn from records. Raises InputError for an unknown one."""
    if name not in FIGURES:
        raise InputError(f"Unknown figure {name!r}: choose one of {', '.join(FIGURES)}.")
    return "store" in inspect.signature(FIGURES[name]).parameters


def draw(name: str, store: Store, **options: Any) -> Figure:
    """A figure by name. Raises InputError for an unknown one; Missing that says which command makes what it lacks."""
    arguments = (store,) if from_records(name) else ()
    try:
        return FIGURES[name](*arguments, **options)
    except Missing as missing:
        command = command_for(missing, store)
        raise Missing(missing.run, f"Figure {name!r} lacks records: run `{command}`.") from None


def registered_name(function: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The name under which `function(*args, **options)` is registered; empty if it is another drawing."""
    if function is draw and len(args) == 2 and not options:
        return args[0]
    name = getattr(function, "__name__", "")
    return name if FIGURES.get(name) is function and len(args) == from_records(name) and not options else ""


def runs(name: str, store: Store) -> list[str]:
    """Keys of the runs behind a figure, in the order in which its drawing is seen to read them. Raises Missing."""
    with track_reads() as seen, mode_context("light"):
        draw(name, store)
    return list(seen)


def available(name: str, store: Store) -> bool:
    """Whether the records behind a figure are there."""
    try:
        runs(name, store)
    except Missing:
        return False
    return True


def svg(name: str, store: Store, mode: Literal["light", "dark"] = "light", **options: Any) -> bytes:
    """A figure by name as SVG. Raises Missing that says which command makes what it lacks."""
    return render_svg(draw, name, store, mode=mode, **options)


def render_all(folder: Path, store: Store, drawn: Mapping[str, Path] | None = None) -> list[Path]:
    """Write every figure whose records are there as `<name>.svg`, in light mode; equal records give equal bytes.

    drawn: files of figures that need not be drawn again, by name.
    """
    written, drawn = [], drawn or {}
    Path(folder).mkdir(parents=True, exist_ok=True)  # fails before anything is drawn
    for name in FIGURES:
        with suppress(Missing):
            path = Path(folder) / f"{name}.svg"
            write_atomically(path, drawn[name].read_bytes() if name in drawn else svg(name, store))
            written.append(path)
    return written


def __getattr__(name: str) -> ModuleType:
    """`figures.lora` without an import of its own. Raises AttributeError where there is no such module."""
    if name not in places().values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
