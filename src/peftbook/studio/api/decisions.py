"""Decisions: what to take, with the table behind it, as JSON, text, CSV or one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from peftbook.decision import COSTS, MEASURES, Comparison
from peftbook.decision.own_metrics import Metric
from peftbook.studio.api.context import Here
from peftbook.studio.api.shapes import Body, Shape
from peftbook.studio.decisions import FIRST_COST, evaluations, first_measure, name_of, project_comparison, whole_report
from peftbook.studio.downloads import slug
from peftbook.studio.jobs import Job
from peftbook.studio.judging import measure_of
from peftbook.studio.project_metrics import declare, metrics_of
from peftbook.studio.tabular import to_csv
from peftbook.studio.terminal import as_json, show

routes = APIRouter(prefix="/projects/{project}", tags=["decisions"])
TEXT_COLUMNS = 120


class ComparableShape(BaseModel):
    """Runs that may be compared, as they were scored in the same way. runs: their place in the list."""

    runs: int
    words: str
    jobs: list[str]


@dataclass(frozen=True)
class Choice:
    """What decides, and between which runs."""

    jobs: list[Job]
    found: Comparison


def chosen(
    project: str,
    here: Here,
    plan: Annotated[str, Query(description="only the runs of this plan")] = "",
    runs: Annotated[int, Query(ge=0, description="which of the comparable sets; 0 is the one queued last")] = 0,
    measure: Annotated[
        str,
        Query(
            description=f"what decides: {', '.join(MEASURES)}, a metric of the project, or the `measure` of "
            "judgements; else as its last plan says"
        ),
    ] = "",
    cost: Annotated[str, Query(description=f"what is cheap: {', '.join(COSTS)}")] = FIRST_COST,
    margin: Annotated[float | None, Query(description="differences below it do not matter")] = None,
    metric: Annotated[
        list[str] | None, Query(description="a metric that counts this once, as JSON or name=kind:…; again for more")
    ] = None,
) -> Choice:
    """The comparison that is asked for."""
    here.studio.project(project)
    sets = [*evaluations(here.studio, project, plan).values()]
    jobs = sets[runs] if runs < len(sets) else []
    metrics = metrics_of(here.studio, project, metric or ())
    measure = measure or first_measure(here.studio, project)
    return Choice(jobs, project_comparison(here.studio, project, jobs, measure, cost, margin, metrics))


class MetricShape(Shape):
    """A metric of the project's own. words: what it asks of an answer.  declaration: as it was sent, with defaults."""

    name: str
    words: str
    declaration: dict[str, Any]

    @classmethod
    def all_of(cls, metrics: Sequence[Metric]) -> list[MetricShape]:
        return [cls.about(one, declaration=json.loads(one.text())) for one in metrics]


class MetricsBody(Body):
    metrics: list[dict[str, Any]] = Field(
        description="each with name, kind (regex, number, json, exact, sql) and what its kind takes; [] for none"
    )


Chosen = Annotated[Choice, Depends(chosen)]


@routes.get("/comparable")
def list_comparable(project: str, here: Here) -> list[ComparableShape]:
    """The sets of finished runs that may be compared; what was queued last comes first."""
    here.studio.project(project)
    sets = evaluations(here.studio, project).values()
    return [
        ComparableShape(runs=place, words=f"{len(jobs)} runs, {name_of(jobs[0])}", jobs=[job.id for job in jobs])
        for place, jobs in enumerate(sets)
    ]


@routes.get("/metrics")
def list_metrics(project: str, here: Here) -> list[MetricShape]:
    """The metrics of the project's own, by which every comparison of it is scored too."""
    here.studio.project(project)
    return MetricShape.all_of(metrics_of(here.studio, project))


@routes.put("/metrics")
def declare_metrics(project: str, body: MetricsBody, here: Here) -> list[MetricShape]:
    """Declare metrics, in place of those before. Nothing is trained again: they are computed from texts at hand."""
    here.studio.project(project)
    return MetricShape.all_of(declare(here.studio, project, body.metrics))


class JudgementShape(Shape):
    """What a rater said of two jobs' answers to a test row. preferred: 1 for the first, 0 for the second, 0.5 for a
    tie.  measure: the name by which the decision takes what people said of the two.
    """

    measure: str
    first: str
    second: str
    example: str
    rater: str
    preferred: float


@routes.get("/judgements")
def list_judgements(project: str, here: Here) -> list[JudgementShape]:
    """What people said on the page for it, in the order in which they said it."""
    here.studio.project(project)
    said = here.studio.judgements(project)
    return [JudgementShape.about(one, measure=measure_of(one.first, one.second)) for one in said]


@routes.get("/decision")
def decide(project: str, choice: Chosen) -> dict[str, Any]:
    """What to take, in words and numbers: what `peftbook compare --json` prints."""
    return as_json(choice.found) | {"project": project, "jobs": [job.id for job in choice.jobs]}


@routes.get("/decision.txt", response_class=PlainTextResponse)
def decide_in_text(choice: Chosen, columns: Annotated[int, Query(ge=20, le=1000)] = TEXT_COLUMNS) -> Response:
    """The same as `peftbook compare` prints it. columns: of the terminal."""
    return PlainTextResponse(show(choice.found, columns) + "\n")


class Csv(Response):
    media_type = "text/csv"


@routes.get("/decision.csv", response_class=Csv)
def decide_in_csv(choice: Chosen) -> Response:
    """The table for a spreadsheet: every number in full, and no cell that it would take for a formula."""
    return Csv(to_csv(choice.found).encode("utf-8-sig"))


@routes.get("/decision.html", response_class=HTMLResponse)
def decide_in_html(project: str, here: Here, choice: Chosen) -> Response:
    """The report as one file that can be mailed; it needs no script and loads nothing."""
    page = whole_report(here.studio, project, choice.jobs, choice.found)
    name = slug(here.studio.project(project).name)
    return HTMLResponse(page, headers={"content-disposition": f'attachment; filename="{name}-report.html"'})
