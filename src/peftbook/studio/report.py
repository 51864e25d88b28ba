"""Report: a comparison as one HTML file that can be mailed; its table as text and as CSV are in `tabular`.

The HTML needs no script and loads nothing. Whatever comes from the user, texts, names and labels, is escaped.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from peftbook import __version__, specs
from peftbook.base_models import pinned
from peftbook.decision import COSTS, Comparison, Row
from peftbook.evidence.stats import Interval
from peftbook.records import Record
from peftbook.results import describe, format_value
from peftbook.studio.markup import clipped, joined, number, piece, size, span
from peftbook.studio.pareto import pareto_svg
from peftbook.studio.tabular import (
    FORGOTTEN,
    digits,
    ends,
    escape_cell,
    forgotten,
    halves,
    marks,
    short,
    table,
    to_csv,
    typeset,
)

if TYPE_CHECKING:
    from peftbook.studio.store import Project

__all__ = ["escape_cell", "pareto_svg", "table", "to_csv", "to_html"]

EXAMPLES, TEXT_CHARS = 8, 2000  # of the report


FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="robots" content="noindex"><title>{title}</title><style>{style}</style></head>
<body><main>{body}</main></body></html>
"""


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
    title = project.name if project is not None else "Comparison"
    parts = [
        piece("<header><p class=fine>peftbook {}, {}</p><h1>{}</h1></header>", __version__, when(records), title),
        verdict(found),
        piece("<h2>Scores</h2>{}{}", scores(found), legend(found)),
        piece("<h2>Costs</h2>{}", costs(found)),
        plots(found),
        piece("<h2>What this cannot tell you</h2><ul>{}</ul>", items(found.cautions)),
        examples(found),
        piece("<h2>Every pair</h2>{}", pairs(found)),
        data(project, splits),
        settings(found, records, commands),
    ]  # fmt: skip
    style = (Path(__file__).parent / "report.css").read_text()
    return str(piece(FRAME, title=title, style=Markup(style), body=joined(parts)))


def verdict(found: Comparison) -> Markup:
    """What to take; the answer stands out."""
    told = found.recommendation
    first, rest = told.sentences[0], " ".join(told.sentences[1:])
    return piece(
        '<section class="verdict"><p class="kind">{}</p><p class="lead">{}</p><p>{}</p></section>',
        told.kind.capitalize(), typeset(first), typeset(" ".join([rest, *found.continued])),
    )  # fmt: skip


def when(records: Sequence[Record]) -> str:
    """The day on which the last run finished, or today."""
    days = [str(one.provenance["finished"])[:10] for one in records if one.provenance.get("finished")]
    day = datetime.date.fromisoformat(max(days)) if days else datetime.date.today()
    return f"{day.day} {day:%B %Y}"


def grid(caption: str, headers: Sequence[str], rows: Sequence[tuple[str, Sequence[object]]]) -> Markup:
    """A table that scrolls in its box; each row has a class and cells, the first of which is its head."""
    heads = joined(piece('<th scope="col">{}</th>', one) for one in headers)
    body = joined(
        piece('<tr class="{}"><th scope="row">{}</th>{}</tr>', kind, cells[0],
              joined(piece("<td>{}</td>", one) for one in cells[1:]))
        for kind, cells in rows
    )  # fmt: skip
    return piece(
        '<p class="fine">{0}</p><div class="scroll" tabindex="0" role="region" aria-label="{0}"><table>'
        "<thead><tr>{1}</tr></thead><tbody>{2}</tbody></table></div>", caption, heads, body,
    )  # fmt: skip


def kind_of(found: Comparison, row: Row) -> str:
    """The class of the recommended row."""
    return "take" if found.recommendation.row is not None and found.recommendation.row.label == row.label else ""


def scores(found: Comparison) -> Markup:
    """Every measure with its interval; the deciding one with its differences."""
    order = [found.measure, *(one for one in found.measures if one != found.measure)]
    headers = ["Method", found.measure.label, f"{short(found)} − untuned", f"{short(found)} − best"]
    headers += [*(one.label for one in order[1:]), "Forgotten"]
    rows = []
    for row in found.rows:
        cells: list[object] = [piece("{} {}<small>{}</small>", row.label, marks(row), row.failure or seeds(row))]
        cells.append(with_interval(row, found.measure.name))
        cells += [two_lines(one.get(found.measure.name)) for one in (row.against_untuned, row.against_leader)]
        cells += [with_interval(row, one.name) for one in order[1:]]
        cells.append(two_lines(row.forgotten) if row.forgotten is not None else forgotten(row))
        rows.append((kind_of(found, row), cells))
    return grid(f"{len(rows)} rows, best {found.measure.label} first; 95 % intervals below", headers, rows)


def seeds(row: Row) -> str:
    return f"{len(row.seeds)} seeds" if len(row.seeds) > 1 else "one seed" if row.seeds else "no training"


def with_interval(row: Row, name: str) -> Markup:
    one = row.scores.get(name)
    return piece("{}<small>{}</small>", digits(one, name), ends(one, name) if one is not None else "")


def two_lines(one: Interval | None) -> Markup:
    """A difference above its interval."""
    return piece("{}<small>{}</small>", *halves(one))


def items(lines: Sequence[str]) -> Markup:
    return joined(piece("<li>{}</li>", typeset(one)) for one in lines)


def legend(found: Comparison) -> Markup:
    unit = " in nats per token" if found.measure.name == "perplexity" else ""
    encoder = f" BERTScore F1 is of {found.encoder}." if found.encoder else ""
    return piece(
        '<p class="fine">★ may be the best row, ▲ beats the untuned model of its own: by {}, each at a family-wise '
        "level of {}\N{NO-BREAK SPACE}%. Differences{} are paired over {} and test examples ({:,}). Those below {} do "
        "not matter here; the shaded row is the recommended one.{} {}</p>",
        found.measure.label, f"{100 * found.level:g}", unit, "seeds" if found.seeds > 1 else "one seed",
        found.test_examples, f"{found.margin:g}", encoder, FORGOTTEN,
    )  # fmt: skip


def costs(found: Comparison) -> Markup:
    """What each row takes, on the machine that ran it."""
    headers = ["Method", "Training", "Peak memory", "To store", "Trained parameters", "Of the whole model"]
    rows = [
        (kind_of(found, row), [
            row.label, "–" if row.untuned else span(row.train_seconds), size(row.peak_memory_bytes or None),
            "–" if row.untuned else size(row.adapter_bytes),
            "–" if row.untuned else number(row.trainable_parameters), number(row.model_parameters or None),
        ])
        for row in found.rows
    ]  # fmt: skip
    where = " and ".join(found.hardware) or "the machine that ran it"
    return grid(f"Mean training time and largest peak of the process, on {where}", headers, rows)


def plots(found: Comparison) -> Markup:
    """Score against two costs; a wide and a narrow drawing, of which one is shown."""
    figures = []
    for cost in dict.fromkeys((found.cost, "peak_memory_bytes")):
        wide, narrow = (pareto_svg(found, cost, width=width, height=330) for width in (560, 350))
        if wide:
            figures.append(
                piece('<figure><figcaption>What does a better {} cost in {}?</figcaption><div class="wide">{}</div>'
                      '<div class="narrow">{}</div></figure>',
                      found.measure.label, COSTS[cost], Markup(wide), Markup(narrow))
            )  # fmt: skip
    note = "Filled markers and the dashed line: no other row is as good for as little. Bars: 95 % intervals."
    return (
        piece('<h2>Score and cost</h2><div class="plots">{}</div><p class="fine">{}</p>', joined(figures), note)
        if figures
        else Markup("")
    )


def examples(found: Comparison) -> Markup:
    """The test examples on which the rows differ most."""
    chosen = found.differences(EXAMPLES)
    if not chosen:
        return Markup("")
    label = found.measure.label if found.measure.name != "perplexity" else "ROUGE-L"
    parts = []
    for one in chosen:
        wrote = joined(
            piece('<div><p class="fine">{}, {} {}</p><div class="text">{}</div></div>', name, label,
                  format_value(one.scores[name], 3), clipped(one.texts[name], TEXT_CHARS) or "(nothing)")
            for name in one.texts
        )  # fmt: skip
        parts.append(
            piece('<article><p class="fine">{}: input</p><div class="text">{}</div><p class="fine">target</p>'
                  '<div class="text">{}</div><div class="wrote">{}</div></article>',
                  one.example.id, *(clipped(text, TEXT_CHARS) for text in (one.example.input, one.example.target)),
                  wrote)
        )  # fmt: skip
    note = (
        f"The {len(chosen)} of {len(found.contrasts):,} generated test examples on which the rows are furthest apart, "
        "of each row its first seed. They were chosen for that, so they are not typical."
    )
    return piece('<h2>Where they differ most</h2><p class="fine">{}</p>{}', note, joined(parts))


def pairs(found: Comparison) -> Markup:
    """Every difference of the deciding measure, with p and what was detected."""
    rows = []
    for one in found.pairs:
        p = "< 0.0001" if one.p < 1e-4 else format_value(one.p, 4)
        told = "yes" if one.detected else "no"
        mean, interval = halves(one.differences[found.measure.name])
        rows.append(("", [f"{one.first} − {one.second}", mean, interval, p, told]))
    headers = ["Pair", f"Difference in {short(found)}", "95 % interval", "p, not corrected"]
    headers.append("Rules the worse out as best")
    return grid("Paired differences; p is two-sided", headers, rows)


def facts(pairs_: Sequence[tuple[str, object]]) -> Markup:
    """Names and values, of which the empty ones are left out."""
    shown = joined(piece("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in pairs_ if value)
    return piece("<dl>{}</dl>", shown)


def data(project: Project | None, splits: Mapping[str, int] | None) -> Markup:
    """The file and how it was read."""
    if project is None:
        return Markup("")
    columns, split = project.columns, project.split
    shares = ", ".join(f"{100 * part:g} %" for part in split.fractions)
    later = f"the first {split.first:,} are split, those behind them are for training alone"
    told = [
        ("File", project.filename or "pasted text"), ("SHA-256 of the file", project.sha256),
        ("Input", columns.input), ("Target", columns.target), ("Instruction column", columns.instruction),
        ("Never divided by a split", columns.group),
        ("Instruction", project.instruction if project.instruction != "{input}" else ""),
        ("Split", f"training, validation, test: {shares}, by seed {split.seed}"),
        ("Later rows", later if split.first else ""),
        ("Rows", ", ".join(f"{name} {count:,}" for name, count in (splits or {}).items())),
    ]  # fmt: skip
    return piece("<h2>Data</h2>{}", facts(told))


def settings(found: Comparison, records: Sequence[Record], commands: Sequence[str]) -> Markup:
    """Models, methods, machine, versions and commands: what is needed to repeat it."""
    runs = [one.spec for one in records if isinstance(one.spec, specs.Run)]
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
    told = [
        ("Models", "; ".join(models)), ("Scored on", scored if runs else ""),
        ("Decides", f"{found.measure.label}; differences below {margin} do not matter"),
        *((f"Own metric {one.name}", f"{one.words}: {clipped(one.text(), TEXT_CHARS)}") for one in found.metrics),
        ("ROUGE", "rouge_score, F-measure, no stemming" if has_rouge else ""),
        ("BERTScore's encoder", found.encoder), ("Machine", "; ".join(found.hardware)),
        ("Versions", "; ".join(filter(None, versions))),
    ]  # fmt: skip
    lines = joined(piece("<li><code>{}</code> {}</li>", run.key[:12], describe(run)) for run in runs)
    listing = piece("<h3>Runs</h3><ul class=fine>{}</ul>", lines) if runs else Markup("")
    command = piece("<h3>To repeat it</h3><pre>{}</pre>", "\n".join(commands)) if commands else Markup("")
    return piece("<h2>Settings</h2>{}{}{}", facts(told), command, listing)
