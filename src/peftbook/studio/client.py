"""A client of the studio's API in one file, on the standard library: copy it to wherever it is needed.

```python
studio = Client("http://127.0.0.1:7861/?token=…")
file = studio.send("questions.csv")
project = studio.post("projects", {"file": file, "input": "question", "target": "answer"})
check = studio.answered("checks", studio.post(f"projects/{project['id']}/checks", {"tokens": 20000})["id"])
plan = studio.post(f"projects/{project['id']}/plans", {"check": check["id"]})
for job in studio.events(f"plans/{plan['id']}/events"):
    print(job["label"], job["state"], *job["words"])
print(studio.get(f"projects/{project['id']}/decision.txt", plan=plan["id"]))
```
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

__all__ = ["Client", "Refused"]

BLOCK_BYTES = 8_000_000  # of one part of an upload
POLL_SECONDS = 0.5
TRIES, PAUSE_SECONDS = 5, 1.0  # after a connection broke


class Refused(Exception):  # noqa: N818 — HTTP's word
    """What the server refused, in its own sentence. status: of HTTP, 0 where nobody answered."""

    def __init__(self, words: str, status: int = 0):
        super().__init__(words)
        self.status = status


class Client:
    """Asks one studio. server: its address, as it prints it, with the token or without.  token: in place of that."""

    def __init__(self, server: str, token: str = "", timeout: float = 60.0):
        parts = urlsplit(server if "//" in server else f"http://{server}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"{server!r} is no address of a studio: give it as the studio printed it.")
        self.base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/api/v1"
        self.token = token or parse_qs(parts.query).get("token", [""])[0]
        self.timeout = timeout

    def get(self, path: str, **query: Any) -> Any:
        """What a route answers: a tree for JSON, else its text."""
        return self._tree(self._open("GET", path, None, query))

    def post(self, path: str, body: Any = None) -> Any:
        return self._tree(self._open("POST", path, body))

    def delete(self, path: str) -> None:
        self._open("DELETE", path, None).close()

    def fetch(self, path: str, target: Path, **query: Any) -> None:
        """Keep what a route answers as a file, whole or not at all."""
        aside = target.with_name(f".{target.name}.part")
        try:
            with self._open("GET", path, None, query) as answer, aside.open("wb") as stream:
                while block := answer.read(1 << 20):
                    stream.write(block)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    def send(self, path: Path | str) -> str:
        """Upload a file in parts and return its id; where the connection breaks, it goes on from what has arrived."""
        path = Path(path)
        size = path.stat().st_size
        file = self.post("files", {"filename": path.name, "bytes": size})["id"]
        failures = offset = 0
        with path.open("rb") as stream:
            while offset < size:
                stream.seek(offset)
                try:
                    block = stream.read(BLOCK_BYTES)
                    answer = self._open("PUT", f"files/{file}/content", block, {"offset": offset})
                    offset, failures = self._tree(answer)["offset"], 0
                except Refused as error:
                    failures += 1
                    if (error.status and error.status != 409) or failures == TRIES:
                        raise
                    time.sleep(PAUSE_SECONDS)
                    offset = self.get(f"files/{file}")["offset"]
        return file

    def save_project(self, project: str, target: Path | str) -> None:
        """Save a project as a file that another studio takes in."""
        self.fetch(f"projects/{project}/archive", Path(target))

    def load_project(self, path: Path | str) -> dict[str, Any]:
        """Take in a project that a studio saved; it keeps its id."""
        return self.post("projects/archive", {"file": self.send(path)})

    def answered(self, kind: str, asked: str) -> dict[str, Any]:
        """Wait for a check or an answer; its tree. kind: `checks` or `answers`. Raises Refused where it failed."""
        while (found := self.get(f"{kind}/{asked}"))["state"] in ("waiting", "working"):
            time.sleep(POLL_SECONDS)
        if found["state"] != "done":
            raise Refused(found["error"] or "It was stopped: ask again.", 422)
        return found

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """The jobs of a stream of events as they change, until all have ended; a stream that breaks off is taken up."""
        failures = 0
        while True:
            try:
                for name, data in read_events(self._open("GET", path, None)):
                    failures = 0
                    if name == "end":
                        return
                    yield json.loads(data)
                raise Refused("The stream of events broke off: see that the studio still runs.")
            except (OSError, http.client.HTTPException, Refused) as error:
                failures += 1
                if failures == TRIES or (isinstance(error, Refused) and error.status):
                    raise
                time.sleep(PAUSE_SECONDS)

    def _open(self, method: str, path: str, body: Any, query: dict[str, Any] | None = None) -> Any:
        """An answer, open to be read. Raises Refused, with the server's sentence."""
        said = urlencode({name: value for name, value in (query or {}).items() if value is not None}, doseq=True)
        url = f"{self.base}/{quote(path, safe='/')}{f'?{said}' if said else ''}"
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream" if isinstance(body, bytes) else "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(sentence(error.read(), error.code), error.code) from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            raise Refused(f"{self.base} cannot be reached ({why}): check address and network.") from None

    @staticmethod
    def _tree(answer: Any) -> Any:
        with answer:
            text = answer.read().decode("utf-8-sig")
        kind = answer.headers.get("Content-Type", "")
        return json.loads(text) if kind.startswith("application/json") else text


def sentence(body: bytes, status: int) -> str:
    """What a refusal says. Source: RFC 9457."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered with status {status} and no reason: check that the address is a studio's."


def read_events(answer: Any) -> Iterator[tuple[str, str]]:
    """Name and data of each server-sent event."""
    name = data = ""
    with answer:
        for line in answer:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value
            elif not field and data:
                yield name, data
                name = data = ""
