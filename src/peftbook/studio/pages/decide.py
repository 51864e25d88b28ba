"""Decision: what to take, in words, then the table behind it, the costs, and the examples."""

from __future__ import annotations

import gradio as gr
from markupsafe import Markup

from peftbook.decision import COSTS, MEASURES, Comparison, Contrast, Row
from peftbook.errors import InputError
from peftbook.evidence.stats import Interval
from peftbook.results import format_value
from peftbook.studio import markup
from peftbook.studio.decisions import FIRST_COST, FIRST_MEASURE, compared, evaluations, name_of
from peftbook.studio.markup import Cell, clipped, empty, joined, link, number, piece, size, span, table
from peftbook.studio.pages.wiring import BUSY, Context, Step, Updates, on, panel, place_of_note

CONTRASTS = 6
NOTHING = empty(
    "No run has finished yet",
    "As soon as one has, its scores stand here; with the untuned model and one method there is something to compare.",
)
KINDS = {"clear": "good", "cheapest of equals": "good", "untuned is as good": "info"}


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
    offers = {"Table as CSV": "table.csv", "Report as one HTML file": "report.html"}
    address = f"/studio/project/{project_id}"
    take = joined((link(name, f"{address}/{file}?{query}", download=True) for name, file in offers.items()), " ")
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
        parts.append(piece("<h3>Where they differ most</h3>{}", joined(map(contrast, differing))))
    return joined(parts)


def scores(found: Comparison) -> Markup:
    """The table: scores with intervals, what is gained over the untuned model, and what it costs."""
    header = ["Method", *(measure.label for measure in found.measures), f"{found.measure.label} over untuned"]
    header += ["Trained", "To store", "Training", "Peak memory"]
    rows = []
    for row in found.rows:
        cells: list[object] = [method(row, found)]
        for measure in found.measures:
            cells.append(with_ends(row.scores.get(measure.name), 2 if measure.name == "perplexity" else 3, -1.0))
        kept = piece('<span class="mark mark-good">detected</span>') if row.beats_untuned else ""
        cells.append(with_ends(row.against_untuned.get(found.measure.name), 3, -9.0, "+", kept))
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
        f"measured on {' and '.join(found.hardware) or 'this machine'}."
    )


def pareto_plot(found: Comparison) -> Markup:
    """Score against cost."""
    from peftbook.studio import report

    wide, narrow = report.pareto_svg(found), report.pareto_svg(found, width=360)
    if not wide:
        return Markup("")
    return piece(
        '<figure class="pareto"><figcaption>Which rows are worth their {}?</figcaption><div class="wide">{}</div>'
        '<div class="narrow">{}</div></figure>', COSTS[found.cost], Markup(wide), Markup(narrow),
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


# --- the tab ---------------------------------------------------------------------------------------------------


class DecideStep(Step):
    """The tab: what decides, what "cheap" means, and which runs."""

    def __init__(self, context: Context) -> None:
        self.studio = context.studio
        measures = [(measure.label, measure.name) for measure in MEASURES.values()]
        costs = [(words.capitalize(), name) for name, words in COSTS.items()]
        with gr.Row(equal_height=True, elem_classes="choices"):
            self.which = gr.Dropdown(label="Runs", visible=False)
            self.measure = gr.Dropdown(measures, label="What decides", value=FIRST_MEASURE, elem_id="measure")
            self.cost = gr.Dropdown(costs, label="What is cheap", value=FIRST_COST)
        self.note = place_of_note()
        self.shown = panel(elem_id="decision")
        choices = [self.which, self.measure, self.cost]
        for choice in choices:
            on(choice.input, self.note, self.look, [context.place, *choices], [self.shown], **BUSY)
        self.outputs = [*choices, self.note, self.shown]

    def look(self, project_id: str, evaluation: str, by: str, price: str) -> Updates:
        """The comparison as it is chosen."""
        finished = evaluations(self.studio, project_id)
        found = compared(self.studio, project_id, finished.get(evaluation), by, price)
        place = list(finished).index(evaluation)
        return {self.shown: shown(found, project_id, f"runs={place}&measure={by}&cost={price}")}

    def show(self, project_id: str) -> Updates:
        try:
            names = [
                (f"{len(jobs)} runs, {name_of(jobs[0])}", name)
                for name, jobs in evaluations(self.studio, project_id).items()
            ]
            if not names:
                return {self.shown: NOTHING, self.which: gr.update(visible=False), self.note: ""}
            first = names[0][1]
            which = gr.update(choices=names, value=first, visible=len(names) > 1)
            chosen = {self.which: which, self.measure: FIRST_MEASURE, self.cost: FIRST_COST, self.note: ""}
            return {**chosen, **self.look(project_id, first, FIRST_MEASURE, FIRST_COST)}
        except InputError as error:
            return {self.note: markup.trouble(error), self.shown: ""}
