"""The decisions of a practitioner: what to do, the bound behind it, and whether it carries over to a model of 7B."""

from __future__ import annotations

import functools
import re
import statistics
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from peftbook import studies
from peftbook.core import specs
from peftbook.core.records import Missing, Store
from peftbook.evidence.literature import published
from peftbook.views.html import piece
from peftbook.views.site.display import measured


@dataclass(frozen=True)
class Decision:
    """A row of `studies/decisions.toml`.  name: its anchor, after `decision-`.

    trust: whether something at three billion parameters or more speaks for the advice, and `because` what.
    claims: the studies that stand under it.
    """

    name: str
    title: str
    do: str
    bound: str
    trust: bool
    because: str
    claims: tuple[str, ...]


@functools.cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(Path(studies.__file__).with_name("decisions.toml").read_text(encoding="utf-8"))


def decisions() -> list[Decision]:
    """All, in the order in which they are taken."""
    return [Decision(name=name, **row | {"claims": tuple(row["claims"])}) for name, row in _table()["decision"].items()]


def tools() -> frozenset[str]:
    """The studies whose claims are about tools of the book."""
    return frozenset(_table()["tools"])


def with_numbers(text: str, store: Store) -> Markup:
    """A text with the quantities and published values that it names, each a link to what is behind it.

    Where a quantity has no record yet, the text is the command that computes it.
    """

    def number(match: re.Match[str]) -> str:
        name, _, form = match[1].partition(";")
        return cited(name.removeprefix("cite:")) if name.startswith("cite:") else measured(name, form, store)

    try:
        return Markup(re.sub(r"\{([^{}]+)\}", number, str(escape(text))))
    except Missing as missing:
        return escape(str(missing))


def cited(name: str) -> str:
    """A published value as HTML."""
    value = published(name)
    title = f"{value.what}; {value.key}, {value.where}"
    return str(piece('<a class="cited" href="bibliography.html#ref-{}" title="{}">{}</a>', value.key, title, value))


def limits(store: Store) -> str:
    """What the trainings at hand are, in a line: how many, of which models and tasks, how long, and on what."""
    runs = [
        (one.spec, one.measurements["total_parameters"] or 0, one.measurements["train_steps"] or 0)
        for one in store.all()
        if isinstance(one.spec, specs.Run) and one.spec.budget and not one.failure
    ]
    if not runs:
        return ""
    sizes: dict[str, float] = {}  # of each model the least that a run had, which is the model with the least added
    for spec, size, _ in runs:
        sizes[spec.model.name] = min(size, sizes.get(spec.model.name, size))
    (task, most), *_ = Counter(spec.task.name for spec, *_ in runs).most_common(1)
    steps = statistics.median(steps for *_, steps in runs)
    cpu = sum(spec.platform == "cpu" for spec, *_ in runs)
    small, large = (f"{end / 1e6:.{0 if end > 1e7 else 1}f}M" for end in (min(sizes.values()), max(sizes.values())))
    return studies.typeset(
        f"{len(runs):,} trainings of {len(sizes)} models of {small} to {large} parameters; {most / len(runs):.0%} of "
        f"them on one task ({task}), half of no more than {steps:.0f} steps, {cpu / len(runs):.0%} on a CPU."
    )
