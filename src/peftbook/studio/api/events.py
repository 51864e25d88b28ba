"""Live progress as server-sent events. Source: HTML Living Standard, section 9.2."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from fastapi import Request
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from peftbook.core.errors import InputError
from peftbook.studio.jobs import Job

JOB = TypeAdapter(Job)
LOOK_SECONDS = 0.5
QUIET_SECONDS = 15.0  # after which a comment says that the connection lives


class Events(StreamingResponse):
    media_type = "text/event-stream"


async def stream(request: Request, read: Callable[[], list[Job]]) -> Events:
    """The jobs that `read` finds, one event for each that has changed. What it refuses at once is refused as usual."""
    first = await run_in_threadpool(read)
    return Events(events(request, read, first))


async def events(request: Request, read: Callable[[], list[Job]], jobs: list[Job]) -> AsyncIterator[str]:
    """The text of the stream, until all jobs have ended, are gone, or nobody listens."""
    told: dict[str, str] = {}
    said = time.monotonic()
    while True:
        for job in jobs:
            data = JOB.dump_json(job).decode()
            if told.get(job.id) != data:
                told[job.id], said = data, time.monotonic()
                yield event("job", data)
        if all(job.ended for job in jobs):
            break
        if time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_SECONDS)
        if await request.is_disconnected():
            return
        try:
            jobs = await run_in_threadpool(read)
        except InputError:  # the project was deleted
            break
    yield event("end", "{}")


def event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
