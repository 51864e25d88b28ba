"""Files: what can be taken away of each run, what is made on demand, and the recipe for a bigger model."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from peftbook.core.errors import InputError, Unknown
from peftbook.studio import artefacts
from peftbook.studio.downloads import ask_for, ask_for_recipe, is_ready, offered, recipe_file, title_of
from peftbook.studio.html import fill, part
from peftbook.studio.jobs import Job
from peftbook.studio.pages.site import Live, View, Visit, address, frame
from peftbook.studio.requests import Answer

NAMES = {
    "adapter.zip": "Adapter", "outputs.csv": "Test outputs", "model.zip": "Merged model",
    "adapter.gguf": "Adapter as GGUF", "model.gguf": "Merged model as GGUF",
}  # fmt: skip
EVERY_SECONDS = 1.0
RECIPE = ("model", "memory", "data_licence")


def show(visit: Visit) -> dict[str, Any]:
    """What there is of each run that is done, and what was asked for."""
    done = [job for job in visit.studio.jobs(visit.project.id) if job.state == "done"]
    state, waits = asked_for(visit)
    body = fill("files_live.html", state=state, jobs=[offer(visit, job) for job in done])
    recipe = {name: visit.typed.get(name, "") for name in RECIPE}
    return {**frame(visit), "live": Live(body, EVERY_SECONDS if waits else 0.0), "recipe": recipe}


def asked_for(visit: Visit) -> tuple[Markup, bool]:
    """How far the file is that the address names, and whether it is waited for."""
    if not (request := visit.query.get("asked")):
        return Markup(""), False
    try:
        asked, answer = visit.studio.asked(request), visit.studio.answer(request)
    except InputError as error:
        return part("trouble", error), False
    if asked.payload["project"] != visit.project.id or asked.kind not in ("merge", "gguf", "recipe"):
        raise Unknown(f"There is no file {request!r} in this project: ask for one.")
    if asked.kind == "recipe":
        return recipe_told(visit, request, answer)
    job = visit.studio.job(asked.payload["job"])
    name = "model.zip" if asked.kind == "merge" else asked.payload["name"]
    if not answer.ended:
        return part("loading", f"{NAMES[name]} of {job.label}: it is being made…", timed=True), True
    if answer.state != "done":
        return part("trouble", answer.error or "It was stopped."), False
    address, title = address_of(visit, job, name), title_of(visit.studio, job, name)
    words = f"Download {NAMES[name].lower()} of {job.label}"
    return part("note", part("link", words, address, file=title), "good"), False


def recipe_told(visit: Visit, request: str, answer: Answer) -> tuple[Markup, bool]:
    """The same of a recipe, with its advice."""
    if not answer.ended:
        return part("loading", "The recipe is being made…", timed=True), True
    try:
        recipe_file(visit.studio, visit.project.id, request)
    except InputError as error:
        return part("trouble", error), False
    at = visit.to(f"/api/v1/projects/{visit.project.id}/recipes/{request}")
    ready = part("note", part("link", "Download the recipe's folder", at, file="recipe.zip"), "good")
    return ready + Markup('<pre tabindex="0">{}</pre>').format(answer.text), False


def act(visit: Visit) -> str:
    """Have a file made, or a recipe."""
    project, form = visit.project.id, visit.typed
    if "make" not in form:
        asked = ask_for_recipe(visit.studio, project, *(form.get(name, "").strip() for name in RECIPE))
    else:
        job_id, _, name = form["make"].partition(" ")
        job = visit.studio.job(job_id)
        if job.project != project:
            raise Unknown(f"There is no job {job_id!r} in this project.")
        asked = ask_for(visit.studio, job, name)
    return address(f"/projects/{project}/files", asked=asked)


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
