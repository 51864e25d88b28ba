"""Logs of evaluations as rows, whatever tool wrote them: which one did is told from what is in a file, not by its name.

A row is a mapping with an id, numbers, and what else the tool wrote of an example; `metrics` names the numbers that are
scores, the first of them first. Where an example was run several times (Inspect's epochs, promptfoo's repeats), its
row has the mean: the runs of one example are no independent examples. What ended in an error has no row.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError

Row = Mapping[str, Any]
Run = tuple[str, Mapping[str, float], Row]  # id of an example, scores, and the rest of its row
WORDS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}  # Inspect's values


def read_log(path: Path) -> dict[str, Sequence[Row]]:
    """The rows of each model in a file; a model that is the only one has no name.

    Raises InputError for a file that is none, or that cannot be read.
    """
    whole: Any = None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a log of an evaluation.") from None
    with contextlib.suppress(ValueError, RecursionError):
        whole = json.loads(content)
    whole = whole if isinstance(whole, dict) else {}
    tool, read = next((tool, read) for tool, is_one, read in FORMATS if is_one(content, whole))
    try:
        found = read(path, content, whole)
    except InputError:
        raise
    except Exception as error:  # of whatever is laid out otherwise
        raise InputError(f"{path} is no whole log of {tool} ({error!r}): copy it again, or write it again.") from None
    if not any(found.values()):
        raise InputError(f"{path} has no example with a score by {tool}: give another file.")
    return found


def mean_rows(runs: Iterable[Run]) -> list[Row]:
    """A row for each example, with its mean scores."""
    examples: dict[str, list[Run]] = {}
    for one in runs:
        examples.setdefault(one[0], []).append(one)
    return [
        {**each[0][2], "id": name, "metrics": [*each[0][1]]}
        | {key: math.fsum(scores.get(key, math.nan) for _, scores, _ in each) / len(each) for key in each[0][1]}
        for name, each in examples.items()
    ]


# --- the formats -----------------------------------------------------------------------------------------------


def read_inspect_zip(path: Path, content: bytes, _: Row) -> dict[str, Sequence[Row]]:
    """An `.eval` file of Inspect, whose summaries have all scores; of a run that was stopped before, its samples."""
    # Inspect packs with zstd, which Python unpacks from 3.14 on.
    zipfile = importlib.import_module("zipfile" if sys.version_info >= (3, 14) else "backports.zstd.zipfile")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if "summaries.json" in names:
            return read_inspect(path, content, {"samples": json.loads(archive.read("summaries.json"))})
        samples = [json.loads(archive.read(name)) for name in names if name.startswith("samples/")]
        return read_inspect(path, content, {"samples": samples})


def read_inspect(path: Path, _: bytes, whole: Row) -> dict[str, Sequence[Row]]:
    """A log of Inspect: a score for each scorer, of those with several values `scorer/value`."""
    runs = []
    for sample in whole["samples"]:
        values: dict[str, Any] = {}
        for scorer, score in (sample.get("scores") or {}).items():
            value = score["value"]
            parts = value.items() if isinstance(value, dict) else [("", value)]
            values |= {f"{scorer}/{part}".rstrip("/"): one for part, one in parts}
        scores = {name: as_number(path, sample["id"], name, value) for name, value in values.items()}
        if scores:
            rest = {"target": sample.get("target"), "doc": sample.get("metadata") or {}}
            runs.append((str(sample["id"]), scores, rest))
    return {"": mean_rows(runs)}


def as_number(path: Path, sample: object, scorer: str, value: Any) -> float:
    """A value as Inspect's metrics count it: correct 1, partly 0.5, incorrect and no answer 0."""
    with contextlib.suppress(TypeError, ValueError):
        return WORDS[word] if (word := str(value).lower()) in WORDS else float(value)
    raise InputError(f"{path} has {scorer} = {str(value)[:40]!r} for sample {sample!r}: take a scorer with numbers.")


def read_promptfoo(_: Path, __: bytes, whole: Row) -> dict[str, Sequence[Row]]:
    """The output of `promptfoo eval -o FILE.json`: a model a provider and prompt, an example a set of variables."""
    arms: dict[int, list[Row]] = {}
    for one in whole["results"]["results"]:
        if one.get("failureReason") != 2:  # an error, not an answer
            arms.setdefault(one["promptIdx"], []).append(one)
    names = {arm: results[0]["provider"].get("label") or results[0]["provider"]["id"] for arm, results in arms.items()}
    if len({*names.values()}) < len(names):
        names = {arm: f"{name} #{arm}" for arm, name in names.items()}
    return {names[arm] if len(arms) > 1 else "": mean_rows(map(promptfoo_run, arms[arm])) for arm in sorted(arms)}


def promptfoo_run(one: Row) -> Run:
    """A result; without variables its number is the id."""
    scores = {"score": one["score"], "success": float(one["success"]), **one.get("namedScores", {})}
    variables = one.get("vars") or {}
    return json.dumps(variables, sort_keys=True) if variables else str(one["testIdx"]), scores, {"doc": variables}


def read_lighteval(path: Path, content: bytes, _: Row) -> dict[str, Sequence[Row]]:
    """Details of lighteval, a Parquet file with the columns doc, model_response and metric."""
    from peftbook.tasks.parquet import parquet_lines  # with the tasks, which take longer than the rest of `decide`

    names, *lines = parquet_lines(content, str(path))
    runs: list[Run] = []
    for line in lines:
        row = dict(zip(names, line, strict=True))  # of a corpus' metric a row has what it is computed from
        scores = {name: value for name, value in row["metric"].items() if isinstance(value, int | float)}
        runs.append((row["doc"]["id"], scores, {"doc": row["doc"]}))
    return {"": mean_rows(runs)}


def read_lines(path: Path, content: bytes, _: Row) -> dict[str, Sequence[Row]]:
    """A JSON object a line: lm-evaluation-harness's `--log_samples`, or any other."""
    rows: list[Row] = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
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


FORMATS = (  # tool, whether a file is its log, reader
    ("Inspect", lambda content, _: content.startswith(b"PK"), read_inspect_zip),
    ("Inspect", lambda _, whole: {"eval", "samples"} <= {*whole}, read_inspect),
    ("promptfoo", lambda _, whole: {"evalId", "results"} <= {*whole}, read_promptfoo),
    ("lighteval", lambda content, _: content.startswith(b"PAR1"), read_lighteval),
    ("a tool that writes JSON lines", lambda *_: True, read_lines),
)
