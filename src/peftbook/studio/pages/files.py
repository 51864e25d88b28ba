"""Files: what can be taken away of each run, and what is made on demand."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from peftbook.core.errors import InputError, Unknown
from peftbook.studio import artefacts
from peftbook.studio.downloads import ask_for, is_ready, offered, title_of
from peftbook.studio.html import fill, part
from peftbook.studio.jobs import Job
from peftbook.studio.pages.site import Live, View, Visit, address, frame

NAMES = {
    "adapter.zip": "Adapter", "outputs.csv": "Test outputs", "model.zip": "Merged model",
    "adapter.gguf": "Adapter as GGUF", "model.gguf": "Merged model as GGUF",
}  # fmt: skip
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
        asked, answer = visit.studio.asked(request), visit.studio.answer(request)
    except InputError as error:
        return part("trouble", error), False
    if asked.payload["project"] != visit.project.id or asked.kind not in ("merge", "gguf"):
        raise Unknown(f"There is no file {request!r} in this project: ask for one.")
    job = visit.studio.job(asked.payload["job"])
    name = "model.zip" if asked.kind == "merge" else asked.payload["name"]
    if not answer.ended:
        return part("loading", f"{NAMES[name]} of {job.label}: it is being made…", timed=True), True
    if answer.state != "done":
        return part("trouble", answer.error or "It was stopped."), False
    address, title = address_of(visit, job, name), title_of(visit.studio, job, name)
    words = f"Download {NAMES[name].lower()} of {job.label}"
    return part("note", part("link", words, address, file=title), "good"), False


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
    """A job, its files (name, whether it is ready, address, title) and the command that repeats it."""
    studio = visit.studio
    files = [
        (name, is_ready(studio, job, name), address_of(visit, job, name), title_of(studio, job, name))
        for name in offered(studio, job)
    ]
    try:
        command = artefacts.command_line(studio, job)
    except InputError:
        command = ""
    return {"job": job, "files": files, "names": NAMES, "command": command}


def address_of(visit: Visit, job: Job, name: str) -> str:
    """The address of a file of a job."""
    return visit.to(f"/api/v1/jobs/{job.id}/artefacts/{name}")
