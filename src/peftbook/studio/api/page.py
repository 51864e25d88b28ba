"""The page of the API: every route with what it takes and an example for curl, made from the description; no script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from markupsafe import Markup
from starlette.responses import HTMLResponse

from peftbook.studio.api.examples import BEFORE, EXAMPLES, Example
from peftbook.studio.markup import joined, own_file, piece, table

routes = APIRouter()
METHODS = ("get", "post", "put", "patch", "delete")
FRAME = """<!doctype html><html lang="en" class="plain"><head><meta charset="utf-8"><title>API · peftbook studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="Every route of the studio's API, with an example for curl.">
<link rel="icon" href="../..{}"><link rel="stylesheet" href="../..{}"></head>
<body class="api"><main><h1>The studio's API</h1>
<p>Everything that the page does, for programs. All routes begin with <code>/api/v1</code> and want a token:
<code>Authorization: Bearer TOKEN</code>. Without a login file it is the one in the address that the studio prints; with
one, <code>curl -u NAME $STUDIO/tokens -H 'Content-Type: application/json' -d '{{"label": "laptop"}}'</code> makes one.
What goes wrong is <code>application/problem+json</code>, whose <code>detail</code> is a sentence that says what to do.
The <a href="openapi.json">description</a> is OpenAPI.</p><h2>A session</h2>
<p>From a file to an adapter, by curl. A name in capitals stands for what an earlier answer said.</p>
<pre tabindex="0">{}</pre>
{}</main></body></html>
"""


@routes.get("/", include_in_schema=False)
def show_page(request: Request) -> HTMLResponse:
    """All of it."""
    said = request.app.openapi()
    tags = dict.fromkeys(operation["tags"][0] for _, _, operation in operations(said))
    parts = joined(section(said, tag) for tag in tags)
    own = (own_file(name)[1] for name in ("icon.svg", "style.css"))
    return HTMLResponse(str(piece(FRAME, *own, "\n".join(session()), parts)))


def operations(said: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and operation of every route of a description."""
    for path, known in said["paths"].items():
        for method in METHODS:
            if method in known:
                yield method.upper(), path, known[method]


def session() -> Iterator[str]:
    """The examples as one script with remarks."""
    yield from BEFORE
    for example in EXAMPLES:
        yield example.command() + remark(example)


def remark(example: Example) -> str:
    """What is done with the answer."""
    parts = [f"{name.upper()} is {place} of the answer" for name, place in example.keep.items()]
    if example.until:
        parts.append(f"ask again until its state is {example.until}")
    return f"  # {'; '.join(parts)}" if parts else ""


def section(said: dict[str, Any], tag: str) -> Markup:
    """The routes of one kind."""
    routes_of = [one for one in operations(said) if one[2]["tags"][0] == tag]
    return piece("<h2>{}</h2>{}", tag.capitalize(), joined(entry(said, *one) for one in routes_of))


def entry(said: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Markup:
    """One route."""
    rows = [*parameters(operation), *fields(said, operation)]
    taken = table(["Name", "Where", "What"], rows, kind="api", caption=f"What {method} {path} takes") if rows else ""
    example = next(one for one in EXAMPLES if one.route == f"{method} {path}")
    return piece(
        '<article id="{}"><h3><code>{} {}</code></h3><p>{}</p>{}<pre tabindex="0">{}</pre></article>',
        operation["operationId"], method, path, prose(operation.get("description", "")), taken, example.command(),
    )  # fmt: skip


def parameters(operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What stands in the address, with what it is without a word."""
    for one in operation.get("parameters", ()):
        if one["in"] == "query":
            yield one["name"], "query", told(one.get("schema", {}), one.get("description", ""))


def fields(said: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the body has."""
    for form in operation.get("requestBody", {}).get("content", {}).values():
        schema = form.get("schema", {})
        named = said["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
        for name, one in named.get("properties", {}).items():
            yield name, "body", told(one, one.get("description", ""), name in named.get("required", ()))


def told(schema: dict[str, Any], words: str, needed: bool = False) -> str:
    """A field in words, with its bounds and its default."""
    parts = [words, "needed" if needed else ""]
    if "minimum" in schema and "maximum" in schema:
        parts.append(f"from {shown(schema['minimum'])} to {shown(schema['maximum'])}")
    if schema.get("default") not in (None, ""):
        parts.append(f"without: {json.dumps(schema['default'])}")
    return "; ".join(filter(None, parts))


def shown(value: float) -> str:
    """A bound: whole numbers without a point."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def prose(text: str) -> Markup:
    """A docstring with what stands between backticks as code."""
    parts = text.split("`")
    return joined(piece("<code>{}</code>" if at % 2 else "{}", part) for at, part in enumerate(parts))
