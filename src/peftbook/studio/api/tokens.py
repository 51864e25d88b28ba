"""Tokens of programs: create, list and revoke one's own; authenticated by password, cookie or another token."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.exceptions import HTTPException

from peftbook.core.errors import Conflict
from peftbook.studio.api.context import Here, User
from peftbook.studio.api.shapes import Body, Shape
from peftbook.studio.sessions import SessionStore
from peftbook.studio.users import LoginFile, Refusal

routes = APIRouter(prefix="/tokens", tags=["tokens"])


class TokenBody(Body):
    label: str = Field(description="what the token is for")


class TokenShape(Shape):
    """A token. secret: said once, when it is made."""

    id: str
    label: str
    created: float
    used: float | None
    secret: str | None = None


def sessions_of(here: Here) -> SessionStore:
    """The session store. Raises Conflict for a studio without authentication."""
    if here.sessions is None:
        raise Conflict("This studio lets in everybody on this machine: it needs no tokens.")
    return here.sessions


Sessions = Annotated[SessionStore, Depends(sessions_of)]


def caller(request: Request, sessions: Sessions, user: User) -> str:
    """The user of a request: as the middleware found, or by name and password. Raises HTTPException for none."""
    if user is not None:
        return user
    refusal: Refusal = 401, "Say who asks: send a token, or name and password", {}
    if isinstance(sessions.logins, LoginFile) and (sent := basic(request.headers.get("authorization", ""))):
        name, password = sent[0][:64], sent[1]
        refused = sessions.logins.refusal(name, password, request.client.host if request.client else "")
        if refused is None:
            return name
        refusal = refused
    status, words, headers = refusal
    if status == 401:
        headers = headers | {"www-authenticate": "Basic, Bearer"}
    raise HTTPException(status, words.rstrip("."), headers)


Caller = Annotated[str, Depends(caller)]


def basic(value: str) -> tuple[str, str] | None:
    """Name and password of an `Authorization: Basic …`. Source: RFC 7617."""
    kind, _, coded = value.partition(" ")
    try:
        name, colon, password = base64.b64decode(coded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (name, password) if kind.lower() == "basic" and colon else None


@routes.post("", status_code=201)
def make_token(body: TokenBody, sessions: Sessions, name: Caller) -> TokenShape:
    """Make a token: its secret is in this answer and nowhere else.

    With a login file name and password are enough: `curl -u NAME`.
    """
    token, secret = sessions.make(name, body.label)
    return TokenShape.about(token, secret=secret)


@routes.get("")
def list_tokens(sessions: Sessions, name: Caller) -> list[TokenShape]:
    """Your tokens, without their secrets."""
    return [TokenShape.about(token, secret=None) for token in sessions.tokens(name)]


@routes.delete("/{token}", status_code=204)
def take_back_token(token: str, sessions: Sessions, name: Caller) -> None:
    """Take a token back: it opens nothing any more."""
    sessions.revoke(name, token)
