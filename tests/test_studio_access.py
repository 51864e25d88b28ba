"""Who may talk to the studio: doors, logins, uploads and downloads, by protocol and without a browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
import sys
import time
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from studio_api import HOST, PASSWORD, Client, add_user

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.studio import access, app, login, sessions, uploads, users
from peftbook.studio.api.context import Context
from peftbook.studio.settings import Reading
from peftbook.studio.store import Studio
from peftbook.tasks.table import Caps

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of threads that have ended

OTHER = "http://evil.example"
CSV = b"question,answer\n" + b"".join(b"%d and one?,%d\n" % (n, n + 1) for n in range(20))
HOSTILE = '<img src=x onerror="window.hacked=1">'


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A studio with one project that has a hostile name."""
    made = Studio(tmp_path_factory.mktemp("studio"))
    made.create_project(HOSTILE, CSV, f"{HOSTILE}.csv", Reading("question", "answer"))
    return made


@pytest.fixture(scope="module")
def served(studio):
    """The whole application, without a login; uploads of at most 10,000 bytes."""
    return app.build_app(studio, Caps(bytes=10_000))


@pytest.fixture
def ask(served):
    return Client(served)


@pytest.fixture(scope="module")
def login_file(tmp_path_factory):
    """Of Ada alone."""
    path = tmp_path_factory.mktemp("logins") / "login.json"
    add_user(path, "ada")
    return path


def start(login_file: Path, home: Path) -> Client:
    """A process that wants a login, in front of nothing but the form."""
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse

    inside, studio, store = FastAPI(), Studio(home), sessions.SessionStore(home, users.LoginFile(login_file))
    for path in ("/", "/new"):
        inside.add_api_route(path, lambda: PlainTextResponse("inside"), methods=["GET", "POST"], response_model=None)
    login.add_login(inside, store, Context(studio, uploads.UploadStore(home, Caps()), store))
    return Client(access.AccessMiddleware(inside, app.LOOPBACK, store))


@pytest.fixture
def locked(login_file, tmp_path):
    return start(login_file, tmp_path)


def log_in(client: Client, name: str = "ada", password: str = PASSWORD) -> httpx.Response:
    return client.post(access.LOGIN, data={"name": name, "password": password}, headers={"origin": HOST})


# --- doors -----------------------------------------------------------------------------------------------------


def test_a_wheel_carries_the_fonts_where_the_studio_looks_for_them(monkeypatch, tmp_path):
    """The build puts the book's fonts, with their licences, into the first folder that is looked in; every font that
    the style sheet names is served from there too."""
    root = Path(app.__file__).resolve().parents[3]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    place = app.FONTS[0].relative_to(root / "src").as_posix()
    source = next(name for name, target in wheel["sources"].items() if target == place)
    assert source in wheel["only-include"] and root / source == app.FONTS[1]
    named = set(re.findall(r"fonts/([\w.-]+\.woff2)", (app.HERE / "style.css").read_text()))
    held = {path.name for path in (root / source).iterdir()}
    assert named and named <= held and sum(name.startswith("LICENSE") for name in held) == 3
    installed = tmp_path / "fonts"
    shutil.copytree(root / source, installed)
    monkeypatch.setattr(app, "FONTS", (installed, tmp_path / "no checkout"))
    from fastapi import FastAPI

    made = FastAPI()
    app.add_files(made)
    assert named <= {route.path.rpartition("/")[2] for route in made.routes}


@pytest.mark.parametrize("host", ["localhost:7861", "127.0.0.1", "[::1]:7861"])
def test_the_machines_own_names_are_answered(ask, host):
    """Whatever the port is called from, as behind a tunnel."""
    assert ask.get("/studio/page.js", headers={"host": host}).status_code == 200


def test_a_download_that_another_site_asks_for_is_refused(ask, studio):
    """Nor can another site read or even fetch a file, while it may link to the page."""
    project = studio.projects()[0].id
    headers = {"sec-fetch-site": "cross-site"}
    assert ask.get(f"/api/v1/projects/{project}/decision.csv", headers=headers).status_code == 403
    assert ask.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/studio/style.css", "/nothing", "/projects/abcd/data", "/api/v1/projects/a"])
def test_every_answer_has_the_headers(ask, path):
    """No sniffing, no framing, nothing from or to another host; what is not a file of the page is kept by nobody."""
    headers = ask.get(path).headers
    assert {name: headers.get(name) for name in access.HEADERS} == access.HEADERS
    assert "access-control-allow-origin" not in headers
    assert path.startswith("/studio/style") or headers["cache-control"] == "no-store"
    policy = headers["content-security-policy"]
    assert not any(word in policy for word in ("http:", "https:", "*", "unsafe", "data:", "blob:"))


# --- uploads ---------------------------------------------------------------------------------------------------


def test_an_upload_becomes_a_draft_and_its_name_only_a_label(ask, studio):
    """The bytes lie under a random name; folders in the browser's name are dropped."""
    name = "../../etc/passwd<b>.csv"
    answer = ask.post("/new", files={"file": (name, CSV)}, headers={"origin": HOST})
    assert answer.status_code == 303
    draft = answer.headers["location"].rpartition("/")[2]
    files = [path for path in (studio.home / "drafts").rglob("*") if path.is_file()]
    assert draft in {path.name for path in files} and not any("passwd" in path.name for path in files)
    assert uploads.plain_name(name) == "passwd<b>.csv" and uploads.plain_name("a\\b\x00c.csv") == "bc.csv"


def test_an_upload_beyond_the_cap_is_refused_before_it_is_read(ask):
    """One that says how large it is never starts."""
    answer = ask.post("/new", files={"file": ("x.csv", b"x" * 200_000)})
    assert answer.status_code == 413 and "10,000 bytes" in answer.text


def test_an_upload_that_does_not_say_its_size_is_stopped_at_the_cap(ask, studio):
    """What has come is removed, and the rest is not read."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="x.csv"\r\n\r\n'
        for _ in range(10_000):
            sent += 1000
            yield b"x" * 1000

    before = {path for path in (studio.home / "drafts").rglob("*") if path.is_file()}
    answer = ask.post("/new", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and sent < 200_000
    assert {path for path in (studio.home / "drafts").rglob("*") if path.is_file()} == before


def test_other_requests_are_small(ask):
    """No form of a page takes megabytes into memory."""
    for announced in (str(access.BODY_BYTES + 1), "9" * 5000, "²".encode("latin-1")):
        headers = {"content-length": announced}
        assert ask.post("/projects/abcd/plan", content=b"x", headers=headers).status_code == 413


# --- logins ----------------------------------------------------------------------------------------------------


def test_without_a_login_nothing_is_seen(locked):
    """The page leads to the form, everything else is refused."""
    answer = locked.get("/")
    assert answer.status_code == 303 and f"/{answer.headers['location']}" == access.LOGIN
    assert locked.post("/new").status_code == 401
    assert "password" in locked.get(access.LOGIN).text


def test_the_right_password_opens_and_logging_out_closes(locked):
    """By a cookie that scripts and other sites cannot use."""
    answer = log_in(locked)
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
    assert locked.get("/").text == "inside"
    kept = httpx.Cookies(locked.cookies)
    assert locked.post("/studio/logout", headers={"origin": HOST}).status_code == 303
    locked.cookies = kept  # the old cookie, as a thief would
    assert locked.get("/").status_code == 303


def test_a_restart_logs_nobody_out_and_logging_out_is_for_good(locked, login_file, tmp_path):
    """Another process on the same home knows the cookie; when it has logged out, none does."""
    log_in(locked)
    kept = httpx.Cookies(locked.cookies)
    again = start(login_file, tmp_path)
    again.cookies = kept
    assert again.get("/").text == "inside"
    assert again.post("/studio/logout", headers={"origin": HOST}).status_code == 303
    for client in (again, locked, start(login_file, tmp_path)):
        client.cookies = kept
        assert client.get("/").status_code == 303


@pytest.mark.parametrize("end", ["time", "password", "name"])
def test_a_session_ends_with_its_time_its_password_and_its_name(login_file, tmp_path, monkeypatch, end):
    """A cookie does not outlive a changed password or a person who was struck off, whatever is restarted."""
    path = tmp_path / "login.json"
    path.write_bytes(login_file.read_bytes())
    before = start(path, tmp_path)
    log_in(before)
    assert before.get("/").text == "inside"
    if end == "time":
        now = time.time()
        monkeypatch.setattr(sessions.time, "time", lambda: now + sessions.SESSION_SECONDS + 1)
    else:
        add_user(path, "ada" if end == "password" else "bob", PASSWORD + "!")
    if end == "name":
        path.write_text(json.dumps({name: one for name, one in json.loads(path.read_text()).items() if name == "bob"}))
    after = start(path, tmp_path)
    after.cookies = before.cookies
    assert after.get("/").status_code == 303


def test_the_database_keeps_no_cookie(locked, tmp_path):
    """Only its hash: who reads the file gets in nowhere."""
    token = log_in(locked).cookies[sessions.COOKIE]
    files = [path.read_bytes() for path in tmp_path.glob("studio.sqlite*")]
    assert not any(token.encode() in content for content in files)
    assert any(users.digest(token).encode() in content for content in files)


def test_a_forged_cookie_opens_nothing(locked):
    """Cookies are random and known only by their hash."""
    locked.cookies.set(sessions.COOKIE, "x" * 43, domain="127.0.0.1")
    assert locked.get("/").status_code == 303


def test_wrong_passwords_are_counted_and_then_nothing_helps(locked):
    """After five of them even the right one has to wait, and is not looked at."""
    for _ in range(users.FAILURES):
        assert log_in(locked, password="wrong wrong wrong").status_code == 401
    answer = log_in(locked)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 60 and "set-cookie" not in answer.headers


def test_unknown_names_are_no_different(locked):
    """The answer does not tell who exists."""
    known, unknown = (
        log_in(locked, password="wrong wrong wrong"),
        log_in(locked, name="bob", password="wrong wrong wrong"),
    )
    assert (known.status_code, known.text) == (unknown.status_code, unknown.text)


def test_another_site_cannot_log_anybody_in(locked):
    """Nor out."""
    data = {"name": "ada", "password": PASSWORD}
    assert locked.post(access.LOGIN, data=data, headers={"origin": OTHER}).status_code == 403
    assert locked.post("/studio/logout", headers={"origin": OTHER}).status_code == 403


def test_no_secret_is_logged(locked, capfd, caplog):
    """Neither password nor cookie appears in what the server says."""
    log_in(locked, password="wrong wrong wrong")
    token = log_in(locked).cookies[sessions.COOKIE]
    said = "".join(capfd.readouterr()) + caplog.text
    assert PASSWORD not in said and "wrong wrong" not in said and token not in said


def test_the_login_file_holds_hashes_that_only_its_owner_reads(tmp_path, monkeypatch, capsys):
    """The command asks, hashes with scrypt and a salt of its own, and adds to what is there."""
    path = tmp_path / "login.json"
    for name in ("ada", "bob"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
        assert cli.main(["studio", "--add-user", name, "--login-file", str(path)]) == 0
    users = json.loads(path.read_text())
    assert set(users) == {"ada", "bob"} and users["ada"]["scrypt"] != users["bob"]["scrypt"]
    assert PASSWORD not in path.read_text() and PASSWORD not in capsys.readouterr().out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "password", "said"),
    [("ada", "short", "at least"), ("a b", PASSWORD, "letters"), ("../x", PASSWORD, "letters")],
)
def test_poor_names_and_passwords_are_refused(tmp_path, monkeypatch, name, password, said):
    """In one sentence, and nothing is written."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(password + "\n"))
    with pytest.raises(InputError, match=said):
        users.add_user(tmp_path / "login.json", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"ada": {"password": "x"}}', '{"ada": "x"}'])
def test_a_file_that_is_no_login_file_is_refused(tmp_path, content):
    """A studio never starts open because its login file is broken."""
    path = tmp_path / "login.json"
    path.write_text(content)
    with pytest.raises(InputError, match="no login file"):
        users.LoginFile(path)


def test_a_studio_that_others_reach_wants_a_login(tmp_path, capsys):
    """Another host than this machine's own needs a login file."""
    assert cli.main(["studio", "--home", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "--login-file" in capsys.readouterr().err


def test_a_port_in_use_is_a_sentence(tmp_path, capsys):
    """Said before anything is started."""
    with app.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["studio", "--home", str(tmp_path), "--port", str(port), "--no-worker"]) == 2
    assert f"Port {port}" in capsys.readouterr().err


# --- what is shown ---------------------------------------------------------------------------------------------
