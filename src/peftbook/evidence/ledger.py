"""The ledger of amendments: when a rule or a claim changed, why, and what became of the verdicts.

Two kinds: changes of the rule of uncertainty, which all studies share, and changes of single studies that were made
when they had records. Hashes of both tell a test that something changed without a line here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peftbook.evidence import stats

__all__ = ["Amendment", "ClaimAmendment", "Fate", "Wording", "amendments", "claim_amendments", "claim_hash",
           "rule_hash", "wordings"]  # fmt: skip

PATH = Path(__file__).with_name("ledger.toml")
# Constants of a study's module that decide beside its words have one of these in their names; of its comparisons these
# fields decide, beside the rates of each arm.
CONSTANTS = (
    "MARGIN", "LEAST", "FLOOR", "RATIO", "WINDOW", "SEEDS", "SHARE", "GROWTH", "DELTA", "REGRET", "RATES", "EXPONENTS"
)  # fmt: skip
FIELDS = ("seeds", "first_look", "sweep_seeds", "factor", "bearable", "refine")
# What a change was made to, and how a reader is told.
KINDS = {
    "claim": "the claim or what refutes it",
    "rule": "how it is decided",
    "margin": "the margin",
    "grid": "the grid",
    "seeds": "the number of seeds",
    "window": "the window",
    "budget": "the budget",
    "report": "what it says it shows",
}


class Claim(Protocol):
    """What of a study is hashed."""

    @property
    def claim(self) -> str: ...
    @property
    def refuted_if(self) -> str: ...
    @property
    def judge(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Amendment:
    """A change of the rule. rule: `rule_hash` of the rule now.  commit: the last one under the rule before.

    verdicts: study → outcomes by the rule before and by the rule now, on the same records.
    """

    date: str
    rule: str
    commit: str
    before: str
    now: str
    why: str
    verdicts: Mapping[str, tuple[str, str]]

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """The verdicts that are not what they were."""
        return changed(self.verdicts)


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

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """The verdicts that are not what they were."""
        return changed(self.verdicts)


@dataclass(frozen=True)
class Wording:
    """What a study claims now. hash: `claim_hash`.  date: since when.  records: how many there were then."""

    hash: str
    date: str
    records: int


def changed(verdicts: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Of pairs of outcomes those that differ."""
    return {study: outcomes for study, outcomes in verdicts.items() if outcomes[0] != outcomes[1]}


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
    rows = [row | {"studies": {name: Fate(**fate) for name, fate in row["studies"].items()}}
            for row in _ledger()["claim"]]  # fmt: skip
    return [ClaimAmendment(**row) for row in rows if not study or study in row["studies"]]


def wordings() -> dict[str, Wording]:
    """Study → what it claims now."""
    return {study: Wording(**row) for study, row in _ledger()["claims"].items()}


def rule_hash() -> str:
    """Twelve digits of the SHA-256 of the functions of `stats.RULE`, without comments and docstrings."""
    digest = hashlib.sha256()
    for function in stats.RULE:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:12]


def claim_hash(study: Claim) -> str:
    """Twelve digits of the SHA-256 of what a study claims, what refutes it, and the numbers that decide."""
    names = vars(sys.modules[study.judge.__module__])
    numbers = sorted(pair for name, value in names.items() if name.isupper() for pair in deciding(name, value))
    text = json.dumps([study.claim, study.refuted_if, numbers], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def deciding(name: str, value: object) -> Iterator[tuple[str, str]]:
    """(name, value) of the numbers in a constant that decide: its own by its name, and those of comparisons in it."""
    if numeric(value) and any(word in name for word in CONSTANTS):
        yield name, repr(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from deciding(f"{name}.{key}", item)
    elif hasattr(value, "arms"):
        yield from ((f"{name}.{field}", repr(getattr(value, field))) for field in FIELDS)
        yield from ((f"{name}.{arm.name}", repr(arm.rates)) for arm in value.arms)


def numeric(value: object) -> bool:
    """Whether a value is a number, or holds nothing else."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(numeric, value.values()))
    if isinstance(value, tuple | list):
        return bool(value) and all(map(numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)
