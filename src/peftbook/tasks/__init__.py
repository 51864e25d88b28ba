"""Tasks: examples, their prompt, their splits and the metrics that judge them.

A task is found by name; `files:` and `hub:` tasks take the reader's own data. `task_spec` names a task by its pinned
hash without reading its data, so that studies know their runs where the data is not at hand.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbook.core import specs
from peftbook.core.errors import InputError, need
from peftbook.core.folders import DATA
from peftbook.tasks.similarity import connected, duplicate_clusters

GROUPS = DATA / "groups.json"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskExample:
    """One pair: what the model reads and what it should write. `group` is the unit that a split never divides.

    turns: role and text of a chat's turns before the target, the last of them the user's; `input` then shows them as
    one text, and no model reads it. Empty where the input alone is asked.
    rejected: an answer that was liked less than the target, where rows are preference pairs.
    """

    id: str
    input: str
    target: str
    group: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    rejected: str = ""

    @property
    def asked(self) -> str:
        """All that the model is asked, as one text: the same for rows that ask the same."""
        return "\n\n".join([*(text for role, text in self.turns if role == "system"), self.input])


@dataclass(frozen=True)
class TaskData:
    """A loaded task.

    instruction: the user turn, with `{input}` where the example's input goes.
    splits: the three splits by name, each in a fixed order.
    metrics: names of the generation metrics that make sense ("rouge", "bertscore", "exact_match", "bleu").
    data_sha256: hash of the data file, part of every run's key.
    all_references: all right answers by id of the example, where an input may have several.
    judge: a score of its own, from generated texts and examples to one number 0–1 each, recorded as `judge_name`.
    """

    name: str
    version: int
    instruction: str
    splits: dict[str, tuple[TaskExample, ...]]
    metrics: tuple[str, ...]
    data_sha256: str
    all_references: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    judge: Callable[[Sequence[str], Sequence[TaskExample]], list[float]] | None = field(default=None, repr=False)
    judge_name: str = ""

    @property
    def spec(self) -> specs.Task:
        """The pinned spec of this task."""
        return specs.Task(name=self.name, data_sha256=self.data_sha256, version=self.version)

    @property
    def system(self) -> str:
        """What the system says to all training rows alike, or nothing."""
        said = {tuple(text for _, text in self.turns_of(one)[0]) for one in self.splits["train"]}
        return said.pop()[0] if len(said) == 1 and () not in said else ""

    def messages(self, example: TaskExample, shots: Sequence[TaskExample] = ()) -> list[dict[str, str]]:
        """The chat turns that end with the question: what the system says, solved `shots`, each with the turns before
        its answer, then the example's own turns.
        """
        system, turns = self.turns_of(example)
        for shot in reversed(shots):
            turns = [*self.turns_of(shot)[1], ("assistant", shot.target), *turns]
        return [{"role": role, "content": text} for role, text in system + turns]

    def turns_of(self, example: TaskExample) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """What the system says to an example, and its turns after that, the last with the instruction."""
        *earlier, (role, text) = example.turns or (("user", example.input),)
        first = int(bool(earlier) and earlier[0][0] == "system")
        return earlier[:first], [*earlier[first:], (role, self.instruction.replace("{input}", text))]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_pinned(path: Path, sha256: str, remedy: str) -> None:
    """Raise InputError, with what to do about it, if a file is missing or is not the pinned one."""
    if not path.is_file():
        raise InputError(f"The data file {path} is missing: {remedy}.")
    if (digest := file_sha256(path)) != sha256:
        raise InputError(f"{path} has SHA-256 {digest}, not the pinned {sha256}: {remedy}.")


def parquet_task(path: Path, spec: specs.Task, instruction: str, metrics: tuple[str, ...]) -> TaskData:
    """The task in a Parquet file with columns id, input, target, group and split, in the file's order.

    Raises InputError if the file is missing or not the pinned one.
    """
    check_pinned(path, spec.data_sha256, how_to_restore(spec.name))
    need("pyarrow", f"The task {spec.name!r}")
    import pyarrow.parquet as pq

    names = ["id", "input", "target", "group"]
    with pq.ParquetFile(path) as file:  # `read_table` would import pandas
        rows = file.read([*names, "split"]).to_pylist()
    examples = ((row["split"], TaskExample(*(row[name] for name in names))) for row in rows)
    return task_of(spec, instruction, metrics, examples)


def task_of(
    spec: specs.Task, instruction: str, metrics: tuple[str, ...], rows: Iterable[tuple[str, TaskExample]], **more: Any
) -> TaskData:
    """The task of examples, each with the split that it is in, in their order. more: of its fields."""
    splits: dict[str, list[TaskExample]] = {split: [] for split in SPLITS}
    for split, example in rows:
        splits[split].append(example)
    whole = {split: tuple(examples) for split, examples in splits.items()}
    return TaskData(spec.name, spec.version, instruction, whole, metrics, spec.data_sha256, **more)


def how_to_restore(name: str) -> str:
    """What to do about data of the book that are missing or not the pinned ones."""
    return f"run `python tests/tools/{name}_build.py` in a checkout of the repository, or install peftbook again"


def references(task: TaskData) -> dict[str, tuple[str, ...]]:
    """All right answers of each validation and test example, by its id; its own target where the task has no more."""
    examples = (*task.splits["validation"], *task.splits["test"])
    return {example.id: task.all_references.get(example.id, (example.target,)) for example in examples}


@functools.cache
def pinned() -> Mapping[str, specs.Task]:
    """Task → the spec by which its module, which has its name, pins its data as `SPEC`; without reading them."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {module.SPEC.name: module.SPEC for module in modules if hasattr(module, "SPEC")}


def task_names() -> list[str]:
    """Names of the tasks of the book's own runs."""
    return sorted(pinned())


def task_spec(name: str) -> specs.Task:
    """The pinned spec of a task by name, without its data. Raises InputError for an unknown one."""
    if name not in pinned():
        raise InputError(f"Unknown task {name!r}: choose one of {', '.join(task_names())}, or use files or hub data.")
    return pinned()[name]


@functools.cache
def get_task(name: str) -> TaskData:
    """Load a task by name. Raises InputError for an unknown one and where its data is missing or not the pinned one."""
    spec = task_spec(name)
    task = importlib.import_module(f"{__name__}.{name}").load()
    if task.spec != spec:
        raise InputError(
            f"Task {name!r} loaded data {task.data_sha256[:12]}…, version {task.version}, not the pinned "
            f"{spec.data_sha256[:12]}…, version {spec.version}: rebuild or restore its data."
        )
    return task


def compared_texts(rows: Sequence[TaskExample], among: Sequence[TaskExample]) -> list[str]:
    """The texts by which rows resemble each other: what the system says too, unless it is the same in all examples."""
    systems = {text for example in among for role, text in example.turns if role == "system"}
    return [row.input if len(systems) < 2 else row.asked for row in rows]


def shared_keys(examples: Sequence[TaskExample], near: Sequence[str] = ()) -> list[list[str]]:
    """What each example may share with others, as keys: its input, its group, and its cluster of near copies."""
    keys = [[f"input {one.asked}", *[f"group {one.group}"] * bool(one.group)] for one in examples]
    for own, cluster in zip(keys, near, strict=False):
        own.append(f"near {cluster}")
    return keys


def groups_of(examples: Sequence[TaskExample]) -> list[str]:
    """What each example shares with others: a group, an input that comes again, or nearly the same input; else "".

    An interval over the rows of one such cluster would be as if they were unrelated.
    """
    found = connected(shared_keys(examples, duplicate_clusters(compared_texts(examples, examples))))
    often = Counter(found)
    return [name * (often[name] > 1) for name in found]


@functools.cache
def known_groups() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Task → split → the group of each example, where the data takes an extra to read or is not part of the project.

    Of E2E a letter for each input, which stands for the restaurant that it is about: what is said of one is alike.
    """
    return json.loads(GROUPS.read_text(encoding="utf-8"))


@functools.cache
def split_groups(name: str, split: str, count: int) -> tuple[str, ...]:
    """The groups of the first `count` examples of a split; empty where none are shared.

    Raises InputError where the data is missing: an error over single examples would be a smaller one.
    """
    known = known_groups().get(task_spec(name).name)
    groups = tuple(known[split] if known else (example.group for example in get_task(name).splits[split]))[:count]
    return groups if len(set(groups) - {""}) < sum(map(bool, groups)) else ()


def test_groups(name: str, count: int) -> tuple[str, ...]:
    """`split_groups` of the first `count` test examples."""
    return split_groups(name, "test", count)


def size_of_test(name: str) -> int:
    """How many test examples a task has."""
    known = known_groups().get(task_spec(name).name)
    return len(known["test"] if known else get_task(name).splits["test"])


def missing_data(name: str) -> str:
    """Why a task of the book cannot be loaded here, in a sentence; empty if it can."""
    if name in task_names():
        try:
            get_task(name)
        except InputError as error:
            return str(error)
    return ""
