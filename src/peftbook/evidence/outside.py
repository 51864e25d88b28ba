"""Scores that were made elsewhere: which of several models is better on the same examples, by the book's own rule.

A file is a log of a tool that `logs` knows, or has a JSON object a line, one for each example, with an id and a number,
or with an output and a target, whose ROUGE-L is taken. Examples are paired by id: an unpaired test of the same examples
throws away what both find easy or hard.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftbook.core.errors import InputError
from peftbook.evidence.logs import Row, read_log
from peftbook.evidence.metrics import rouge
from peftbook.evidence.planning import MOST_EXAMPLES, MOST_SEEDS, settle
from peftbook.evidence.stats import (
    FEWEST_DIFFERENT,
    FEWEST_EXAMPLES,
    FEWEST_GROUPS,
    FEWEST_SEEDS,
    Interval,
    holm,
    p_value,
    score_interval,
)

IDS = ("id", "doc_id", "question_id", "example_id", "index")
SAME = ("doc_hash", "target_hash", "target")  # what the same example has in every file that has it
LEVEL = 0.05  # family-wise, of all pairs
MOST = 1e100  # of a score


@dataclass(frozen=True)
class ScoredModel:
    """A model: its name, and a table of scores, (seeds, examples). score: their mean."""

    name: str
    scores: tuple[tuple[float, ...], ...]
    score: Interval


@dataclass(frozen=True)
class Pairing:
    """first − second. p: two-sided.  outcome: better, worse, equivalent, identical, undecided, or too few to tell.

    small: whether the difference is shown to be no more than the margin.  needed: (seeds, examples) that would find a
    difference of the margin about four times in five; None without a margin, and where no number is known that does.
    """

    first: str
    second: str
    difference: Interval
    p: float
    outcome: str
    small: bool
    needed: tuple[int, int] | None


@dataclass(frozen=True)
class Outside:
    """What was decided. measure: the number that was compared.  lower: whether less of it is better.

    left_out: examples that not all files have.
    """

    measure: str
    lower: bool
    arms: tuple[ScoredModel, ...]
    pairs: tuple[Pairing, ...]
    left_out: int
    margin: float | None

    def verdict(self, pair: Pairing) -> list[str]:
        """What was decided of two, and of what is undecided how many would decide it; a sentence each."""
        better, worse = (pair.first, pair.second) if pair.outcome == "better" else (pair.second, pair.first)
        by = f", by less than the margin of {self.margin}" * pair.small
        said = {
            "identical": "The same on every example: these scores tell nothing apart.",
            "too few to tell": f"Too few to tell: {too_few(pair.difference)}.",
            "equivalent": f"Equivalent: what one may give up is within the margin of {self.margin}.",
            "undecided": "Undecided: neither a difference nor its absence is shown."
            if pair.p > LEVEL
            else f"Undecided: alone it would be called, among {len(self.pairs)} pairs it is not (Holm).",
        }  # fmt: skip
        unsettled = pair.outcome in ("undecided", "too few to tell")
        return [said.get(pair.outcome, f"{better} is better than {worse}{by}."), *[self.would_decide(pair)] * unsettled]

    def would_decide(self, pair: Pairing) -> str:
        """How many seeds and examples would."""
        if self.margin is None:
            return "With --margin, the smallest difference that would matter: how many would decide."
        if not pair.needed:
            return f"No number of examples that is known here finds {self.margin}: is it what would matter?"
        seeds, examples = pair.needed
        more = f"{seeds} seeds and " * (len(self.arms[0].scores) > 1) + f"{examples:,} examples"
        return f"About {more}, drawn anew, would find {self.margin} about four times in five."


def decide(
    files: Mapping[str, Sequence[Path]],
    *,
    measure: str = "",
    key: str = "",
    kept: str = "",
    group: str = "",
    margin: float | None = None,
    lower: bool = False,
    common: bool = False,
) -> Outside:
    """Compare every two of several models on the examples that they were scored on.

    files: name → a file a seed, in the same order of seeds for all; a file with several models is as many.
    measure: a field with a number; the only one, or the first score of a log, unless given.  key: the field with an
    example's id.  kept: the filter of lm-evaluation-harness whose rows count.  group: a field of what examples share.
    margin: differences below it do not matter.  lower: whether less is better.  common: take the examples that all
    files have.

    Two models differ where Holm's procedure over all pairs says so at 5 %; they are equivalent where the 90 % interval
    of their difference lies inside the margin, each pair by itself. Raises InputError for files that cannot be paired.
    """
    if margin is not None and not 0 < margin < math.inf:
        raise InputError(f"A margin of {margin} is none: give the smallest difference that would matter.")
    paths = [path.resolve() for each in files.values() for path in each]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise InputError(f"{twice} is given twice: each seed of each model has a file of its own.")
    logs = logs_of(files)
    if len(logs) < 2:
        raise InputError("One model is compared with none: give two files or more.")
    counts = {name: len(each) for name, each in logs.items()}
    if len({*counts.values()}) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"Seeds are paired in their order, and there are other numbers of files ({said}): give as many."
        )
    names = {(name, at): str(path) for name, each in logs.items() for at, (path, _) in enumerate(each)}
    read = {(name, at): by_id(names[name, at], logs[name][at][1], key, kept) for name, at in names}
    tables = {where: rows for where, (_, rows) in read.items()}
    check_alike(names, {where: field or "the number of its line" for where, (field, _) in read.items()}, "id")
    check_alike(names, {where: filters_in(rows) for where, rows in tables.items()}, "filter")
    chosen = measure or measure_in(tables, names)
    if chosen in IDS:
        raise InputError(f"{chosen!r} names an example and is no score: name another field with --measure.")
    everywhere, left_out = shared_ids(tables, names, common)
    scores = {where: scores_in(rows, everywhere, chosen, names[where]) for where, rows in tables.items()}
    groups = groups_in(tables, names, everywhere, group)
    by_name = {name: [scores[name, at] for at in range(count)] for name, count in counts.items()}
    arms = tuple(
        ScoredModel(name, tuple(map(tuple, one)), score_interval(one, groups=groups)) for name, one in by_name.items()
    )
    differences = {  # with one file each nothing is random but the choice of examples
        (one.name, other.name): score_interval(np.subtract(one.scores, other.scores), None, groups)
        for one, other in itertools.combinations(arms, 2)
    }
    p = {names: p_value(one) for names, one in differences.items()}
    differ = holm(p, LEVEL)
    level = LEVEL / 2 / len(differences)
    tables_of = {one.name: np.array(one.scores) for one in arms}
    pairs = []
    for (first, second), interval in differences.items():
        different = int((tables_of[first] != tables_of[second]).any(axis=0).sum())
        inside = margin is not None and abs(interval.mean) + interval.half90 <= margin
        small = inside and different >= FEWEST_DIFFERENT
        said = outcome(interval, differ[first, second], small, lower) if different else "identical"
        plan = needed(interval, margin, level)
        pairs.append(Pairing(first, second, interval, p[first, second], said, small, plan))
    return Outside(chosen, lower, arms, tuple(pairs), left_out, margin)


def check_alike(names: Mapping[Any, str], found: Mapping[Any, str], what: str) -> None:
    """Raises InputError where files differ in their ids or filters."""
    (where, first), *others = found.items()
    for place, other in others:
        if other != first:
            raise InputError(
                f"The {what} of {names[where]} is {first}, of {names[place]} {other}: name one that both have with "
                f"--{what}."
            )


def filters_in(rows: Mapping[Any, Row]) -> str:
    """The filters of a file's rows, which are one if it was not asked for and the ids are unique."""
    return ", ".join(sorted({str(row.get("filter", "none")) for row in rows.values()}))


def outcome(one: Interval, differs: bool, small: bool, lower: bool) -> str:
    """What an interval of first − second says of the first."""
    if one.examples < FEWEST_EXAMPLES or not one.decides:
        return "too few to tell"
    if differs:
        return "better" if (one.mean > 0) is not lower else "worse"
    return "equivalent" if small else "undecided"


def too_few(one: Interval) -> str:
    """What there is too little of."""
    if one.examples < FEWEST_EXAMPLES:
        return f"{one.examples} examples, at least {FEWEST_EXAMPLES} are asked for"
    if 0 < one.groups < FEWEST_GROUPS:
        return f"{one.groups} groups, at least {FEWEST_GROUPS} are asked for"
    return f"{one.seeds} seeds, one or at least {FEWEST_SEEDS} are asked for"


def needed(one: Interval, margin: float | None, level: float) -> tuple[int, int] | None:
    """(seeds, examples) for a difference of the margin; None where there is no margin, or no known spread."""
    if margin is None or not 0 < one.standard_error < math.inf:
        return None
    examples, seeds = settle(one, margin, level)
    if examples >= MOST_EXAMPLES or seeds >= MOST_SEEDS:
        return None
    return seeds if seeds == 1 else max(seeds, FEWEST_SEEDS), max(examples, FEWEST_EXAMPLES)


def logs_of(files: Mapping[str, Sequence[Path]]) -> dict[str, list[tuple[Path, Sequence[Row]]]]:
    """Name → (file, rows) a seed; the models in a file are named after it where there are several files."""
    logs: dict[str, list[tuple[Path, Sequence[Row]]]] = {}
    for name, paths in files.items():
        for path in paths:
            for model, rows in read_log(path).items():
                called = f"{name}:{model}" if len(files) > 1 else model
                logs.setdefault(called if model else name, []).append((path, rows))
    return logs


def by_id(path: str, log: Sequence[Row], key: str = "", kept: str = "") -> tuple[str, dict[str, Row]]:
    """The field with the ids, and id → row of each example of a file; without a field its place is one.

    Raises InputError for an id that comes twice.
    """
    rows: dict[str, Row] = {}
    field = key
    for number, row in enumerate(log, 1):
        if kept and row.get("filter") != kept:
            continue
        field = field or ("" if rows else next((name for name in IDS if name in row), ""))
        if field and type(row.get(field)) not in (str, int):
            raise InputError(
                f"{path}, row {number} has {field} = {row.get(field)!r}: an id is a text or a whole number; name its "
                "field with --id."
            )
        name = str(row[field]) if field else str(number)
        if name in rows:
            raise InputError(f"{path} has example {name!r} twice{filters_of(row, rows[name])}")
        rows[name] = row
    if not rows:
        raise InputError(f"{path} has no example{f' of filter {kept!r}' if kept else ''}: give another file.")
    return field, rows


def filters_of(one: Row, other: Row) -> str:
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
    if {"output", "target"} <= first.keys():
        numbers.append("rougeL")
    if len(numbers) == 1:
        return numbers[0]
    said = ", ".join(numbers) or "none; a row may have output and target instead"
    raise InputError(
        f"{next(iter(names.values()))} has several numbers a row ({said}): name one with --measure."
        if numbers
        else f"{next(iter(names.values()))} has no number to compare ({said})."
    )


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
            for known in tables.values()
            for place, rows in tables.items()
            if any(one not in rows for one in known)
        )
        raise InputError(
            f"{names[place]} lacks {len(lacking)} examples that another file has (the first is {lacking[0]!r}): score "
            "the same examples, or compare those that all have with --common."
        )
    if not everywhere:
        raise InputError("No example is in all files: are their ids made in the same way?")
    for place, rows in others:
        for one, name in itertools.product(everywhere, SAME):
            both = first[one].get(name), rows[one].get(name)
            if None not in both and str(both[0]) != str(both[1]):
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
        texts = [[str(rows[one][field]) for one in ids] for field in ("output", "target")]
        return rouge(*texts)["rougeL"]
    found = []
    for one in ids:
        value = rows[one].get(measure)
        if not isinstance(value, int | float) or not -MOST <= value <= MOST:
            said = f"has {measure} = {repr(value)[:40]}" if measure in rows[one] else f"has no {measure!r}"
            fields = ", ".join(field for field, known in rows[one].items() if isinstance(known, int | float))
            raise InputError(
                f"{name} {said} for example {one!r}: it takes a number for each; numbers there: {fields or 'none'}."
            )
        found.append(float(value))
    return found


def groups_in(
    tables: Mapping[Any, Mapping[str, Row]], names: Mapping[Any, str], ids: Iterable[str], field: str
) -> list[str]:
    """What each example shares, which a row has or its `doc`; empty without a field.

    Raises InputError where a row has none, and where files say different things.
    """
    if not field:
        return []
    found: dict[str, str] = {}
    for where, one in itertools.product(tables, ids):
        row = tables[where][one]
        value = row.get(field, row["doc"].get(field) if isinstance(row.get("doc"), Mapping) else None)
        if value is None:
            raise InputError(
                f"Example {one!r} of {names[where]} has no {field!r} to group by: name a field of all rows."
            )
        if found.setdefault(one, str(value)) != str(value):
            raise InputError(
                f"Example {one!r} has {field} = {value!r} in {names[where]}, elsewhere {found[one]!r}: an example is "
                "in one group."
            )
    return [*found.values()]
