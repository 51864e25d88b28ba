"""Files: what can be taken away of each run, what is made on demand, and the recipe for a bigger model."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from peftbook.errors import InputError, Unknown
from peftbook.studio import artefacts, markup
from peftbook.studio.downloads import ask_for, ask_for_recipe, is_ready, offered, recipe_file, title_of
from peftbook.studio.jobs import Job
from peftbook.studio.markup import button, empty, joined, link, loading, piece
from peftbook.studio.pages.frame import frame
from peftbook.studio.pages.site import Live, View, Visit, address
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
    told, waits = asked_for(visit)
    listed = piece('<ul class="take">{}</ul>', joined(offer(visit, job) for job in done))
    if not done:
        listed = empty("Nothing to take away yet", "Adapters, models and outputs appear as runs are done.")
    recipe = {name: visit.typed.get(name, "") for name in RECIPE}
    return {
        **frame(visit), "live": Live(joined([told, listed]), EVERY_SECONDS if waits else 0.0), "recipe": recipe,
    }  # fmt: skip


def asked_for(visit: Visit) -> tuple[Markup, bool]:
    """How far the file is that the address names, and whether it is waited for."""
    if not (request := visit.query.get("asked")):
        return Markup(""), False
    try:
        asked, answer = visit.studio.asked(request), visit.studio.answer(request)
    except InputError as error:
        return markup.trouble(error), False
    if asked.payload["project"] != visit.project.id or asked.kind not in ("merge", "gguf", "recipe"):
        raise Unknown(f"There is no file {request!r} in this project: ask for one.")
    if asked.kind == "recipe":
        return recipe_told(visit, request, answer)
    job = visit.studio.job(asked.payload["job"])
    name = "model.zip" if asked.kind == "merge" else asked.payload["name"]
    if not answer.ended:
        return loading(f"{NAMES[name]} of {job.label}: it is being made…", timed=True), True
    if answer.state != "done":
        return markup.trouble(answer.error or "It was stopped."), False
    ready = fetch(visit, job, name, f"Download {NAMES[name].lower()} of {job.label}")
    return markup.note(ready, "good"), False


def recipe_told(visit: Visit, request: str, answer: Answer) -> tuple[Markup, bool]:
    """The same of a recipe, with its advice."""
    if not answer.ended:
        return loading("The recipe is being made…", timed=True), True
    try:
        recipe_file(visit.studio, visit.project.id, request)
    except InputError as error:
        return markup.trouble(error), False
    at = visit.to(f"/api/v1/projects/{visit.project.id}/recipes/{request}")
    ready = markup.note(link("Download the recipe's folder", at, file="recipe.zip"), "good")
    return joined([ready, piece('<pre tabindex="0">{}</pre>', answer.text)]), False


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


def offer(visit: Visit, job: Job) -> Markup:
    """What there is of one job."""
    studio, acts = visit.studio, []
    for name in offered(studio, job):
        if is_ready(studio, job, name):
            acts.append(fetch(visit, job, name, NAMES[name], f"{NAMES[name]} of {job.label}"))
        else:
            label = f"Make {NAMES[name].lower()} of {job.label}"
            acts.append(button(NAMES[name], "make", f"{job.id} {name}", label=label))
    try:
        command: object = piece(
            '<details><summary>Command that repeats it</summary><pre tabindex="0">{}</pre>'
            '<button type="button" class="act act-quiet scripted" data-copy>Copy</button></details>',
            artefacts.command_line(studio, job),
        )
    except InputError:
        command = ""
    return piece(
        '<li><div><strong>{}</strong> <span class="fine">run <code>{}</code></span></div>'
        '<span class="acts">{}</span>{}</li>', job.label, job.key[:12], joined(acts, " "), command,
    )  # fmt: skip


def fetch(visit: Visit, job: Job, name: str, words: str, label: str = "") -> Markup:
    """A link to a file of a job that is there."""
    at = visit.to(f"/api/v1/jobs/{job.id}/artefacts/{name}")
    return link(words, at, file=title_of(visit.studio, job, name), label=label)
