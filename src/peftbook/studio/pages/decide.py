"""Decision: what to take, in words, then the table behind it, the costs, and the examples."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from peftbook.decision import COSTS, Comparison, Contrast, Row, measures_with
from peftbook.errors import InputError, Unknown
from peftbook.evidence.stats import Interval
from peftbook.own_metrics import read_metrics
from peftbook.results import format_value
from peftbook.studio.decisions import FIRST_COST, FIRST_MEASURE, compared, evaluations, name_of
from peftbook.studio.downloads import slug
from peftbook.studio.markup import (
    Cell,
    clipped,
    empty,
    joined,
    link,
    note,
    number,
    piece,
    size,
    span,
    table,
    unfolded,
)
from peftbook.studio.pages.frame import frame
from peftbook.studio.pages.site import Live, View, Visit, lines
from peftbook.studio.project_metrics import declare, metrics_of
from peftbook.studio.store import Studio
from peftbook.studio.tabular import FORGOTTEN, forgotten

CONTRASTS = 6
NOTHING = empty(
    "No run has finished yet",
    "As soon as one has, its scores stand here; with the untuned model and one method there is something to compare.",
)
KINDS = {"clear": "good", "cheapest of equals": "good", "untuned is as good": "info"}


# --- what is shown ---------------------------------------------------------------------------------------------


def shown(visit: Visit, found: Comparison, asked: dict[str, str], sifted: str) -> Markup:
    """The whole of the decision. sifted: words of the rows that are shown."""
    told = found.recommendation
    words = piece(
        '<section class="verdict verdict-{}"><p class="kicker">{}</p><p class="words">{}</p></section>',
        KINDS.get(told.kind, "warn"), told.kind.capitalize(), told.words,
    )  # fmt: skip
    offers = {"Table as CSV": ("decision.csv", "table.csv")}
    offers |= {"Report as one HTML file": ("decision.html", "report.html")}
    at = f"/api/v1/projects/{visit.project.id}"
    take = joined(
        (link(name, visit.to(f"{at}/{file}", **asked), file=f"{slug(visit.project.name)}-{kept}")
         for name, (file, kept) in offers.items()), " ",
    )  # fmt: skip
    parts: list[object] = [
        words,
        *map(note, found.continued),
        piece('<p class="tools acts">{}</p>', take),
        scores(found, sifted),
        piece('<p class="fine">{}</p>', legend(found)),
        pareto_plot(found),
        cautions(found),
    ]
    if differing := found.differences(CONTRASTS):
        parts.append(piece("<h2>Where they differ most</h2>{}", joined(map(contrast, differing))))
    return joined(parts)


def scores(found: Comparison, sifted: str = "") -> Markup:
    """The table: scores with intervals, what is gained over the untuned model, and what it costs."""
    header = ["Method", *(measure.label for measure in found.measures), f"{found.measure.label} over untuned"]
    header += ["Forgotten", "Trained", "To store", "Training", "Peak memory"]
    rows, words_sifted = [], sifted.lower().split()
    for row in [row for row in found.rows if all(word in row.label.lower() for word in words_sifted)]:
        cells: list[object] = [method(row, found)]
        for measure in found.measures:
            cells.append(with_ends(row.scores.get(measure.name), 2 if measure.name == "perplexity" else 3, -1.0))
        kept = piece('<span class="mark mark-good">detected</span>') if row.beats_untuned else ""
        cells.append(with_ends(row.against_untuned.get(found.measure.name), 3, -9.0, "+", kept))
        lost = row.forgotten
        cells.append(Cell(forgotten(row), -9.0) if lost is None else with_ends(lost, 3, -9.0, "+"))
        cells += [
            Cell("–" if row.untuned else words(value), value)
            for words, value in (
                (number, row.trainable_parameters), (size, row.adapter_bytes), (span, row.train_seconds)
            )
        ]  # fmt: skip
        cells.append(Cell(size(row.peak_memory_bytes or None), row.peak_memory_bytes))
        rows.append(cells)
    caption = f"{len(rows)} rows, best {found.measure.label} first"
    return table(header, rows, kind="decision", caption=caption, numeric=range(1, len(header)), sortable=True)


def method(row: Row, found: Comparison) -> Cell:
    """What a row is, with its marks."""
    marks: list[object] = []
    if found.recommendation.row is not None and row.label == found.recommendation.row.label:
        words = "take this" if found.recommendation.kind in KINDS else "best guess"
        marks.append(piece('<span class="mark mark-take">{}</span>', words))
    if row.may_be_best:
        marks.append(piece('<span class="mark">may be the best</span>'))
    seeds = f"{len(row.seeds)} seeds" if len(row.seeds) > 1 else ""
    failed = piece('<span class="fine">{}</span>', row.failure) if row.failure else ""
    head = piece('<strong>{}</strong> <span class="fine">{}</span>', row.label, seeds)
    return Cell(piece('{}<span class="marks">{}</span>{}', head, joined(marks, " "), failed), row.label)


def with_ends(found: Interval | None, digits: int, nothing: float, plus: str = "", mark: object = "") -> Cell:
    """A mean above its 95 % interval. nothing: as what a missing one is sorted.  plus: before a gain.

    mark: that a difference holds at the family-wise level.
    """
    if found is None:
        return Cell("–", nothing)
    mean, low, high = (format_value(value, digits) for value in (found.mean, found.low, found.high))
    sign = plus if found.mean > 0 else ""
    return Cell(piece('{}{} <span class="interval">{} – {}</span>{}', sign, mean, low, high, mark), found.mean)


def legend(found: Comparison) -> str:
    """How to read the table."""
    encoder = f" BERTScore's encoder: {found.encoder}." if found.encoder else ""
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "one seed"
    return (
        f"Means over {found.test_examples:,} test rows and {seeds}, with 95 % intervals. “Detected” and “may be the "
        f"best” hold together at a family-wise level of {100 * found.level:g} %.{encoder} Time and memory were "
        f"measured on {' and '.join(found.hardware) or 'this machine'}. {FORGOTTEN}"
    )


def pareto_plot(found: Comparison) -> Markup:
    """Score against cost."""
    from peftbook.studio import report

    wide, narrow = report.pareto_svg(found, style=""), report.pareto_svg(found, width=360, style="")
    if not wide:
        return Markup("")
    rows = [
        (row.label, with_ends(row.scores.get(found.measure.name), 3, -1.0), number(row.cost(found.cost)))
        for row in found.contest
    ]
    header = ["Method", found.measure.label, COSTS[found.cost].capitalize()]
    return piece(
        '<figure class="pareto"><figcaption>Which rows are worth their {}?</figcaption><div class="wide">{}</div>'
        '<div class="narrow">{}</div>{}</figure>', COSTS[found.cost], Markup(wide), Markup(narrow),
        unfolded("In numbers", table(header, rows, caption="What is drawn", numeric=(1, 2))),
    )  # fmt: skip


def cautions(found: Comparison) -> Markup:
    """What the table cannot tell."""
    items = joined(piece("<li>{}</li>", one) for one in found.cautions)
    return piece(
        '<details class="cautions" open><summary>What this table cannot tell you</summary><ul>{}</ul></details>', items
    )


def contrast(one: Contrast) -> Markup:
    """One test row with what each method wrote."""
    best = max(one.scores, key=lambda label: one.scores[label])
    said = joined(
        piece('<div class="wrote{}"><p class="fine">{} · {}</p><div class="said">{}</div></div>',
              " wrote-best" * (label == best), label, format_value(one.scores[label], 3), clipped(text, 600))
        for label, text in one.texts.items()
    )  # fmt: skip
    asked, wanted = clipped(one.example.input, 800), clipped(one.example.target, 600)
    return piece(
        '<article class="contrast"><div class="asked"><div><p class="fine">{} · input</p>'
        '<div class="said said-input">{}</div></div>'
        '<div><p class="fine">target</p><div class="said said-target">{}</div></div></div>'
        '<div class="wrotes">{}</div></article>', one.example.id, asked, wanted, said,
    )  # fmt: skip


# --- the view --------------------------------------------------------------------------------------------------


def show(visit: Visit) -> dict[str, Any]:
    """What decides, what "cheap" means, and between which runs, as the address says."""
    project, query = visit.project, visit.query
    sets = {str(at): jobs for at, jobs in enumerate(evaluations(visit.studio, project.id).values())}
    asked = {"runs": query.get("runs", "0"), "measure": query.get("measure", FIRST_MEASURE)}
    asked |= {"cost": query.get("cost", FIRST_COST)}
    metrics = metrics_of(visit.studio, project.id)
    filled = {
        **frame(visit), "asked": asked, "filter": query.get("filter", ""),
        "costs": [(name, words.capitalize()) for name, words in COSTS.items()],
        "measures": measures_of(visit.studio, project.id),
        "metrics": visit.typed.get("metrics", "\n".join(one.text() for one in metrics)),
        "sets": [(at, f"{len(jobs)} runs, {name_of(jobs[0])}") for at, jobs in sets.items()],
        "live": Live(NOTHING),
    }  # fmt: skip
    if not sets:
        return filled
    try:
        if (jobs := sets.get(asked["runs"])) is None:
            raise Unknown(f"There are no runs {asked['runs'][:40]!r} to compare: choose among those that are listed.")
        found = compared(visit.studio, project.id, jobs, asked["measure"], asked["cost"])
    except InputError as error:
        return filled | {"live": Live(Markup("")), "trouble": error}
    return filled | {"live": Live(shown(visit, found, asked, filled["filter"]))}


def measures_of(studio: Studio, project: str) -> list[tuple[str, str]]:
    """What may decide, for a field that chooses: what we have, and the project's own."""
    return [(name, one.label) for name, one in measures_with(metrics_of(studio, project)).items()]


def act(visit: Visit) -> str:
    """Replace the project's own metrics by those that were typed, one a line."""
    project_id = visit.project.id
    typed = read_metrics(lines(visit.typed.get("metrics")), files=False)
    declare(visit.studio, project_id, [json.loads(one.text()) for one in typed])
    return f"/projects/{project_id}/decision"


DECISION = View("decision.html", show, act)
