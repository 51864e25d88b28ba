"""Decision: the answer in one line, what leaks or lacks, one picture, the table, examples; the method behind a fold."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from peftbook.core.errors import InputError, Unknown
from peftbook.decision import COSTS, Comparison, contenders_of, measures_with
from peftbook.decision.own_metrics import read_metrics
from peftbook.studio.decisions import FIRST_COST, evaluations, first_measure, name_of, project_comparison
from peftbook.studio.downloads import slug
from peftbook.studio.html import fill, part
from peftbook.studio.judging import judged_measures
from peftbook.studio.pages.site import Live, View, Visit, frame, lines
from peftbook.studio.pareto import pareto_svg
from peftbook.studio.project_metrics import declare, metrics_of
from peftbook.studio.store import Studio
from peftbook.studio.tabular import FORGOTTEN, forgotten, short

EXAMPLES = 2
NOTHING = (
    "No run has finished yet",
    "As soon as one has, its scores stand here; with the untuned model and one method there is something to compare.",
)
KINDS = {"clear": "good", "cheapest of equals": "good", "untuned is as good": "info"}


def render_decision(visit: Visit, found: Comparison, asked: dict[str, str], sifted: str) -> Markup:
    """The whole decision. sifted: words that the label of a row must have to be shown."""
    words = sifted.lower().split()
    rows = [row for row in found.rows if all(word in row.label.lower() for word in words)]
    at = f"/api/v1/projects/{visit.project.id}/decision"
    return fill(
        "decision_live.html",
        found=found,
        rows=rows,
        short=short(found),
        examples=found.differences(EXAMPLES),
        kinds=KINDS,
        csv=visit.to(f"{at}.csv", **asked),
        report=visit.to(f"{at}.html", **asked),
        name=slug(visit.project.name),
        files=visit.to(f"/projects/{visit.project.id}/files"),
        tryout=visit.to(f"/projects/{visit.project.id}/try"),
        judge=visit.to(f"/projects/{visit.project.id}/judge", **contenders(visit, found)),
        again=visit.to(f"/projects/{visit.project.id}/data"),
        wide=Markup(pareto_svg(found)),
        narrow=Markup(pareto_svg(found, width=360)),
        cost=COSTS[found.cost],
        forgotten=forgotten,
        legend=FORGOTTEN,
    )


def contenders(visit: Visit, found: Comparison) -> dict[str, str]:
    """The two rows whose answers are worth judging, as fields of the page for it; nothing of a single row."""
    known = {job.key: job.id for job in visit.studio.jobs(visit.project.id)}
    runs = {row.label: row.runs[0] for row in found.contest}
    ids = [known[runs[label]] for label in contenders_of(found)[:2] if runs[label] in known]
    return dict(zip(("first", "second"), ids, strict=True)) if len(ids) == 2 else {}


def show(visit: Visit) -> dict[str, Any]:
    """What decides, what "cheap" means, and between which runs, as the address says."""
    project, query = visit.project, visit.query
    sets = {str(at): jobs for at, jobs in enumerate(evaluations(visit.studio, project.id).values())}
    asked = {"runs": query.get("runs", "0"), "measure": query.get("measure") or first_measure(visit.studio, project.id)}
    asked |= {"cost": query.get("cost", FIRST_COST)}
    metrics = metrics_of(visit.studio, project.id)
    filled = {
        **frame(visit), "asked": asked, "filter": query.get("filter", ""),
        "chosen": any(query.get(name) for name in ("runs", "measure", "cost", "filter")),
        "costs": [(name, words.capitalize()) for name, words in COSTS.items()],
        "measures": [*measures_of(visit.studio, project.id), *judged_measures(visit.studio, project.id)],
        "metrics": visit.typed.get("metrics", "\n".join(one.text() for one in metrics)),
        "sets": [(at, f"{len(jobs)} runs, {name_of(jobs[0])}") for at, jobs in sets.items()],
        "live": Live(part("empty", *NOTHING)),
    }  # fmt: skip
    if not sets:
        return filled
    try:
        if (jobs := sets.get(asked["runs"])) is None:
            raise Unknown(f"There are no runs {asked['runs'][:40]!r} to compare: choose among those that are listed.")
        found = project_comparison(visit.studio, project.id, jobs, asked["measure"], asked["cost"])
    except InputError as error:
        return filled | {"live": Live(Markup("")), "trouble": error}
    return filled | {"live": Live(render_decision(visit, found, asked, filled["filter"]))}


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
