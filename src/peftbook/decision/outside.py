"""Scores that were made elsewhere: which of several models is better on the same examples, by the book's own rule.

A file has a JSON object a line, one for each example: the per-sample logs of lm-evaluation-harness (`--log_samples`),
or anything with an id and a number, or with an output and a target, whose ROUGE-L is taken. Examples are paired by id:
an unpaired test of the same examples throws away what both find easy or hard.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbook.decision.recommendation import FEWEST_EXAMPLES
from peftbook.errors import InputError
from peftbook.evidence.planning import settle
from peftbook.evidence.stats import Interval, holm, p_value, paired_interval, score_interval

__all__ = ["Arm", "Outside", "Pairing", "decide", "read_rows"]

IDS = ("id", "doc_id", "question_id", "example_id", "index")
HASHES = ("doc_hash", "target_hash")  # of lm-evaluation-harness: the same example has the same
LEVEL = 0.05  # family-wise, of all pairs
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """A model: its name, and a table of scores, (seeds, examples). score: their mean."""

    name: str
    scores: tuple[tuple[float, ...], ...]
    score: Interval


@dataclass(frozen=True)
class Pairing:
    """first − second. p: two-sided.  outcome: better, worse, equivalent, undecided, or too few to tell.

    needed: (seeds, examples) that would find a difference of the margin four times in five; None without a margin.
    """

    first: str
    second: str
    difference: Interval
    p: float
    outcome: str
    needed: tuple[int, int] | None


@dataclass(frozen=True)
class Outside:
    """What was decided. measure: the number that was compared.  left_out: examples that not all files have."""

    measure: str
    arms: tuple[Arm, ...]
    pairs: tuple[Pairing, ...]
    left_out: int
    margin: float | None


def decide(
    files: Mapping[str, Sequence[Path]], *, measure: str = "", key: str = "", kept: str = "", group: str = "",
    margin: float | None = None, lower: bool = False, common: bool = False,
) -> Outside:  # fmt: skip
    """Compare every two of several models on the examples that they were scored on.

    files: name → a file a seed, in the same order of seeds for all.  measure: a field with a number; the only one, or
    the first of lm-evaluation-harness, unless given.  key: the field with an example's id.  kept: the filter of
    lm-evaluation-harness whose rows count.  group: a field of what examples share.  margin: differences below it do
    not matter.  lower: whether less is better.  common: take the examples that all files have.

    Two models differ where Holm's procedure over all pairs says so at 5 %; they are equivalent where the 90 % interval
    lies inside the margin. Raises InputError for files that cannot be paired.
    """
    if len(files) < 2:
        raise InputError("One model is compared with none: give two files or more.")
    counts = {name: len(paths) for name, paths in files.items()}
    if len({*counts.values()}) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"Seeds are paired in their order, and there are other numbers of files ({said}): give as many."
        )
    if margin is not None and not 0 < margin < math.inf:
        raise InputError(f"A margin of {margin} is none: give the smallest difference that would matter.")
    tables = {(name, at): read_rows(path, key, kept) for name, paths in files.items() for at, path in enumerate(paths)}
    names = {where: str(files[where[0]][where[1]]) for where in tables}
    chosen = measure or measure_in(tables, names)
    everywhere, left_out = shared_ids(tables, names, common)
    scores = {where: scores_in(rows, everywhere, chosen, names[where]) for where, rows in tables.items()}
    groups = groups_in(next(iter(tables.values())), everywhere, group)
    by_name = {name: [scores[name, at] for at in range(count)] for name, count in counts.items()}
    arms = tuple(Arm(name, tuple(map(tuple, one)), score_interval(one, groups=groups)) for name, one in by_name.items())
    differences = {}
    for first, second in itertools.combinations(arms, 2):
        seeds = len(first.scores)
        between = paired_interval if seeds > 1 else of_one_seed
        differences[first.name, second.name] = between(first.scores, second.scores, groups=groups)
    p = {names: p_value(one) for names, one in differences.items()}
    differ = holm(p, LEVEL)
    level = LEVEL / 2 / len(differences)
    pairs = tuple(
        Pairing(*both, one, p[both], outcome(one, differ[both], margin, lower), needed(one, margin, level))
        for both, one in differences.items()
    )
    return Outside(chosen, arms, pairs, left_out, margin)


def of_one_seed(first: Sequence, second: Sequence, groups: Sequence) -> Interval:
    """first − second of one file each: nothing is random but the choice of examples."""
    return score_interval([[a - b for a, b in zip(first[0], second[0], strict=True)]], groups=groups)


def outcome(one: Interval, differs: bool, margin: float | None, lower: bool) -> str:
    """What an interval of first − second says of the first."""
    if one.examples < FEWEST_EXAMPLES or not one.decides:
        return "too few to tell"
    if differs:
        return "better" if (one.mean > 0) is not lower else "worse"
    return "equivalent" if margin is not None and abs(one.mean) + one.half90 <= margin else "undecided"


def needed(one: Interval, margin: float | None, level: float) -> tuple[int, int] | None:
    """(seeds, examples) for a difference of the margin; None where there is no margin, or no known spread."""
    if margin is None or not 0 < one.standard_error < math.inf:
        return None
    examples, seeds = settle(one, margin, level)
    return seeds, examples


def read_rows(path: Path, key: str = "", kept: str = "") -> dict[Any, Row]:
    """Id → the row of each example of a file; without an id its line is one.

    Raises InputError for a file that is none, and for an id that comes twice.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a file with a JSON object a line.") from None
    rows: dict[Any, Row] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is no JSON ({error.msg}): give a JSON object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} holds {line[:40]!r}: give a JSON object a line.")
        if kept and row.get("filter", kept) != kept:
            continue
        field = key or next((name for name in IDS if name in row), "")
        if field and not isinstance(row.get(field), str | int):
            raise InputError(f"{path}, line {number} has no {field!r}: name the field with the example's id with --id.")
        name = row[field] if field else number
        if name in rows:
            raise InputError(f"{path} has example {name!r} twice{filters_of(path, row, rows[name])}")
        rows[name] = row
    if not rows:
        raise InputError(f"{path} has no example{f' of filter {kept!r}' if kept else ''}: give another file.")
    return rows


def filters_of(path: Path, one: Row, other: Row) -> str:
    """The end of the sentence about an example that comes twice."""
    found = [str(row["filter"]) for row in (other, one) if "filter" in row]
    if len({*found}) > 1:
        return f", for each of its filters: choose with --filter one of {', '.join(found)}."
    return ": keep one row of each, or name another field with --id."


def measure_in(tables: Mapping[Any, Mapping[Any, Row]], names: Mapping[Any, str]) -> str:
    """The measure that the files agree on where none is named."""
    first = next(iter(next(iter(tables.values())).values()))
    if isinstance(first.get("metrics"), list) and first["metrics"]:
        return str(first["metrics"][0])
    numbers = [
        name for name, value in first.items() if isinstance(value, int | float) and name not in (*IDS, "seed", "filter")
    ]
    if len(numbers) == 1:
        return numbers[0]
    if not numbers and {"output", "target"} <= first.keys():
        return "rougeL"
    said = ", ".join(numbers) or "none; a row may have output and target instead"
    raise InputError(f"{next(iter(names.values()))} has several numbers a row ({said}): name one with --measure."
                     if numbers else f"{next(iter(names.values()))} has no number to compare ({said}).")  # fmt: skip


def shared_ids(
    tables: Mapping[Any, Mapping[Any, Row]], names: Mapping[Any, str], common: bool
) -> tuple[list[Any], int]:
    """The examples that all files have, in the order of the first, and how many others there are.

    Raises InputError where a file lacks some, unless they are to be left out; and where one id stands for two examples.
    """
    (where, first), *others = tables.items()
    everywhere = [one for one in first if all(one in rows for _, rows in others)]
    left_out = len({one for rows in tables.values() for one in rows}) - len(everywhere)
    if left_out and not common:
        place, lacking = next(
            (place, [one for one in known if one not in rows])
            for known in tables.values() for place, rows in tables.items() if any(one not in rows for one in known)
        )  # fmt: skip
        raise InputError(
            f"{names[place]} lacks {len(lacking)} examples that another file has (the first is {lacking[0]!r}): score "
            "the same examples, or compare those that all have with --common."
        )
    if not everywhere:
        raise InputError("No example is in all files: are their ids made in the same way?")
    for place, rows in others:
        for one, name in itertools.product(everywhere, HASHES):
            if first[one].get(name) != rows[one].get(name) and None not in (first[one].get(name), rows[one].get(name)):
                raise InputError(
                    f"Example {one!r} of {names[place]} has another {name} than in {names[where]}: these are not the "
                    "same examples, or not the same version of the task."
                )
    return everywhere, left_out


def scores_in(rows: Mapping[Any, Row], ids: Iterable[Any], measure: str, name: str) -> list[float]:
    """The measure of each example. Raises InputError where one has none."""
    ids = list(ids)
    if measure == "rougeL" and all(
        {"output", "target"} <= rows[one].keys() and measure not in rows[one] for one in ids
    ):
        from peftbook.metrics import rouge

        texts = [[str(rows[one][field]) for one in ids] for field in ("output", "target")]
        return rouge(*texts)["rougeL"]
    found = []
    for one in ids:
        value = rows[one].get(measure)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{name} has {measure} = {value!r} for example {one!r}: it takes a number for each.")
        found.append(float(value))
    return found


def groups_in(rows: Mapping[Any, Row], ids: Iterable[Any], field: str) -> list[str]:
    """What each example shares, from the first file, whose `doc` may hold it; empty without a field."""
    if not field:
        return []
    found = []
    for one in ids:
        row = rows[one]
        value = row.get(field, row["doc"].get(field) if isinstance(row.get("doc"), Mapping) else None)
        if value is None:
            raise InputError(f"Example {one!r} has no {field!r} to group by: name a field that all have.")
        found.append(str(value))
    return found
