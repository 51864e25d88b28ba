"""Hub: public data sets by name, from the Hugging Face hub or from a local copy.

    load_hub("samsum")                     # online
    load_hub("samsum", path="samsum/")     # a local copy of the Parquet files
    load_hub("e2e", path="data/e2e/")      # valid.txt and test.txt as the LoRA paper uses them

datasets 5 refuses loading scripts, so every set is read from the hub's own Parquet conversion. Its reference
`refs/convert/parquet` is kept by the hub's converter and was **not** checked against the network when this was written:
it may move, and a commit hash can be given as `revision` instead. A run stays pinned all the same, because
`data_sha256` is the hash of the examples that were loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from peftbook.core.errors import InputError, need
from peftbook.tasks import SPLITS, TaskData, TaskExample, check_pinned

PARQUET_REVISION = "refs/convert/parquet"
# As shipped with the LoRA paper's code; CC BY-SA 4.0, never committed here.
E2E_SHA256 = {
    "valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
    "test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
}
METRICS = ("rouge", "bertscore", "exact_match")


@dataclass(frozen=True)
class HubSource:
    """Where a data set lives and how a row becomes a pair.

    repo, revision, config: of the hub; the files are `<config>/<split>/*.parquet` at that revision.
    pair: row -> (input, target).
    licence: as published, from memory and not checked against the page; for information only.
    """

    repo: str
    config: str
    licence: str
    instruction: str
    pair: Callable[[Mapping], tuple[str, str]]
    revision: str = PARQUET_REVISION


def _columns(source: str, target: str) -> Callable[[Mapping], tuple[str, str]]:
    return lambda row: (row[source], row[target])


def _wikisql(row: Mapping) -> tuple[str, str]:
    """The question and the table's columns -> the query as the data set writes it."""
    return f"{row['question']}\nColumns: {', '.join(row['table']['header'])}", row["sql"]["human_readable"]


HUB: dict[str, HubSource] = {
    "tweetsumm": HubSource(  # a re-upload of the 879/110/110 split; Salesforce/dialogstudio asks for a log-in
        "Andyrasika/TweetSumm-tuned", "default", "CDLA-Sharing-1.0",
        "Summarize this customer service conversation.\n\n{input}", _columns("conversation", "summary"),
    ),
    "wikisql": HubSource(
        "Salesforce/wikisql", "default", "BSD-3-Clause",
        "Write the SQL query that answers the question.\n\n{input}", _wikisql,
    ),
    "samsum": HubSource(
        "knkarthick/samsum", "default", "CC-BY-NC-ND-4.0",
        "Summarize this conversation.\n\n{input}", _columns("dialogue", "summary"),
    ),
    "e2e": HubSource(
        "tuetschek/e2e_nlg", "default", "CC-BY-SA-4.0",
        "Describe this place in one or two sentences that say every given fact.\n\n{input}",
        _columns("meaning_representation", "human_reference"),
    ),
}  # fmt: skip


def load_hub(name: str, *, path: str | Path | None = None, revision: str | None = None) -> TaskData:
    """A public data set by its name in `HUB`.

    path: a local copy instead of the hub: for e2e a folder with valid.txt and test.txt, for the others a folder laid
    out like the Parquet conversion, `<config>/<split>/*.parquet`.
    revision: a hub commit instead of the one in the table.
    Raises InputError for an unknown name, a missing or changed file, missing columns, or a hub out of reach.
    """
    if name not in HUB:
        raise InputError(f"Unknown hub task {name!r}: choose one of {', '.join(sorted(HUB))}.")
    if path is not None and not Path(path).is_dir():
        raise InputError(f"{path} is not a folder: give the folder that holds the copy of {name}.")
    if name == "e2e" and path is not None:
        return _task(name, *_e2e(Path(path)))
    pairs = _pairs(name, None if path is None else Path(path), revision)
    return _task(name, *_one_example_a_test_input(pairs))


# --- from the hub or its Parquet files -------------------------------------------------------------------------


def _pairs(name: str, path: Path | None, revision: str | None) -> dict[str, list[tuple[str, str]]]:
    """(input, target) pairs by split, read with `datasets`."""
    source = HUB[name]
    loaded = _loaded(name, path, revision or source.revision)
    try:
        return {split: [source.pair(row) for row in loaded[split]] for split in SPLITS}
    except KeyError as error:
        have = ", ".join(loaded["train"].column_names)
        raise InputError(f"{name} has no column or split {error.args[0]!r}: its columns are {have}.") from None


def _loaded(name: str, path: Path | None, revision: str) -> Mapping:
    """The rows of each split, from the hub or from a folder."""
    need("datasets", "A data set of the hub")
    import datasets

    source = HUB[name]
    files = {split: f"{source.config}/{split}/*.parquet" for split in SPLITS}
    for pattern in files.values():
        if path is not None and not list(path.glob(pattern)):
            raise InputError(f"{path} has no {pattern}: lay the copy out as <config>/<split>/*.parquet.")
    try:
        if path is not None:
            return datasets.load_dataset(str(path), data_files=files)
        return datasets.load_dataset(source.repo, revision=revision, data_files=files)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = path or f"hub repository {source.repo} at {revision}"
        raise InputError(
            f"{name} cannot be loaded from {where} ({reason}): check the connection and the revision, or give path= "
            "with a local copy."
        ) from None


def _one_example_a_test_input(
    pairs: Mapping[str, Iterable[tuple[str, str]]],
) -> tuple[dict[str, tuple[TaskExample, ...]], dict[str, tuple[str, ...]]]:
    """Examples of each split: all pairs, but in test one per input, whose other answers become references."""
    splits: dict[str, tuple[TaskExample, ...]] = {}
    known: dict[str, tuple[str, ...]] = {}
    for split, rows in pairs.items():
        answers = _by_input(rows)
        examples = []
        for mr, targets in answers.items():
            for number, target in enumerate(targets[:1] if split == "test" else targets):
                example = TaskExample(f"{split}-{_short_hash(mr)}-{number}", mr, target, mr)
                examples.append(example)
                known[example.id] = tuple(targets)
        splits[split] = tuple(sorted(examples, key=lambda example: _short_hash(example.id)))
    return splits, known


def _by_input(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Distinct targets of each input, in the file's order."""
    answers: dict[str, list[str]] = defaultdict(list)
    for source, target in rows:
        source, target = (source or "").strip(), (target or "").strip()
        if source and target and target not in answers[source]:
            answers[source].append(target)
    return {source: targets for source, targets in answers.items() if targets}


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _task(name: str, splits: dict[str, tuple[TaskExample, ...]], known: dict[str, tuple[str, ...]]) -> TaskData:
    """The task, pinned by the hash of everything that was loaded."""
    content = {split: [(each.input, *known[each.id]) for each in rows] for split, rows in splits.items()}
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return TaskData(f"hub:{name}", 1, HUB[name].instruction, splits, METRICS, sha256, known)


# --- E2E as the LoRA paper's code ships it ---------------------------------------------------------------------


def _e2e(folder: Path) -> tuple[dict[str, tuple[TaskExample, ...]], dict[str, tuple[str, ...]]]:
    """Train on 90 % of the development inputs, validate on 10 %, test on the official test inputs.

    The official training file is not part of the copy. Inputs (meaning representations) are never divided: the tenth
    is chosen by their hash.
    """
    development, test = _e2e_pairs(folder / "valid.txt"), _e2e_pairs(folder / "test.txt")
    inputs = sorted({source for source, _ in development}, key=_short_hash)
    held_out = set(inputs[: max(1, len(inputs) // 10)])
    return _one_example_a_test_input(
        {
            "train": [pair for pair in development if pair[0] not in held_out],
            "validation": [pair for pair in development if pair[0] in held_out],
            "test": test,
        }
    )


def _e2e_pairs(path: Path) -> list[tuple[str, str]]:
    """(meaning representation, reference) of each line. Raises InputError if the file is not the pinned one."""
    check_pinned(path, E2E_SHA256[path.name], "the folder needs the valid.txt and test.txt of E2E")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        source, mark, target = line.partition("||")
        if not mark:
            raise InputError(f"{path}, line {number} has no '||' between meaning representation and reference.")
        pairs.append((source.strip(), target.strip()))
    return pairs
