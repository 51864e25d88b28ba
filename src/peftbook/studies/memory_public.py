"""Does `fit` tell the peak memory of public runs of a 3B model? Predicted from settings, before the peaks were read.

`data/public_runs/predictions.jsonl` has the predictions and the commit of the package that made them
(`tests/tools/public_fit.py`). A row is an arm before or since November 2025, when the benchmark began to empty torch's
cache every ten steps instead of each; its figure is the mean over the arm's runs there, which differ in versions.

Judged are the rows of methods that the byte model has and of which no peak had been seen. Those seen are listed apart,
and so are stand-ins: rows of methods that it lacks, with the bytes of LoRA on the same matrices and of about the same
size. They decide nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

import scipy

from peftbook.core.records import Store
from peftbook.evidence.public_runs import PUBLIC_RUNS, outcomes, public_runs
from peftbook.studies import Quantity, Verdict, study
from peftbook.studies.memory_elsewhere import counted
from peftbook.studies.public_arms import SEEN_MEMORY, batch

MARGIN, LEAST = 0.10, 0.90  # of a row's figure; of the rows
LEVEL = 0.05  # at which a share of the rows is surely smaller or larger
EMPTIED_SELDOM = "2025-11"  # since when the cache is emptied every ten steps
PARTS = ("judged", "seen", "stand_in")


@dataclass(frozen=True)
class Prediction:
    """What was said of an arm. kind: fit, stand-in or none.  The bytes are 0 of none.

    predicted: tensors and what is usually reserved beside.  promised: the least memory that `fit` calls enough.
    """

    arm: str
    ids: tuple[str, ...]
    kind: str
    predicted: int = 0
    promised: int = 0

    @property
    def part(self) -> str:
        """The part of the rows that it is in; empty where nothing was predicted."""
        if self.kind == "fit":
            return "seen" if self.arm in SEEN_MEMORY else "judged"
        return "stand_in" if self.kind == "stand-in" else ""


@dataclass(frozen=True)
class Row:
    """A prediction and the bytes that were reserved at the peak, the mean over some runs."""

    prediction: Prediction
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.prediction.predicted / self.measured


@functools.cache
def predictions() -> tuple[Prediction, ...]:
    """Those of the file, in the order of configurations."""
    _, *lines = (PUBLIC_RUNS / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(
        Prediction(
            row["arm"], tuple(row["ids"]), row["kind"], row.get("predicted_bytes", 0), row.get("promised_bytes", 0)
        )
        for row in map(json.loads, lines)
    )


def rows(part: str) -> Iterator[Row]:
    """The rows of a part."""
    late = {run.id: batch(run) >= EMPTIED_SELDOM for run in public_runs()}
    for one in predictions():
        if one.part != part:
            continue
        for since in (False, True):
            peaks = [outcomes()[key].peak_reserved_bytes for key in one.ids if late[key] is since]
            if known := [peak for peak in peaks if peak is not None]:
                yield Row(one, fmean(known))


def broken(found: list[Row]) -> int:
    """Rows that took more than `fit` calls enough."""
    return sum(row.measured > row.prediction.promised for row in found)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """What is counted of each part."""
    out: dict[str, Quantity] = {}
    for part in PARTS:
        found = list(rows(part))
        within = sum(abs(row.ratio - 1) <= MARGIN for row in found)
        out |= counted(part, [row.ratio for row in found], within, broken(found), len(found), ())
    return out


@study("memory_public", lambda store: [], quantities)
def verdict(store: Store) -> Verdict:
    """Are surely as many judged rows within the margin as is claimed, or surely fewer? Does a promise not hold?"""
    found = list(rows("judged"))
    within, false = sum(abs(row.ratio - 1) <= MARGIN for row in found), broken(found)
    named = ", ".join(dict.fromkeys(row.prediction.arm for row in found))
    sentence = (
        f"Of {len(found)} peaks of {named}, predicted before they were read, {within} are within {MARGIN:.0%}; {false} "
        f"are above what fit promises. Of {len(predictions())} arms fit has no method for "
        f"{sum(one.kind != 'fit' for one in predictions())}."
    )
    named_quantities = ("judged_share", "judged_ratio")
    fewer, more = (
        scipy.stats.binomtest(within, len(found), LEAST, alternative=side).pvalue <= LEVEL
        for side in ("less", "greater")
    )
    if fewer or false:
        return Verdict("refuted", sentence, named_quantities)
    held = "" if more else f"{len(found)} figures are too few to tell whether it is {LEAST:.0%}"
    return Verdict("undecided" if held else "reproduced", sentence, named_quantities, held=held)
