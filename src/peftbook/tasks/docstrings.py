"""Docstrings: Python function -> first sentence of its docstring, from pinned, permissively licensed packages.

The data are built by `docstrings_build.py` and described in the book's data sheet. No package is in two splits.
"""

from __future__ import annotations

from peftbook.errors import InputError
from peftbook.tasks import DATA, SPLITS, Example, TaskData, file_sha256

__all__ = ["DATA_SHA256", "INSTRUCTION", "PATH", "load"]

PATH = DATA / "docstrings.parquet"
DATA_SHA256 = "bde040a5a6a5f6e4669734f927605db1a3b53e6e783b8aa16b60ecba33c428ee"
INSTRUCTION = "Write the first sentence of this Python function's docstring.\n\n```python\n{input}\n```"


def load() -> TaskData:
    """The task, its splits in the file's order. Raises InputError if the data file is missing or not the pinned one."""
    import pyarrow.parquet as pq

    rebuild = "run `python -m peftbook.tasks.docstrings_build` or restore it from the repository"
    if not PATH.is_file():
        raise InputError(f"The data file {PATH} is missing: {rebuild}.")
    found = file_sha256(PATH)
    if found != DATA_SHA256:
        raise InputError(f"{PATH} has SHA-256 {found}, not the pinned {DATA_SHA256}: {rebuild}.")
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row in pq.read_table(PATH, columns=["id", "input", "target", "group", "split"]).to_pylist():
        splits[row["split"]].append(Example(row["id"], row["input"], row["target"], row["group"]))
    return TaskData(
        name="docstrings",
        version=1,
        instruction=INSTRUCTION,
        splits={split: tuple(examples) for split, examples in splits.items()},
        metrics=("rouge", "bertscore", "exact_match"),
        data_sha256=found,
    )
