"""Health: whether the service lives, and whether it can do its work."""

from __future__ import annotations

import shutil
import sqlite3

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from peftbook.core.errors import InputError
from peftbook.studio.api.context import FiniteJsonResponse, Here
from peftbook.studio.store import Studio

routes = APIRouter(tags=["health"])
WAIT_SECONDS = 1.0  # so that a probe is answered before it counts as lost
ROOM_BYTES = 1_000_000_000  # for checkpoints and adapters of the next jobs
PROBES = CapacityLimiter(2)  # of their own: where all threads wait for something, this is what a probe must say


class ReadyShape(BaseModel):
    """Whether jobs can be taken and computed; what is missing, a sentence each."""

    ready: bool
    missing: list[str]


@routes.get("/health")
async def show_health() -> dict[str, str]:
    """Whether the service answers at all; it asks nothing of the disk, and waits for no other request."""
    return {"status": "ok"}


@routes.get("/ready", response_model=ReadyShape)
async def show_readiness(here: Here) -> JSONResponse:
    """Whether the service can do its work: 200, or 503 with what is missing."""
    missing = await to_thread.run_sync(troubles, here.studio, limiter=PROBES)
    said = ReadyShape(ready=not missing, missing=missing)
    return FiniteJsonResponse(said.model_dump(), 503 if missing else 200)


def troubles(studio: Studio) -> list[str]:
    """The problems of database, worker and disk; waits at most a second for a lock."""
    try:
        studio.check_writable(WAIT_SECONDS)
        workers = any(worker.alive for worker in studio.workers())
    except (sqlite3.Error, InputError) as error:
        return [f"The database cannot be written: {error}."]
    found = [] if workers else ["No worker is running: jobs wait until one starts."]
    if (free := shutil.disk_usage(studio.home).free) < ROOM_BYTES:
        found.append(f"The disk has {free:,} bytes left: free some space.")
    return found
