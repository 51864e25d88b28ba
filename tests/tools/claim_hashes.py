"""Hashes of the rule and of the claims; the lines of the ledger's table `[claims]` that are out of date.

python tests/tools/claim_hashes.py           print them
python tests/tools/claim_hashes.py --write   write them into ledger.toml; amendments are yours to write
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from peftbook.core.records import SHIPPED, Store
from peftbook.evidence import ledger, stats
from peftbook.studies import NAMES, get_study

# Constants of a study's module that decide beside its words have one of these in their names; of its comparisons these
# fields decide, beside the rates of each arm.
CONSTANTS = (
    "MARGIN", "LEAST", "FLOOR", "RATIO", "WINDOW", "SEEDS", "SHARE", "GROWTH", "DELTA", "REGRET", "RATES", "EXPONENTS"
)  # fmt: skip
FIELDS = ("seeds", "first_look", "sweep_seeds", "factor", "bearable", "refine")


class Claim(Protocol):
    """What of a study is hashed."""

    @property
    def claim(self) -> str: ...
    @property
    def refuted_if(self) -> str: ...
    @property
    def judge(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Wording:
    """What a study claims now. hash: `claim_hash`.  date: since when.  records: how many there were then."""

    hash: str
    date: str
    records: int


def wordings() -> dict[str, Wording]:
    """Study → what it claims now, by the ledger."""
    table = tomllib.loads(ledger.PATH.read_text(encoding="utf-8"))["claims"]
    return {study: Wording(**row) for study, row in table.items()}


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
        yield from [(f"{name}.further", repr(value.further))] if value.further else ()


def numeric(value: object) -> bool:
    """Whether a value is a number, or holds nothing else."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(numeric, value.values()))
    if isinstance(value, tuple | list):
        return bool(value) and all(map(numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def lines() -> dict[str, str]:
    """Study → its line, for those whose hash is another than the ledger's."""
    store, known, today = Store(SHIPPED), wordings(), datetime.now(UTC).date()
    out = {}
    for name in NAMES:
        study = get_study(name)
        current = claim_hash(study)
        if name not in known or known[name].hash != current:
            records = len(study.records(store))
            out[name] = f'{name} = {{hash = "{current}", date = "{today}", records = {records}}}'
    return out


def write(changed: dict[str, str]) -> None:
    """Replace the lines of these studies in the table; those of new ones go to its end."""
    head, mark, table = ledger.PATH.read_text(encoding="utf-8").partition("[claims]\n")
    for name, line in changed.items():
        table, found = re.subn(rf"^{name} = .*$", line, table, flags=re.MULTILINE)
        table += "" if found else f"{line}\n"
    ledger.PATH.write_text(head + mark + table, encoding="utf-8")


if __name__ == "__main__":
    changed = lines()
    if sys.argv[1:] == ["--write"]:
        write(changed)
    print("\n".join(changed.values()) or f"{len(NAMES)} claims: none changed")
