"""What goes wrong, as problem details. Source: RFC 9457."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from peftbook.core.errors import Conflict, InputError, TooLarge, Unknown
from peftbook.studio.access import problem
from peftbook.studio.api.context import FiniteJsonResponse

STATUS = {Unknown: 404, Conflict: 409, TooLarge: 413, InputError: 422}
TYPE = "application/problem+json"
SHOWN_CHARS = 60
LONG = re.compile(r"""'([^']{200})[^']{60,}'|"([^"]{200})[^"]{60,}\"""")  # a value that nobody would read to its end
SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "HTTP's words for the status"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what went wrong and what to do, in one sentence"},
    },
}
REFERENCE = {"$ref": "#/components/schemas/Problem"}
PROBLEM: dict[str, Any] = {"description": "What went wrong.", "content": {TYPE: {"schema": REFERENCE}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: PROBLEM | {"description": "The token is missing, wrong or revoked."},
    403: PROBLEM | {"description": "The token may only read, or the request comes from another site's page."},
    404: PROBLEM | {"description": "There is nothing with this id."},
    409: PROBLEM | {"description": "Its state does not allow it."},
    413: PROBLEM | {"description": "The body or file is too large."},
    422: PROBLEM | {"description": "A value is wrong."},
    507: PROBLEM | {"description": "The disk is full."},
    "default": PROBLEM,
}


class Problem(FiniteJsonResponse):
    media_type = TYPE


def add_problems(api: FastAPI) -> None:
    """Everything that is raised becomes an answer of this kind."""

    def refused(_: Request, error: Exception) -> Problem:
        return problem_response(next(status for kind, status in STATUS.items() if isinstance(error, kind)), str(error))

    def invalid(_: Request, error: Exception) -> Problem:
        assert isinstance(error, RequestValidationError)
        return problem_response(422, sentence_of(error.errors()[0]))

    def of_http(_: Request, error: Exception) -> Problem:
        assert isinstance(error, HTTPException)
        words = {404: "There is nothing here: see /api/v1/.", 405: "This cannot be done here: see /api/v1/."}
        return problem_response(error.status_code, words.get(error.status_code, f"{error.detail}."), error.headers)

    def unforeseen(_: Request, error: Exception) -> Problem:
        words = f"This could not be answered ({type(error).__name__}): what the server said has more."
        return problem_response(500, words)

    api.add_exception_handler(InputError, refused)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(HTTPException, of_http)
    api.add_exception_handler(Exception, unforeseen)


def problem_response(status: int, words: str, headers: Any = None) -> Problem:
    return Problem(problem(status, LONG.sub(r"'\1\2…'", words)), status, headers=headers)


def sentence_of(error: dict[str, Any]) -> str:
    """The first thing that is wrong with a body or an address, with its name and value."""
    where = printable(".".join(str(part) for part in error["loc"][1:])) or "The body"
    if error["type"] == "json_invalid":
        return f"The body is no JSON ({error.get('ctx', {}).get('error', 'it ends too early')}): mend it."
    if where == "The body" and isinstance(error.get("input"), bytes):
        return "The body does not say that it is JSON: send it with Content-Type: application/json."
    if error["type"] == "deep":
        return "The body is nested deeper than anything that is asked for: send what the description says."
    if error["type"] == "missing":
        return f"{where} is missing: give it."
    if error["type"] == "extra_forbidden":
        return f"{where} is no field of this body: leave it out."
    value = cut(repr(error.get("input")))
    return f"{where} is {value}: {str(error['msg']).replace('Input should', 'it should')}."


def printable(text: str) -> str:
    """A name from outside, or its beginning, with an escape for what does not print."""
    return cut(text if text.isprintable() else repr(text)[1:-1])


def cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
