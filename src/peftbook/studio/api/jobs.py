"""Jobs: the queue as it stands, and what can be done about each."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from peftbook.studio.api.context import Here
from peftbook.studio.jobs import Job

routes = APIRouter(tags=["jobs"])


class Point(BaseModel):
    """One point of a curve: training loss in nats per label token."""

    step: int
    loss: float | None


@routes.get("/jobs")
def show_queue(here: Here) -> list[Job]:
    """What waits or runs, of all projects, in the order in which it was queued."""
    return [job for job in here.studio.jobs() if not job.ended]


@routes.get("/projects/{project}/jobs")
def list_jobs(project: str, here: Here) -> list[Job]:
    """All jobs of a project, oldest first."""
    here.studio.project(project)
    return here.studio.jobs(project)


@routes.get("/jobs/{job}")
def show_job(job: str, here: Here) -> Job:
    """One job."""
    return here.studio.job(job)


@routes.get("/jobs/{job}/curve")
def show_curve(job: str, here: Here) -> list[Point]:
    """Training loss by step, so far."""
    return [Point(step=step, loss=loss) for step, loss in here.studio.curve(job)]


@routes.post("/jobs/{job}/cancel")
def cancel_job(job: str, here: Here) -> Job:
    """Take a job from the queue, or have it stopped; one that has ended stays as it is."""
    here.studio.cancel(job)
    return here.studio.job(job)


@routes.post("/jobs/{job}/resume")
def resume_job(job: str, here: Here) -> Job:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    here.studio.resume(job)
    return here.studio.job(job)


@routes.post("/jobs/{job}/retry")
def retry_job(job: str, here: Here) -> Job:
    """Queue a failed or cancelled job again; it starts anew."""
    here.studio.retry(job)
    return here.studio.job(job)
