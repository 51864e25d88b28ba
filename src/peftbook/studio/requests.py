"""Requests to the assistant: queued by pages and API, answered by the assistant's process, with partial text."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.database import Database

AnswerState = Literal["waiting", "working", "done", "failed", "withdrawn"]
KINDS = ("preflight", "generate", "make")
PAYLOAD_CHARS = 2_000_000
KEPT_SECONDS = 24 * 3600.0
DEADLINES = {"preflight": 90.0, "generate": 300.0, "make": 1800.0}  # seconds without progress, of each kind
WITHDRAWN_SECONDS = 10.0  # until a request that nobody waits for has ended by itself
MEMORY_SHARE = 0.8  # of this machine's memory, that the assistant may take
TRIES = 2  # of one request, after which the assistant no longer retries it
CHECK_DIED = "The check was ended from outside, twice: check again, with fewer models or methods if that does not help."


@dataclass(frozen=True)
class Answer:
    """text: what has been generated so far.  result: what a question without text is answered with, or None.
    error: why it failed, one sentence.
    """

    state: AnswerState
    text: str = ""
    result: Any = None
    error: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "withdrawn")


@dataclass(frozen=True)
class Request:
    """A request, as the assistant sees it."""

    id: str
    kind: str
    payload: dict


class Requests(Database):
    """The queue of requests, and their answers."""

    def ask(self, kind: str, payload: dict) -> str:
        """Queue a request and return its id.

        "preflight": {"project": id, "runs": [canonical text of a run, …]}; the result is a list of `plan.Check` as
        dictionaries.
        "generate": {"project": id, "job": id of a done job, "text": what was typed} or, for a model as it comes,
        {"project": id, "model": {"name", "revision"}, "text"}; further "max_new_tokens" (default 128), "temperature"
        (0 is greedy), "top_p", "seed". The text goes where the project's instruction has {input}.
        "make": {"project": id, "job": id, "name": of a file in `downloads.ARTEFACTS`}.
        """
        text = json.dumps(payload)
        if len(text) > PAYLOAD_CHARS:
            raise InputError(f"The question has {len(text):,} characters, the cap is {PAYLOAD_CHARS:,}: shorten it.")
        request, now = secrets.token_hex(8), time.time()
        with self._write() as db:
            self._check_project(db, str(payload.get("project")))
            db.execute("DELETE FROM requests WHERE created < ?", (now - KEPT_SECONDS,))
            db.execute(
                "INSERT INTO requests (id, project, kind, payload, state, created) VALUES (?, ?, ?, ?, 'waiting', ?)",
                (request, payload["project"], kind, text, now),
            )
        return request

    def asked(self, request_id: str) -> Request:
        """The request of an id."""
        row = self._known_request(request_id)
        return Request(row["id"], row["kind"], json.loads(row["payload"]))

    def answer(self, request_id: str) -> Answer:
        """The answer so far."""
        row = self._known_request(request_id)
        return Answer(row["state"], row["text"], json.loads(row["result"]), row["error"])

    def _known_request(self, request_id: str) -> sqlite3.Row:
        row = self._row("SELECT * FROM requests WHERE id = ?", request_id)
        if row is None:
            raise Unknown(f"There is no request {request_id!r}: ask again.")
        return row

    def withdraw(self, request_id: str) -> None:
        """Withdraw a request; the assistant stops working on it."""
        with self._write() as db:
            db.execute(
                "UPDATE requests SET state = 'withdrawn' WHERE id = ? AND state IN ('waiting', 'working')",
                (request_id,),
            )

    # --- for the assistant and the worker that keeps it --------------------------------------------------------

    def is_asked(self) -> bool:
        """Whether a request waits that this version can answer."""
        return self._row(f"SELECT 1 FROM requests WHERE {waiting_of(KINDS)}", *KINDS) is not None

    def take(self, kinds: Sequence[str] = KINDS) -> Request | None:
        """Take the oldest queued request of these kinds; None if there is none."""
        waiting = waiting_of(kinds)
        if self._row(f"SELECT 1 FROM requests WHERE {waiting}", *kinds) is None:
            return None
        with self._write() as db:
            row = db.execute(
                "UPDATE requests SET state = 'working', tries = tries + 1, busy = ? WHERE number = "
                f"(SELECT min(number) FROM requests WHERE {waiting}) RETURNING id, kind, payload",
                (time.time(), *kinds),
            ).fetchone()
        return None if row is None else Request(row["id"], row["kind"], json.loads(row["payload"]))

    def say(self, request_id: str, text: str) -> bool:
        """Store the text so far; False if the request was withdrawn, on which no work is done any more."""
        with self._write() as db:
            update = "UPDATE requests SET text = ?, busy = ? WHERE id = ? AND state = 'working'"
            if db.execute(update, (text, time.time(), request_id)).rowcount:
                return True
            db.execute("UPDATE requests SET busy = NULL WHERE id = ?", (request_id,))
        return False

    def work_on(self, request_id: str) -> None:
        """Note that work on a request begins now: if it does not end by its deadline, this is the one that is stuck."""
        with self._write() as db:
            db.execute("UPDATE requests SET busy = ? WHERE id = ? AND busy IS NOT NULL", (time.time(), request_id))

    def settle(self, request_id: str, *, text: str = "", result: Any = None, error: str = "") -> None:
        """End a request with its answer or an error."""
        with self._write() as db:
            db.execute(
                "UPDATE requests SET state = ?, text = CASE WHEN ? = '' THEN text ELSE ? END, result = ?, error = ?, "
                "busy = NULL WHERE id = ? AND state = 'working'",
                ("failed" if error else "done", text, text, json.dumps(result), error, request_id),
            )

    def unanswered(self, why: str) -> None:
        """After the assistant died: queue its requests again; those that reached TRIES fail with `why`.

        Checks fail with CHECK_DIED: they load no model, and have no text that could be shorter.
        """
        with self._write() as db:
            db.execute(
                "UPDATE requests SET state = 'failed', error = CASE kind WHEN 'preflight' THEN ? ELSE ? END "
                "WHERE state = 'working' AND tries >= ?",
                (CHECK_DIED, why, TRIES),
            )
            db.execute("UPDATE requests SET state = 'waiting', text = '' WHERE state = 'working'")
            db.execute("UPDATE requests SET busy = NULL")

    def busiest(self) -> Request | None:
        """The request that was worked on last, if it has not been answered."""
        row = self._row("SELECT id, kind, payload FROM requests WHERE busy IS NOT NULL ORDER BY busy DESC")
        return None if row is None else Request(row["id"], row["kind"], json.loads(row["payload"]))

    def stuck(self) -> Request | None:
        """The request that was worked on last, if its deadline is over, or it was withdrawn and has not ended."""
        if (last := self.busiest()) is None:
            return None
        row = self._known_request(last.id)
        limit = WITHDRAWN_SECONDS if row["state"] == "withdrawn" else DEADLINES[last.kind]
        return last if time.time() - row["busy"] > limit else None

    def give_up(self, request_id: str, why: str) -> None:
        """After the assistant was ended over a request: that one fails with `why`, the others wait again."""
        self.settle(request_id, error=why)
        with self._write() as db:
            db.execute("UPDATE requests SET state = 'waiting', text = '', tries = tries - 1 WHERE state = 'working'")
            db.execute("UPDATE requests SET busy = NULL")


def waiting_of(kinds: Sequence[str]) -> str:
    """The SQL condition for requests of these kinds that wait; its parameters are the kinds."""
    return f"state = 'waiting' AND kind IN ({', '.join('?' * len(kinds))})"
