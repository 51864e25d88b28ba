"""Prose: public-domain English for perplexity, State of the Union addresses and chapters of Moby-Dick.

It measures what fine-tuning makes a model forget, so it has no prompt and no splits. Built by `prose_build.py`.
"""

from __future__ import annotations

from peftbook.errors import InputError
from peftbook.tasks import DATA, Example, file_sha256

__all__ = ["DATA_SHA256", "PATH", "load"]

PATH = DATA / "prose.parquet"
DATA_SHA256 = "8df4762e1e7585b90df23e929ab1ed8ee9b15ecbae8cc7b333a815709e1f0260"


def load() -> list[Example]:
    """The texts, each whole: `input` is empty, `target` the text, `group` its source.

    Raises InputError if the data file is missing or not the pinned one.
    """
    import pyarrow.parquet as pq

    rebuild = "run `python -m peftbook.tasks.prose_build` or restore it from the repository"
    if not PATH.is_file():
        raise InputError(f"The data file {PATH} is missing: {rebuild}.")
    found = file_sha256(PATH)
    if found != DATA_SHA256:
        raise InputError(f"{PATH} has SHA-256 {found}, not the pinned {DATA_SHA256}: {rebuild}.")
    return [Example(row["id"], "", row["text"], row["source"]) for row in pq.read_table(PATH).to_pylist()]
