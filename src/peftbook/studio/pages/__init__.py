"""The studio's pages: projects, and for each its steps from data to files. Thin: they ask the store and show.

    /                                           projects, and a new one
    /new/UPLOAD                                 how an upload is read
    /projects/ID/data plan runs decision try files; judge, from decision

What is chosen on a page stands in the query of its address, so that it can be kept, sent, and opened twice.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from peftbook.evidence import metrics, stats
from peftbook.studio.access import relative
from peftbook.studio.api.context import Context
from peftbook.studio.pages.data import DATA, READING
from peftbook.studio.pages.decide import DECISION
from peftbook.studio.pages.files import FILES
from peftbook.studio.pages.form import usual_rates
from peftbook.studio.pages.judge import JUDGE
from peftbook.studio.pages.plan import PLAN
from peftbook.studio.pages.projects import HOME, add_uploads
from peftbook.studio.pages.runs import RUNS
from peftbook.studio.pages.site import View, Visit, add_view, problem_page
from peftbook.studio.pages.tryout import TRY

if TYPE_CHECKING:
    from fastapi import FastAPI

STEPS = {"data": DATA, "plan": PLAN, "runs": RUNS, "decision": DECISION, "try": TRY, "files": FILES}


def add_pages(app: FastAPI, context: Context) -> None:
    """All of them."""
    add_view(app, context, "/", HOME)
    add_view(app, context, "/status", View("problem.html", lambda _: {"title": "Who works"}))
    add_view(app, context, "/new/{upload}", READING)
    add_uploads(app, context)
    for name, view in STEPS.items():
        add_view(app, context, f"/projects/{{project}}/{name}", view)
    add_view(app, context, "/projects/{project}/judge", JUDGE)
    app.add_route("/projects/{project}", first_step)
    app.add_exception_handler(Exception, functools.partial(unforeseen, context))


def warm() -> None:
    """Load what the first look at a plan or a decision would wait for: records of rates, scores, distributions."""
    usual_rates()
    metrics.rouge([""], [""])
    stats.quantile(0.05, 1.0)


def unforeseen(context: Context, request: Request, error: Exception) -> Response:
    """The page for an unexpected error; the server's log has its traceback."""
    words = Exception(f"This could not be answered ({type(error).__name__}): what the server said has more.")
    return problem_page(Visit(context, request.scope["path"]), words)


async def first_step(request: Request) -> Response:
    """A project without a step."""
    return RedirectResponse(relative(request.scope["path"], f"{request.scope['path']}/data"), 303)
