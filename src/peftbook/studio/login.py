"""The routes that log in and out: by name and password, or by the token of the printed address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from peftbook.studio.access import LOGIN, LOGOUT, PAGE, relative
from peftbook.studio.api.context import Context
from peftbook.studio.pages.site import Visit, render
from peftbook.studio.sessions import COOKIE, OWNER, OwnerToken, SessionStore, cookie
from peftbook.studio.users import LoginFile, Refusal

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_login(app: FastAPI, sessions: SessionStore, context: Context) -> None:
    def form(request: Request, refused: str = "") -> str:
        by_token, to = isinstance(sessions.logins, OwnerToken), request.query_params.get("to", "")
        visit = Visit(context, LOGIN, query=request.query_params)
        return render(visit, "login.html", refused=refused, by_token=by_token, action=visit.to(LOGIN, to=to))

    async def log_in(request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(await run_in_threadpool(form, request))
        sent = await request.form(max_files=0, max_fields=4)
        fields = {name: str(sent.get(name, "")) for name in ("name", "password", "token")}
        fields["name"] = fields["name"][:64]
        address = request.client.host if request.client else ""
        if (refused := await run_in_threadpool(refusal, sessions, fields, address)) is not None:
            status, words, headers = refused
            return HTMLResponse(await run_in_threadpool(form, request, words), status, headers=headers)
        name = fields["name"] if isinstance(sessions.logins, LoginFile) else OWNER
        return await run_in_threadpool(logged_in, sessions, name, request)

    async def log_out(request: Request) -> Response:
        await run_in_threadpool(sessions.end, cookie(dict(request.headers)))
        answer = RedirectResponse(relative(LOGOUT, LOGIN), 303)
        answer.delete_cookie(COOKIE)
        return answer

    app.add_route(LOGIN, log_in, methods=["GET", "POST"])
    app.add_route(LOGOUT, log_out, methods=["POST"])


def logged_in(sessions: SessionStore, name: str, request: Request) -> Response:
    """Begin a session and redirect to the page that was asked for."""
    to = request.query_params.get("to", "/")
    address = relative(LOGIN, to if PAGE.fullmatch(to.partition("?")[0]) else "/")
    cookie = sessions.begin(name, secure=request.url.scheme == "https")
    return RedirectResponse(address, 303, headers={"set-cookie": cookie})


def refusal(sessions: SessionStore, fields: dict[str, str], address: str) -> Refusal | None:
    """None if the token, or name and password, are right; else status, sentence and headers."""
    if isinstance(sessions.logins, LoginFile):
        return sessions.logins.refusal(fields["name"], fields["password"], address)
    if sessions.token_owner(fields["token"]) == OWNER:
        return None
    return 401, "That is not the token: copy it from the address that the studio printed.", {}
