"""The ledger of amendments: when a rule or a claim changed, why, and what became of the verdicts.

Two kinds: changes of the rule of uncertainty, which all studies share, and changes of single studies that were made
when they had records. The tests hash rule and claims, and fail if one changed without an entry here.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("ledger.toml")
# What a change was made to, how a reader is told, and its mark on a card. A new claim over records that were there is
# no change of one.
KINDS = {
    "claim": ("a new claim", "new"),
    "margin": ("the margin, or a bound in the claim", "threshold"),
    "rule": ("how it is decided", "rule"),
    "grid": ("the grid", "rule"),
    "seeds": ("the number of seeds", "rule"),
    "window": ("the window", "rule"),
    "budget": ("the budget", "rule"),
    "wording": ("the words of the claim or of its limits", "wording"),
    "report": ("what is shown or counted beside it", "nothing"),
}
MARKS = {
    "new": "first stated",
    "threshold": "threshold changed",
    "rule": "rule changed",
    "wording": "wording changed",
    "nothing": "value unchanged",
}


@dataclass(frozen=True)
class Amendment:
    """A change of the rule. rule: hash of the rule now, by `tests/tools/claim_hashes.py`.

    commit: the last one under the rule before.
    verdicts: study → outcomes by the rule before and by the rule now, on the same records.
    """

    date: str
    rule: str
    commit: str
    before: str
    now: str
    why: str
    verdicts: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Fate:
    """What a change meant for a study: its records then, and its outcomes by the rule before and by the rule now.

    Where the change asks for further runs, `now` is the outcome once they were there. An outcome is `unknown` where it
    was not computed, and `no claim` where the study came with the change.
    """

    records: int
    before: str
    now: str


@dataclass(frozen=True)
class ClaimAmendment:
    """A change of studies that had records.  kind: one of KINDS, what was changed.  commit: the one that changed it."""

    date: str
    commit: str
    kind: str
    before: str
    now: str
    why: str
    studies: Mapping[str, Fate]

    @property
    def verdicts(self) -> dict[str, tuple[str, str]]:
        """Study → outcomes before and now, on the records that there were."""
        return {study: (fate.before, fate.now) for study, fate in self.studies.items()}


def marks(study: str) -> dict[str, list[str]]:
    """Mark → the dates on which such a change was made to a study that had records, in the order of MARKS."""
    found: dict[str, list[str]] = {mark: [] for mark in MARKS}
    for change in claim_amendments(study):
        found["new" if change.studies[study].before == "no claim" else KINDS[change.kind][1]].append(change.date)
    return {mark: sorted({*dates}) for mark, dates in found.items() if dates}


@functools.cache
def _ledger() -> Mapping[str, Any]:
    return tomllib.loads(PATH.read_text(encoding="utf-8"))


def amendments() -> list[Amendment]:
    """All changes of the rule, the first one first."""
    rows = _ledger()["amendment"]
    return [Amendment(**row | {"verdicts": {k: tuple(v) for k, v in row["verdicts"].items()}}) for row in rows]


@functools.cache
def claim_amendments(study: str = "") -> list[ClaimAmendment]:
    """All changes of studies that had records, the first one first; of one study alone if it is named."""
    rows = [
        row | {"studies": {name: Fate(**fate) for name, fate in row["studies"].items()}} for row in _ledger()["claim"]
    ]
    return [ClaimAmendment(**row) for row in rows if not study or study in row["studies"]]
