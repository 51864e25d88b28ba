"""Quiet: what the libraries would say beside a run."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quieten_libraries"]


def quieten_libraries() -> None:
    """Keep the libraries' loading bars and hints off the terminal; their errors still raise."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft still reads it
