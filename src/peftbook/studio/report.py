"""Report: a comparison as one HTML file that can be mailed; its table as text and as CSV are in `tabular`.

The HTML needs no script and loads nothing. Whatever comes from the user, texts, names and labels, is escaped.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from peftbook import __version__
from peftbook.core import specs
from peftbook.core.base_models import pinned
from peftbook.core.records import Record
from peftbook.decision import COSTS, Comparison
from peftbook.evidence.results import describe
from peftbook.studio.formats import clipped
from peftbook.studio.html import fill
from peftbook.studio.pareto import pareto_svg
from peftbook.studio.tabular import (
    FORGOTTEN,
    forgotten,
    short,
)

if TYPE_CHECKING:
    from peftbook.studio.store import Project

NEAR_COPIES = {"together": "stay in one split", "out": "all but the first are left out"}
EXAMPLES, TEXT_CHARS = 8, 2000  # of the report


def to_html(
    found: Comparison,
    project: Project | None = None,
    *,
    records: Sequence[Record] = (),
    splits: Mapping[str, int] | None = None,
    commands: Sequence[str] = (),
) -> str:
    """One file: what to take, the table, plots, examples, all settings, and what it cannot tell.

    records: behind the comparison, for settings and versions.  splits: rows of each.  commands: what repeats it.
    """
    runs = [one.spec for one in records if isinstance(one.spec, specs.Run)]
    page = fill(
        "report.html",
        found=found,
        short=short(found),
        legend=FORGOTTEN,
        title=project.name if project is not None else "Comparison",
        version=__version__,
        day=when(records),
        style=Markup((Path(__file__).parent / "report.css").read_text()),
        plots=list(plots(found)),
        examples=found.differences(EXAMPLES),
        text_chars=TEXT_CHARS,
        data=[] if project is None else [pair for pair in data(project, splits or {}) if pair[1]],
        settings=[pair for pair in settings(found, records, runs) if pair[1]],
        runs=[(run.key[:12], describe(run)) for run in runs],
        commands=commands,
        forgotten=forgotten,
    )
    return str(page)


def when(records: Sequence[Record]) -> str:
    """The day on which the last run finished, or today."""
    days = [str(one.provenance["finished"])[:10] for one in records if one.provenance.get("finished")]
    day = datetime.date.fromisoformat(max(days)) if days else datetime.date.today()
    return f"{day.day} {day:%B %Y}"


def plots(found: Comparison) -> Iterator[tuple[str, Markup, Markup]]:
    """Score against two costs; of each a wide and a narrow drawing, of which one is shown."""
    for cost in dict.fromkeys((found.cost, "peak_memory_bytes")):
        wide, narrow = (Markup(pareto_svg(found, cost, width=width, height=330)) for width in (560, 350))
        if wide:
            yield COSTS[cost], wide, narrow


def data(project: Project, splits: Mapping[str, int]) -> list[tuple[str, str | None]]:
    """The file and how it was read, as names and values; a value that is empty is left out."""
    columns, split = project.columns, project.split
    shares = ", ".join(f"{100 * part:g} %" for part in split.fractions)
    later = f"the first {split.first:,} are split, those behind them are for training alone"
    return [
        ("File", project.filename or "pasted text"),
        ("SHA-256 of the file", project.sha256),
        ("Input", columns.input),
        ("Target", columns.target),
        ("Instruction column", columns.instruction),
        ("Never divided by a split", columns.group),
        ("Instruction", project.instruction if project.instruction != "{input}" else ""),
        ("Split", f"training, validation, test: {shares}, by seed {split.seed}"),
        ("Later rows", later if split.first else ""),
        ("Near copies", NEAR_COPIES.get(split.near_copies)),
        ("Rows", ", ".join(f"{name} {count:,}" for name, count in splits.items())),
    ]


def settings(found: Comparison, records: Sequence[Record], runs: Sequence[specs.Run]) -> list[tuple[str, str]]:
    """Models, measures, machine and versions, as names and values."""
    models = dict.fromkeys(f"{run.model.name} ({pinned(run.model, 12)})" for run in runs)
    how = runs[0].evaluation if runs else specs.Evaluation()
    scored = (
        f"{how.split} split: loss of {how.n_loss:,} examples, {how.n_generate:,} texts of at most "
        f"{how.max_new_tokens} tokens, decoded greedily"
    )
    margin = " ".join(filter(None, (f"{found.margin:g}", found.measure.unit)))
    versions = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in one.provenance.get("versions", {}).items()) for one in records
    )
    has_rouge = any(one.metrics_info.get("rouge") for one in records)
    return [
        ("Models", "; ".join(models)),
        ("Scored on", scored if runs else ""),
        ("Decides", f"{found.measure.label}; differences below {margin} do not matter"),
        *((f"Own metric {one.name}", f"{one.words}: {clipped(one.text(), TEXT_CHARS)}") for one in found.metrics),
        ("ROUGE", "rouge_score, F-measure, no stemming" if has_rouge else ""),
        ("BERTScore's encoder", found.encoder),
        ("Machine", "; ".join(found.hardware)),
        ("Versions", "; ".join(filter(None, versions))),
    ]
