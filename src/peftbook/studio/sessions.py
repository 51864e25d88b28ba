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
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.database import Database, clear_failures

OWNER = "owner"  # whose cookies and tokens these are; older homes have others, of passwords, which open nothing
COOKIE, SESSION_SECONDS = "peftbook-session", 12 * 3600.0
LABEL_CHARS = 100


def owner_token(home: Path) -> str:
    """The token of a home's owner, in its file `token`, which is made when it is missing."""
    path = home / "token"
    with clear_failures(home):
        if not path.is_file() or len(path.read_text().strip()) < 32:
            path.touch(mode=0o600)
            path.chmod(0o600)
            path.write_text(secrets.token_hex(32) + "\n")
        return path.read_text().strip()


class SessionStore(Database):
    """Cookies, valid for SESSION_SECONDS, and tokens. A cookie ends with the token by which its session began; all end
    when the owner's token changes.
    """

    def __init__(self, home: Path):
        super().__init__(home)
        self.owner = owner_token(home)

    def admits(self, headers: dict[str, str]) -> bool:
        """Whether a request may go on: by the token in `Authorization` if there is that header, else by the cookie."""
        if "authorization" in headers:
            return self.is_valid(bearer(headers["authorization"]))
        query = "SELECT password FROM sessions WHERE token = ? AND until > ?"
        row = self._row(query, digest(cookie(headers)), time.time())
        return row is not None and (row["password"] == digest(self.owner) or self._is_made(row["password"]))

    def begin(self, token: str, *, secure: bool = False) -> str:
        """Begin a session by a valid token; the value of its `Set-Cookie` header. secure: for https alone."""
        now, value = time.time(), secrets.token_urlsafe(32)
        with self._write() as db:
            db.execute("DELETE FROM sessions WHERE until <= ?", (now,))
            row = (digest(value), OWNER, digest(token), now + SESSION_SECONDS)
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", row)
        words = f"{COOKIE}={value}; Max-Age={int(SESSION_SECONDS)}; Path=/; HttpOnly; SameSite=strict"
        return words + "; Secure" * secure

    def is_valid(self, token: str) -> bool:
        """Whether a token is the owner's, or one that was made and not revoked."""
        return hmac.compare_digest(token.encode(), self.owner.encode()) or self._is_made(digest(token))

    def _is_made(self, hashed: str) -> bool:
        """Whether there is a token with this hash that was made under the owner's present one."""
        query = "SELECT 1 FROM tokens WHERE token = ? AND password = ?"
        return self._row(query, hashed, digest(self.owner)) is not None

    def log_in_by_query(self, path: str, query: bytes, *, secure: bool = False) -> dict[str, str] | None:
        """Headers that log in whoever has a token in the address, and redirect to the address without it."""
        fields = parse_qsl(query.decode("latin-1"))
        if not self.is_valid(token := dict(fields).get("token", "")):
            return None
        rest = urlencode([field for field in fields if field[0] != "token"])
        page = path.rpartition("/")[2] or "./"
        return {"location": f"{page}?{rest}" if rest else page, "set-cookie": self.begin(token, secure=secure)}

    def make(self, label: str) -> tuple[str, str]:
        """The id of a new token, and its secret, which is not stored."""
        label = " ".join(label.split())[:LABEL_CHARS]
        if not label:
            raise InputError("A token needs a label: say what it is for.")
        token, secret = secrets.token_hex(8), secrets.token_hex(32)
        row = (token, digest(secret), label, OWNER, digest(self.owner), time.time())
        with self._write() as db:
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        return token, secret

    def tokens(self) -> dict[str, str]:
        """The labels of the tokens that were made and open something, oldest first, by their ids."""
        rows = self._rows("SELECT id, label FROM tokens WHERE password = ? ORDER BY created, rowid", digest(self.owner))
        return {row["id"]: row["label"] for row in rows}

    def revoke(self, token_id: str) -> None:
        """Revoke a token. Raises Unknown for another id."""
        with self._write() as db:
            if not db.execute("DELETE FROM tokens WHERE id = ?", (token_id,)).rowcount:
                raise Unknown(f"There is no token {token_id!r}: see `peftbook studio --tokens`.")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


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
