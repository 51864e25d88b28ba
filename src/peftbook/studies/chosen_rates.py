"""Learning rates that the book's sweeps chose, for runs on a reader's own data."""

from __future__ import annotations

import functools
import importlib

from peftbook.methods import preset
from peftbook.records import Store, default_store

__all__ = ["learning_rate_for"]


def learning_rate_for(name: str, store: Store | None = None) -> float:
    """What the sweep that a preset names chose, else the preset's own rate. Raises InputError for an unknown name."""
    return usual_rate(name) if store is None else swept_rate(name, store)


@functools.cache
def usual_rate(name: str) -> float:
    """By the shipped records, read once."""
    return swept_rate(name, default_store())


def swept_rate(name: str, store: Store) -> float:
    """A study that sweeps has `best_rate(arm, store)`, which is None until its sweep is whole."""
    given = preset(name)
    study, _, arm = given.swept.partition(".")
    chosen = importlib.import_module(f"peftbook.studies.{study}").best_rate(arm, store) if study else None
    return chosen or given.rate
