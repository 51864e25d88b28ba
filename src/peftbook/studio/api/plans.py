"""Plans: settings become runs, runs are checked before they start, and what fits is queued as it was checked."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from peftbook.core.errors import InputError
from peftbook.decision.power import sight_words
from peftbook.studio.api.context import Context, Here
from peftbook.studio.api.shapes import AnswerShape, Body, CheckedShape, PlanShape, SettingsBody, settings_of
from peftbook.studio.decisions import FIRST_MEASURE
from peftbook.studio.jobs import Plan
from peftbook.studio.plan_checks import ask_check, checks_of, chosen_rates, planned, queue_checked, sights_of_check
from peftbook.studio.preflight import coverage_words, plan_seconds

routes = APIRouter(tags=["plans"])


class QueueBody(Body):
    check: str = Field(description="id of a check of this project that is done")
    measure: str = Field(FIRST_MEASURE, description="what will decide; the decision opens with it")


def shape_of(here: Context, found: Plan) -> PlanShape:
    states = Counter[str](job.state for job in here.studio.jobs(plan=found.id))
    return PlanShape.about(found, states=states, words=chosen_rates(here.studio, found))


@routes.post("/projects/{project}/checks", status_code=202)
def check_plan(project: str, body: SettingsBody, here: Here) -> AnswerShape:  # type: ignore[valid-type]
    """Have a plan checked: rows, tokens, time and memory of every run, before anything is loaded."""
    runs, tuning = planned(here.studio.task(project), settings_of(body))
    return AnswerShape.about(here.studio.get_task(ask_check(here.studio, project, runs, tuning)))


@routes.get("/checks/{check}")
def show_check(
    check: str, here: Here, measure: Annotated[str, Query(description="what will decide")] = FIRST_MEASURE
) -> CheckedShape:
    """What was found; `state` is done when all of it is here."""
    task = here.studio.get_task(check)
    if task.kind != "check":
        raise InputError(f"Answer {check!r} is no check: ask for it under /answers.")
    checks = checks_of(task) if task.state == "done" else ()
    sights = sights_of_check(here.studio, check, measure) if checks else ()
    return CheckedShape.about(
        task,
        checks=checks,
        sights=sights,
        seconds=plan_seconds(checks) or None,
        words=[words for words in (coverage_words(checks), sight_words(sights, measure)) if words],
    )


@routes.post("/projects/{project}/plans", status_code=201)
def queue_plan(project: str, body: QueueBody, here: Here) -> PlanShape:
    """Queue the runs of a check that fit. An equal plan that is under way is answered with, not queued twice."""
    plan_id, _ = queue_checked(here.studio, project, body.check, body.measure)
    return shape_of(here, here.studio.plan(plan_id))


@routes.get("/projects/{project}/plans")
def list_plans(project: str, here: Here) -> list[PlanShape]:
    """A project's plans, oldest first."""
    here.studio.project(project)
    return [shape_of(here, one) for one in here.studio.plans(project)]


@routes.get("/plans/{plan_id}")
def show_plan(plan_id: str, here: Here) -> PlanShape:
    """One plan, and how far it is."""
    return shape_of(here, here.studio.plan(plan_id))


@routes.post("/plans/{plan_id}/cancel")
def cancel_plan(plan_id: str, here: Here) -> PlanShape:
    """Take what has not ended of a plan off the queue; what runs keeps its checkpoint."""
    found = here.studio.plan(plan_id)
    for job in found.jobs:
        here.studio.cancel(job)
    return shape_of(here, found)
