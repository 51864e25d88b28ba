"""The learning rates that the sweeps of the book chose, for whoever starts where it ended."""

from __future__ import annotations

import importlib
from contextlib import suppress

from peftbook.core.records import Missing, Store, default_store
from peftbook.methods import preset


def learning_rate_for(name: str, store: Store | None = None) -> float:
    """What the sweep that a preset names chose, else the preset's own rate. Raises InputError for an unknown name.

    A study that sweeps has `best_rate(arm, store)`, which raises Missing until its sweep is whole.
    """
    given = preset(name)
    if given.swept:
        study, _, arm = given.swept.partition(".")
        with suppress(Missing):
            return float(importlib.import_module(f"peftbook.studies.{study}").best_rate(arm, store or default_store()))
    return given.rate
