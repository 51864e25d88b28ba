"""Tokens and sessions: how a program and a browser say who asks, in the studio's database as hashes.

A token is shown once and ends when it is taken back; a restart logs nobody out. Without a login file there is one
person, the owner of the home, who comes in by the token in the address that the studio prints, as Jupyter's does;
`token` in the home keeps it, readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import hmac
import http.cookies
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from peftbook.errors import InputError, Unknown
from peftbook.studio.database import Database, clear_failures
from peftbook.studio.people import People, digest

OWNER = "owner"
COOKIE, SESSION_SECONDS = "peftbook-session", 12 * 3600.0
MOST_TOKENS, LABEL_CHARS = 100, 100
USED_SECONDS = 60.0  # between two notes that a token was used


class Owner:
    """Whoever can read the home's files: known by its token."""

    def __init__(self, home: Path):
        path = home / "token"
        with clear_failures(home):
            if not path.is_file() or len(path.read_text().strip()) < 32:
                path.touch(mode=0o600)
                path.chmod(0o600)
                path.write_text(secrets.token_hex(32) + "\n")
            self.token = path.read_text().strip()

    def mark(self, name: str) -> str:
        return digest(self.token) if name == OWNER else ""


@dataclass(frozen=True)
class Token:
    """What is told of a token after it was made. created, used: seconds since 1970, None for never."""

    id: str
    label: str
    name: str
    created: float
    used: float | None


class Keys(Database):
    """Cookies, for SESSION_SECONDS, and tokens. Both end too when their name or its password leaves the login file."""

    def __init__(self, home: Path, logins: People):
        super().__init__(home)
        self.logins = logins

    def admitted(self, headers: dict[str, str]) -> str | None:
        """Who asks: by the token in `Authorization` if there is that header, else by the cookie."""
        if "authorization" in headers:
            return self.holder(bearer(headers["authorization"]))
        row = self._row(
            "SELECT name, password FROM sessions WHERE token = ? AND until > ?", digest(cookie(headers)), time.time()
        )
        return self._known(row)

    def _known(self, row: sqlite3.Row | None) -> str | None:
        """The name in a row, if its password is still the one of then."""
        if row is None or not row["password"] or row["password"] != self.logins.mark(row["name"]):
            return None
        return row["name"]

    def begin(self, name: str, *, secure: bool = False) -> str:
        """A new cookie for somebody, as a header sets it. secure: for https alone."""
        now, token = time.time(), secrets.token_urlsafe(32)
        with self._write() as db:
            db.execute("DELETE FROM sessions WHERE until <= ?", (now,))
            row = (digest(token), name, self.logins.mark(name), now + SESSION_SECONDS)
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", row)
        words = f"{COOKIE}={token}; Max-Age={int(SESSION_SECONDS)}; Path=/; HttpOnly; SameSite=strict"
        return words + "; Secure" * secure

    def end(self, token: str) -> None:
        with self._write() as db:
            db.execute("DELETE FROM sessions WHERE token = ?", (digest(token),))

    def holder(self, token: str) -> str | None:
        """Whose token it is."""
        if isinstance(self.logins, Owner) and hmac.compare_digest(token.encode(), self.logins.token.encode()):
            return OWNER
        row = self._row("SELECT id, name, password, used FROM tokens WHERE token = ?", digest(token))
        if row is None or self._known(row) is None:
            return None
        if (row["used"] or 0.0) < (now := time.time()) - USED_SECONDS:
            with contextlib.suppress(sqlite3.OperationalError), self._waiting(0.0), self._write() as db:
                db.execute("UPDATE tokens SET used = ? WHERE id = ?", (now, row["id"]))  # at the door nobody waits
        return row["name"]

    def welcome(self, query: bytes) -> dict[str, str] | None:
        """A cookie for who has the owner's token in the address, and the same address without it."""
        fields = parse_qsl(query.decode("latin-1"))
        if not isinstance(self.logins, Owner) or self.holder(dict(fields).get("token", "")) != OWNER:
            return None
        rest = urlencode([field for field in fields if field[0] != "token"])
        return {"location": f"./?{rest}" if rest else "./", "set-cookie": self.begin(OWNER)}

    def make(self, name: str, label: str) -> tuple[Token, str]:
        """A new token for somebody, and the secret itself, which nobody can read again."""
        label = " ".join(label.split())[:LABEL_CHARS]
        if not label:
            raise InputError("A token needs a label: say what it is for.")
        if len(self.tokens(name)) >= MOST_TOKENS:
            raise InputError(f"There are {MOST_TOKENS} tokens already: take one back first.")
        secret, made = secrets.token_hex(32), Token(secrets.token_hex(8), label, name, time.time(), None)
        with self._write() as db:
            db.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (made.id, digest(secret), label, name, self.logins.mark(name), made.created),
            )
        return made, secret

    def tokens(self, name: str) -> list[Token]:
        """Somebody's tokens, oldest first."""
        query = "SELECT id, label, name, created, used FROM tokens WHERE name = ? ORDER BY created, rowid"
        return [Token(**dict(row)) for row in self._rows(query, name)]

    def take_back(self, name: str, token_id: str) -> None:
        """End one of somebody's tokens."""
        with self._write() as db:
            if not db.execute("DELETE FROM tokens WHERE id = ? AND name = ?", (token_id, name)).rowcount:
                raise Unknown(f"There is no token {token_id!r} of yours: see the list.")


def bearer(value: str) -> str:
    """The token in an `Authorization` header, or nothing."""
    kind, _, token = value.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def cookie(headers: dict[str, str]) -> str:
    """The session cookie of a request, or nothing."""
    try:
        morsel = http.cookies.SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except http.cookies.CookieError:
        return ""
    return morsel.value if morsel else ""
