"""Decision: what to take, in words, then the table behind it, the costs, and the examples."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from peftbook import specs
from peftbook.decision import COSTS, MEASURES, Comparison, Contrast, Row, compare
from peftbook.errors import InputError
from peftbook.evidence.stats import Interval
from peftbook.results import format_value
from peftbook.studio import markup
from peftbook.studio.jobs import Job
from peftbook.studio.markup import Cell, clipped, empty, joined, link, number, piece, size, span, table
from peftbook.studio.pages.wiring import QUIET, Context, Step, in_place, panel
from peftbook.studio.store import Studio

CONTRASTS = 6
KINDS = {"clear": "good", "cheapest of equals": "good", "untuned is as good": "info"}


def evaluations(studio: Studio, project_id: str) -> dict[str, list[Job]]:
    """The finished jobs that may be compared, by how they were scored; what was queued last comes first."""
    found: dict[str, list[Job]] = {}
    for job in studio.jobs(project_id):
        found.setdefault(job.run.evaluation.model_dump_json(), []).append(job)
    ended = {
        name: [job for job in jobs if studio.records(project_id).get(job.run) is not None]
        for name, jobs in reversed(found.items())
    }
    return {name: jobs for name, jobs in ended.items() if jobs}


def compared(studio: Studio, project_id: str, evaluation: str, measure: str, cost: str) -> Comparison:
    """The comparison of what has finished. Raises InputError where there is nothing to compare."""
    jobs = evaluations(studio, project_id).get(evaluation)
    if not jobs:
        raise InputError("No run has finished yet: see under Runs how far they are.")
    return _compared(str(studio.home), project_id, tuple(job.run for job in jobs), measure, cost)


@functools.lru_cache(32)
def _compared(home: str, project_id: str, runs: tuple[specs.Run, ...], measure: str, cost: str) -> Comparison:
    """A record never changes, so neither does this."""
    studio = Studio(home)
    store = studio.records(project_id)
    records = [record for record in map(store.get, runs) if record is not None]
    texts = {record.key: found for record in records if (found := store.texts(record))}
    examples = studio.task(project_id).splits[runs[0].evaluation.split]
    return compare(records, texts, examples, measure=measure, cost=cost)


def whole_report(studio: Studio, project_id: str, evaluation: str, found: Comparison) -> str:
    """The comparison as one HTML file, with the commands that repeat it."""
    from peftbook.studio import artefacts, report

    jobs = evaluations(studio, project_id)[evaluation]
    records = [record for job in jobs if (record := studio.records(project_id).get(job.run)) is not None]
    splits = {name: len(rows) for name, rows in studio.task(project_id).splits.items()}
    commands = [artefacts.command_line(studio, job) for job in jobs]
    return report.to_html(found, studio.project(project_id), records=records, splits=splits, commands=commands)


# --- what is shown ---------------------------------------------------------------------------------------------


def shown(found: Comparison, project_id: str, query: str) -> Markup:
    """The whole of the decision."""
    told = found.recommendation
    words = piece(
        '<section class="verdict verdict-{}"><p class="kicker">{}</p><p class="words">{}</p></section>',
        KINDS.get(told.kind, "warn"),
        told.kind.capitalize(),
        told.words,
    )
    take = joined(
        [
            link("Table as CSV", f"/studio/project/{project_id}/table.csv?{query}", download=True),
            link("Report as one HTML file", f"/studio/project/{project_id}/report.html?{query}", download=True),
        ],
        " ",
    )
    sifter = Markup(
        '<label class="sift">Show rows with <input type="search" data-filter="decision" '
        'placeholder="method or model"></label>'
    )
    parts: list[object] = [
        words,
        piece('<div class="tools">{}<span class="acts">{}</span></div>', sifter, take),
        scores(found),
        piece('<p class="fine">{}</p>', legend(found)),
        pareto_plot(found),
        cautions(found),
    ]
    if differing := found.differences(CONTRASTS):
        parts.append(piece("<h3>Where they differ most</h3>{}", joined(contrast(one, found) for one in differing)))
    return joined(parts)


def scores(found: Comparison) -> Markup:
    """The table: scores with intervals, what is gained over the untuned model, and what it costs."""
    header = [
        "Method",
        *(one.label for one in found.measures),
        f"{found.measure.label} over untuned",
        "Trained",
        "To store",
        "Training",
        "Peak memory",
    ]
    rows = []
    for row in found.rows:
        cells: list[object] = [method(row, found)]
        for one in found.measures:
            cells.append(interval(row.scores.get(one.name), 2 if one.name == "perplexity" else 3))
        gain = row.against_untuned.get(found.measure.name)
        cells.append(difference(gain, row.beats_untuned))
        cells += [
            Cell(number(row.trainable_parameters) if not row.untuned else "–", row.trainable_parameters),
            Cell(size(row.adapter_bytes) if not row.untuned else "–", row.adapter_bytes),
            Cell(span(row.train_seconds) if not row.untuned else "–", row.train_seconds),
            Cell(size(row.peak_memory_bytes or None), row.peak_memory_bytes),
        ]
        rows.append(cells)
    return table(
        header,
        rows,
        kind="decision",
        caption=f"{len(rows)} rows, best {found.measure.label} first",
        numeric=range(1, len(header)),
        sortable=True,
    )


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
    return Cell(
        piece(
            '<strong>{}</strong> <span class="fine">{}</span><span class="marks">{}</span>{}',
            row.label,
            seeds,
            joined(marks, " "),
            failed,
        ),
        row.label,
    )


def interval(one: Interval | None, digits: int) -> Cell:
    """A mean above its 95 % interval."""
    if one is None:
        return Cell("–", -1.0)
    low, high = one.low, one.high
    return Cell(
        piece(
            '{} <span class="interval">{} – {}</span>',
            format_value(one.mean, digits),
            format_value(low, digits),
            format_value(high, digits),
        ),
        one.mean,
    )


def difference(one: Interval | None, holds: bool | None) -> Cell:
    """A gain with its interval, and whether it holds at the family-wise level."""
    if one is None:
        return Cell("–", -9.0)
    sign = "+" if one.mean > 0 else ""
    kept = piece('<span class="mark mark-good">detected</span>') if holds else ""
    return Cell(
        piece(
            '{}{} <span class="interval">{} – {}</span>{}',
            sign,
            format_value(one.mean, 3),
            format_value(one.mean - one.half95, 3),
            format_value(one.mean + one.half95, 3),
            kept,
        ),
        one.mean,
    )


def legend(found: Comparison) -> str:
    """How to read the table."""
    encoder = f" BERTScore's encoder: {found.encoder}." if found.encoder else ""
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "one seed"
    return (
        f"Means over {found.test_examples:,} test rows and {seeds}, with 95 % intervals. “Detected” and “may be the "
        f"best” hold together at a family-wise level of {100 * found.level:g} %.{encoder} Time and "
        f"memory were measured "
        f"on {' and '.join(found.hardware) or 'this machine'}."
    )


def pareto_plot(found: Comparison) -> Markup:
    """Score against cost."""
    from peftbook.studio import report

    wide, narrow = report.pareto_svg(found), report.pareto_svg(found, width=360)
    if not wide:
        return Markup("")
    return piece(
        '<figure class="pareto"><figcaption>Which rows are worth their {}?</figcaption><div class="wide">{}</div>'
        '<div class="narrow">{}</div></figure>',
        COSTS[found.cost],
        Markup(wide),
        Markup(narrow),
    )


def cautions(found: Comparison) -> Markup:
    """What the table cannot tell."""
    items = joined(piece("<li>{}</li>", one) for one in found.cautions)
    return piece(
        '<details class="cautions" open><summary>What this table cannot tell you</summary><ul>{}</ul></details>', items
    )


def contrast(one: Contrast, found: Comparison) -> Markup:
    """One test row with what each method wrote."""
    best = max(one.scores, key=lambda label: one.scores[label])
    said = joined(
        piece(
            '<div class="wrote{}"><p class="fine">{} · {}</p><div class="said">{}</div></div>',
            " wrote-best" if label == best else "",
            label,
            format_value(one.scores[label], 3),
            clipped(text, 600),
        )
        for label, text in one.texts.items()
    )
    return piece(
        '<article class="contrast"><div class="asked"><div><p class="fine">{} · input</p>'
        '<div class="said said-input">{}</div></div>'
        '<div><p class="fine">target</p><div class="said said-target">{}</div></div></div>'
        '<div class="wrotes">{}</div></article>',
        one.example.id,
        clipped(one.example.input, 800),
        clipped(one.example.target, 600),
        said,
    )


# --- the tab ---------------------------------------------------------------------------------------------------


def build_decide(context: Context) -> Step:
    """The tab: what decides, what "cheap" means, and which runs."""
    with gr.Row(equal_height=True, elem_classes="choices"):
        which = gr.Dropdown(label="Runs", visible=False)
        measure = gr.Dropdown(
            label="What decides",
            value="rougeL",
            elem_id="measure",
            choices=[(one.label, one.name) for one in MEASURES.values()],
        )
        cost = gr.Dropdown(
            label="What is cheap",
            value=next(iter(COSTS)),
            choices=[(words.capitalize(), name) for name, words in COSTS.items()],
        )
    note = gr.HTML("", elem_classes="in-place")
    panel_shown = panel(elem_id="decision")

    def choices(project_id: str) -> Mapping[str, Sequence[Job]]:
        return evaluations(context.studio, project_id)

    def look(project_id: str, evaluation: str, by: str, price: str) -> dict[Any, Any]:
        """The comparison as it is chosen."""
        found = compared(context.studio, project_id, evaluation, by, price)
        place = list(choices(project_id)).index(evaluation)
        return {panel_shown: shown(found, project_id, f"runs={place}&measure={by}&cost={price}")}

    def show(project_id: str) -> dict[Any, Any]:
        try:
            found = choices(project_id)
            if not found:
                return {
                    panel_shown: empty(
                        "No run has finished yet",
                        "As soon as one has, its scores stand here; with the "
                        "untuned model and one method there is something to compare.",
                    ),
                    which: gr.update(visible=False),
                    note: "",
                }
            names = [(f"{len(jobs)} runs, {name_of(jobs[0])}", name) for name, jobs in found.items()]
            first = names[0][1]
            values = {which: gr.update(choices=names, value=first, visible=len(names) > 1), note: ""}
            return {
                **values,
                **look(project_id, first, "rougeL", next(iter(COSTS))),
                measure: "rougeL",
                cost: next(iter(COSTS)),
            }
        except InputError as error:
            return {note: markup.trouble(error), panel_shown: ""}

    for one in (which, measure, cost):
        one.input(
            in_place(note, look),
            [context.place, which, measure, cost],
            [note, panel_shown],
            **(QUIET | {"show_progress": "minimal"}),
        )
    return Step([which, measure, cost, note, panel_shown], show)


def name_of(job: Job) -> str:
    """How a run was scored."""
    one = job.run.evaluation
    return f"{one.n_generate:,} texts of at most {one.max_new_tokens} tokens"
