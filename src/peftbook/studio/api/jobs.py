"""Jobs: the queue as it stands, and what can be done about each."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from peftbook.studio.api.context import Here
from peftbook.studio.api.shapes import Body, Number, Shape
from peftbook.studio.continuing import continue_job
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


class ContinuationBody(Body):
    file: str = Field(description="id of an upload that is whole, with the columns of the job's project")
    name: str = Field("", description="of the new project")
    epochs: Number = Field(1.0, description="passes over all training rows, old and new")


class ContinuationShape(Shape):
    """The project with more rows and the plan that is queued in it. words: what it is, and what it is not."""

    project: str
    plan: str
    more: int
    left_out: int
    tokens: int
    words: str


@routes.post("/jobs/{job}/continuations", status_code=201)
def continue_with_more_rows(job: str, body: ContinuationBody, here: Here) -> ContinuationShape:
    """Go on training what a job trained with more rows, in a project of their own whose test rows are the same."""
    here.uploads.table(body.file)
    upload = here.uploads.get(body.file)
    content = upload.path.read_bytes()
    made = continue_job(here.studio, job, content, upload.filename, name=body.name, epochs=float(body.epochs))
    here.uploads.drop(upload.id)
    return ContinuationShape.about(made, project=made.project.id)


@routes.post("/jobs/{job}/retry")
def retry_job(job: str, here: Here) -> Job:
    """Queue a failed or cancelled job again; it starts anew."""
    here.studio.retry(job)
    return here.studio.job(job)
