"""Files: the reader's own table as a task: which rows can be used, how they are split, and what leaks between splits.

A table comes from `read_file`, or from `tasks.table.read_table` where the bytes are at hand; `examine` says what is in
it and `task_from_table` makes it a task. Faulty rows are listed and left out, counted from 1, without the header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from peftbook.core.errors import InputError
from peftbook.core.specs import OWN_ROWS
from peftbook.tasks import SPLITS, TaskData, TaskExample, compared_texts, shared_keys
from peftbook.tasks.chats import MADE, Turn
from peftbook.tasks.columns import SYSTEM_NAMES, Columns
from peftbook.tasks.rows import MIN_ROWS, Caps, Fault
from peftbook.tasks.similarity import duplicate_clusters, near_duplicates
from peftbook.tasks.splitting import check_fractions, split_examples
from peftbook.tasks.table import TextTable, read_table

FAULTS_SHOWN = 3
REPEATED = 5  # times that a label occurs on average, of what is no free text
SHOWN_COLUMNS, SHOWN_CHARS = 12, 40  # in a sentence
METRICS = ("rouge", "bertscore", "exact_match")
NearCopies = Literal["any", "together", "out"]
NEAR_COPIES = get_args(NearCopies)


@dataclass(frozen=True)
class Split:
    """How rows are split: at random by `seed`, into these shares for train, validation and test.

    first: so many usable rows are split, as if the others were not there; those are training rows that came later, but
    for the ones whose input or group is in validation or test. 0: all rows are split.
    left_out: numbers of rows that are in no split, with commas.
    near_copies: of rows whose inputs nearly repeat each other: "any" split may have each, they stay "together" in one,
    or the first is kept and the others are left "out".
    """

    seed: int = 0
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    first: int = 0
    left_out: str = ""
    near_copies: NearCopies = "any"

    def kept(self, examples: Sequence[TaskExample]) -> list[TaskExample]:
        """The examples that are not left out. Raises InputError for what is no list of numbers."""
        if self.near_copies not in NEAR_COPIES:
            raise InputError(f"Near copies {self.near_copies!r}: choose one of {', '.join(NEAR_COPIES)}.")
        if not re.fullmatch(r"(\d+(, *\d+)*)?", self.left_out):
            raise InputError(f"{self.left_out!r} are no rows to leave out: give their numbers with commas.")
        names = {f"row-{int(number):06d}" for number in self.left_out.split(",") if number}
        rows = [example for example in examples if example.id not in names]
        if self.near_copies == "out":
            clusters = duplicate_clusters(compared_texts(rows, rows))
            first = dict(zip(reversed(clusters), reversed([row.id for row in rows]), strict=True))
            rows = [row for row, cluster in zip(rows, clusters, strict=True) if row.id == first[cluster]]
        return rows


@dataclass(frozen=True)
class TableFindings:
    """What is in a table, as these columns and this split make it a task.

    rows: of the file.  usable: without those in `faults`.  duplicates: rows that repeat the input and the target of one
    before.  conflicting: rows whose input occurs with another target too.  splits: rows of each.  told: whether rows
    themselves say what to do, as chats and instructions do.  several, cut: chats of several turns, and those that go on
    after their last answer.  unused: column of answers that are not trained on.  shared_targets: test rows whose target
    is that of a training row.  labels: `count_labels`.  leaked: ids of those of the `compared` test rows whose input is
    nearly that of a training row.  copies: near copies that are left out.  obstacle: why it is no task yet, or nothing.
    """

    rows: int
    usable: int
    faults: tuple[Fault, ...]
    duplicates: int
    conflicting: int
    splits: dict[str, int]
    shared_targets: int
    labels: int = 0
    leaked: tuple[str, ...] = ()
    compared: int = 0
    copies: int = 0
    obstacle: str = ""
    told: bool = False
    several: int = 0
    cut: int = 0
    unused: str = ""

    @property
    def near_duplicates(self) -> int:
        """How many test rows leak."""
        return len(self.leaked)


# --- a table as a task -----------------------------------------------------------------------------------------


def usable_rows(table: TextTable, columns: Columns) -> tuple[list[TaskExample], tuple[Fault, ...]]:
    """The table's rows as examples, and the faults of all others, the reader's included, in the order of the file.

    Raises InputError for columns that the table lacks, or one that is both input and target.
    """
    for name in (columns.input, columns.target, columns.instruction, columns.group):
        if name is not None and name not in table.columns:
            chats = "; of chats leave input and target out, or name these" if table.turns else ""
            raise InputError(f"There is no column {quoted_name(name)}: {describe_columns(table.columns)}{chats}.")
    if columns.input == columns.target or columns.instruction in (columns.input, columns.target):
        twice = columns.target if columns.input == columns.target else columns.instruction
        raise InputError(
            f"Column {twice!r} is chosen twice among input, target and instruction: choose different ones."
        )
    target = table.columns.index(columns.target)
    group = None if columns.group is None else table.columns.index(columns.group)
    kto = "label" in table.columns and (columns.target == "completion" or (table.turns and columns.target == MADE[2]))
    label = table.columns.index("label") if kto else None
    rejected = rejected_column(table, columns)
    examples, faults = [], list(table.faults)
    for number, row, (text, turns) in zip(table.numbers, table.rows, asked_in(table, columns), strict=True):
        empty = columns.input if not text else columns.target if not row[target].strip() else ""
        if empty:
            faults.append(Fault(number, empty, "is empty: fill it, or remove the row"))
            continue
        if label is not None and row[label].lower() == "false":
            said = "marks a bad completion, which is not trained on: rename the column if it means another thing"
            faults.append(Fault(number, "label", said))
            continue
        belongs = "" if group is None else row[group]
        other = row[table.columns.index(rejected)] if rejected else ""
        examples.append(TaskExample(f"row-{number:06d}", text, row[target], belongs, turns, other))
    return examples, tuple(sorted(faults, key=lambda fault: fault.row))


def rejected_column(table: TextTable, columns: Columns) -> str:
    """The column of the answers that were liked less, or nothing."""
    return next((name for name in table.columns if name.lower() == "rejected" and name != columns.target), "")


def asked_in(table: TextTable, columns: Columns) -> Iterator[tuple[str, tuple[Turn, ...]]]:
    """What each row asks as one text, and its turns where they are more than what the user says once."""
    source = table.columns.index(columns.input)
    if table.turns and (columns.input, columns.target) == MADE[1:]:
        yield from (
            (row[source], said if len(said) > 1 else ()) for row, said in zip(table.rows, table.turns, strict=True)
        )
        return
    before = None if columns.instruction is None else table.columns.index(columns.instruction)
    system = columns.instruction is not None and re.sub(r"\W", "_", columns.instruction.lower()) in SYSTEM_NAMES
    for row in table.rows:
        told, text = "" if before is None else row[before], row[source]
        if system and told.strip():
            yield text, (("system", told), ("user", text))
        else:
            yield "\n\n".join(part for part in (told, text) if part.strip()), ()


def describe_columns(columns: Sequence[str]) -> str:
    """The first columns of a table, in words."""
    more = f" and {len(columns) - SHOWN_COLUMNS} more" if len(columns) > SHOWN_COLUMNS else ""
    return f"the columns are {', '.join(map(quoted_name, columns[:SHOWN_COLUMNS]))}{more}"


def quoted_name(name: str) -> str:
    """A column's name in quotes, or its beginning."""
    return repr(name if len(name) <= SHOWN_CHARS else f"{name[:SHOWN_CHARS]}…")


def examine(table: TextTable, columns: Columns, split: Split = Split()) -> TableFindings:
    """Count what is wrong, repeated or leaking. Raises InputError for columns or fractions that cannot be."""
    check_fractions(split.fractions)
    examples, faults = usable_rows(table, columns)
    every, examples = examples, split.kept(examples)
    targets: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        targets[example.asked].add(example.target)
    counts = {
        "rows": len(table.rows) + len(table.faults),
        "usable": len(examples),
        "faults": faults,
        "duplicates": len(examples) - len({(example.asked, example.target) for example in examples}),
        "conflicting": sum(len(targets[example.asked]) > 1 for example in examples),
        "told": columns.instruction is not None or any(example.turns for example in examples) or bool(table.turns),
        "several": sum(len(example.turns) > 1 for example in examples),
        "cut": table.cut,
        "unused": rejected_column(table, columns),
        "copies": len(replace(split, near_copies="any").kept(every)) - len(examples),
    }
    try:
        check_enough(examples, faults)
        splits = split_rows(examples, split)
    except InputError as error:
        return TableFindings(**counts, splits={}, shared_targets=0, obstacle=str(error))  # type: ignore[arg-type]
    learned = {example.target for example in splits["train"]}
    near = near_duplicates(*(compared_texts(splits[name], examples) for name in ("test", "train")))
    return TableFindings(
        **counts,  # type: ignore[arg-type]
        splits={name: len(splits[name]) for name in SPLITS},
        shared_targets=sum(example.target in learned for example in splits["test"]),
        labels=count_labels(splits["train"], splits["test"]),
        leaked=tuple(row.id for row, leaks in zip(splits["test"], near, strict=False) if leaks),
        compared=len(near),
    )


def count_labels(train: Sequence[TaskExample], test: Sequence[TaskExample]) -> int:
    """How many different targets there are, if they look like labels: several, every test target one of training,
    where a target occurs REPEATED times on average. Else 0.
    """
    learned = {example.target for example in train}
    known = all(example.target in learned for example in test)
    return len(learned) if known and 1 < len(learned) <= len(train) / REPEATED else 0


def check_enough(examples: Sequence[TaskExample], faults: Sequence[Fault]) -> None:
    """Raises InputError for fewer rows than a split needs."""
    if len(examples) < MIN_ROWS:
        first = f"; the first of {len(faults)} rows left out is row {faults[0].row}" if faults else ""
        raise InputError(f"There are {len(examples)} usable rows: a split needs at least {MIN_ROWS}{first}.")


def task_from_table(
    table: TextTable, columns: Columns, split: Split = Split(), instruction: str = "{input}"
) -> TaskData:
    """The usable rows as a task named OWN_ROWS; its `data_sha256` is that of their texts and of all that is given here.

    instruction: the user turn, with `{input}` where the input goes. Raises InputError where that is no task.
    """
    check_instruction(instruction)
    check_fractions(split.fractions)
    examples, faults = usable_rows(table, columns)
    check_enough(examples := split.kept(examples), faults)
    digest = hashlib.sha256()
    settings = [table.sha256, columns.input, columns.target, columns.instruction, columns.group]
    digest.update(json.dumps([*settings, split.seed, *map(float, split.fractions), instruction]).encode())
    if split.first:
        digest.update(json.dumps({"first": split.first}).encode())
    if split.near_copies == "together":
        digest.update(json.dumps({"near_copies": split.near_copies}).encode())
    for example in examples:
        turns = [example.turns] if example.turns else []
        digest.update(json.dumps([example.id, example.input, example.target, example.group, *turns]).encode())
    return TaskData(OWN_ROWS, 1, instruction, split_rows(examples, split), METRICS, digest.hexdigest())


def split_rows(examples: Sequence[TaskExample], split: Split) -> dict[str, tuple[TaskExample, ...]]:
    """The splits of the first rows, with the later ones behind their training rows.

    Raises InputError for a number of first rows that cannot be, and as `split_examples` does.
    """
    if not 0 <= split.first <= len(examples):
        raise InputError(
            f"The first {split.first:,} of {len(examples):,} usable rows are to be split: choose 0 for all."
        )
    near = duplicate_clusters(compared_texts(examples, examples)) if split.near_copies == "together" else []
    count = split.first or len(examples)
    splits = split_examples(examples[:count], seed=split.seed, fractions=split.fractions, near=near[:count])
    if count == len(examples):
        return splits
    keys = dict(zip((row.id for row in examples), shared_keys(examples, near), strict=True))
    held = {key for row in (*splits["validation"], *splits["test"]) for key in keys[row.id]}
    later = (row for row in examples[count:] if held.isdisjoint(keys[row.id]))
    return splits | {"train": (*splits["train"], *later)}


def check_instruction(instruction: str) -> None:
    """Raises InputError for an instruction without a place for the input."""
    if "{input}" not in instruction:
        raise InputError(f"The instruction {instruction!r} does not say where the input goes: put {{input}} in it.")


# --- a file on the command line --------------------------------------------------------------------------------


def read_file(path: Path, caps: Caps = Caps()) -> tuple[bytes, TextTable]:  # noqa: B008
    """A file's bytes and the table in them. Raises InputError where there is none."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not a file: check the path.")
    if (size := path.stat().st_size) > caps.bytes:
        raise InputError(f"{str(path)!r} has {size:,} bytes, more than the cap of {caps.bytes:,}: cut it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions.") from None
    return content, read_table(content, path.name, caps)


def describe_reading(name: str, seen: TableFindings) -> list[str]:
    """What was read of a file and what was left out, a line each."""
    faults, counts = seen.faults, ", ".join(f"{split} {rows:,}" for split, rows in seen.splits.items())
    left_out = f", {len(faults):,} rows left out" if faults else ""
    lines = [f"{name}: {seen.usable:,} rows ({counts}){left_out}."]
    for fault in faults[:FAULTS_SHOWN]:
        lines.append(f"  row {fault.row}: {f'column {fault.column!r} ' if fault.column else ''}{fault.problem}")
    return [*lines, "  …"] if len(faults) > FAULTS_SHOWN else lines
