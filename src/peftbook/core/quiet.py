"""Imports of the large libraries: without the garbage collector, and without messages that ask nothing of the user."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def filter_messages() -> None:
    """Drop known messages; everything else still shows. To be called before the libraries are imported."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
        lambda record: "gemm_4bit_forward" not in record.getMessage()  # a kernel of the hub: its own is used
    )
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm asks for widgets, which no page shows
    # Of transformers' own attribute, which it asks of itself, and which peft still reads.
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)


def quieten_libraries() -> None:
    """Drop known messages, and the hints and progress bars of transformers; its errors still raise."""
    filter_messages()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


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
