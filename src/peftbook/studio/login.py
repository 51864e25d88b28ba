"""Log in and out: a page with a form, and what it sends; by password, or by the token of the printed address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from peftbook.studio.access import LOGIN, LOGOUT, PAGE, relative
from peftbook.studio.pages.site import Context, Visit, render
from peftbook.studio.people import Logins, Refused, known
from peftbook.studio.tokens import COOKIE, OWNER, Keys, Owner, cookie

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_login(app: FastAPI, sessions: Keys, context: Context) -> None:
    def form(request: Request, refused: str = "") -> str:
        by_token, to = isinstance(sessions.logins, Owner), request.query_params.get("to", "")
        visit = Visit(context, LOGIN, query=request.query_params)
        return render(visit, "login.html", refused=refused, by_token=by_token, action=visit.to(LOGIN, to=to))

    async def log_in(request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(await run_in_threadpool(form, request))
        fields = await request.form(max_files=0, max_fields=4)
        said = {name: str(fields.get(name, "")) for name in ("name", "password", "token")}
        address = request.client.host if request.client else ""
        name, refused = await run_in_threadpool(person, sessions, said, address)
        if refused is not None:
            status, words, headers = refused
            return HTMLResponse(await run_in_threadpool(form, request, words), status, headers=headers)
        return await run_in_threadpool(let_in, sessions, name, request)

    async def log_out(request: Request) -> Response:
        await run_in_threadpool(sessions.end, cookie(dict(request.headers)))
        answer = RedirectResponse(relative(LOGOUT, LOGIN), 303)
        answer.delete_cookie(COOKIE)
        return answer

    app.add_route(LOGIN, log_in, methods=["GET", "POST"])
    app.add_route(LOGOUT, log_out, methods=["POST"])


def let_in(sessions: Keys, name: str, request: Request) -> Response:
    """An answer with a new cookie for somebody, which leads to the page that was asked for."""
    to = request.query_params.get("to", "/")
    address = relative(LOGIN, to if PAGE.fullmatch(to.partition("?")[0]) else "/")
    said = sessions.begin(name, secure=request.url.scheme == "https")
    return RedirectResponse(address, 303, headers={"set-cookie": said})


def person(sessions: Keys, said: dict[str, str], address: str) -> tuple[str, Refused | None]:
    """Who says so, or status, sentence and headers of a refusal."""
    if isinstance(sessions.logins, Owner):
        if sessions.holder(said["token"]) == OWNER:
            return OWNER, None
        return "", (401, "That is not the token: copy it from the address that the studio printed.", {})
    assert isinstance(sessions.logins, Logins)
    return known(sessions.logins, said["name"][:64], said["password"], address)
