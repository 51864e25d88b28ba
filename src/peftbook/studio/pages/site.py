"""Shared by all pages: addresses, templates, forms and error pages.

A page is a `View` at one address. Looking at it changes nothing. What a form on it sends goes to the same address and
ends with another one to look at, or with the page as it was, what was typed in it and the sentence why not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.access import relative
from peftbook.studio.api.context import Context
from peftbook.studio.api.problems import STATUS
from peftbook.studio.html import fill, own_file, part
from peftbook.studio.store import Project, Studio

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_FIELDS = 500
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
STEPS = {"data": "Data", "plan": "Plan", "runs": "Runs", "decision": "Decision", "try": "Try it", "files": "Files"}


@dataclass(frozen=True)
class Visit:
    """One request for a page. names: ids in its path.  form: what was sent, None where somebody only looks.
    read_only: whether its token may only look.
    """

    context: Context
    path: str
    names: Mapping[str, str] = field(default_factory=dict)
    query: QueryParams = field(default_factory=QueryParams)
    form: QueryParams | None = None
    read_only: bool = False

    @property
    def studio(self) -> Studio:
        return self.context.studio

    @cached_property
    def project(self) -> Project:
        """The one that the address names. Raises Unknown for none."""
        return self.studio.project(self.names["project"])

    @property
    def typed(self) -> QueryParams:
        """What the fields of the page say."""
        return self.query if self.form is None else self.form

    def to(self, path: str, **query: object) -> str:
        """An address of the studio, as this page writes it."""
        return relative(self.path, address(path, **query))


def address(path: str, **query: object) -> str:
    """A path with what is asked of it; what says nothing is left out."""
    asked = urlencode({name: value for name, value in query.items() if value not in ("", None)}, doseq=True)
    return f"{path}?{asked}" if asked else path


@dataclass(frozen=True)
class Live:
    """The part of a page that changes by itself. seconds: until it is looked at again, 0 for never."""

    body: Markup
    seconds: float = 0.0


@dataclass(frozen=True)
class View:
    """A page. show: what its template is filled with; `live`, if there is one, is a `Live`.

    act: does what its forms ask for, and says which address comes next.
    """

    template: str
    show: Callable[[Visit], dict[str, Any]]
    act: Callable[[Visit], str] | None = None


def add_view(app: FastAPI, context: Context, path: str, view: View) -> None:
    """Serve a page."""

    async def endpoint(request: Request) -> Response:
        try:
            form = await form_of(request) if request.method == "POST" else None
        except InputError as error:
            return problem_page(Visit(context, request.scope["path"]), error)
        looks = request.scope.get("access") == "read"
        visit = Visit(context, request.scope["path"], request.path_params, request.query_params, form, looks)
        return await run_in_threadpool(answer, view, visit, request.headers.get("if-none-match", ""))

    app.add_route(path, endpoint, methods=["GET", "POST"] if view.act else ["GET"])


async def form_of(request: Request) -> QueryParams:
    """What a form has sent."""
    text = (await request.body()).decode("utf-8", "replace")
    try:
        return QueryParams(parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        raise InputError(f"That form has more than {MOST_FIELDS} fields: load the page again.") from None


def answer(view: View, visit: Visit, seen: str) -> Response:
    """Do what was asked for and go on, or show. seen: the mark of the live part that the browser has."""
    refused: InputError | None = None
    try:
        if visit.form is not None and view.act is not None:
            return RedirectResponse(visit.to(view.act(visit)), 303)
    except InputError as error:
        refused = error
    try:
        shown = view.show(visit)
    except InputError as error:
        return problem_page(visit, refused or error)
    if visit.form is None and visit.query.get("part") == "live":
        return live_part(visit, shown.get("live"), seen)
    said = refused or shown.pop("trouble", None)
    return HTMLResponse(render(visit, view.template, refused=said, **shown), status_of(said) if said else 200)


def status_of(error: Exception) -> int:
    """Of a refusal, as the API has it."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def render(visit: Visit, template: str, **shown: Any) -> str:
    """Render a page."""
    usual: dict[str, Any] = {"live": None, "refused": None}
    usual["file"] = lambda name: relative(visit.path, own_file(name)[1])
    usual |= {"to": visit.to, "status": lambda: worker_line(visit.studio), "trouble": partial(part, "trouble")}
    usual["read_only"] = visit.read_only
    return str(fill(template, **usual | shown))


def frame(visit: Visit) -> dict[str, Any]:
    """What the template of every step of a project is filled with."""
    project, step = visit.project, visit.path.rpartition("/")[2]
    typed = None if visit.form is None else visit.form.get("rename")
    return {
        "project": project,
        "steps": STEPS,
        "step": step,
        "new_name": typed,
        "jobs": len(visit.studio.jobs(project.id)),
        "address": visit.path,
        "here": lambda name: visit.to(f"/projects/{project.id}/{name}"),
    }


def problem_page(visit: Visit, error: Exception) -> Response:
    """A page with nothing but an error."""
    title = "There is no such page" if isinstance(error, Unknown) else "This cannot be shown"
    return HTMLResponse(render(visit, "problem.html", refused=error, title=title), status_of(error))


def live_part(visit: Visit, live: Live | None, seen: str) -> Response:
    """What changes by itself, alone; nothing where the browser has it already."""
    text = render(visit, "live.html", live=live)
    mark = f'"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"'
    return Response(status_code=304) if mark == seen else HTMLResponse(text, headers={"etag": mark})


def worker_line(studio: Studio) -> Markup:
    """The state of the workers, and their jobs."""
    workers = [worker for worker in studio.workers() if worker.alive]
    waiting = sum(job.state == "queued" for job in studio.jobs())
    if not workers:
        kind, sign, words = " status-off", "○", "No worker is running: runs wait until one starts"
    elif not (jobs := [studio.job(worker.job) for worker in workers if worker.job]):
        kind, sign, words = "", "●", "Worker ready"
    else:
        told = [f"{job.label}: {job.doing.words()[0]}" for job in jobs]
        kind, sign, words = " status-busy", "▸", "; ".join(told)
    words += f" · {waiting} waiting" if waiting else ""
    return Markup('<p class="status{}"><span aria-hidden="true">{}</span> {}</p>').format(kind, sign, words)


def typed_number(text: str) -> Any:
    """What a field says, also with commas between thousands; a text that is no number comes back, to be refused by its
    bounds.
    """
    try:
        value = float(text.replace(",", "") if THOUSANDS.fullmatch(text.strip()) else text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def lines(text: str | None) -> list[str]:
    """Those of a text that are not empty, without the spaces around them."""
    return list(filter(None, map(str.strip, (text or "").splitlines())))
