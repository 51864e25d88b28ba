"""Running a studio: a backup is whole or refused, and the unit starts what it says."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import tarfile
import threading
import warnings
import zipfile

import pytest
import studio_api
from studio_api import play, served

from peftbook import cli
from peftbook.cli import build_parser
from peftbook.core.errors import InputError
from peftbook.studio import access, app
from peftbook.studio.backup import back_up, restore
from peftbook.studio.sessions import SessionStore
from peftbook.studio.store import Studio

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of threads that have ended


@pytest.fixture
def home(tmp_path):
    """With a project whose runs are done, and its owner's token."""
    home = tmp_path / "home"
    studio = Studio(home)
    client = served(studio, sessions := SessionStore(home))
    client.headers["authorization"] = f"Bearer {sessions.owner}"
    play(client, studio, "DELETE /projects/{project}")
    return home


def test_a_backup_is_of_one_moment_whatever_is_written_meanwhile(home, tmp_path):
    """Projects come, go and are computed while it is taken: what is restored is whole, and goes on."""
    studio, until = Studio(home), threading.Event()

    def live() -> None:
        mine = Studio(home)
        while not until.is_set():
            project = studio_api.project_of(mine)
            studio_api.work(mine)
            mine.delete_project(project.id)
        mine.close()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        for at in range(3):
            back_up(home, tmp_path / f"{at}.zip")
    finally:
        until.set()
        thread.join(60)
    studio.close()
    for at in range(3):
        restore(tmp_path / f"{at}.zip", tmp_path / f"home-{at}")
        again = Studio(tmp_path / f"home-{at}")
        again.release()
        studio_api.work(again)
        assert all(again.table(project.id).rows for project in again.projects())
        assert again.jobs() and {job.state for job in again.jobs()} == {"done"}
        again.close()


@pytest.mark.parametrize("fault", ["changed", "cut", "link", "outside", "packed", "other"])
def test_what_is_no_backup_or_was_changed_leaves_nothing(home, tmp_path, fault):
    """One sentence; no file is written outside, and no home is half there."""
    good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
    back_up(home, good)
    content = good.read_bytes()
    if fault == "changed":
        bad.write_bytes(content.replace(b"What is 7 plus one", b"What is 8 plus one"))
    elif fault == "cut":
        bad.write_bytes(content[: len(content) // 2])
    elif fault == "other":
        bad.write_bytes(b"something else\n" * 1000)
    else:
        rewrite(good, bad, fault)
    names = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="no backup of a studio, or was changed"):
        restore(bad, tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_backup_of_an_older_version_is_refused_as_that(home, tmp_path):
    """Older versions wrote a tar file, which is not called changed."""
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        archive.add(home / "studio.sqlite", "studio.sqlite")
    with pytest.raises(InputError, match="is a tar file, as older versions wrote"):
        restore(tmp_path / "old.tar", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def rewrite(good, bad, fault: str) -> None:
    """The same members, and one that does not belong there, is there already, or is packed."""
    shutil.copyfile(good, bad)
    entry = zipfile.ZipInfo({"link": "token", "outside": "projects/../../../outside"}.get(fault, "login.json"))
    if fault == "link":
        entry.external_attr = 0o120777 << 16
    if fault == "packed":
        entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(bad, "a") as after, warnings.catch_warnings(action="ignore"):
        after.writestr(entry, "/etc/passwd")


def test_nothing_is_overwritten(home, tmp_path, capsys):
    """Neither a backup nor a home."""
    back_up(home, tmp_path / "one.zip")
    for words in (["--backup", str(tmp_path / "one.zip")], ["--restore", str(tmp_path / "one.zip")]):
        assert cli.main(["studio", "--home", str(home), *words]) == 2
        assert "overwritten" in capsys.readouterr().err
    assert cli.main(["studio", "--home", str(tmp_path / "none"), "--backup", str(tmp_path / "two.zip")]) == 2
    assert not (tmp_path / "none").exists() and not (tmp_path / "two.zip").exists()


def test_the_unit_starts_a_studio_as_it_was_asked(tmp_path, capsys):
    """Its command is one that the command line reads, with home, port and names; systemd's % is doubled."""
    home = tmp_path / "100 % mine"
    asked = ("--home", str(home), "--port", "8000", "--name", "peft.example", "--proxy", "127.0.0.1")
    assert cli.main(["studio", "--unit", *asked]) == 0
    read = configparser.RawConfigParser(strict=False)
    read.read_string(capsys.readouterr().out)
    words = shlex.split(read["Service"]["ExecStart"].replace("%%", "%"))
    args = build_parser().parse_args(words[3:])
    assert (args.command, args.home, args.port, args.name) == ("studio", home, 8000, ["peft.example"])
    assert args.proxy == "127.0.0.1"


def test_a_proxys_name_is_let_in_and_a_prefix_is_taken_off_by_it(home):
    """The API's page has no address of its own in it, so that it works under any."""
    client = served(Studio(home))
    client.served.hosts |= {"peft.example"}
    for host, status in (("peft.example", 200), ("other.example", 421)):
        assert client("GET", "/api/v1/health", headers={"host": host}).status_code == status
    page = client("GET", "/api/v1/", headers={"host": "peft.example"}).text
    assert 'href="/' not in page and 'src="/' not in page
    origin = {"host": "peft.example", "origin": "https://peft.example"}
    assert client("POST", "/api/v1/files", headers=origin, json={"bytes": 10}).status_code == 201
    with pytest.raises(InputError, match="without a port"):
        app.serve(home, names=["peft.example:443"])
    assert json.loads(client("GET", "/api/v1/ready").text)["ready"] in (True, False) and access.host_of("[::1]")
