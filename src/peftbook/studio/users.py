"""Users of a studio with a login file, which holds the scrypt hash of each password."""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import re
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

from peftbook.core.errors import InputError

FAILURES, WINDOW_SECONDS = 5, 15 * 60.0  # so many wrong passwords of one name, or from one address, in this time
FEWEST_CHARS = 10
SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20, "dklen": 32}  # about 0.1 s and 32 MB a try
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
Refusal = tuple[int, str, dict[str, str]]  # status, sentence, headers


def add_user(path: Path, name: str) -> None:
    """Ask for a password twice (or read it from standard input) and keep its scrypt hash in the login file.

    Raises InputError for a name that is none, a short password and two that differ.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"The name {name!r} is none: use letters, digits and . _ @ -, at most 64.")
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password of {name}: ")
        if password != getpass.getpass("Once more: "):
            raise InputError("The two passwords differ: try again.")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if len(password) < FEWEST_CHARS:
        raise InputError(f"The password has {len(password)} characters: take at least {FEWEST_CHARS}.")
    users = LoginFile(path).users if path.exists() else {}
    salt = secrets.token_bytes(16)
    users[name] = {"salt": salt.hex(), "scrypt": scrypt(password, salt).hex()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.touch(mode=0o600)
    beside.write_text(json.dumps(users, indent=1) + "\n")
    beside.replace(path)


def scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, **SCRYPT)


class LoginFile:
    """A login file, and the failed logins of the last minutes. Raises InputError for a file that is none."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.users: dict[str, dict[str, str]] = json.loads(path.read_text())
            if not self.users or not all({"salt", "scrypt"} <= set(user) for user in self.users.values()):
                raise ValueError
        except (OSError, ValueError, AttributeError, TypeError):
            raise InputError(f"{path} is no login file: write one with `peftbook studio --add-user NAME`.") from None
        self._wrong: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._few = threading.Semaphore(2)  # tries at once: each takes memory

    def wait(self, *whose: str) -> float:
        """Seconds until these names or addresses may try again; 0 if they may now."""
        began = time.monotonic() - WINDOW_SECONDS
        with self._lock:
            recent = {key: [when for when in times if when > began] for key, times in self._wrong.items()}
            self._wrong = {key: times for key, times in recent.items() if times}
            many = [times for key in whose if len(times := self._wrong.get(key, [])) >= FAILURES]
        return max((times[-FAILURES] - began for times in many), default=0.0)

    def fingerprint(self, name: str) -> str:
        """A digest that changes with a user's password; empty for an unknown user."""
        known = self.users.get(name)
        return digest(known["salt"] + known["scrypt"]) if known else ""

    def check(self, name: str, password: str, address: str) -> bool:
        """Whether the password is right; failures are counted. An unknown name takes as long as a known one."""
        known = self.users.get(name, {"salt": "00" * 16, "scrypt": ""})
        with self._few:
            digest = scrypt(password[:1024], bytes.fromhex(known["salt"])).hex()
        if hmac.compare_digest(digest, known["scrypt"]):
            with self._lock:
                self._wrong.pop(f"name {name}", None)
            return True
        with self._lock:
            for key in (f"name {name[:64]}", f"address {address}"):
                self._wrong.setdefault(key, []).append(time.monotonic())
        return False

    def refusal(self, name: str, password: str, address: str) -> Refusal | None:
        """None if the password is that of the name, else why not; after too many failures one has to wait."""
        if (wait := self.wait(f"name {name}", f"address {address}")) > 0:
            words = f"Too many wrong passwords: wait {max(1, round(wait / 60))} min, then try again."
            return 429, words, {"retry-after": str(int(wait) + 1)}
        if not self.check(name, password, address):
            return 401, "Name or password is wrong: try again.", {}
        return None


class Users(Protocol):
    """Those who may log in."""

    def fingerprint(self, name: str) -> str:
        """A digest that changes with a user's secret; empty for an unknown user."""
        ...


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
