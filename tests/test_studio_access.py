"""Who may talk to the studio: doors, logins, uploads and downloads, by protocol and without a browser."""

from __future__ import annotations

import contextlib
import errno
import html
import re
import shutil
import socket
import time
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import hostile_studio
import httpx
import pytest
from studio_api import HOST, Client, on_a_port

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.studio import access, app, connections, database, sessions, uploads
from peftbook.studio.connections import LimitedProtocol
from peftbook.studio.settings import Reading
from peftbook.studio.store import Studio, say_open
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


@pytest.fixture
def store(tmp_path) -> sessions.SessionStore:
    return sessions.SessionStore(tmp_path)


def start(store: sessions.SessionStore) -> Client:
    """A process that wants a token, in front of its pages."""
    return Client(app.build_app(Studio(store.home), Caps(), sessions=store))


@pytest.fixture
def locked(store):
    return start(store)


def log_in(client: Client, token: str, page: str = "/") -> httpx.Response:
    return client.get(f"{page}?token={token}", headers={"sec-fetch-site": "none"})


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

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    for path in ("/projects/abcd/plan", "/api/v1/projects"):
        assert ask.post(path, content=chunks()).status_code == 413


def test_idle_and_slow_connections_keep_nobody_out(served, monkeypatch):
    """Of too many the oldest idle one goes; a head that does not end and a body that stands still end by themselves."""
    monkeypatch.setattr(LimitedProtocol, "most", 20)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.2)
    head = b"POST /api/v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with on_a_port(served) as (port, _), contextlib.ExitStack() as stack:
        held = [stack.enter_context(one) for one in hostile_studio.hold(port, 60)]
        assert hostile_studio.health_seconds(port) < 1 and len(LimitedProtocol.connections_open) <= 20
        held.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)))
        held[-1].sendall(head + b"Content-Length: 9\r\n\r\n{")
        assert all(map(is_closed, held))


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes within the connection's seconds, perhaps after an answer."""
    try:
        while connection.recv(1000):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


# --- sessions --------------------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_seen(locked):
    """The page says how one comes in, and nothing else, as everything does."""
    for path in ("/", "/?token=wrong", "/projects/abcd/runs", "/status"):
        answer = locked.get(path)
        assert answer.status_code == 401 and access.LOCKED in html.unescape(answer.text)
        assert "<h1>This link opens nothing</h1>" in answer.text and "studio/style.css" in answer.text
    assert locked.post("/new").status_code == 401


@pytest.mark.parametrize("whose", ["the owner's", "one that was made"])
def test_a_token_in_an_address_opens_and_leaves_it(locked, store, whose):
    """By a cookie that scripts and other sites cannot use."""
    token = store.owner if whose == "the owner's" else store.create("Ada")
    answer = log_in(locked, token, "/status")
    cookie = answer.headers["set-cookie"].lower()
    assert (answer.status_code, answer.headers["location"]) == (303, "status")
    assert "httponly" in cookie and "samesite=strict" in cookie and token not in cookie
    assert locked.get("/").status_code == 200


def test_a_restart_logs_nobody_out(locked, store):
    """Another process on the same home knows the cookie."""
    log_in(locked, store.owner)
    again = start(sessions.SessionStore(store.home))
    again.cookies = locked.cookies
    assert again.get("/").status_code == 200


@pytest.mark.parametrize("end", ["time", "its token", "the owner's token"])
def test_a_session_ends_with_its_time_and_its_token(locked, store, monkeypatch, end):
    """At once where the token was taken back, and after a restart where the owner has another one."""
    secret = store.create("Ada")
    log_in(locked, secret)
    assert locked.get("/").status_code == 200
    if end == "time":
        now = time.time()
        monkeypatch.setattr(sessions.time, "time", lambda: now + sessions.SESSION_SECONDS + 1)
    elif end == "its token":
        store.revoke("Ada")
    else:
        (store.home / "token").unlink()
    again = sessions.SessionStore(store.home)
    after = start(again) if end == "the owner's token" else locked
    after.cookies = locked.cookies
    assert after.get("/").status_code == 401
    assert ("Ada" in again.tokens()) == (end == "time")


def test_the_database_keeps_no_cookie_and_no_token(locked, store):
    """Only their hashes: who reads the file gets in nowhere."""
    secret = store.create("Ada")
    cookie = log_in(locked, secret) and locked.cookies[store.cookie]
    files = [path.read_bytes() for path in store.home.glob("studio.sqlite*")]
    for kept in (secret, cookie):
        assert not any(kept.encode() in content for content in files)
        assert any(sessions.digest(kept).encode() in content for content in files)


def test_a_forged_cookie_opens_nothing(locked, store):
    """Cookies are random and known only by their hash."""
    locked.cookies.set(store.cookie, "x" * 43, domain="127.0.0.1")
    assert locked.get("/").status_code == 401


def test_no_secret_is_logged(locked, store, capfd, caplog):
    """Neither token nor cookie appears in what the server says."""
    log_in(locked, "wrong" * 20)
    log_in(locked, store.owner)
    said = "".join(capfd.readouterr()) + caplog.text
    assert store.owner not in said and "wrong" not in said and locked.cookies[store.cookie] not in said


def test_a_studio_that_others_reach_wants_a_token(tmp_path, capsys):
    """Another host than this machine's own is never open to everybody."""
    assert cli.main(["studio", "--home", str(tmp_path), "--host", "0.0.0.0", "--no-token"]) == 2
    assert "--no-token" in capsys.readouterr().err


def test_a_port_in_use_is_a_sentence(tmp_path, capsys):
    """Said before anything is started."""
    with app.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["studio", "--home", str(tmp_path), "--port", str(port), "--no-worker"]) == 2
    assert f"Port {port}" in capsys.readouterr().err


def test_a_token_for_reading_changes_nothing(locked, store):
    """Its page says so, and a form is refused with the sentence, in a page."""
    log_in(locked, store.create("Ada", "read"))
    shown = locked.get("/").text
    assert "may only look" in shown and 'class="read-only"' in shown
    answer = locked.post("/new", headers={"origin": HOST})
    assert answer.status_code == 403 and 'id="refused"' in answer.text and access.READ_ONLY in answer.text
    assert "may only look" not in start(store).get("/", headers={"authorization": f"Bearer {store.owner}"}).text


def test_two_studios_on_one_host_do_not_log_each_other_out(tmp_path):
    """Browsers send the cookies of every port: each home has a name of its own for its cookie."""
    homes = [sessions.SessionStore(tmp_path / name) for name in ("one", "two")]
    both = [start(one) for one in homes]
    for client, one in zip(both, homes, strict=True):
        log_in(client, one.owner)
    both[0].cookies.update(both[1].cookies)
    both[1].cookies.update(both[0].cookies)
    assert [client.get("/").status_code for client in both] == [200, 200]


def test_a_home_that_stood_open_is_closed_and_a_shared_folder_is_refused(tmp_path, capsys):
    """What others could read of a studio they can no more, which is said once; a folder with other files is not ours
    to close.
    """
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    Studio(home).close()
    assert home.stat().st_mode & 0o777 == 0o700 and "its owner alone can" in capsys.readouterr().err
    Studio(home).close()
    assert capsys.readouterr().err == ""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="Others can read"):
        Studio(shared)
    assert shared.stat().st_mode & 0o777 == 0o755 and [one.name for one in shared.iterdir()] == ["letter.txt"]


def test_a_token_is_printed_as_the_link_of_an_open_studio(tmp_path, capsys):
    """The address is that of the studio that is open; of none it is said where the token goes."""
    Studio(tmp_path / "home").close()
    create = ["studio", "token", "create", "--home", str(tmp_path / "home")]
    assert cli.main([*create, "closed"]) == 0
    assert "the address of the studio, then ?token=" in capsys.readouterr().out
    say_open(tmp_path / "home", "http://127.0.0.1:7861/")
    assert cli.main([*create, "open"]) == 0
    assert "http://127.0.0.1:7861/?token=" in capsys.readouterr().out


def test_a_list_of_tokens_makes_no_studio(tmp_path, capsys):
    """Where the folder is mistyped nothing is made."""
    assert cli.main(["studio", "token", "list", "--home", str(tmp_path / "typo")]) == 2
    assert "There is no studio in" in capsys.readouterr().err and not (tmp_path / "typo").exists()


def test_a_full_disk_is_a_page_and_deleting_works(locked, store, monkeypatch):
    """Its files go first, which makes room for the word that it is gone."""
    studio = Studio(store.home)
    project = studio.create_project("Full", CSV, "full.csv", Reading("question", "answer"))
    folder, whole = studio.folder(project.id), database.Database._write

    @contextlib.contextmanager
    def full(self):
        if folder.exists():
            raise InputError(database.refusal(self.home, errno.ENOSPC))
        with whole(self) as db:
            yield db

    monkeypatch.setattr(database.Database, "_write", full)
    answer = log_in(locked, store.owner)
    assert answer.status_code == 507 and "is full: free some space" in answer.text
    header = {"authorization": f"Bearer {store.owner}"}
    assert locked("DELETE", f"/api/v1/projects/{project.id}", headers=header).status_code == 204
    assert not folder.exists() and not studio.projects()


# --- what is shown ---------------------------------------------------------------------------------------------
