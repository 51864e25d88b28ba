"""Projects: a file, how it is read, and all that is computed on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from peftbook.studio.api.context import Here
from peftbook.studio.api.shapes import Body, FindingsShape, ProjectShape, ReadingBody, reading_of
from peftbook.studio.data_checks import examined, project_of_upload
from peftbook.studio.store import Project, Studio
from peftbook.tasks import TaskExample

routes = APIRouter(prefix="/projects", tags=["projects"])
MOST_ROWS = 100


class NameBody(Body):
    name: str = Field(description="of the project")


class ProjectBody(ReadingBody):  # type: ignore[valid-type, misc]
    """An upload, and how it is read."""

    file: str = Field(description="id of an upload that is whole")
    name: str = Field("", description="of the project; that of the file without one")


def shape_of(studio: Studio, project: Project) -> ProjectShape:
    states = Counter(job.state for job in studio.jobs(project.id))
    return ProjectShape.about(project, reading=asdict(project.reading), jobs=states)


@routes.post("", status_code=201)
def make_project(body: ProjectBody, here: Here) -> ProjectShape:
    """Make a project of an upload. Its data and split never change: another reading is another project."""
    name = body.name or here.uploads.get(body.file).filename.rpartition(".")[0] or "Pasted data"
    return shape_of(here.studio, project_of_upload(here.studio, here.uploads, body.file, name, reading_of(body)))


@routes.get("")
def list_projects(here: Here) -> list[ProjectShape]:
    """All projects, oldest first."""
    return [shape_of(here.studio, project) for project in here.studio.projects()]


@routes.get("/{project}")
def show_project(project: str, here: Here) -> ProjectShape:
    """One project."""
    return shape_of(here.studio, here.studio.project(project))


@routes.patch("/{project}")
def rename_project(project: str, body: NameBody, here: Here) -> ProjectShape:
    """Give a project another name."""
    here.studio.rename(project, body.name)
    return shape_of(here.studio, here.studio.project(project))


@routes.delete("/{project}", status_code=204)
def delete_project(project: str, here: Here) -> None:
    """Delete a project for good, with its data, runs, records, adapters and downloads; what runs is stopped."""
    here.studio.delete_project(project)


@routes.get("/{project}/findings")
def show_findings(project: str, here: Here) -> FindingsShape:
    """What is wrong, repeated or leaking in a project's file."""
    found = here.studio.project(project)
    seen = examined(here.studio.table(project), found.columns, found.split)
    return FindingsShape.of_file(seen, found.instruction)


@routes.get("/{project}/rows")
def show_rows(
    project: str,
    here: Here,
    split: Literal["train", "validation", "test"] = "test",
    start: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 10,
) -> Sequence[TaskExample]:
    """Rows of a split, in its order."""
    return here.studio.task(project).splits[split][start : start + count]
