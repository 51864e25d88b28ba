"""Artefacts: what can be taken away of a finished job, and the recipe for a bigger model on the same rows."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from peftbook.studio import artefacts, downloads
from peftbook.studio.api.context import Download, Here
from peftbook.studio.api.shapes import AskedShape, Body

routes = APIRouter(tags=["artefacts"])


class ArtefactShape(BaseModel):
    """A file of a job. ready: whether it can be fetched; else it is made when it is asked for by `POST`."""

    name: str
    words: str
    ready: bool


class RecipeBody(Body):
    model: str = Field(description="an id of the hub, a folder, or an embedded model")
    memory: str = Field(description="of the card by its name, like 24GB, or 23.6GiB")
    data_licence: str = Field("", description="for the model card")


@routes.get("/jobs/{job}/artefacts")
def list_artefacts(job: str, here: Here) -> list[ArtefactShape]:
    """What there is of a finished job, and what can be made of it."""
    found = here.studio.job(job)
    return [
        ArtefactShape(name=name, words=words, ready=downloads.is_ready(here.studio, found, name))
        for name, words in downloads.offered(here.studio, found).items()
    ]


@routes.post("/jobs/{job}/artefacts/{name}", status_code=202)
def make_artefact(job: str, name: str, here: Here) -> AskedShape:
    """Have a merged model or a GGUF file made; when its answer is done it can be fetched."""
    asked = downloads.ask_for(here.studio, here.studio.job(job), name)
    return AskedShape.about(here.studio.answer(asked), id=asked)


@routes.get("/jobs/{job}/artefacts/{name}", response_class=Download)
def fetch_artefact(job: str, name: str, here: Here) -> Download:
    """Fetch a file of a job."""
    found = here.studio.job(job)
    path = downloads.file_of(here.studio, found, name)
    return Download(path, filename=downloads.title_of(here.studio, found, name))


@routes.get("/jobs/{job}/command")
def show_command(job: str, here: Here) -> dict[str, str]:
    """The command line that repeats a job on the same file, to the same key."""
    return {"command": artefacts.command_line(here.studio, here.studio.job(job))}


@routes.post("/projects/{project}/recipes", status_code=202)
def make_recipe(project: str, body: RecipeBody, here: Here) -> AskedShape:
    """Have the folder of `peftbook recipe` made: how to tune a bigger model on a card, with scripts that run."""
    asked = downloads.ask_for_recipe(here.studio, project, body.model, body.memory, body.data_licence)
    return AskedShape.about(here.studio.answer(asked), id=asked)


@routes.get("/projects/{project}/recipes/{answer}", response_class=Download)
def fetch_recipe(project: str, answer: str, here: Here) -> Download:
    """Fetch a recipe folder as a zip file, by the id of its answer, which says in words what is advised."""
    return Download(downloads.recipe_file(here.studio, project, answer), filename="recipe.zip")
