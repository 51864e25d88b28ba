"""A pause of the garbage collector while large libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["gc_paused"]


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disable the garbage collector inside, and exempt what exists at the end from every later collection.

    An import of the large libraries makes a million objects that stay; the collector would walk through them again and
    again. Inside another pause nothing is done: the outer one decides.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
