"""Health: whether the service lives, and whether it can do its work."""

from __future__ import annotations

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from peftbook.studio.api.context import FiniteJsonResponse, Here
from peftbook.studio.machine import troubles

routes = APIRouter(tags=["health"])
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
