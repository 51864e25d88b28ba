"""Jobs: the queue as it stands, and what can be done about each."""

from __future__ import annotations

from fastapi import APIRouter, Request

from peftbook.studio.api.context import Here
from peftbook.studio.api.events import Events, stream
from peftbook.studio.api.shapes import JobShape, Point

__all__ = ["routes"]

routes = APIRouter(tags=["jobs"])


@routes.get("/jobs")
def show_queue(here: Here) -> list[JobShape]:
    """What waits or runs, of all projects, in the order in which it was queued."""
    return [JobShape.of(job) for job in here.studio.jobs() if job.state in ("queued", "running")]


@routes.get("/projects/{project}/jobs")
def list_jobs(project: str, here: Here) -> list[JobShape]:
    """All jobs of a project, oldest first."""
    here.studio.project(project)
    return [JobShape.of(job) for job in here.studio.jobs(project)]


@routes.get("/jobs/{job}")
def show_job(job: str, here: Here) -> JobShape:
    """One job."""
    return JobShape.of(here.studio.job(job))


@routes.get("/jobs/{job}/curve")
def show_curve(job: str, here: Here) -> list[Point]:
    """Training loss by step, so far."""
    return [Point(step=step, loss=loss) for step, loss in here.studio.curve(job)]


@routes.get("/jobs/{job}/events", response_class=Events)
async def watch_job(job: str, here: Here, request: Request) -> Events:
    """Server-sent events: a job as it is now and whenever it changes, until it has ended."""
    return await stream(request, lambda: [JobShape.of(here.studio.job(job))])


@routes.post("/jobs/{job}/cancel")
def cancel_job(job: str, here: Here) -> JobShape:
    """Take a job from the queue, or have it stopped; one that has ended stays as it is."""
    here.studio.cancel(job)
    return JobShape.of(here.studio.job(job))


@routes.post("/jobs/{job}/resume")
def resume_job(job: str, here: Here) -> JobShape:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    here.studio.resume(job)
    return JobShape.of(here.studio.job(job))


@routes.post("/jobs/{job}/retry")
def retry_job(job: str, here: Here) -> JobShape:
    """Queue a failed or cancelled job again; it starts anew."""
    here.studio.retry(job)
    return JobShape.of(here.studio.job(job))
