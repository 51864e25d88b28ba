"""Files: what can be taken away of each run, and what is made on demand."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.downloads import ARTEFACTS, ask_for, offered, title_of
from peftbook.studio.html import fill, part
from peftbook.studio.jobs import Job
from peftbook.studio.model_card import command_line
from peftbook.studio.pages.site import Live, View, Visit, address, frame

EVERY_SECONDS = 1.0


def show(visit: Visit) -> dict[str, Any]:
    """What there is of each run that is done, and what was asked for."""
    done = [job for job in visit.studio.jobs(visit.project.id) if job.state == "done"]
    state, waits = asked_for(visit)
    body = fill("files_live.html", state=state, jobs=[offer(visit, job) for job in done])
    return {**frame(visit), "live": Live(body, EVERY_SECONDS if waits else 0.0)}


def asked_for(visit: Visit) -> tuple[Markup, bool]:
    """How far the file is that the address names, and whether it is waited for."""
    if not (request := visit.query.get("asked")):
        return Markup(""), False
    try:
        task = visit.studio.get_task(request)
    except InputError as error:
        return part("trouble", error), False
    if task.project != visit.project.id or task.kind != "make":
        raise Unknown(f"There is no file {request!r} in this project: ask for one.")
    job = visit.studio.job(task.payload["job"])
    name = task.payload["name"]
    title = ARTEFACTS[name].title
    if not task.ended:
        return part("loading", f"{title} of {job.label}: it is being made…", timed=True), True
    if task.state != "done":
        return part("trouble", task.error or "It was stopped."), False
    words, file = f"Download {ARTEFACTS[name].noun} of {job.label}", title_of(visit.studio, job, name)
    return part("note", part("link", words, address_of(visit, job, name), file=file), "good"), False


def act(visit: Visit) -> str:
    """Have a file made."""
    project = visit.project.id
    job_id, _, name = visit.typed.get("make", "").partition(" ")
    job = visit.studio.job(job_id)
    if job.project != project:
        raise Unknown(f"There is no job {job_id!r} in this project.")
    return address(f"/projects/{project}/files", asked=ask_for(visit.studio, job, name))


FILES = View("files.html", show, act)


def offer(visit: Visit, job: Job) -> dict[str, Any]:
    """A job, its files (each, whether it is ready, address, file name) and the command that repeats it."""
    studio = visit.studio
    files = [
        (one, one.is_ready(studio, job), address_of(visit, job, one.name), title_of(studio, job, one.name))
        for one in offered(studio, job)
    ]
    try:
        command = command_line(studio, job)
    except InputError:
        command = ""
    return {"job": job, "files": files, "command": command}


def address_of(visit: Visit, job: Job, name: str) -> str:
    """The address of a file of a job."""
    return visit.to(f"/api/v1/jobs/{job.id}/artefacts/{name}")
