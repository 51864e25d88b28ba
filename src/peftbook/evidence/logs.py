"""Logs of evaluations as rows, whatever tool wrote them: which one did is told from what is in a file, not by its name.

A row is a mapping with an id, numbers, and what else the tool wrote of an example; `metrics` names the numbers that are
scores, the first of them first. Where an example was run several times (Inspect's epochs, promptfoo's repeats), its
row has the mean: the runs of one example are no independent examples. What ended in an error has no row.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError

Row = Mapping[str, Any]
WORDS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}  # Inspect's values


def read_log(path: Path) -> dict[str, Sequence[Row]]:
    """The rows of each model in a file; a model that is the only one has no name.

    Raises InputError for a file that is none, or that cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a log of an evaluation.") from None
    whole = whole_json(content)
    read = next(read for is_one, read in FORMATS if is_one(content, whole))
    try:
        return read(path, content, whole)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"{path} is laid out as no log that is known here ({error!r}): give a whole log.") from None


def whole_json(content: bytes) -> dict[str, Any]:
    """The object that a file is as a whole; empty where it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(content), dict):
            return found
    return {}


def mean_rows(runs: Iterable[tuple[str, Mapping[str, float], Row]]) -> list[Row]:
    """A row for each example of (id, scores, the rest of the row), with its mean scores."""
    scores: dict[str, list[Mapping[str, float]]] = {}
    others: dict[str, Row] = {}
    for name, found, rest in runs:
        scores.setdefault(name, []).append(found)
        others.setdefault(name, rest)
    return [
        {**others[name], "id": name, "metrics": [*each[0]]}
        | {key: math.fsum(one.get(key, math.nan) for one in each) / len(each) for key in each[0]}
        for name, each in scores.items()
    ]


# --- the formats -----------------------------------------------------------------------------------------------


def read_inspect_zip(path: Path, content: bytes, _: Row) -> dict[str, Sequence[Row]]:
    """An `.eval` file of Inspect, whose summaries have all scores; of a run that was stopped before, its samples."""
    try:
        from backports.zstd import zipfile  # Inspect packs with zstd, which Python unpacks from 3.14 on
    except ImportError:
        import zipfile
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if "summaries.json" in names:
                samples = json.loads(archive.read("summaries.json"))
            else:
                samples = [json.loads(archive.read(name)) for name in names if name.startswith("samples/")]
    except NotImplementedError:
        raise InputError(f"{path} is packed with zstd: `pip install backports.zstd`, or take Python 3.14.") from None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is a damaged log of Inspect, or none ({error}): copy it again.") from None
    return inspect_rows(path, samples)


def inspect_rows(path: Path, samples: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """The rows of Inspect's samples, a score for each scorer, of those with several values `scorer/value`."""
    runs = []
    for sample in samples:
        if not (scored := sample.get("scores")):
            continue
        found: dict[str, float] = {}
        for scorer, score in scored.items():
            value = score["value"]
            parts = (
                {f"{scorer}/{key}": one for key, one in value.items()} if isinstance(value, dict) else {scorer: value}
            )
            found |= {name: as_number(path, sample["id"], name, one) for name, one in parts.items()}
        runs.append((str(sample["id"]), found, {"target": sample.get("target"), "doc": sample.get("metadata") or {}}))
    if not runs:
        raise InputError(f"{path} is a log of Inspect without a scored sample: score it with `inspect score`.")
    return {"": mean_rows(runs)}


def as_number(path: Path, sample: object, scorer: str, value: object) -> float:
    """A value as Inspect's metrics count it: correct 1, partly 0.5, incorrect and no answer 0."""
    with contextlib.suppress(TypeError, ValueError):
        return WORDS[word] if (word := str(value).lower()) in WORDS else float(value)  # type: ignore[arg-type]
    raise InputError(
        f"{path} has {scorer} = {str(value)[:40]!r} for sample {sample!r}, which is no number: take another scorer."
    )


def read_promptfoo(path: Path, content: bytes, whole: Row) -> dict[str, Sequence[Row]]:
    """The output of `promptfoo eval -o FILE.json`: a model a provider and prompt, an example a set of variables."""
    arms: dict[int, list[Row]] = {}
    for one in whole["results"]["results"]:
        if one.get("failureReason") != 2:  # an error, not an answer
            arms.setdefault(one["promptIdx"], []).append(one)
    if not arms:
        raise InputError(f"{path} is an output of promptfoo without a result: run it again.")
    names = {arm: results[0]["provider"].get("label") or results[0]["provider"]["id"] for arm, results in arms.items()}
    if len({*names.values()}) < len(names):
        names = {arm: f"{name} #{arm}" for arm, name in names.items()}
    return {names[arm] if len(arms) > 1 else "": mean_rows(map(promptfoo_run, arms[arm])) for arm in sorted(arms)}


def promptfoo_run(one: Row) -> tuple[str, Mapping[str, float], Row]:
    """Id, scores and variables of a result; without variables its number is the id."""
    scores = {"score": one["score"], "success": float(one["success"]), **one.get("namedScores", {})}
    variables = one.get("vars") or {}
    return json.dumps(variables, sort_keys=True) if variables else str(one["testIdx"]), scores, {"doc": variables}


def read_lighteval(path: Path, content: bytes, _: Row) -> dict[str, Sequence[Row]]:
    """Details of lighteval, a Parquet file with the columns doc, model_response and metric."""
    from peftbook.tasks.parquet import parquet_lines  # with the tasks, which take longer than the rest of `decide`

    names, *rows = parquet_lines(content, str(path))
    if not {"doc", "metric"} <= {*names}:
        raise InputError(f"{path} is no file of lighteval's details: its columns are {', '.join(names)}.")
    doc, metric = names.index("doc"), names.index("metric")
    return {"": [{**row[metric], "id": row[doc]["id"], "metrics": [*row[metric]], "doc": row[doc]} for row in rows]}


def read_lines(path: Path, content: bytes, _: Row) -> dict[str, Sequence[Row]]:
    """A JSON object a line: lm-evaluation-harness's `--log_samples`, or any other."""
    rows: list[Row] = []
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read ({error}): give a log of an evaluation.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is no JSON ({error}): give a JSON object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} holds {line[:40]!r}: give a JSON object a line.")
        rows.append(row)
    return {"": rows}


Reader = Callable[[Path, bytes, Row], dict[str, Sequence[Row]]]
FORMATS: Sequence[tuple[Callable[[bytes, Row], bool], Reader]] = (
    (lambda content, _: content.startswith(b"PK\x03\x04"), read_inspect_zip),
    (
        lambda _, whole: "eval" in whole and "samples" in whole,
        lambda path, _, whole: inspect_rows(path, whole["samples"]),
    ),
    (lambda _, whole: isinstance(whole.get("results"), dict) and "results" in whole["results"], read_promptfoo),
    (lambda content, _: content.startswith(b"PAR1"), read_lighteval),
    (lambda *_: True, read_lines),
)
