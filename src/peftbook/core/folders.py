"""Folders of the shipped data, prepared models, checkpoints, cached results and measurements of this machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.runtime.processes import lock_file

PACKAGE = Path(__file__).resolve().parents[1]
DATA = PACKAGE / "data"


def cache_folder() -> Path:
    """The cache, whose files can all be made again: `PEFTBOOK_CACHE`, or the user's cache folder."""
    if folder := os.environ.get("PEFTBOOK_CACHE"):
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("peftbook"))


def checkpoints_folder() -> Path:
    """Checkpoints and locks of unfinished runs: `PEFTBOOK_CHECKPOINTS`, or a folder of the cache."""
    return Path(os.environ.get("PEFTBOOK_CHECKPOINTS") or cache_folder() / "checkpoints")


def results_folder() -> Path:
    """Cached results computed from records: `PEFTBOOK_RESULTS`, or a folder of the cache."""
    return Path(os.environ.get("PEFTBOOK_RESULTS") or cache_folder() / "results")


def run_lock(key: str, patience: float = 0.0) -> contextlib.AbstractContextManager[None]:
    """The lock of a run, so that no two processes write its checkpoint. Raises InputError if another holds it.

    patience: seconds to wait for a holder that may be dying.
    """
    taken = "Another process is computing this run: wait for it, then run the command again."
    return lock_file(checkpoints_folder() / f"{key[:16]}.lock", taken, patience)


def check_free(out: Path) -> None:
    """Raises InputError for a file or folder that is there, and for one that cannot be made; for before a long work."""
    if os.path.lexists(out):
        what = "Output folder" if out.is_dir() else "File"
        raise InputError(f"{what} {str(out)!r} exists: name a new one, results are never overwritten.")
    check_writable(out)


def check_writable(path: Path) -> None:
    """Raises InputError for a file or folder that cannot be made, or written over.

    A temporary folder is made where it would lie and deleted at once: permissions do not tell of a read-only disk.
    """
    above = next(one for one in path.expanduser().absolute().parents if os.path.lexists(one))
    try:
        tempfile.TemporaryDirectory(dir=above, prefix=".peftbook-").cleanup()
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({str(above)!r}: {error.strerror}): name a place in a folder of yours."
        ) from None
