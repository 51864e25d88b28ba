"""Plans: settings become runs, runs are checked before they start, and what fits is queued as it was checked."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field

from peftbook.decision.power import sight_words
from peftbook.errors import InputError, Unknown
from peftbook.studio.api.context import Context, Here
from peftbook.studio.api.events import Events, stream
from peftbook.studio.api.shapes import (
    AskedShape,
    Body,
    CheckedShape,
    CheckShape,
    JobShape,
    PlanShape,
    SettingsBody,
    SightShape,
    settings_of,
)
from peftbook.studio.decisions import FIRST_MEASURE
from peftbook.studio.jobs import Plan
from peftbook.studio.planning import ask_check, checks_of, chosen_rates, planned, queue_checked, sights_of_check
from peftbook.studio.preflight import coverage_words
from peftbook.studio.smaller import plan_seconds

__all__ = ["routes"]

routes = APIRouter(tags=["plans"])


class QueueBody(Body):
    check: str = Field(description="id of a check of this project that is done")


def plan_of(here: Context, plan_id: str) -> Plan:
    """A plan by its id. Raises Unknown for none."""
    jobs = here.studio.jobs(plan=plan_id)
    plans = here.studio.plans(jobs[0].project) if jobs else []
    found = next((one for one in plans if one.id == plan_id), None)
    if found is None:
        raise Unknown(f"There is no plan {plan_id!r}: its project may have been deleted.")
    return found


def shape_of(here: Context, found: Plan) -> PlanShape:
    states = Counter[str](job.state for job in here.studio.jobs(plan=found.id))
    return PlanShape.of(found, states, chosen_rates(here.studio, found))


@routes.post("/projects/{project}/checks", status_code=202)
def check_plan(project: str, body: SettingsBody, here: Here) -> AskedShape:  # type: ignore[valid-type]
    """Have a plan checked: rows, tokens, time and memory of every run, before anything is loaded."""
    runs, tuning = planned(here.studio.task(project), settings_of(body))
    asked = ask_check(here.studio, project, runs, tuning)
    return AskedShape.of(asked, here.studio.answer(asked))


@routes.get("/checks/{check}")
def show_check(
    check: str, here: Here, measure: Annotated[str, Query(description="what will decide")] = FIRST_MEASURE
) -> CheckedShape:
    """What was found; `state` is done when all of it is here."""
    if here.studio.asked(check).kind != "preflight":
        raise InputError(f"Question {check!r} is no check: ask for it under /answers.")
    answer = here.studio.answer(check)
    shape = CheckedShape(**AskedShape.of(check, answer).model_dump())
    if answer.state == "done":
        found = checks_of(answer)
        shape.checks, shape.seconds = [CheckShape.of(one) for one in found], plan_seconds(found) or None
        sights = sights_of_check(here.studio, check, measure)
        shape.sights = [SightShape.of(one) for one in sights]
        shape.words = list(filter(None, [coverage_words(found), sight_words(sights, measure)]))
    return shape


@routes.post("/projects/{project}/plans", status_code=201)
def queue_plan(project: str, body: QueueBody, here: Here) -> PlanShape:
    """Queue the runs of a check that fit. An equal plan that is under way is answered with, not queued twice."""
    plan_id, _ = queue_checked(here.studio, project, body.check)
    return shape_of(here, plan_of(here, plan_id))


@routes.get("/projects/{project}/plans")
def list_plans(project: str, here: Here) -> list[PlanShape]:
    """A project's plans, oldest first."""
    here.studio.project(project)
    return [shape_of(here, one) for one in here.studio.plans(project)]


@routes.get("/plans/{plan_id}")
def show_plan(plan_id: str, here: Here) -> PlanShape:
    """One plan, and how far it is."""
    return shape_of(here, plan_of(here, plan_id))


@routes.post("/plans/{plan_id}/cancel")
def cancel_plan(plan_id: str, here: Here) -> PlanShape:
    """Take what has not ended of a plan off the queue; what runs keeps its checkpoint."""
    found = plan_of(here, plan_id)
    for job in here.studio.jobs(plan=found.id):
        if job.state in ("queued", "running"):
            here.studio.cancel(job.id)
    return shape_of(here, found)


@routes.get("/plans/{plan_id}/events", response_class=Events)
async def watch_plan(plan_id: str, here: Here, request: Request) -> Events:
    """Server-sent events: each job of a plan as it is now and whenever it changes, until all have ended."""
    return await stream(request, lambda: [JobShape.of(job) for job in here.studio.jobs(plan=plan_of(here, plan_id).id)])
