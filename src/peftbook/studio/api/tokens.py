"""Tokens: made by who knows a password or has a cookie, shown once, taken back by their maker."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.exceptions import HTTPException

from peftbook.errors import Conflict
from peftbook.studio.api.context import Asks, Here
from peftbook.studio.api.shapes import Body, Shape
from peftbook.studio.people import Logins, known
from peftbook.studio.tokens import Keys

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


def keys_of(here: Here) -> Keys:
    """Where tokens are kept. Raises Conflict where everybody may come in."""
    if here.keys is None:
        raise Conflict("This studio lets in everybody on this machine: it needs no tokens.")
    return here.keys


Kept = Annotated[Keys, Depends(keys_of)]


def somebody(request: Request, keys: Kept, asks: Asks) -> str:
    """Who asks: as the door found, or by name and password. Raises HTTPException for nobody."""
    if asks is not None:
        return asks
    refused: tuple[int, str, dict[str, str]] = 401, "Say who asks: send a token, or name and password", {}
    if isinstance(keys.logins, Logins) and (said := basic(request.headers.get("authorization", ""))):
        name, wrong = known(keys.logins, said[0][:64], said[1], request.client.host if request.client else "")
        if wrong is None:
            return name
        refused = wrong[0], wrong[1].rstrip("."), wrong[2]
    status, words, headers = refused
    raise HTTPException(status, words, headers | ({"www-authenticate": "Basic, Bearer"} if status == 401 else {}))


Somebody = Annotated[str, Depends(somebody)]


def basic(value: str) -> tuple[str, str] | None:
    """Name and password of an `Authorization: Basic …`. Source: RFC 7617."""
    kind, _, coded = value.partition(" ")
    try:
        name, colon, password = base64.b64decode(coded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (name, password) if kind.lower() == "basic" and colon else None


@routes.post("", status_code=201)
def make_token(body: TokenBody, keys: Kept, name: Somebody) -> TokenShape:
    """Make a token: its secret is in this answer and nowhere else.

    With a login file name and password are enough: `curl -u NAME`.
    """
    token, secret = keys.make(name, body.label)
    return TokenShape.about(token, secret=secret)


@routes.get("")
def list_tokens(keys: Kept, name: Somebody) -> list[TokenShape]:
    """Your tokens, without their secrets."""
    return [TokenShape.about(token, secret=None) for token in keys.tokens(name)]


@routes.delete("/{token}", status_code=204)
def take_back_token(token: str, keys: Kept, name: Somebody) -> None:
    """Take a token back: it opens nothing any more."""
    keys.take_back(name, token)
