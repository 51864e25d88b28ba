"""The page of the API: every route with what it takes, made from the description; no script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from peftbook.studio.html import fill, own_file

routes = APIRouter()
METHODS = ("get", "post", "put", "patch", "delete")


@routes.get("/", include_in_schema=False)
def show_page(request: Request) -> HTMLResponse:
    """The page: a session by curl, and the routes by their tags."""
    said, sections = request.app.openapi(), dict[str, list[dict[str, Any]]]()
    for method, path, operation in operations(said):
        route = operation | {"title": f"{method} {path}", "fields": [*parameters(operation), *fields(said, operation)]}
        sections.setdefault(operation["tags"][0], []).append(route)
    icon, style = (f"../..{own_file(name)[1]}" for name in ("icon.svg", "style.css"))
    return HTMLResponse(fill("api.html", icon=icon, style=style, sections=sections))


def operations(said: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and operation of every route of a description."""
    for path, known in said["paths"].items():
        for method in METHODS:
            if method in known:
                yield method.upper(), path, known[method]


def parameters(operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What stands in the address, with what it is without a word."""
    for one in operation.get("parameters", ()):
        if one["in"] == "query":
            yield one["name"], "query", describe_field(one.get("schema", {}), one.get("description", ""))


def fields(said: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the body has."""
    for form in operation.get("requestBody", {}).get("content", {}).values():
        schema = form.get("schema", {})
        named = said["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
        for name, one in named.get("properties", {}).items():
            yield name, "body", describe_field(one, one.get("description", ""), name in named.get("required", ()))


def describe_field(schema: dict[str, Any], words: str, needed: bool = False) -> str:
    """A field in words, with its bounds and its default."""
    parts = [words, "needed" if needed else ""]
    if "minimum" in schema and "maximum" in schema:
        parts.append(f"from {schema['minimum']:,.12g} to {schema['maximum']:,.12g}")
    if schema.get("default") not in (None, ""):
        parts.append(f"without: {json.dumps(schema['default'])}")
    return "; ".join(filter(None, parts))
