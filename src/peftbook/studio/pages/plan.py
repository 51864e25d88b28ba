"""Plan: models times methods, what each run will take, and off to the queue.

The address says what is asked for and, where it was checked, the task whose result is the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from peftbook.core import specs
from peftbook.core.errors import Conflict, InputError, Unknown
from peftbook.decision.power import sight_words
from peftbook.studio import plan_checks
from peftbook.studio.decisions import first_measure
from peftbook.studio.html import fill, part
from peftbook.studio.pages.decide import measures_of
from peftbook.studio.pages.form import EMBEDDED, Fields, fields_of, settings_of, shown_fields
from peftbook.studio.pages.site import Live, View, Visit, frame
from peftbook.studio.preflight import Check, coverage_words, plan_seconds, time_words
from peftbook.studio.tuning import Tuning

EVERY_SECONDS, LONG_SECONDS = 0.7, 3600.0  # of a plan that is long


def show(visit: Visit) -> dict[str, Any]:
    """The form as it is typed, and what was found if that was checked."""
    fields, request = fields_of(visit.typed), visit.query.get("check", "")
    if "measure" not in visit.typed:
        fields["measure"] = first_measure(visit.studio, visit.project.id)
    if "seeds" not in visit.typed and (jobs := visit.studio.jobs(visit.project.id)):  # the plan before has been queued
        fields["models"] = [name for name in EMBEDDED if name in {job.run.model.name for job in jobs}]
        fields["other_models"] = "\n".join(sorted({job.run.model.name for job in jobs} - {*EMBEDDED}))
    live = Live(Markup("")) if visit.form is not None or not request else check_progress(visit, request, fields)
    return {
        **frame(visit),
        **shown_fields(fields),
        "live": live,
        "check": request,
        "measures": measures_of(visit.studio, visit.project.id),
    }


def check_progress(visit: Visit, request: str, fields: Fields) -> Live:
    """What there is of a check by now."""
    try:
        count = len(plan_checks.runs_of_check(visit.studio, visit.project.id, request))
        task = visit.studio.get_task(request)
        if not task.ended:
            waits = part("loading", f"Counting tokens and memory of {count} runs…", timed=True)
            return Live(waits + part("button", "Cancel", "cancel", request, form="plan"), EVERY_SECONDS)
        if task.state == "cancelled":
            return Live(part("note", "The check was cancelled.", "info"))
        checks = plan_checks.checks_of(task)
        if {run.key for run in runs_of_form(visit, fields)[0]} != {check.key for check in checks}:
            raise InputError(plan_checks.CHANGED)
        sights = sight_words(plan_checks.sights_of_check(visit.studio, request, fields["measure"]), fields["measure"])
    except InputError as error:
        return Live(part("trouble", error))
    body = fill(
        "plan_live.html",
        request=request,
        table=preflight_table(checks),
        long=plan_seconds(checks) > LONG_SECONDS,
        sights=sights,
        count=len(checks),
        fitting=sum(check.fits for check in checks),
    )
    return Live(body)


def preflight_table(found: Sequence[Check]) -> Markup:
    """What each run will read, take and need."""
    beside = min(len(found), max((one.beside for one in found), default=1))
    at_once = f", {beside} at once" if beside > 1 else ""
    return fill(
        "checks.html",
        checks=found,
        caption=f"{len(found)} runs{at_once}: {time_words(found)}",
        short=coverage_words(found),
        refused=sum(not one.fits for one in found),
        cut=max((one.truncated for one in found), default=0),
    )


def runs_of_form(visit: Visit, fields: Fields) -> tuple[list[specs.Run], Tuning | None]:
    """The runs that the form asks for."""
    return plan_checks.planned(visit.studio.task(visit.project.id), settings_of(fields))


def act(visit: Visit) -> str:
    """Check, cancel, or queue what was checked, as it was checked."""
    project, form, fields = visit.project.id, visit.typed, fields_of(visit.typed)
    if request := form.get("cancel"):
        cancel_check(visit, request)
        return form_at(project, fields)
    if request := form.get("queue"):
        keys = {run.key for run in runs_of_form(visit, fields)[0]}
        if keys != {run.key for run in plan_checks.runs_of_check(visit.studio, project, request)}:
            raise Conflict(plan_checks.CHANGED)
        plan, _ = plan_checks.queue_checked(visit.studio, project, request, fields["measure"])
        return f"/projects/{project}/runs?plan={plan}"
    cancel_check(visit, visit.query.get("check", ""))  # nobody waits for the one before
    runs, tuning = runs_of_form(visit, fields)
    return form_at(project, fields, check=plan_checks.ask_check(visit.studio, project, runs, tuning))


def cancel_check(visit: Visit, request: str) -> None:
    """Cancel a check, unless it is gone."""
    with contextlib.suppress(Unknown):
        visit.studio.cancel(visit.studio.get_task(request).id)


def form_at(project: str, fields: Fields, **more: str) -> str:
    """Where the form stands as it is: a field that is empty is one too."""
    found = "#live" if "check" in more else ""
    return f"/projects/{project}/plan?{urlencode(fields | more, doseq=True)}{found}"


PLAN = View("plan.html", show, act)
