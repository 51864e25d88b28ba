"""Files: an upload in as many parts as it takes, what is in it, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from peftbook.studio.api.context import Here
from peftbook.studio.api.shapes import Body, FileShape, FindingsShape, ReadingBody, Shape, reading_of
from peftbook.studio.data_checks import examined
from peftbook.studio.uploads import plain_name
from peftbook.tasks.columns import guess_columns

routes = APIRouter(prefix="/files", tags=["files"])
PREVIEWED = 5
BYTES: dict[str, Any] = {
    "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


class FileBody(Body):
    filename: str = Field("", description="what it is called: shown, never opened")
    bytes: int = Field(description="how long it is", ge=1)


class TableShape(Shape):
    """What a file turned out to be. first: its first rows.  guess: which columns probably are what, and why."""

    format: str
    encoding: str
    delimiter: str
    columns: list[str]
    rows: int
    left_out: int
    first: list[list[str]]
    guess: dict[str, str | None]
    why: str


@routes.post("", status_code=201)
def begin_upload(body: FileBody, here: Here) -> FileShape:
    """Say what will be sent. The bytes follow by `PUT`, in one part or in several; after a break the rest is enough."""
    return FileShape.about(here.uploads.new(plain_name(body.filename), body.bytes))


@routes.get("")
def list_uploads(here: Here) -> list[FileShape]:
    """Uploads that are no project yet, oldest first. They are kept for a day, unfinished ones for an hour."""
    return [FileShape.about(upload) for upload in here.uploads.all()]


@routes.get("/{file}")
def show_upload(file: str, here: Here) -> FileShape:
    """How much of an upload is here: `offset` is where to go on."""
    return FileShape.about(here.uploads.get(file))


@routes.put("/{file}/content", openapi_extra=BYTES)
async def send_bytes(
    file: str, here: Here, request: Request, offset: Annotated[int, Query(ge=0, description="of the first byte")] = 0
) -> FileShape:
    """Send the next bytes of a file, as they are. What came before a break is kept."""
    with here.uploads.receiving(file, offset) as write:
        async for block in request.stream():
            await run_in_threadpool(write, block)
    return FileShape.about(here.uploads.get(file))


@routes.get("/{file}/table")
def show_table(file: str, here: Here) -> TableShape:
    """What is in a file: its columns, its first rows, and a guess which columns are meant."""
    found = here.uploads.table(file)
    guess, why = guess_columns(found)
    columns = {("instruction_column" if name == "instruction" else name): one for name, one in asdict(guess).items()}
    return TableShape.about(
        found, rows=len(found.rows), left_out=len(found.faults), first=found.rows[:PREVIEWED], guess=columns, why=why
    )


@routes.post("/{file}/findings")
def examine_file(file: str, body: ReadingBody, here: Here) -> FindingsShape:  # type: ignore[valid-type]
    """What would be wrong, repeated or leaking if the file were read in this way."""
    reading = reading_of(body)
    seen = examined(here.uploads.table(file), reading.columns, reading.split)
    return FindingsShape.of_file(seen, reading.instruction)


@routes.delete("/{file}", status_code=204)
def forget_upload(file: str, here: Here) -> None:
    """Forget an upload."""
    here.uploads.drop(here.uploads.get(file).id)
