"""Tasks: examples, their prompt, their splits and the metrics that judge them.

A task is found by name; `files:` and `hub:` tasks take the reader's own data.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbook import specs
from peftbook.errors import InputError

__all__ = ["DATA", "Example", "TaskData", "file_sha256", "get_task", "task_names"]

DATA = Path(__file__).resolve().parent.parent / "data"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One pair: what the model reads and what it should write. `group` is the unit that a split never divides."""

    id: str
    input: str
    target: str
    group: str = ""


@dataclass(frozen=True)
class TaskData:
    """A loaded task.

    instruction: the user turn, with `{input}` where the example's input goes.
    splits: the three splits by name, each in a fixed order.
    metrics: names of the generation metrics that make sense ("rouge", "bertscore", "exact_match").
    data_sha256: hash of the data file, part of every run's key.
    """

    name: str
    version: int
    instruction: str
    splits: dict[str, tuple[Example, ...]]
    metrics: tuple[str, ...]
    data_sha256: str

    @property
    def spec(self) -> specs.Task:
        """The pinned spec of this task."""
        return specs.Task(name=self.name, data_sha256=self.data_sha256, version=self.version)

    def messages(self, example: Example, shots: Sequence[Example] = ()) -> list[dict[str, str]]:
        """The chat turns that end with the question: solved `shots` first, each a user and an assistant turn."""
        turns: list[dict[str, str]] = []
        for shot in shots:
            turns.append({"role": "user", "content": self.instruction.replace("{input}", shot.input)})
            turns.append({"role": "assistant", "content": shot.target})
        turns.append({"role": "user", "content": self.instruction.replace("{input}", example.input)})
        return turns


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _docstrings() -> TaskData:
    from peftbook.tasks.docstrings import load

    return load()


LOADERS: dict[str, Callable[[], TaskData]] = {"docstrings": _docstrings}


def task_names() -> list[str]:
    """Names of the tasks that need no data from the reader."""
    return sorted(LOADERS)


def get_task(name: str) -> TaskData:
    """Load a task by name. Raises InputError for an unknown one."""
    if name not in LOADERS:
        raise InputError(f"Unknown task {name!r}: choose one of {', '.join(task_names())}, or use files or hub data.")
    return LOADERS[name]()
