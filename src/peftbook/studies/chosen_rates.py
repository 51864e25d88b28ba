"""The learning rates that the sweeps of the book chose, for whoever starts where it ended."""

from __future__ import annotations

import functools
import importlib
from contextlib import suppress

from peftbook.methods import preset
from peftbook.records import Missing, Store, aside, default_store, look, looked_at, report

__all__ = ["learning_rate_for"]


def learning_rate_for(name: str, store: Store | None = None) -> float:
    """What the sweep that a preset names chose, else the preset's own rate. Raises InputError for an unknown name."""
    if store is not None:
        return swept_rate(name, store)
    rate, read, looked = usual_rate(name, *default_store().state())
    report(read)
    look(looked)
    return rate


@functools.lru_cache(maxsize=256)
def usual_rate(
    name: str, folders: tuple, platform: str, machine: str, names: tuple
) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """Read once for each set of records at hand; the keys of those read, and the files of those looked for."""
    with aside() as read, looked_at() as looked:
        rate = swept_rate(name, Store(*folders, platform=platform, machine=machine))
    return rate, tuple(read), tuple(looked)


def swept_rate(name: str, store: Store) -> float:
    """A study that sweeps has `best_rate(arm, store)`, which raises Missing until its sweep is whole."""
    given = preset(name)
    if given.swept:
        study, _, arm = given.swept.partition(".")
        with suppress(Missing):
            return float(importlib.import_module(f"peftbook.studies.{study}").best_rate(arm, store))
    return given.rate
