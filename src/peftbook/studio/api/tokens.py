"""Tokens of programs and people: create, list and revoke them; authenticated by cookie or another token."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field

from peftbook.core.errors import Conflict
from peftbook.studio.api.context import Here
from peftbook.studio.api.shapes import Body, Shape
from peftbook.studio.sessions import SessionStore

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


@routes.post("", status_code=201)
def make_token(body: TokenBody, sessions: Sessions) -> TokenShape:
    """Make a token: its secret is in this answer and nowhere else. As `?token=…` it opens the pages too."""
    token, secret = sessions.make(body.label)
    return TokenShape.about(token, secret=secret)


@routes.get("")
def list_tokens(sessions: Sessions) -> list[TokenShape]:
    """The tokens that were made, without their secrets."""
    return [TokenShape.about(token, secret=None) for token in sessions.tokens()]


@routes.delete("/{token}", status_code=204)
def take_back_token(token: str, sessions: Sessions) -> None:
    """Take a token back: it opens nothing any more, nor does a session that began by it."""
    sessions.revoke(token)
