"""Home: the list of projects, and a file for a new one."""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from peftbook.core.errors import InputError
from peftbook.studio.api.context import Context
from peftbook.studio.formats import number, size
from peftbook.studio.html import fill
from peftbook.studio.pages.site import Live, View, Visit, render, status_of
from peftbook.studio.uploads import UploadStore, plain_name
from peftbook.tasks.columns import guess_columns

if TYPE_CHECKING:
    from fastapi import FastAPI

STATES = ("running", "queued", "done", "failed", "cancelled")
EVERY_SECONDS = 4.0
AROUND_BYTES = 100_000  # of a form around the file that it sends
BLOCK = 1 << 20


def listing(visit: Visit) -> Markup:
    """All projects, the newest first, with the states of their jobs."""
    counts: dict[str, Counter[str]] = {}
    for job in visit.studio.jobs():
        counts.setdefault(job.project, Counter())[job.state] += 1
    cards = [
        (one, visit.to(f"/projects/{one.id}/data"), counts.get(one.id, Counter()))
        for one in reversed(visit.studio.projects())
    ]
    return fill("home_live.html", cards=cards, states=STATES)


def show(visit: Visit) -> dict[str, Any]:
    caps = visit.context.uploads.caps
    return {
        "live": Live(listing(visit), EVERY_SECONDS),
        "most_bytes": caps.bytes,
        "most": size(caps.bytes),
        "most_rows": number(caps.rows),
        "pasted": "",
    }


HOME = View("home.html", show)


# --- uploads ---------------------------------------------------------------------------------------------------


def add_uploads(app: FastAPI, context: Context) -> None:
    """Take what the form sends: a file or a pasted table. The page's script sends files to the API instead."""

    async def upload(request: Request) -> Response:
        visit, pasted = Visit(context, request.scope["path"]), ""
        try:
            file, pasted = await sent(request, context.uploads)
            made = await run_in_threadpool(store_upload, context.uploads, file, pasted)
        except InputError as error:
            shown = (await run_in_threadpool(show, visit)) | {"pasted": pasted}
            text = await run_in_threadpool(functools.partial(render, visit, "home.html", refused=error, **shown))
            return HTMLResponse(text, status_of(error), headers={"connection": "close"})
        return RedirectResponse(visit.to(made), 303)

    app.add_route("/new", upload, methods=["POST"])


async def sent(request: Request, uploads: UploadStore) -> tuple[UploadFile | None, str]:
    """The file and the text of the form. Raises TooLarge as soon as it is too much."""
    most, seen = uploads.caps.bytes + AROUND_BYTES, 0
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > most:
        raise uploads.too_large()

    async def counted() -> AsyncGenerator[bytes, None]:
        nonlocal seen
        async for block in request.stream():
            seen += len(block)
            if seen > most:
                raise MultiPartException("too large")  # upon which the parser closes what it has begun
            yield block

    try:
        parser = MultiPartParser(request.headers, counted(), max_files=1, max_fields=2, max_part_size=most)
        form = await parser.parse()
    except (MultiPartException, KeyError):
        if seen > most:
            raise uploads.too_large() from None
        raise InputError("That is no form with a file: load the page again.") from None
    file, pasted = form.get("file"), form.get("pasted")
    return file if isinstance(file, UploadFile) else None, pasted if isinstance(pasted, str) else ""


def store_upload(uploads: UploadStore, file: UploadFile | None, pasted: str) -> str:
    """Store the table that was sent as an upload; its address."""
    filename = (file and file.filename) or ""
    source = file.file if file and filename else io.BytesIO(pasted.encode())
    if not (block := source.read(BLOCK)).strip():
        raise InputError("Nothing was sent: choose a file, or paste a header and rows.")
    upload = uploads.new(plain_name(filename))
    try:
        with source, uploads.receiving(upload.id) as write:
            while block:
                write(block)
                block = source.read(BLOCK)
        uploads.end(upload.id)
        guess_columns(uploads.table(upload.id))
    except BaseException:
        uploads.drop(upload.id)
        raise
    return f"/new/{upload.id}"
