"""Files: what can be taken away, and how to be rid of it all."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.studio import artefacts, markup
from peftbook.studio.jobs import Job
from peftbook.studio.markup import button, empty, joined, link, loading, piece
from peftbook.studio.pages.wiring import QUIET, Context, Step, in_place, panel


def build_files(context: Context) -> Step:
    """The tab. A merged model is made when it is asked for: `wanted` holds the job and the question, in the browser."""
    note = gr.HTML("", elem_classes="in-place")
    shown, merging = panel(elem_id="downloads"), panel()
    wanted = gr.Textbox("", visible="hidden", elem_classes="unseen")
    timer = gr.Timer(1.0, active=False)

    def show(project_id: str) -> dict[Any, Any]:
        done = [job for job in context.studio.jobs(project_id) if job.state == "done"]
        if not done:
            return {
                shown: empty("Nothing to take away yet", "Adapters, models and outputs appear as runs are done."),
                merging: "",
            }
        return {shown: piece('<ul class="take">{}</ul>', joined(offer(context, job) for job in done))}

    def act(project_id: str, event: gr.EventData) -> dict[Any, Any]:
        """Make a merged model."""
        data = event._data or {}
        job = context.studio.job(str(data.get("id")))
        if data.get("act") != "merge" or job.project != project_id:
            return {}
        request = context.studio.ask("merge", {"project": project_id, "job": job.id})
        return {wanted: f"{job.id} {request}", merging: loading(f"Merging {job.label}…"), timer: gr.Timer(active=True)}

    def look(project_id: str, waits: str) -> dict[Any, Any]:
        """Whether it is made."""
        job_id, _, request = (waits or "").partition(" ")
        answer = context.studio.answer(request)
        if not answer.ended:
            return {}
        timer_off = {timer: gr.Timer(active=False)}
        if answer.state != "done":
            return {merging: markup.trouble(answer.error or "It was stopped."), **timer_off}
        job = context.studio.job(job_id)
        ready = link(f"Download {job.label} as one model", address(job, "model.zip"), download=True)
        return {
            merging: piece('<p class="note note-good"><span aria-hidden="true">✓</span><span>{}</span></p>', ready),
            **timer_off,
        }

    shown.act(in_place(note, act), [context.place], [note, wanted, merging, timer], **QUIET)
    timer.tick(in_place(note, look), [context.place, wanted], [note, merging, timer], **QUIET)
    return Step([shown, merging], show)


def address(job: Job, what: str) -> str:
    """Where a file of a job is: by ids, never by a path."""
    return f"/studio/project/{job.project}/job/{job.id}/{what}"


def offer(context: Context, job: Job) -> Markup:
    """What there is of one job."""
    links: list[object] = []
    trained = job.run.budget is not None
    if trained and job.run.method.saved != "model" and context.studio.adapter(job) is not None:
        links.append(link("Adapter", address(job, "adapter.zip"), download=True, label=f"Adapter of {job.label}"))
    if trained:
        links.append(button("Merged model", "merge", id=job.id, label=f"Make the merged model of {job.label}"))
    if job.run.evaluation.n_generate:
        links.append(
            link("Test outputs", address(job, "outputs.csv"), download=True, label=f"Test outputs of {job.label}")
        )
    try:
        command: object = piece(
            '<details><summary>Command that repeats it</summary><pre tabindex="0">{}</pre>{}</details>',
            artefacts.command_line(context.studio, job),
            piece('<button type="button" class="act act-quiet" data-copy>Copy</button>'),
        )
    except InputError:
        command = ""
    return piece(
        '<li><div><strong>{}</strong> <span class="fine">run <code>{}</code></span></div>'
        '<span class="acts">{}</span>{}</li>',
        job.label,
        job.key[:12],
        joined(links, " "),
        command,
    )
