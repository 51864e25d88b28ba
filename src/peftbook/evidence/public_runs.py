"""Runs of others: huggingface/peft's method comparison on MetaMathQA, settings and outcomes in two tables.

These runs are kept apart from the package's own records: other people made them, with other code, on another machine.
All of them have seed 0. Two runs of one configuration therefore measure what a rerun moves, which is the versions of
libraries and benchmark code and the nondeterminism of the hardware, and not what another seed would move. Between the
runs of 17 and 18 June 2025 and those of 19 and 20 June, neither a library nor peft's code changed, only what the
benchmark logs. Some configurations changed a setting between two runs: compare `train_config` and `peft_config` first.

`tests/tools/public_runs.py` builds both files from the history of the repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from peftbook.core.folders import DATA

PUBLIC_RUNS = DATA / "public_runs"
TEST_ROWS = 1319  # rows of GSM8K's test split, all of which are scored


@dataclass(frozen=True)
class PublicRun:
    """What was set before one run. Fields without a value in the file are absent from the mappings.

    id: first 12 digits of the file's git blob.   copies: ids of later files with the same run.
    configuration: method and settings, such as `lora--rank32`.   experiment: the same as the repository names it.
    created_at: start of the run, UTC.   commit, committed: the commit that added the file, and its date, UTC.
    folder: results, temporary or cancelled.   status: success, canceled or failed.   branch: peft's branch that ran.
    datasets: data set → revision.   versions: library → version, and `peft_commit`.
    harness: file of the benchmark → first 12 digits of its blob at `peft_commit`; empty if that is not in the history.
    trainable_parameters, total_parameters: peft's own count; None in the oldest files.
    train_config, peft_config: as in the file; sets of modules in order; peft_config is None for full fine-tuning.
    """

    id: str
    configuration: str
    created_at: str
    status: str
    experiment: str
    folder: str
    path: str
    blob: str
    commit: str
    committed: str
    branch: str
    model_sha: str
    datasets: Mapping[str, str]
    versions: Mapping[str, str]
    accelerator: str
    train_config: Mapping[str, Any]
    peft_config: Mapping[str, Any] | None = None
    harness: Mapping[str, str] = field(default_factory=dict)
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    copies: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method as the repository names it, such as `lora`."""
        return self.configuration.partition("--")[0]


@dataclass(frozen=True)
class Outcome:
    """What one run measured; without success, everything but id and status is empty.

    test_accuracy: fraction of GSM8K's 1,319 test rows.   validation_accuracy: (step, fraction of 50 rows).
    train_loss: (step, mean loss of the steps since the last evaluation).   train_tokens: without padding.
    peak_reserved_bytes: torch's max_memory_reserved over the whole run, evaluation included, less what was reserved
    before the model was loaded.   mean_reserved_bytes, reserved_bytes_99th: of memory_reserved after each step.
    train_seconds: loading the data, training and the test, without the evaluations on validation rows.
    total_seconds: the whole program.   file_size_bytes: the saved adapter; for full fine-tuning, all parameters.
    forgetting: rise of the loss on 100 Wikipedia texts; None in older files.
    called: our name → its place in the file.

    Not comparable where `harness` differs across one of these commits of the repository. 90d3fc05d, November 2025: the
    cache is emptied every ten steps instead of every step, which moves memory and time. a0e51a19b, December 2025:
    train_seconds include the Wikipedia losses. 8be1a16f5, January 2026: forgetting no longer counts padding. d787f51bb,
    July 2026: forgetting predicts the next token instead of scoring each position against its own token, and compares
    with the base model instead of the untrained adapter.
    """

    id: str
    status: str
    test_accuracy: float | None = None
    validation_accuracy: tuple[tuple[int, float], ...] = ()
    train_loss: tuple[tuple[int, float], ...] = ()
    train_tokens: int | None = None
    peak_reserved_bytes: int | None = None
    mean_reserved_bytes: int | None = None
    reserved_bytes_99th: int | None = None
    train_seconds: float | None = None
    total_seconds: float | None = None
    file_size_bytes: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    forgetting: float | None = None
    called: Mapping[str, str] = field(default_factory=dict)


@cache
def public_runs() -> tuple[PublicRun, ...]:
    """Settings of every run, by configuration and start."""
    return read_settings(PUBLIC_RUNS)


@cache
def outcomes() -> Mapping[str, Outcome]:
    """Id of a run → what it measured."""
    return {outcome.id: outcome for outcome in read_outcomes(PUBLIC_RUNS)}


def read_settings(folder: Path) -> tuple[PublicRun, ...]:
    """The runs of `settings.jsonl` in a folder."""
    rows = read_rows(folder / "settings.jsonl")
    return tuple(PublicRun(**row | {"copies": tuple(row.get("copies", ()))}) for row in rows)


def read_outcomes(folder: Path) -> tuple[Outcome, ...]:
    """The outcomes of `outcomes.jsonl` in a folder."""
    return tuple(
        Outcome(**row | {name: tuple(map(tuple, row.get(name, ()))) for name in ("validation_accuracy", "train_loss")})
        for row in read_rows(folder / "outcomes.jsonl")
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table, each with the fields that its first line holds for all of them."""
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [with_shared(row, header["shared"]) for row in rows]


def with_shared(row: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The row and the shared fields; those of a nested table only where the row has the table."""
    merged = {key: value for key, value in shared.items() if not isinstance(value, dict)} | dict(row)
    for key, value in row.items():
        if isinstance(value, dict):
            merged[key] = with_shared(value, shared.get(key, {}))
    return merged
