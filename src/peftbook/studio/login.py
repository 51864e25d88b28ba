"""Log in and out: a page with a form, and what it sends; by password, or by the token of the printed address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbook.studio.access import LOGIN
from peftbook.studio.markup import piece, trouble
from peftbook.studio.people import COOKIE, SESSION_SECONDS, Logins, Sessions, cookie
from peftbook.studio.tokens import OWNER, Keys, Owner

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

PAGE = (
    '<!doctype html><html lang="en" class="plain"><head><meta charset="utf-8"><title>Log in · peftbook studio</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="/studio/icon.svg">'
    '<link rel="stylesheet" href="/studio/style.css"></head><body class="login"><main><h1>peftbook studio</h1>'
    '{}<form method="post" action="{}">{}<button class="act act-main">Log in</button></form></main></body></html>'
)
FIELDS = piece(
    '<label>Name <input name="name" autocomplete="username" required autofocus maxlength="64"></label>'
    '<label>Password <input name="password" type="password" autocomplete="current-password" required></label>'
)
TOKEN_FIELD = piece(
    "<p>The studio printed an address when it was started; its end is a token. It also stands in the file "
    "<code>token</code> of the studio's folder.</p>"
    '<label>Token <input name="token" type="password" autocomplete="current-password" required autofocus></label>'
)


def login_page(words: str, *, by_token: bool = False) -> str:
    """The form, without a script."""
    return str(piece(PAGE, trouble(words) if words else "", LOGIN, TOKEN_FIELD if by_token else FIELDS))


def let_in(sessions: Sessions, name: str, secure: bool) -> Response:
    """An answer with a new cookie for somebody, which leads to the page."""
    from fastapi.responses import RedirectResponse

    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE, sessions.begin(name), max_age=int(SESSION_SECONDS), httponly=True, samesite="strict", secure=secure
    )
    return answer


def add_login(app: FastAPI, sessions: Sessions) -> None:
    """The form's routes."""
    from fastapi import Request
    from fastapi.responses import HTMLResponse, RedirectResponse
    from starlette.concurrency import run_in_threadpool

    by_token = isinstance(sessions.logins, Owner)

    async def form() -> Response:
        return HTMLResponse(login_page("", by_token=by_token))

    async def log_in(request: Request) -> Response:
        fields = await request.form(max_files=0, max_fields=4)
        said = {name: str(fields.get(name, "")) for name in ("name", "password", "token")}
        address = request.client.host if request.client else ""
        name, refused = await run_in_threadpool(person, sessions, said, address)
        if refused is not None:
            status, words, headers = refused
            return HTMLResponse(login_page(words, by_token=by_token), status, headers=headers)
        return await run_in_threadpool(let_in, sessions, name, request.url.scheme == "https")

    async def log_out(request: Request) -> Response:
        await run_in_threadpool(sessions.end, cookie(dict(request.headers)))
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(COOKIE)
        return answer

    for handler in (log_in, log_out):
        handler.__annotations__["request"] = Request
    app.add_api_route(LOGIN, form, methods=["GET"], response_model=None)
    app.add_api_route(LOGIN, log_in, methods=["POST"], response_model=None)
    app.add_api_route("/studio/logout", log_out, methods=["POST"], response_model=None)


Refused = tuple[int, str, dict[str, str]]


def person(sessions: Sessions, said: dict[str, str], address: str) -> tuple[str, Refused | None]:
    """Who says so, or status, sentence and headers of a refusal."""
    if isinstance(sessions.logins, Owner):
        if isinstance(sessions, Keys) and sessions.holder(said["token"]) == OWNER:
            return OWNER, None
        return "", (401, "That is not the token: copy it from the address that the studio printed.", {})
    assert isinstance(sessions.logins, Logins)
    return known(sessions.logins, said["name"][:64], said["password"], address)


def known(logins: Logins, name: str, password: str, address: str) -> tuple[str, Refused | None]:
    """Whether the password is somebody's; too many wrong ones have to wait."""
    wait = logins.wait(f"name {name}", f"address {address}")
    if wait > 0:
        words = f"Too many wrong passwords: wait {max(1, round(wait / 60))} min, then try again."
        return "", (429, words, {"retry-after": str(int(wait) + 1)})
    if not logins.check(name, password, address):
        return "", (401, "Name or password is wrong: try again.", {})
    return name, None
