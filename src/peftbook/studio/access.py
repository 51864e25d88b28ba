"""Access middleware: which requests reach the studio's pages and API.

Three checks, one after the other. The *host* that a request names must be one of the studio's (against DNS rebinding).
Every request but a visit to a page must come *from the studio's own pages*, or from no browser (against cross-site
requests). It must have a *session cookie*, which no script can read, or a token (`sessions`). Only the paths that pages
and API use exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from http import HTTPStatus
from typing import Any

from peftbook.core.errors import InputError
from peftbook.studio.sessions import SessionStore

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)  # RFC 3986, 3.2.2: a port is digits
OPEN = re.compile(r"/studio/(?:fonts/[\w.-]+|style\.css|page\.js|icon\.svg)")
PAGE = re.compile(r"/(?:status|new/\w+|projects/\w+(?:/(?:data|plan|runs|decision|judge|try|files))?)?", re.ASCII)
API = re.compile(r"/api/v1(?:/[\w.-]*)*", re.ASCII)
UPLOAD = "/new"
CONTENT = re.compile(rf"{UPLOAD}|/api/v1/files/\w+/content", re.ASCII)  # bytes of a file, which are counted there
PROBES = ("/api/v1/health", "/api/v1/ready")  # which say nothing of anybody's data
READ, WRITE = ("GET", "HEAD", "POST"), ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")  # of the page, of the API
LOCKED = (
    "This link has no token, one that was revoked, or a session that has ended. Open the address that the studio "
    "printed when it was started, whose token also stands in the file `token` of its folder. Who runs the studio makes "
    "you a link with `peftbook studio token create NAME`."
)
TITLES = {401: "This link opens nothing", 403: "This is not allowed", 507: "The disk is full"}  # of pages
READ_ONLY = "Your token may only look: ask who runs the studio for one that may also change things."
BODY_BYTES = 200_000  # of any request but an upload
DRAIN_SECONDS = 0.3
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
}


def relative(path: str, address: str) -> str:
    """A studio address as a link relative to `path`, the address of the page that holds it.

    The studio does not know a proxy's path prefix; a relative link works behind any.
    """
    return "../" * (path.count("/") - 1) + address[1:] or "./"


def is_ours(headers: dict[str, str], hosts: Iterable[str]) -> bool:
    """Whether a request comes from one of the studio's own pages, or from a client that is not a browser.

    A browser sends `Origin` with every request that can change something, and `Sec-Fetch-Site` with every request.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    named = None if origin is None else origin.partition("://")[2]
    if named is not None and (named != headers.get("host") or host_of(named) not in hosts):
        return False
    return site in (None, "same-origin", "none")


def host_of(value: str) -> str:
    """The host name in a Host header, without its port; empty for a malformed header."""
    found = HOST.fullmatch(value)
    return found[1].lower() if found else ""


class AccessMiddleware:
    """ASGI middleware: refuse what is not allowed, limit bodies, and add security headers to every answer.

    hosts: names under which the studio is reached.  sessions: who may come in; None where everybody is allowed.
    """

    def __init__(self, app: App, hosts: Iterable[str], sessions: SessionStore | None = None):
        self.app, self.hosts, self.sessions = app, frozenset(host.lower() for host in hosts), sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import ClientDisconnect  # of an extra, which `serve` asks for by name

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        try:
            refusal = self.refusal(path, method, headers, scope)
        except InputError as error:  # a full disk, where a session cannot begin
            refusal = 507, str(error)
        if refusal is not None:
            await drain(receive)
            await answer(send, path, *refusal)
            return
        most = sys.maxsize if CONTENT.fullmatch(path) else BODY_BYTES
        body = Body(receive, send, most, headers.get("content-length", "0"))
        if body.fits:
            try:
                await self.app(scope, body.receive, with_headers(body.send, cacheable=bool(OPEN.fullmatch(path))))
            except ClientDisconnect:
                if body.fits:
                    raise
        if not body.fits and not body.answered:
            await drain(receive)
            await answer(send, path, 413, f"That is more than {BODY_BYTES:,} bytes at once: send less.")

    def refusal(self, path: str, method: str, headers: dict[str, str], scope: Scope) -> tuple | None:
        """Status, words and further headers if a request must not go on; else what it may do is noted in `scope`."""
        if host_of(headers.get("host", "")) not in self.hosts:
            return 421, "This studio does not answer to that name: open it by the address that it printed."
        page, of_api = PAGE.fullmatch(path), API.fullmatch(path)
        known = OPEN.fullmatch(path) or page or path == UPLOAD
        if not (known or of_api) or ".." in path or method not in (WRITE if of_api else READ):
            return 404, "There is nothing here."
        visit = method in ("GET", "HEAD") and (page or path == "/api/v1/")
        query, secure = scope["query_string"], scope.get("scheme") == "https"
        if page and visit and self.sessions and (login := self.sessions.log_in_by_query(path, query, secure=secure)):
            return 303, "Come in.", login
        if not visit and not is_ours(headers, self.hosts):
            return 403, "This was asked for by another site: open the studio itself."
        if self.sessions is None or OPEN.fullmatch(path) or path in PROBES:
            return None
        scope["access"] = allowed = self.sessions.access_of(headers)
        if allowed == "read" and method not in ("GET", "HEAD"):
            return 403, READ_ONLY
        if allowed is not None:
            return None
        if of_api:
            return 401, "Say who asks: send `Authorization: Bearer TOKEN`.", {"www-authenticate": "Bearer"}
        return 401, LOCKED


class Body:
    """The body of a request, of at most so many bytes: a longer one ends as if the client had gone, and no answer to it
    is sent on. announced: its length, as the client says.  answered: whether an answer was begun.
    """

    def __init__(self, receive: Receive, send: Send, most: int, announced: str):
        self.inner, self.outer, self.most = receive, send, most
        self.seen, self.answered = 0, False
        self.fits = bool(re.fullmatch("[0-9]{1,15}", announced)) and int(announced) <= most

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self.inner()
        self.seen += len(message.get("body", b""))
        self.fits = self.fits and self.seen <= self.most
        return message if self.fits else {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.answered or self.fits:
            self.answered = True
            await self.outer(message)


async def drain(receive: Receive) -> None:
    """Read a body that nobody wants, for a moment: a connection that is closed before is reset, and its answer lost."""
    seen, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while more and seen < BODY_BYTES:
                message = await receive()
                seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)


def with_headers(send: Send, *, cacheable: bool) -> Send:
    """Add the headers to an answer; what is not a file of the page is kept by nobody."""

    async def send_on(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            new = HEADERS | ({} if cacheable else {"cache-control": "no-store"})
            kept = [one for one in message["headers"] if one[0].decode("latin-1").lower() not in new]
            kept = [one for one in kept if not one[0].lower().startswith(b"access-control-")]
            message["headers"] = kept + [(name.encode(), value.encode()) for name, value in new.items()]
        await send(message)

    return send_on


async def answer(send: Send, path: str, status: int, words: str, more: dict[str, str] | None = None) -> None:
    """One sentence: for a program as a problem, for a browser as a page."""
    if path.startswith("/api/"):
        kind, body = "application/problem+json", json.dumps(problem(status, words)).encode()
    else:
        from peftbook.studio.html import fill, own_file  # which this module is imported before

        ways: dict[str, Any] = {"to": partial(relative, path), "file": lambda name: relative(path, own_file(name)[1])}
        page = fill(
            "refusal.html",
            words=words,
            inside=status == 403,
            title=TITLES.get(status, HTTPStatus(status).phrase),
            **ways,
        )
        kind, body = "text/html; charset=utf-8", page.encode()
    headers = [(name.encode(), value.encode()) for name, value in ({"content-type": kind} | (more or {})).items()]
    send_on = with_headers(send, cacheable=False)
    await send_on({"type": "http.response.start", "status": status, "headers": headers})
    await send_on({"type": "http.response.body", "body": body})


def problem(status: int, words: str) -> dict[str, Any]:
    """Problem details: what went wrong in one sentence, `detail`, as the page shows it. Source: RFC 9457, section 3."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": words}
