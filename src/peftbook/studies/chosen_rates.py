"""Learning rates that the book's sweeps chose, for runs on a reader's own data."""

from __future__ import annotations

from contextlib import suppress

from peftbook.records import Missing, Store, default_store
from peftbook.studies import benchmark, methods, variants

__all__ = ["learning_rate_for"]


def learning_rate_for(method: str, store: Store | None = None) -> float:
    """What the book's sweeps chose for a method, else the middle of the grid that they search; LoRA's for others."""
    store = store or default_store()
    if method in methods.ARMS:
        with suppress(Missing):
            return methods.best_rate(method, store)
    for comparison in (benchmark.COMPARISON, variants.COMPARISON):
        for arm in comparison.arms:
            if arm.name == method and arm.rates:
                with suppress(Missing):
                    return comparison.best(arm, store)
                return arm.rates[len(arm.rates) // 2]
    return learning_rate_for("lora", store)
