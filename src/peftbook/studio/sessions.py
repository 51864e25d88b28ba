"""Sessions of browsers (cookies) and tokens of programs, stored as hashes in the studio's database.

A token is shown once and is valid until it is revoked; a restart logs nobody out. Without a login file there is one
user, the owner of the home, whose token is in the address that the studio prints, as Jupyter's is, and in the file
`token` of the home.
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

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.database import Database, clear_failures
from peftbook.studio.users import Users, digest

OWNER = "owner"
COOKIE, SESSION_SECONDS = "peftbook-session", 12 * 3600.0
MOST_TOKENS, LABEL_CHARS = 100, 100
USED_SECONDS = 60.0  # between two notes that a token was used


class OwnerToken:
    """The owner of a home, who can read its files and so the token in them."""

    def __init__(self, home: Path):
        path = home / "token"
        with clear_failures(home):
            if not path.is_file() or len(path.read_text().strip()) < 32:
                path.touch(mode=0o600)
                path.chmod(0o600)
                path.write_text(secrets.token_hex(32) + "\n")
            self.token = path.read_text().strip()

    def fingerprint(self, name: str) -> str:
        return digest(self.token) if name == OWNER else ""


@dataclass(frozen=True)
class Token:
    """A token without its secret. created, used: seconds since 1970, None for never."""

    id: str
    label: str
    name: str
    created: float
    used: float | None


class SessionStore(Database):
    """Cookies, valid for SESSION_SECONDS, and tokens. Both end with their user, and when its password changes."""

    def __init__(self, home: Path, logins: Users):
        super().__init__(home)
        self.logins = logins

    def authenticated_user(self, headers: dict[str, str]) -> str | None:
        """The user of a request: by the token in `Authorization` if there is that header, else by the cookie."""
        if "authorization" in headers:
            return self.token_owner(bearer(headers["authorization"]))
        row = self._row(
            "SELECT name, password FROM sessions WHERE token = ? AND until > ?", digest(cookie(headers)), time.time()
        )
        return self._valid_user(row)

    def _valid_user(self, row: sqlite3.Row | None) -> str | None:
        """The user of a row, if its password has not changed since."""
        if row is None or not row["password"] or row["password"] != self.logins.fingerprint(row["name"]):
            return None
        return row["name"]

    def begin(self, name: str, *, secure: bool = False) -> str:
        """Begin a session; the value of its `Set-Cookie` header. secure: for https alone."""
        now, token = time.time(), secrets.token_urlsafe(32)
        with self._write() as db:
            db.execute("DELETE FROM sessions WHERE until <= ?", (now,))
            row = (digest(token), name, self.logins.fingerprint(name), now + SESSION_SECONDS)
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", row)
        words = f"{COOKIE}={token}; Max-Age={int(SESSION_SECONDS)}; Path=/; HttpOnly; SameSite=strict"
        return words + "; Secure" * secure

    def end(self, token: str) -> None:
        with self._write() as db:
            db.execute("DELETE FROM sessions WHERE token = ?", (digest(token),))

    def token_owner(self, token: str) -> str | None:
        """The user of a token, or None."""
        if isinstance(self.logins, OwnerToken) and hmac.compare_digest(token.encode(), self.logins.token.encode()):
            return OWNER
        row = self._row("SELECT id, name, password, used FROM tokens WHERE token = ?", digest(token))
        if row is None or self._valid_user(row) is None:
            return None
        if (row["used"] or 0.0) < (now := time.time()) - USED_SECONDS:
            with contextlib.suppress(sqlite3.OperationalError), self._waiting(0.0), self._write() as db:
                db.execute("UPDATE tokens SET used = ? WHERE id = ?", (now, row["id"]))
        return row["name"]

    def log_in_by_query(self, query: bytes) -> dict[str, str] | None:
        """Headers that log in whoever has the owner's token in the address, and redirect to the address without it."""
        fields = parse_qsl(query.decode("latin-1"))
        if not isinstance(self.logins, OwnerToken) or self.token_owner(dict(fields).get("token", "")) != OWNER:
            return None
        rest = urlencode([field for field in fields if field[0] != "token"])
        return {"location": f"./?{rest}" if rest else "./", "set-cookie": self.begin(OWNER)}

    def make(self, name: str, label: str) -> tuple[Token, str]:
        """A new token of a user, and its secret, which is not stored."""
        label = " ".join(label.split())[:LABEL_CHARS]
        if not label:
            raise InputError("A token needs a label: say what it is for.")
        if len(self.tokens(name)) >= MOST_TOKENS:
            raise InputError(f"There are {MOST_TOKENS} tokens already: take one back first.")
        secret, made = secrets.token_hex(32), Token(secrets.token_hex(8), label, name, time.time(), None)
        with self._write() as db:
            db.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (made.id, digest(secret), label, name, self.logins.fingerprint(name), made.created),
            )
        return made, secret

    def tokens(self, name: str) -> list[Token]:
        """A user's tokens, oldest first."""
        query = "SELECT id, label, name, created, used FROM tokens WHERE name = ? ORDER BY created, rowid"
        return [Token(**dict(row)) for row in self._rows(query, name)]

    def revoke(self, name: str, token_id: str) -> None:
        """Revoke one of a user's tokens. Raises Unknown for another id."""
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
