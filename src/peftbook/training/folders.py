"""Where prepared models, checkpoints and what was measured of this machine lie."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "checkpoints_folder"]


def cache_folder() -> Path:
    """What can be made again: `PEFTBOOK_CACHE`, or the user's cache folder."""
    if folder := os.environ.get("PEFTBOOK_CACHE"):
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("peftbook"))


def checkpoints_folder() -> Path:
    """Where runs under way keep their checkpoints and locks: `PEFTBOOK_CHECKPOINTS`, or a folder of the cache."""
    if folder := os.environ.get("PEFTBOOK_CHECKPOINTS"):
        return Path(folder)
    return cache_folder() / "checkpoints"
