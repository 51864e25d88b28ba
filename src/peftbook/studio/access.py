"""Access middleware: which requests reach the studio's pages and API.

Three checks, one after the other. The *host* that a request names must be one of the studio's (against DNS rebinding).
Every request but a visit to a page must come *from the studio's own pages*, or from no browser (against cross-site
requests). It must have a *session cookie*, which no script can read, or a token (`sessions`). Only the paths that pages
and API use exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from peftbook.studio.sessions import SessionStore

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)  # RFC 3986, 3.2.2: a port is digits
OPEN = re.compile(r"/studio/(?:fonts/[\w.-]+|style\.css|page\.js|icon\.svg)")
PAGE = re.compile(r"/(?:status|new/\w+|projects/\w+(?:/(?:data|plan|runs|decision|try|files))?)?", re.ASCII)
API = re.compile(r"/api/v1(?:/[\w.-]*)*", re.ASCII)
UPLOAD = "/new"
CONTENT = re.compile(rf"{UPLOAD}|/api/v1/files/\w+/content", re.ASCII)  # bytes of a file, which are counted there
PROBES = ("/api/v1/health", "/api/v1/ready")  # which say nothing of anybody's data
READ, WRITE = ("GET", "HEAD", "POST"), ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")  # of the page, of the API
LOCKED = (
    "This address has no token, one that was taken back, or a session that has ended. Open the one that the studio "
    "printed when it was started, whose token also stands in the file `token` of its folder, or one made for you."
)
BODY_BYTES = 8_000_000  # of any request but an upload
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
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        refusal = self.refusal(path, method, headers, scope)
        if refusal is not None:
            await answer(send, path, *refusal)
            return
        limited = receive if CONTENT.fullmatch(path) else limit(receive, headers, BODY_BYTES)
        if limited is None:
            await answer(send, path, 413, f"That is more than {BODY_BYTES:,} bytes at once: send less.")
            return
        await self.app(scope, limited, with_headers(send, cacheable=bool(OPEN.fullmatch(path))))

    def refusal(self, path: str, method: str, headers: dict[str, str], scope: Scope) -> tuple | None:
        """Status, words and further headers if a request must not go on."""
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
        if self.sessions is None or OPEN.fullmatch(path) or path in PROBES or self.sessions.admits(headers):
            return None
        if of_api:
            return 401, "Say who asks: send `Authorization: Bearer TOKEN`.", {"www-authenticate": "Bearer"}
        return 401, LOCKED


def limit(receive: Receive, headers: dict[str, str], most: int) -> Receive | None:
    """Hand on a body up to a size; None for one that announces more. A longer one ends as if the client had gone."""
    announced = headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,15}", announced) or int(announced) > most:
        return None
    seen = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= most else {"type": "http.disconnect"}

    return counted


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
    """One sentence: for a program as a problem."""
    kind, body = "text/plain; charset=utf-8", f"{words}\n".encode()
    if path.startswith("/api/"):
        kind, body = "application/problem+json", json.dumps(problem(status, words)).encode()
    headers = [(name.encode(), value.encode()) for name, value in ({"content-type": kind} | (more or {})).items()]
    send_on = with_headers(send, cacheable=False)
    await send_on({"type": "http.response.start", "status": status, "headers": headers})
    await send_on({"type": "http.response.body", "body": body})


def problem(status: int, words: str) -> dict[str, Any]:
    """Problem details: what went wrong in one sentence, `detail`, as the page shows it. Source: RFC 9457, section 3."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": words}
