"""Runs: the queue as it stands, one card a job, with what can be done about it."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from peftbook.core.errors import Unknown
from peftbook.core.progress import describe_step, duration
from peftbook.evidence.results import format_value
from peftbook.studio.formats import number
from peftbook.studio.html import curve, fill, part, thinned
from peftbook.studio.jobs import Job, Plan
from peftbook.studio.pages.site import Live, View, Visit, frame
from peftbook.studio.plan_checks import chosen_rates
from peftbook.studio.store import Studio

ACTS = ("cancel", "resume", "retry")
BUSY_SECONDS, IDLE_SECONDS = 1.0, 4.0
CACHED = 1024  # cards of ended jobs, some kilobytes each
LAST_STEPS, LAST_SHARE = 50, 4  # of a loss that is said: so many at the end, of few steps one in four
LISTED = 12  # points of a curve in numbers


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
    """The plans, the newest first, each with its jobs; a job that several plans want is shown in each of them."""
    ahead = [job.id for job in visit.studio.jobs() if job.state in ("queued", "running")]
    shown = []
    for place, plan in reversed(list(enumerate(plans, start=1))):
        if wanted in (None, "", plan.id):
            mine = [jobs[one] for one in plan.jobs if one in jobs]
            cards = [card_of(visit.studio, job, plan.id, ahead) for job in mine]
            ended = sum(job.ended for job in mine)
            shown.append((place, plan, ended, cards, chosen_rates(visit.studio, plan)))
    ended = bool(jobs) and all(job.ended for job in jobs.values())
    decision = visit.to(f"/projects/{visit.names['project']}/decision") if ended else ""
    return fill("runs_live.html", plans=shown, decision=decision)


def card_of(studio: Studio, job: Job, plan: str, ahead: list[str]) -> Markup:
    """One job: state, progress, curve, what can be done. plan: the id of the one that it stands in."""
    if job.state == "running":
        return card(studio, job, plan)
    if job.state != "queued":
        return ended_card(studio, job, plan)
    before = ahead.index(job.id) if job.id in ahead else 0
    words = f"{before} before it" if before else "Next"
    return card(studio, job, plan, words + (f", goes on from step {job.step:,}" if job.step else ""))


@functools.lru_cache(CACHED)
def ended_card(studio: Studio, job: Job, plan: str) -> Markup:
    """The card of a job that has ended, which does not change: rendered once."""
    if job.state == "failed":
        words = job.error or "It failed without a word: see worker.log in the studio's folder."
        return card(studio, job, plan, part("trouble", words))
    words = "Its record was at hand"
    if job.finished and job.started and not job.cached:
        words = f"{'Took' if job.state == 'done' else 'After'} {duration(job.finished - job.started)}"
    return card(studio, job, plan, words)


def card(studio: Studio, job: Job, plan: str, words: str = "") -> Markup:
    """The card of a job. words: how far it is, as text or markup, of one that does not run."""
    drawn, losses, label = "", [], f"Training loss of {job.label}, in nats per token, by step"
    if job.state != "queued" and job.run.budget is not None:
        losses = studio.curve(job.id)
        drawn = curve(losses, job.steps, label)
    if job.state == "running":
        words = progress(job, losses)
    elif job.state in ("done", "cancelled") and (said := mean_loss(losses)):
        words += f", {said}"
    listed = [(number(step), format_value(loss, 3)) for step, loss in thinned(losses, LISTED)]
    return fill("job.html", job=job, plan=plan, words=words, curve=drawn, points=listed, label=label)


def mean_loss(losses: Sequence[tuple[int, float]]) -> str:
    """The mean of the last losses, in words: one batch is noisy. Empty where none is finite."""
    finite = [loss for _, loss in losses if math.isfinite(loss)]
    last = finite[-min(LAST_STEPS, math.ceil(len(finite) / LAST_SHARE)) :]
    if not last:
        return ""
    steps = f"{len(last)} steps" if len(last) > 1 else "step"
    return f"{'mean ' * (len(last) > 1)}loss of the last {steps} {statistics.fmean(last):.3f}"


def progress(job: Job, losses: Sequence[tuple[int, float]] = ()) -> Markup:
    """How far a running job is, in words and as a bar. losses: by step, so far."""
    phase = job.doing
    if phase.detail and (said := mean_loss(losses)):
        phase = replace(phase, detail=", ".join(filter(None, (said, describe_step(None, job.tokens_per_second)))))
    share = phase.done / phase.total if phase.total and phase.done else None
    return fill("progress.html", job=job, share=share, words=" · ".join(phase.words()))
