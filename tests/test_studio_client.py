"""The client and `compare --server`: over a real connection, and the table is the one that the command prints here."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import studio_api
from conftest import wait_for

from peftbook import cli
from peftbook.studio import client
from peftbook.studio.api.examples import ROWS
from peftbook.studio.client import Client, Refused
from peftbook.studio.sessions import SessionStore
from peftbook.studio.store import Studio

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of threads that have ended

SETTINGS = ("--input", "question", "--target", "answer", "--models", "small-llama", "--methods", "untuned,lora",
            "--tokens", "300", "--seeds", "1", "--max-new-tokens", "4")  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A studio's API on a port, with stand-ins that answer and compute."""
    home = tmp_path_factory.mktemp("server")
    studio, sessions, until = Studio(home), SessionStore(home), threading.Event()

    def stand_in() -> None:
        while not until.wait(0.05):
            studio_api.work(studio)

    thread = threading.Thread(target=stand_in)
    thread.start()
    with studio_api.on_a_port(studio_api.served(studio, sessions).served) as (port, _):
        yield SimpleNamespace(home=home, studio=studio, address=f"http://127.0.0.1:{port}/", token=sessions.owner)
    until.set()
    thread.join(30)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "questions.csv"
    path.write_text(ROWS)
    return path


def test_the_client_is_one_file_on_the_standard_library():
    """It can be copied to where nothing of this package is."""
    tree = ast.parse(Path(client.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.slow
def test_compare_on_a_server_prints_what_compare_prints_here(server, file, capsys, tmp_path):
    """The table, the numbers and the files; a second call computes nothing and makes no second project."""
    there = ["compare", str(file), *SETTINGS, "--server", f"{server.address}?token={server.token}"]
    page, table = tmp_path / "report.html", tmp_path / "table.csv"
    assert cli.main([*there, "--report", str(page), "--csv", str(table)]) == 0
    out, err = capsys.readouterr()
    assert "40 rows" in err and "2 runs to compute" in err and "2 of 2" not in out
    here = ["compare", str(file), *SETTINGS, "--home", str(server.home)]
    assert cli.main(here) == 0
    assert capsys.readouterr().out == out
    assert page.read_text().startswith("<!doctype html>") and "LoRA" in table.read_text("utf-8-sig")
    assert cli.main([*there, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert cli.main([*here, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert told == again and len(server.studio.projects()) == 1


@pytest.mark.slow
def test_a_tuned_comparison_on_a_server_is_followed_to_its_end(server, file, capsys):
    """Through all stages of the race, with the chosen rate; the table is the one that is printed here."""
    file.write_text(ROWS + "a row of this test,3\n")
    there = ["compare", str(file), *SETTINGS, "--learning-rate", "lora=0.001", "--tune"]
    assert cli.main([*there, "--server", f"{server.address}?token={server.token}"]) == 0
    out, err = capsys.readouterr()
    assert "LoRA: rate 0.002 of 5 (validation loss 0.000 on 4 rows, 0.001 has 0.001)." in err.splitlines()
    assert "10 runs to compute" in err and "raced on the validation rows" in " ".join(out.split())
    assert cli.main([*there, "--home", str(server.home)]) == 0
    again, err = capsys.readouterr()
    assert again == out and "LoRA: rate 0.002 of 5" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--token", "wrong"], "Say who asks"),
        (["--server", "http://127.0.0.1:9"], "cannot be reached"),
        (["--server", "ftp://x"], "is no address of a studio"),
        (["--seeds", "11"], "11 seeds are chosen: choose a whole number from 1 to 10"),
        (["--measure", "blue"], "Unknown measure 'blue'"),
        (["--home", "here"], "--server has a home of its own"),
        (["--models", "nobody"], "neither a folder nor a hub id"),
    ],
)
def test_what_a_server_refuses_is_the_commands_own_sentence(server, file, capsys, more, words):
    """Status 2, one line, and no project is left behind."""
    before = len(server.studio.projects())
    file.write_text(ROWS + "one more,1\n")
    command = ["compare", str(file), *SETTINGS, "--server", server.address, "--token", server.token, *more]
    assert cli.main(command) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("peftbook: ") and words in last
    assert len(server.studio.projects()) == before


def test_a_plan_that_does_not_fit_is_refused_and_its_project_goes(server, file, capsys, monkeypatch):
    """As here: before anything is queued."""
    check_of = studio_api.check_of
    monkeypatch.setattr(studio_api, "check_of", lambda run: replace(check_of(run), fits=False, words="No."))
    file.write_text(ROWS + "two more,2\n")
    before = len(server.studio.projects())
    command = ["compare", str(file), *SETTINGS, "--server", server.address, "--token", server.token]
    assert cli.main(command) == 2
    assert "Untuned cannot be run there. No." in capsys.readouterr().err
    assert len(server.studio.projects()) == before


def test_what_failed_there_is_said_and_an_interrupt_leaves_the_runs(server, file, capsys, monkeypatch):
    """Status 1 with each sentence; 130 after Ctrl-C, and the server computes on, as others may wait for it."""

    def fail(studio, job, **_) -> None:
        studio.adopt(job.id, job.attempt, 0)
        studio.fail(job.id, job.attempt, "The memory was not enough.")

    def interrupt(*_):
        raise KeyboardInterrupt

    file.write_text(ROWS + "three more,3\n")
    command = ["compare", str(file), *SETTINGS, "--server", server.address, "--token", server.token]
    with monkeypatch.context() as patch:
        patch.setattr(studio_api, "finish", fail)
        assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert said.count("failed, The memory was not enough.") == 2 and "nothing to compare" in said
    monkeypatch.setattr(Client, "events", interrupt)
    assert cli.main(command) == 130
    assert "give the same command again" in capsys.readouterr().err
    project = server.studio.projects()[-1]
    wait_for(lambda: {job.state for job in server.studio.jobs(project.id)} == {"done"})


def test_an_upload_whose_answers_are_lost_goes_on(server, file, monkeypatch):
    """Whether the bytes had arrived or not: the server says where to go on."""
    studio = Client(server.address, server.token)
    monkeypatch.setattr(client, "BLOCK_BYTES", 200)
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)
    real, count = studio._open, 0

    def flaky(method, path, body, query=None):
        nonlocal count
        count += method == "PUT"
        if method == "PUT" and count % 3 == 1:
            raise Refused("The connection broke off before it was sent.")
        answer = real(method, path, body, query)
        if method == "PUT" and count % 3 == 2:
            answer.close()
            raise Refused("The connection broke off after it was sent.")
        return answer

    monkeypatch.setattr(studio, "_open", flaky)
    sent = studio.send(file)
    assert (server.home / "drafts" / sent).read_bytes() == file.read_bytes() and count > 5


def test_a_project_is_saved_and_loaded(server, tmp_path):
    """As a file, whole; a second time it is refused in the server's sentence."""
    studio = Client(server.address, server.token)
    project = studio_api.project_of(server.studio).id
    wait_for(lambda: {job.state for job in server.studio.jobs(project)} == {"done"})
    decision = studio.get(f"projects/{project}/decision")
    studio.save_project(project, tmp_path / "saved.tar")
    with pytest.raises(Refused, match="is here already"):
        studio.load_project(tmp_path / "saved.tar")
    studio.delete(f"projects/{project}")
    assert studio.load_project(tmp_path / "saved.tar")["id"] == project
    assert studio.get(f"projects/{project}/decision") == decision
    studio.delete(f"projects/{project}")


def test_events_are_taken_up_where_the_stream_broke_off(server, monkeypatch):
    """A proxy that ends the stream costs nothing; one that refuses it is an error."""
    studio = Client(server.address, server.token)
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)
    streams = iter([[b"event: job\n", b'data: {"id": 1}\n', b"\n"], [b"event: end\n", b"data: {}\n", b"\n"]])
    monkeypatch.setattr(studio, "_open", lambda *_: contextlib.nullcontext(next(streams)))
    monkeypatch.setattr(client, "read_events", read_lines)
    assert [job["id"] for job in studio.events("plans/x/events")] == [1]
    with pytest.raises(Refused, match="There is no plan"):
        next(Client(server.address, server.token).events("plans/x/events"))


def read_lines(answer) -> Iterator[tuple[str, str]]:
    """`read_events` of a list of lines."""
    with answer as lines:
        yield lines[0].decode().split()[1], lines[1].decode().partition(" ")[2].strip()
