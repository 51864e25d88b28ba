"""Artefacts: what can be taken away of a finished job."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from peftbook.studio import downloads
from peftbook.studio.api.context import Download, Here
from peftbook.studio.api.shapes import AnswerShape
from peftbook.studio.model_card import command_line

routes = APIRouter(tags=["artefacts"])


class ArtefactShape(BaseModel):
    """A file of a job. ready: whether it can be fetched; else it is made when it is asked for by `POST`."""

    name: str
    words: str
    ready: bool


@routes.get("/jobs/{job}/artefacts")
def list_artefacts(job: str, here: Here) -> list[ArtefactShape]:
    """What there is of a finished job, and what can be made of it."""
    found = here.studio.job(job)
    return [
        ArtefactShape(name=one.name, words=one.words, ready=one.is_ready(here.studio, found))
        for one in downloads.offered(here.studio, found)
    ]


@routes.post("/jobs/{job}/artefacts/{name}", status_code=202)
def make_artefact(job: str, name: str, here: Here) -> AnswerShape:
    """Have a merged model or a GGUF file made; when its answer is done it can be fetched."""
    task = downloads.ask_for(here.studio, here.studio.job(job), name)
    return AnswerShape.about(here.studio.get_task(task))


BINARY = {"schema": {"type": "string", "format": "binary"}}
KINDS = dict.fromkeys(("application/zip", "text/csv", "application/octet-stream"), BINARY)


@routes.get("/jobs/{job}/artefacts/{name}", response_class=Download, responses={200: {"content": KINDS}})
def fetch_artefact(job: str, name: str, here: Here) -> Download:
    """Fetch a file of a job."""
    found = here.studio.job(job)
    path = downloads.file_of(here.studio, found, name)
    return Download(path, filename=downloads.title_of(here.studio, found, name))


@routes.get("/jobs/{job}/command")
def show_command(job: str, here: Here) -> dict[str, str]:
    """The command line that repeats a job on the same file, to the same key."""
    return {"command": command_line(here.studio, here.studio.job(job))}
