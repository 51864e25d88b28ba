"""Files: what can be taken away, and how to be rid of it all."""

from __future__ import annotations

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.studio import artefacts, markup
from peftbook.studio.downloads import ask_for, offered
from peftbook.studio.jobs import Job
from peftbook.studio.markup import button, empty, joined, link, loading, piece
from peftbook.studio.pages.wiring import Context, Step, Updates, on, panel, place_of_note, unseen


class FilesStep(Step):
    """The tab. A merged model is made when it is asked for: `wanted` holds the job and the question, in the browser."""

    def __init__(self, context: Context) -> None:
        self.context, self.studio = context, context.studio
        self.note = place_of_note()
        self.shown, self.merging, self.wanted = panel(elem_id="downloads"), panel(), unseen()
        self.timer = gr.Timer(1.0, active=False)
        self.outputs = [self.shown, self.merging]
        on(self.shown.act, self.note, self.act, [context.place], [self.wanted, self.merging, self.timer])
        on(self.timer.tick, self.note, self.look, [context.place, self.wanted], [self.merging, self.timer])

    def show(self, project_id: str) -> Updates:
        if done := [job for job in self.studio.jobs(project_id) if job.state == "done"]:
            return {self.shown: piece('<ul class="take">{}</ul>', joined(offer(self.context, job) for job in done))}
        words = empty("Nothing to take away yet", "Adapters, models and outputs appear as runs are done.")
        return {self.shown: words, self.merging: ""}

    def act(self, project_id: str, event: gr.EventData) -> Updates:
        """Make a merged model."""
        data = event._data or {}
        job = self.studio.job(str(data.get("id")))
        if data.get("act") != "merge" or job.project != project_id:
            return {}
        request, waits = ask_for(self.studio, job, "model.zip"), gr.Timer(active=True)
        return {self.wanted: f"{job.id} {request}", self.merging: loading(f"Merging {job.label}…"), self.timer: waits}

    def look(self, project_id: str, waits: str) -> Updates:
        """Whether it is made."""
        job_id, _, request = (waits or "").partition(" ")
        answer = self.studio.answer(request)
        if not answer.ended:
            return {}
        if answer.state == "done":
            job = self.studio.job(job_id)
            ready = link(f"Download {job.label} as one model", address(job, "model.zip"), download=True)
            said = piece('<p class="note note-good"><span aria-hidden="true">✓</span><span>{}</span></p>', ready)
        else:
            said = markup.trouble(answer.error or "It was stopped.")
        return {self.merging: said, self.timer: gr.Timer(active=False)}


def address(job: Job, what: str) -> str:
    """Where a file of a job is: by ids, never by a path."""
    return f"/studio/project/{job.project}/job/{job.id}/{what}"


def offer(context: Context, job: Job) -> Markup:
    """What there is of one job."""
    links: list[object] = []
    at_hand = offered(context.studio, job)
    if "adapter.zip" in at_hand:
        links.append(link("Adapter", address(job, "adapter.zip"), download=True, label=f"Adapter of {job.label}"))
    if "model.zip" in at_hand:
        links.append(button("Merged model", "merge", id=job.id, label=f"Make the merged model of {job.label}"))
    if "outputs.csv" in at_hand:
        label = f"Test outputs of {job.label}"
        links.append(link("Test outputs", address(job, "outputs.csv"), download=True, label=label))
    try:
        command: object = piece(
            '<details><summary>Command that repeats it</summary><pre tabindex="0">{}</pre>'
            '<button type="button" class="act act-quiet" data-copy>Copy</button></details>',
            artefacts.command_line(context.studio, job),
        )
    except InputError:
        command = ""
    return piece(
        '<li><div><strong>{}</strong> <span class="fine">run <code>{}</code></span></div>'
        '<span class="acts">{}</span>{}</li>', job.label, job.key[:12], joined(links, " "), command,
    )  # fmt: skip
