"""Runs: the queue as it stands, one card a job, with what can be done about it."""

from __future__ import annotations

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.jobs import Job, Plan
from peftbook.studio.markup import ago, badge, bar, button, curve, empty, joined, piece, span
from peftbook.studio.pages.wiring import Context, Step, Updates, on, panel, place_of_note
from peftbook.studio.planning import chosen_rates

ACTS = ("cancel", "resume", "retry", "cancel-plan")


class RunsStep(Step):
    """The tab: one panel, which a timer fills too."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.note = place_of_note()
        self.shown = panel(elem_id="queue")
        self.outputs = [self.shown]
        on(self.shown.act, self.note, self.act, [context.place], [self.shown])

    def show(self, project_id: str) -> Updates:
        return {self.shown: queue(self.context, project_id)}

    def act(self, project_id: str, event: gr.EventData) -> Updates:
        """Cancel, resume or retry."""
        data, studio = event._data or {}, self.context.studio
        what, target = str(data.get("act")), str(data.get("id"))
        if what not in ACTS:
            return {}
        if what == "cancel-plan":
            for job in studio.jobs(plan=target):
                if job.project == project_id and job.state in ("queued", "running"):
                    studio.cancel(job.id)
        elif studio.job(target).project == project_id:
            getattr(studio, what)(target)
        return self.show(project_id)


def queue(context: Context, project_id: str) -> Markup:
    """All plans of a project, the newest first, each with its jobs; one that several plans want stands in the first."""
    try:
        plans = context.studio.plans(project_id)
        jobs = {job.id: job for job in context.studio.jobs(project_id)}
    except InputError as error:
        return markup.trouble(error)
    if not plans:
        return empty("Nothing is queued", "Choose models and methods under Plan, check the plan, and queue it.")
    ahead = [job.id for job in context.studio.jobs() if job.state in ("queued", "running")]
    return joined(
        plan_piece(context, place, plan, [jobs[one] for one in plan.jobs if one in jobs], ahead)
        for place, plan in reversed(list(enumerate(plans, start=1)))
    )


def plan_piece(context: Context, place: int, plan: Plan, jobs: list[Job], ahead: list[str]) -> Markup:
    """One plan: how far it is, and its jobs."""
    ended = sum(job.state in ("done", "failed", "cancelled") for job in jobs)
    stop = Markup("")
    if ended < len(jobs):
        stop = button("Cancel the rest", "cancel-plan", id=plan.id, label=f"Cancel the rest of plan {place}")
    head = piece(
        '<header><h3>{}</h3><span class="fine">{} of {} runs ended · queued {}</span>{}</header>',
        plan.name or f"Plan {place}", ended, len(jobs), ago(plan.created), stop,
    )  # fmt: skip
    chosen = joined(piece('<p class="fine">{}</p>', words) for words in chosen_rates(context.studio, plan))
    cards = joined(job_piece(context, job, ahead) for job in jobs)
    return piece('<section class="plan">{}{}<ol class="jobs">{}</ol></section>', head, chosen, cards)


def job_piece(context: Context, job: Job, ahead: list[str]) -> Markup:
    """One job: state, progress, curve, what can be done."""
    if job.state == "running":
        said = progress(job)
    elif job.state == "queued":
        before = ahead.index(job.id) if job.id in ahead else 0
        kept = f", goes on from step {job.step:,}" if job.step else ""
        said = piece('<p class="fine">{}{}</p>', f"{before} before it" if before else "Next", kept)
    elif job.state == "failed":
        said = markup.trouble(job.error or "It failed without a word: see worker.log in the studio's folder.")
    else:
        words = "Its record was at hand"
        if job.finished and job.started and not job.cached:
            words = f"{'Took' if job.state == 'done' else 'After'} {span(job.finished - job.started)}"
        loss = f", last loss {job.loss:.3f}" if job.loss is not None else ""
        said = piece('<p class="fine">{}{}</p>', words, loss)
    drawn = Markup("")
    if job.state != "queued" and job.run.budget is not None:
        label = f"Training loss of {job.label}, in nats per token, by step"
        drawn = curve(context.studio.curve(job.id), job.steps, label)
    head = piece('<strong>{}</strong>{}<span class="acts">{}</span>', job.label, badge(job.state), acts_on(job))
    return piece(
        '<li class="job job-{}" id="job-{}"><div class="job-head">{}</div><div class="job-body"><div>{}</div>{}</div>'
        "</li>", job.state, job.id, head, said, drawn,
    )  # fmt: skip


def acts_on(job: Job) -> Markup:
    """What can be done about a job, as buttons."""
    if job.cancelling:
        return piece('<span class="fine">stopping…</span>')
    acts = []
    if job.state in ("queued", "running"):
        acts.append(button("Cancel", "cancel", id=job.id, label=f"Cancel {job.label}"))
    if job.state in ("failed", "cancelled"):
        acts.append(button("Resume", "resume", id=job.id, label=f"Resume {job.label}"))
        acts.append(button("Start anew", "retry", id=job.id, label=f"Start {job.label} anew"))
    return joined(acts, " ")


def progress(job: Job) -> Markup:
    """How far a running job is, in words and as a bar."""
    phase = job.doing
    share = phase.done / phase.total if phase.total and phase.done else None
    return piece('{}<p class="fine">{}</p>', bar(share, f"Progress of {job.label}"), " · ".join(phase.words()))
