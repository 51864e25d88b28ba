"""Runs: the queue as it stands, one card a job, with what can be done about it."""

from __future__ import annotations

import functools
from typing import Any

from markupsafe import Markup

from peftbook.errors import Unknown
from peftbook.studio import markup
from peftbook.studio.jobs import Job, Plan
from peftbook.studio.markup import ago, badge, bar, button, curve, empty, joined, piece, points, span
from peftbook.studio.pages.frame import frame
from peftbook.studio.pages.site import Live, View, Visit
from peftbook.studio.plan_checks import chosen_rates
from peftbook.studio.store import Studio

ACTS = ("cancel", "resume", "retry")
BUSY_SECONDS, IDLE_SECONDS = 1.0, 4.0
KEPT = 1024  # cards of ended jobs, some kilobytes each


def show(visit: Visit) -> dict[str, Any]:
    """The plans of a project, or the one that the address names."""
    project = visit.project.id
    plans = visit.studio.plans(project)
    if (wanted := visit.query.get("plan")) and wanted not in [plan.id for plan in plans]:
        raise Unknown(f"There is no plan {wanted!r} in this project: see its plans.")
    jobs = {job.id: job for job in visit.studio.jobs(project)}
    busy = any(job.state in ("queued", "running") for job in jobs.values())
    live = Live(queue(visit, plans, jobs, wanted), BUSY_SECONDS if busy else IDLE_SECONDS)
    return {**frame(visit), "live": live, "plan": wanted, "plans": len(plans)}


def act(visit: Visit) -> str:
    """Cancel, resume or retry."""
    project, form, studio = visit.names["project"], visit.typed, visit.studio
    back = f"/projects/{project}/runs" + (f"?plan={plan}" if (plan := visit.query.get("plan")) else "")
    for name in ACTS:
        if target := form.get(name):
            if studio.job(target).project != project:
                raise Unknown(f"There is no job {target!r} in this project.")
            getattr(studio, name)(target)
            return back
    for job in studio.jobs(plan=form.get("cancel-plan", "")):
        if job.project == project and job.state in ("queued", "running"):
            studio.cancel(job.id)
    return back


RUNS = View("runs.html", show, act)


def queue(visit: Visit, plans: list[Plan], jobs: dict[str, Job], wanted: str | None) -> Markup:
    """The plans, the newest first, each with its jobs; a job that several want stands in each of them."""
    if not plans:
        return empty("Nothing is queued", "Choose models and methods under Plan, check the plan, and queue it.")
    ahead = [job.id for job in visit.studio.jobs() if job.state in ("queued", "running")]
    return joined(
        plan_piece(visit, place, plan, [jobs[one] for one in plan.jobs if one in jobs], ahead)
        for place, plan in reversed(list(enumerate(plans, start=1)))
        if wanted in (None, "", plan.id)
    )


def plan_piece(visit: Visit, place: int, plan: Plan, jobs: list[Job], ahead: list[str]) -> Markup:
    """One plan: how far it is, and its jobs."""
    ended = sum(job.state in ("done", "failed", "cancelled") for job in jobs)
    stop = Markup("")
    if ended < len(jobs):
        stop = button("Cancel the rest", "cancel-plan", plan.id, label=f"Cancel the rest of plan {place}")
    head = piece(
        '<header><h2>{}</h2><span class="fine">{} of {} runs ended · queued {}</span>{}</header>',
        plan.name or f"Plan {place}", ended, len(jobs), ago(plan.created), stop,
    )  # fmt: skip
    chosen = joined(piece('<p class="fine">{}</p>', words) for words in chosen_rates(visit.studio, plan))
    cards = joined(job_piece(visit.studio, job, plan.id, ahead) for job in jobs)
    return piece(
        '<section class="plan" id="plan-{}">{}{}<ol class="jobs">{}</ol></section>', plan.id, head, chosen, cards
    )


def job_piece(studio: Studio, job: Job, plan: str, ahead: list[str]) -> Markup:
    """One job: state, progress, curve, what can be done. plan: the id of the one that it stands in."""
    if job.state == "running":
        return card(studio, job, plan, progress(job))
    if job.state != "queued":
        return ended_piece(studio, job, plan)
    before = ahead.index(job.id) if job.id in ahead else 0
    kept = f", goes on from step {job.step:,}" if job.step else ""
    return card(studio, job, plan, piece('<p class="fine">{}{}</p>', f"{before} before it" if before else "Next", kept))


@functools.lru_cache(KEPT)
def ended_piece(studio: Studio, job: Job, plan: str) -> Markup:
    """The same of one that has ended, and stays as it is: drawn once."""
    if job.state == "failed":
        said = markup.trouble(job.error or "It failed without a word: see worker.log in the studio's folder.")
    else:
        words = "Its record was at hand"
        if job.finished and job.started and not job.cached:
            words = f"{'Took' if job.state == 'done' else 'After'} {span(job.finished - job.started)}"
        loss = f", last loss {job.loss:.3f}" if job.loss is not None else ""
        said = piece('<p class="fine">{}{}</p>', words, loss)
    return card(studio, job, plan, said)


def card(studio: Studio, job: Job, plan: str, said: Markup) -> Markup:
    """A job with what is said of it."""
    drawn = Markup("")
    if job.state != "queued" and job.run.budget is not None:
        losses = studio.curve(job.id)
        label = f"Training loss of {job.label}, in nats per token, by step"
        drawn, said = curve(losses, job.steps, label), joined([said, points(losses, label)])
    head = piece('<strong>{}</strong>{}<span class="acts">{}</span>', job.label, badge(job.state), acts_on(job))
    return piece(
        '<li class="job job-{}" id="job-{}-{}"><div class="job-head">{}</div><div class="job-body"><div>{}</div>{}'
        "</div></li>", job.state, plan, job.id, head, said, drawn,
    )  # fmt: skip


def acts_on(job: Job) -> Markup:
    """What can be done about a job, as buttons."""
    if job.cancelling:
        return piece('<span class="fine">stopping…</span>')
    acts = []
    if job.state in ("queued", "running"):
        acts.append(button("Cancel", "cancel", job.id, label=f"Cancel {job.label}"))
    if job.state in ("failed", "cancelled"):
        acts.append(button("Resume", "resume", job.id, label=f"Resume {job.label}"))
        acts.append(button("Start anew", "retry", job.id, label=f"Start {job.label} anew"))
    return joined(acts, " ")


def progress(job: Job) -> Markup:
    """How far a running job is, in words and as a bar."""
    phase = job.doing
    share = phase.done / phase.total if phase.total and phase.done else None
    return piece('{}<p class="fine">{}</p>', bar(share, f"Progress of {job.label}"), " · ".join(phase.words()))
