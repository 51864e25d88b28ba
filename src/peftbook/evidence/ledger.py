"""The ledger of amendments: when the rule of uncertainty changed, why, and what became of every verdict."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peftbook.evidence import stats

__all__ = ["Amendment", "amendments", "rule_hash"]

PATH = Path(__file__).with_name("ledger.toml")


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
        return {study: outcomes for study, outcomes in self.verdicts.items() if outcomes[0] != outcomes[1]}


def amendments() -> list[Amendment]:
    """All amendments, the first one first."""
    rows = tomllib.loads(PATH.read_text(encoding="utf-8"))["amendment"]
    return [Amendment(**row | {"verdicts": {k: tuple(v) for k, v in row["verdicts"].items()}}) for row in rows]


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
