"""The studio by HTTP: `/api/v1`, one set of routes that page, command line and programs ask.

Every rule that a route holds to lives below it, where the page asks too. What goes wrong is problem details (RFC 9457)
with the sentence that the page shows. The description is at `/api/v1/openapi.json`, its page at `/api/v1/`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from peftbook.studio.access import PROBES
from peftbook.studio.api import answers, artefacts, decisions, files, health, jobs, page, plans, projects
from peftbook.studio.api.context import Context, FiniteJsonResponse
from peftbook.studio.api.problems import PROBLEMS, SCHEMA, add_problems

ROUTERS = (health, files, projects, plans, jobs, decisions, answers, artefacts)


def build_api(context: Context) -> FastAPI:
    """The application behind `/api/v1`."""
    api = Api(
        title="peftbook studio",
        version="1",
        description=(__doc__ or "").strip(),
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        default_response_class=FiniteJsonResponse,
        responses=PROBLEMS,
        generate_unique_id_function=name_of,
        redirect_slashes=False,
    )
    api.state.context = context
    for module in ROUTERS:
        api.include_router(module.routes)
    api.include_router(page.routes)
    add_problems(api)
    return api


def name_of(route: APIRoute) -> str:
    """A route is called what its function is called."""
    return route.name


class Api(FastAPI):
    """FastAPI, whose description says what a refused body is answered with: a problem, like all else that is wrong."""

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            said = super().openapi()
            said["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            said["components"]["schemas"]["Problem"] = SCHEMA
            said["components"]["schemas"]["Method"]["additionalProperties"] = True  # of each its own
            said["security"] = [{"token": []}]
            for path in PROBES:
                said["paths"][path.removeprefix("/api/v1")]["get"]["security"] = []
        return self.openapi_schema or {}
