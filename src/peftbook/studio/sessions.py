"""Sessions of browsers (cookies) and tokens of programs, stored as hashes in the studio's database.

A token is shown once and is valid until it is revoked; a restart logs nobody out. The owner's is in the address that
the studio prints, as Jupyter's is, and in the file `token` of the home. Either kind, in an address, begins a session.
"""

from __future__ import annotations

import hashlib
import hmac
import http.cookies
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.database import Database, clear_failures

SESSION_SECONDS = 12 * 3600.0
NAME_CHARS = 100
Access = Literal["read", "write"]  # what a token may do: look, or everything


def owner_token(home: Path) -> str:
    """The token of a home's owner, in its file `token`, which is made when it is missing."""
    path = home / "token"
    with clear_failures(home):
        if not path.is_file() or len(path.read_text().strip()) < 32:
            path.touch(mode=0o600)
            path.chmod(0o600)
            path.write_text(secrets.token_hex(32) + "\n")
        return path.read_text().strip()


@dataclass(frozen=True)
class Token:
    """A token that was created. scope: what it may do.  created: seconds since 1970."""

    name: str
    scope: Access
    created: float


class SessionStore(Database):
    """Cookies, valid for SESSION_SECONDS, and tokens. A cookie may do what the token may by which its session began,
    and ends with it; all end when the owner's token changes.
    """

    def __init__(self, home: Path):
        super().__init__(home)
        self.owner = owner_token(home)
        self.cookie = f"peftbook-{digest(str(self.home))[:8]}"  # browsers do not tell one port from another

    def access_of(self, headers: dict[str, str]) -> Access | None:
        """What a request may do, by the token in `Authorization` if there is that header, else by the cookie; None for
        nothing.
        """
        if "authorization" in headers:
            return self._access_by(digest(bearer(headers["authorization"])))
        query = "SELECT token FROM sessions WHERE cookie = ? AND until > ?"
        row = self._row(query, digest(cookie(headers, self.cookie)), time.time())
        return None if row is None else self._access_by(row["token"])

    def _access_by(self, hashed: str) -> Access | None:
        """What the token with this hash may do: the owner's all, one that was created under it what it was given."""
        if hmac.compare_digest(hashed, digest(self.owner)):
            return "write"
        row = self._row("SELECT scope FROM tokens WHERE token = ? AND owner = ?", hashed, digest(self.owner))
        return None if row is None else row["scope"]

    def begin(self, token: str, *, secure: bool = False) -> str:
        """Begin a session by a valid token; the value of its `Set-Cookie` header. secure: for https alone."""
        now, value = time.time(), secrets.token_urlsafe(32)
        with self._write() as db:
            db.execute("DELETE FROM sessions WHERE until <= ?", (now,))
            db.execute("INSERT INTO sessions VALUES (?, ?, ?)", (digest(value), digest(token), now + SESSION_SECONDS))
        words = f"{self.cookie}={value}; Max-Age={int(SESSION_SECONDS)}; Path=/; HttpOnly; SameSite=strict"
        return words + "; Secure" * secure

    def log_in_by_query(self, path: str, query: bytes, *, secure: bool = False) -> dict[str, str] | None:
        """Headers that log in whoever has a token in the address, and redirect to the address without it."""
        fields = parse_qsl(query.decode("latin-1"))
        if self._access_by(digest(token := dict(fields).get("token", ""))) is None:
            return None
        rest = urlencode([field for field in fields if field[0] != "token"])
        page = path.rpartition("/")[2] or "./"
        return {"location": f"{page}?{rest}" if rest else page, "set-cookie": self.begin(token, secure=secure)}

    def create(self, name: str, scope: Access = "write") -> str:
        """Create a token; its secret, which is not stored. Raises InputError for a name that another token has."""
        name = " ".join(name.split())[:NAME_CHARS]
        if not name:
            raise InputError("A token needs a name: say whom or what it is for.")
        secret = secrets.token_hex(32)
        row = (digest(secret), name, digest(self.owner), scope, time.time())
        with self._write() as db:
            if name in self.tokens():
                raise InputError(f"There is a token {name!r} already: revoke it, or give another name.")
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", row)
        return secret

    def tokens(self) -> dict[str, Token]:
        """The tokens that were created and open something, oldest first, by their names."""
        query = "SELECT name, scope, created FROM tokens WHERE owner = ? ORDER BY created, rowid"
        return {row["name"]: Token(*row) for row in self._rows(query, digest(self.owner))}

    def revoke(self, name: str) -> None:
        """Revoke a token, and the sessions that began by it. Raises Unknown for another name."""
        with self._write() as db:
            if not db.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount:
                raise Unknown(f"There is no token {name!r}: see `peftbook studio token list`.")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(value: str) -> str:
    """The token in an `Authorization` header, or nothing."""
    kind, _, token = value.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def cookie(headers: dict[str, str], name: str) -> str:
    """The cookie of this name in a request, or nothing."""
    try:
        morsel = http.cookies.SimpleCookie(headers.get("cookie", "")).get(name)
    except http.cookies.CookieError:
        return ""
    return morsel.value if morsel else ""
