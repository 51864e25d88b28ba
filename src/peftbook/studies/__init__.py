"""Studies: one module each, and one paragraph of `claims.toml` for each claim that its runs decide.

The paragraph says what is claimed and what would refute it, its place in the file the order of worth in which the queue
serves the studies. The module has the runs, the named values and, under `@study(name, runs, measure)`, the judge.
Whatever a record is missing for raises Missing: values that lack one are not there, and a verdict is not yet run.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from peftbook.core.errors import InputError
from peftbook.core.records import Missing, Record, Store, Unusable
from peftbook.core.specs import Probe, Run
from peftbook.evidence.planning import Judged
from peftbook.evidence.stats import Interval

Item = TypeVar("Item")
Result = TypeVar("Result")
Judge = TypeVar("Judge", bound="Callable[[Store], Verdict]")

TEXTS = tomllib.loads((Path(__file__).parent / "claims.toml").read_text(encoding="utf-8"))
NAMES = tuple(TEXTS["study"])
BLIND = "control failed"
_studies: dict[str, Study] = {}  # of the modules that are loaded


@dataclass(frozen=True)
class Quantity:
    """A named result: value with its interval, unit, number of seeds and examples, and the runs behind it.

    low, high: 95 % interval, or None where the value is a count or a single measurement.
    digits: decimals to print.
    """

    value: float
    unit: str
    runs: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    n: int = 0
    digits: int = 2
    note: str = ""

    @classmethod
    def of(
        cls,
        interval: Interval,
        unit: str,
        runs: tuple[str, ...],
        digits: int = 3,
        note: str = "",
        among: tuple[float, float] = (-math.inf, math.inf),
    ) -> Quantity:
        """An interval as a named quantity; where its error is over groups, the note has the one over examples.

        among: what the truth lies between, whatever is measured, like 0 and 1 of a share. The interval ends there, and
        covers the truth as often.
        """
        if interval.by_example is not None:
            low, high = (f"{end:.{max(digits, 0)}f}".replace("-", "−") for end in cut(interval.by_example, among))
            note = f"95 % interval over {interval.groups} groups of examples; over single examples {low} to {high}"
        ends = cut((interval.low, interval.high), among)
        return cls(interval.mean, unit, runs, *ends, interval.seeds, interval.examples, digits, note)

    @classmethod
    def middle(
        cls, values: Sequence[float], unit: str, runs: tuple[str, ...], note: str = "median and range", **more: Any
    ) -> Quantity:
        """The median of some values, and their range in place of an interval."""
        return cls(median(values), unit, runs, min(values), max(values), note=note, **more)

    @classmethod
    def ratio(cls, logs: Interval, runs: tuple[str, ...], digits: int = 3, note: str = "", unit: str = "×") -> Quantity:
        """A ratio, or a rate, by the interval of its logarithm."""
        value, low, high = logs.exp
        return cls(value, unit, runs, low, high, logs.seeds, logs.examples, digits, note)


def cut(ends: tuple[float, float], among: tuple[float, float]) -> tuple[float, float]:
    """The part of an interval that lies among the values there can be."""
    return max(ends[0], among[0]), min(ends[1], among[1])


@dataclass(frozen=True)
class Verdict:
    """What the data decided: reproduced, equivalent, refuted, direction only or undecided; or why they do not.

    `fails in this regime` is refuted, of a claim whose source itself names the size, steps or data that ours are far
    from.
    `measured` is a study that puts no claim to the test, `not yet run` and `not testable here` say what is missing.
    quantities: the numbers that decided, the deciding one first.
    judged: what was held against the claim, its parts if it has several.
    held: why it is undecided whatever these say: BLIND where nothing could have been seen, or else in words.
    control: of a BLIND verdict what its control was held against, if more of the same runs could make it work.
    what: the deciding number in words, where the study has them.
    """

    outcome: str
    sentence: str
    quantities: tuple[str, ...] = ()
    judged: tuple[Judged, ...] = ()
    held: str = ""
    control: Judged | None = None
    what: str = ""

    def __post_init__(self):
        object.__setattr__(self, "sentence", typeset(self.sentence))


@dataclass(frozen=True)
class Study:
    """A claim to reproduce, its source, and the runs that decide it.

    runs: every run determined so far, in the order of worth; later stages appear once earlier ones have records.
    measure: named values from the records; judge: the one rule of the book applied to them. Both may raise Missing.
    refuted_if: what would refute the claim, written before the runs.
    regime: where these runs lie outside of what the source itself names; empty where it names nothing that they miss.
    own: whether it puts no paper's claim on trial, but one of the book, a tool of it or plain arithmetic.
    others: whether runs that other people made decide it, of which the store has none; they are counted apart.
    """

    name: str
    title: str
    claim: str
    source: str
    refuted_if: str
    does_not_show: str
    chapter: str
    runs: Callable[[Store], Sequence[Run | Probe]]
    measure: Callable[[Store], Mapping[str, Quantity]]
    judge: Callable[[Store], Verdict]
    regime: str = ""
    own: bool = False
    others: bool = False

    @property
    def measures(self) -> bool:
        """Whether it puts no claim to the test: nothing would refute it, so it is no verdict and is not counted."""
        return self.refuted_if.startswith("Nothing: ")

    def quantities(self, store: Store) -> Mapping[str, Quantity]:
        """The named values that the records at hand determine."""
        return gathered(self.measure, [store])

    def verdict(self, store: Store) -> Verdict:
        """What the records decide; `undecided` if one of the runs failed, `not yet run` if records are missing."""
        try:
            verdict = self.judge(store)
            if verdict.outcome == "refuted" and self.regime:
                return replace(verdict, outcome="fails in this regime")
            return verdict
        except Unusable as error:
            return Verdict("undecided", str(error))
        except Missing:
            count, total = len(self.missing(store)), len(self.runs(store))
            said = f": {count} of {total} have no record" if count else ""
            return Verdict("not yet run", f"The runs that decide are not all there{said}.")

    def records(self, store: Store) -> list[Record]:
        """The records at hand of the runs determined so far."""
        return [record for run in self.runs(store) if (record := store.get(run)) is not None]

    def missing(self, store: Store) -> list[Run | Probe]:
        """The runs determined so far that have no record."""
        return [run for run in self.runs(store) if run not in store]


def gathered(measure: Callable[[Item], Mapping[str, Quantity]], items: Iterable[Item]) -> dict[str, Quantity]:
    """The named values of all items whose records are at hand; the others are skipped."""
    return {name: one for found in available(measure, items) for name, one in found.items()}


def available(make: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What is made of each item, of those whose records are there."""
    out = []
    for item in items:
        with suppress(Missing):
            out.append(make(item))
    return out


def by_seed(make: Callable[..., Run | Probe], seeds: Sequence[int]) -> Callable[..., list[Record]]:
    """The function that takes what `make` does before its seed, then a store: the records by seed. Raises Missing."""

    def records(*about: Any) -> list[Record]:
        *given, store = about
        return store.need_all(make(*given, seed) for seed in seeds)

    return records


def study(
    name: str,
    runs: Callable[[Store], Sequence[Run | Probe]],
    measure: Callable[[Store], Mapping[str, Quantity]],
    **words: object,
) -> Callable[[Judge], Judge]:
    """Make the decorated function the judge of the study of this name in `claims.toml`.

    words: what its texts name beside the constants of the function's module.
    """

    def register(judge: Judge) -> Judge:
        names = vars(sys.modules[judge.__module__]) | words
        texts: dict[str, Any] = {
            field: filled(text, names) if isinstance(text, str) else text
            for field, text in TEXTS["study"][name].items()
            if field != "module"
        }
        for field in ("claim", "refuted_if", "does_not_show"):
            texts[field] = typeset(texts[field][:1].upper() + texts[field][1:])
        _studies[name] = Study(name=name, runs=runs, measure=measure, judge=judge, **texts)
        return judge

    return register


def filled(text: str, names: Mapping[str, object]) -> str:
    """A text of `claims.toml` with its shared parts and numbers."""
    for part, shared in TEXTS["shared"].items():
        text = text.replace(f"{{{part}}}", shared)
    return text.format_map(names)


def typeset(text: str) -> str:
    """Numbers as the book prints them: a minus sign before them, a space before %."""
    return re.sub(r"(?<![\w.)-])-(?=[\d.])", "−", re.sub(r"(?<=\d)%", " %", text))


def get_study(name: str) -> Study:
    """Load a study by name. Raises InputError for an unknown one."""
    importlib.import_module(module_of(name))
    return _studies[name]


def module_of(name: str) -> str:
    """The module that a study is in, which asks for none of them to be loaded. Raises InputError for an unknown one."""
    if name not in NAMES:
        raise InputError(f"Unknown study {name!r}: choose one of {', '.join(NAMES)}.")
    return f"peftbook.studies.{TEXTS['study'][name].get('module', name)}"
