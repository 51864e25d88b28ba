"""The studio's API: a session by its own examples, problems in one sentence, tokens, uploads that break, and no 500."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import hostile_studio
import jsonschema
import pytest
from studio_api import Client, play, project_of, served, work
from studio_examples import EXAMPLES, ROWS, Example
from studio_home import SMALL

from peftbook import cli
from peftbook.core.errors import Conflict, TooLarge
from peftbook.studio import access
from peftbook.studio.api.page import operations
from peftbook.studio.data_checks import found_with
from peftbook.studio.decisions import evaluations, project_comparison
from peftbook.studio.plan import plan
from peftbook.studio.sessions import SessionStore
from peftbook.studio.settings import Settings
from peftbook.studio.store import Studio
from peftbook.studio.tuning import Tuning
from peftbook.studio.uploads import CUT_SECONDS, UploadStore
from peftbook.tasks.table import Caps

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of threads that have ended

JSON = {"content-type": "application/json"}
DELETES = "DELETE /projects/{project}"


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    """With a project whose runs are done."""
    return Studio(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def ask(studio) -> Client:
    client = served(studio, sessions := SessionStore(studio.home))
    client.headers["authorization"] = f"Bearer {sessions.owner}"
    return client


@pytest.fixture(scope="module")
def known(ask, studio) -> dict[str, str]:
    """Ids of a session that is over but for the last example, which deletes it."""
    return play(ask, studio, DELETES)


@pytest.fixture(scope="module")
def description(ask) -> dict[str, Any]:
    return ask("GET", "/api/v1/openapi.json").json()


# --- description and examples ----------------------------------------------------------------------------------


def test_every_route_has_an_example_and_a_sentence(description):
    """And every example a route."""
    routes = {f"{method} {path}": operation for method, path, operation in operations(description)}
    assert routes.keys() == {example.route for example in EXAMPLES}
    assert all(operation["description"] for operation in routes.values())


def test_the_examples_are_one_session(tmp_path):
    """From a file to its adapter and away again: each is answered as it says."""
    studio, sessions = Studio(tmp_path), SessionStore(tmp_path)
    client = served(studio, sessions)
    client.headers["authorization"] = f"Bearer {sessions.owner}"
    play(client, studio)
    assert studio.projects() == []


def test_every_answer_of_the_session_is_as_described(tmp_path, description):
    """Status, content type and tree, so that a client that was generated from the description reads them; routes that
    want no token say so, and only they.
    """
    studio, sessions = Studio(tmp_path), SessionStore(tmp_path)
    client = served(studio, sessions)
    client.headers["authorization"] = f"Bearer {sessions.owner}"
    send, parts = client.send, {"components": description["components"]}

    def check(example: Example, known: Mapping[str, str]) -> Any:
        method, path = example.route.split(" ")
        operation = description["paths"][path][method.lower()]
        answer = send(example, known)
        content = operation["responses"][str(answer.status_code)].get("content", {})
        kind = answer.headers["content-type"].partition(";")[0] if answer.content else ""
        assert kind in content or not (kind or content), (example, kind)
        if kind == "application/json":
            jsonschema.validate(answer.json(), content[kind]["schema"] | parts)
        stranger = Client(client.served).send(example, known).status_code
        assert (stranger == 401) == (operation.get("security") != []), example
        return answer

    client.send = check
    known = play(client, studio, DELETES)
    for example in EXAMPLES:
        if example.path.endswith("adapter.zip"):
            csv = dataclasses.replace(example, path=example.path.replace("adapter.zip", "outputs.csv"))
            assert check(csv, known).headers["content-type"].startswith("text/csv")
    for bad, status in (("/projects/ab", 404), ("/projects/ab/decision?runs=-1", 422)):
        refused = client("GET", f"/api/v1{bad}")
        content = description["paths"]["/projects/{project}"]["get"]["responses"][str(status)]["content"]
        jsonschema.validate(refused.json(), content[refused.headers["content-type"]]["schema"] | parts)
        assert refused.status_code == status


def test_the_page_shows_every_route_and_loads_nothing(ask, description):
    """No script, nothing from another host, under a policy that allows neither; what its session asks for is there."""
    answer = ask("GET", "/api/v1/")
    assert "<script" not in answer.text and not re.search(r"(?:src|href)=.?(?:https?:)?//", answer.text)
    assert all(path in answer.text for _, path, _ in operations(description))
    asked = re.findall(r"\$STUDIO(/[^\"]*)\"", answer.text)
    known = {re.sub(r"{\w+}", "…", path) for path in description["paths"]} | {"/jobs/…/artefacts/adapter.zip"}
    assert len(asked) > 9 and {re.sub(r"\$[A-Z]+", "…", path) for path in asked} <= known
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_a_decision_says_which_rates_were_raced(tmp_path):
    """None of a plan at the presets, some where a race chose another one beside them, all of the tuned plan alone."""
    studio = Studio(tmp_path)
    project = project_of(studio)
    work(studio)
    chosen = Settings(models=(SMALL,), methods=("lora",), seeds=1, tokens=300, max_new_tokens=4)
    runs = plan(studio.task(project.id), chosen)
    tuning = Tuning.of(studio.task(project.id), runs)

    def said(plan_id: str = "") -> str:
        (jobs,) = evaluations(studio, project.id, plan_id).values()
        (words,) = [one for one in project_comparison(studio, project.id, jobs).cautions if "presets" in one]
        return words.partition(" on ")[0]

    assert said() == "Learning rates and sizes are presets, not tuned"
    plan_id = studio.submit(project.id, tuning.runs(studio.records(project.id).get), tuning=tuning)
    work(studio)
    assert said() == "Some learning rates were raced" and said(plan_id) == "Learning rates were raced"


def test_the_decision_is_what_the_command_line_prints(ask, known):
    """The same words as JSON and as text."""
    path = f"/api/v1/projects/{known['project']}/decision"
    body, text = ask("GET", path).json(), ask("GET", f"{path}.txt?columns=100").text
    assert {row["label"] for row in body["rows"]} == {"Untuned", "LoRA"}
    assert " ".join(text.split())[:60] == body["recommendation"]["words"][:60]
    assert ask("GET", f"{path}.csv").text.lstrip("\ufeff").startswith('"method"')
    assert "<!doctype html>" in ask("GET", f"{path}.html").text


def test_findings_say_what_the_test_rows_can_see_and_offer_more(ask, known):
    """By the spread of our own runs; the margin that decides is far below what four rows find."""
    project = known["project"]
    body = ask("GET", f"/api/v1/projects/{project}/findings").json()
    words = next(one["words"] for one in body["notes"] if "test rows find" in one["words"])
    small, large = (float(one) for one in re.findall(r"find (?:a difference of )?(\d\.\d+)", words))
    assert body["splits"]["test"] == 4 and "A test share of 30 % would be 12 rows" in words and small > large > 0.02
    assert found_with(4 * 25) == pytest.approx(found_with(25) / 2)


def test_a_check_says_what_the_test_rows_of_its_plan_can_see(ask, known, description):
    """In the words of the command line, and as numbers: four rows decide nothing, however many the seeds. What is null
    then may be so by the description.
    """
    body = ask("GET", f"/api/v1/checks/{known['check']}").json()
    assert [(one["seeds"], one["rows"], one["difference"]) for one in body["sights"]] == [
        (1, 4, None), (3, 4, None), (5, 4, None)
    ]  # fmt: skip
    assert any(words.startswith("4 test rows and 1 seed decide nothing") for words in body["words"])
    for one in body["sights"]:
        jsonschema.validate(one, description["components"]["schemas"]["Sight"])


def test_a_loss_that_is_no_number_is_null(ask, known):
    """JSON has no other word for it."""
    assert ask("GET", f"/api/v1/jobs/{known['job']}/curve").json()[-1]["loss"] is None


# --- problems --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/projects/abcd", None, 404, "There is no project 'abcd'"),
        ("GET", "/jobs/abcd", None, 404, "There is no job 'abcd'"),
        ("GET", "/plans/abcd", None, 404, "There is no plan 'abcd'"),
        ("GET", "/nothing", None, 404, "There is nothing here"),
        ("POST", "/health", None, 405, "cannot be done"),
        ("POST", "/jobs/{job}/retry", None, 409, "is done"),
        ("GET", "/jobs/{job}/artefacts/model.zip", None, 409, "has not been made yet"),
        ("GET", "/jobs/{job}/artefacts/data.bin", None, 404, "There is no file 'data.bin'"),
        ("POST", "/files", {"filename": "x.csv", "bytes": 10**9}, 413, "100,000,000 bytes, the cap"),
        ("POST", "/files", {"filename": "x.csv"}, 422, "bytes is missing"),
        ("POST", "/projects/{project}/checks", {"seeds": 1.5}, 422, "1.5 seeds are chosen: choose a whole number"),
        ("POST", "/projects/{project}/checks", {"seed": 1}, 422, "seed is no field of this body"),
        ("POST", "/projects/{project}/checks", {"models": ["~nobody/x y"]}, 422, "neither a folder nor a hub id"),
        ("POST", "/projects/{project}/checks", {"learning_rates": {"lora": 1e308}}, 422, "lora is 1e+308: choose"),
        ("PATCH", "/projects/{project}", {"name": "a\x00b"}, 422, "The name 'a\\x00b' holds a control character"),
        ("GET", "/projects/{project}/decision?measure=blue", None, 422, "Unknown measure 'blue'"),
        ("POST", "/projects/{project}/answers", {"text": "x", "models": ["job:x"]}, 404, "That model is not at hand"),
        ("POST", "/projects/{project}/answers", {"text": "x", "models": []}, 422, "0 models are chosen"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_sentence(ask, known, method, path, body, status, words):
    """The sentence that page and command line say, as problem details."""
    answer = ask(method, "/api/v1" + path.format(**known), **({} if body is None else {"json": body}))
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"]) == (status, status) and words in problem["detail"]
    assert "\n" not in problem["detail"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://[", "http://[::1]evil.com"])
def test_the_door_speaks_of_problems_too(studio, ask, origin):
    """Without a token, from another site, and too much at once."""
    answers = [
        Client(ask.served)("GET", "/api/v1/projects"),
        Client(ask.served, {"authorization": "Bearer no"})("GET", "/api/v1/projects"),
        ask("POST", "/api/v1/files", headers={"origin": origin}),
        ask("POST", "/api/v1/files", content=b"{}", headers={"content-length": str(access.BODY_BYTES + 1)}),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 403, 413]
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in answers)
    assert all(answer.json()["detail"].endswith(".") for answer in answers)


# --- uploads ---------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_broke_off_even_after_a_restart(ask, studio):
    """The server says where; other bytes than those are refused and change nothing."""
    body = {"filename": "..\\a/b.csv", "bytes": len(ROWS)}
    file = ask("POST", "/api/v1/files", json=body).json()
    assert file["filename"] == "b.csv" and not file["whole"]
    path = f"/api/v1/files/{file['id']}"
    assert ask("PUT", f"{path}/content", content=ROWS[:100].encode()).json()["offset"] == 100
    assert ask("GET", f"{path}/table").status_code == 409
    again = served(studio, SessionStore(studio.home))  # another process
    again.headers = ask.headers
    assert again("PUT", f"{path}/content", content=b"x").status_code == 409
    assert again("PUT", f"{path}/content?offset=100", content=b"x" * 10_000).status_code == 413
    assert again("GET", path).json()["offset"] == 100
    assert again("PUT", f"{path}/content?offset=100", content=ROWS[100:].encode()).json()["whole"]
    assert again("GET", f"{path}/table").json()["columns"] == ["question", "answer"]


def test_what_a_killed_process_left_of_an_upload_does_not_lie_around(tmp_path):
    """One that nobody can go on with is gone when the next process starts, one that can be after an hour."""
    before = UploadStore(tmp_path, Caps())
    cut, part, whole = before.new("page.csv"), before.new("api.csv", 10), before.new("whole.csv")
    (tmp_path / "drafts" / "tmpabc").mkdir()  # of the first studio
    for draft in (cut, part, whole):
        with before.receiving(draft.id) as write:
            write(b"a,b\n")
    before.end(whole.id)
    after = UploadStore(tmp_path, Caps())
    assert [draft.id for draft in after.all()] == [part.id, whole.id]
    then = time.time() - CUT_SECONDS - 1
    for draft in (part, whole):
        os.utime(draft.path, (then, then))
    after.sweep()
    assert [draft.id for draft in after.all()] == [whole.id]
    assert {path.stem for path in (tmp_path / "drafts").iterdir()} == {whole.id}


def test_two_who_send_the_same_upload_do_not_mix(tmp_path):
    """One at a time; and never more than was announced."""
    uploads = UploadStore(tmp_path, Caps(bytes=100))
    draft = uploads.new("a.csv", 8)
    with uploads.receiving(draft.id) as write:
        write(b"1234")
        with pytest.raises(Conflict, match="Another request"), uploads.receiving(draft.id, 4):
            pass
    with pytest.raises(TooLarge, match="8 bytes"), uploads.receiving(draft.id, 4) as write:
        write(b"56789")
    assert uploads.get(draft.id).path.read_bytes() == b"1234"
    with pytest.raises(TooLarge, match="the cap"):
        uploads.new("b.csv", 101)


# --- tokens ----------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path) -> Client:
    """Behind the owner's token."""
    return served(Studio(tmp_path), SessionStore(tmp_path))


def bearer(token: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_token_opens_until_it_is_taken_back(locked, tmp_path, capsys):
    """Shown once, kept as its hash; a stolen one ends with its list entry or with the owner's token."""
    for headers in ({}, bearer("wrong" * 20), {"authorization": "Basic YWRhOnB3"}):
        assert locked("GET", "/api/v1/projects", headers=headers).status_code == 401
    home = ["studio", "--home", str(tmp_path)]
    made = []
    for words in (["laptop"], ["Ada", "--read"]):
        assert cli.main([*home, "token", "create", *words]) == 0
        made += re.findall(r"Bearer (\w+)", capsys.readouterr().out)
    secrets = [bearer(secret) for secret in made]
    assert [locked("GET", "/api/v1/projects", headers=one).status_code for one in secrets] == [200, 200]
    sent = [locked("POST", "/api/v1/files", headers=one, json={"bytes": 3}) for one in secrets]
    assert [one.status_code for one in sent] == [201, 403] and "only look" in sent[1].json()["detail"]
    assert cli.main([*home, "token", "create", "laptop"]) == 2 and "already" in capsys.readouterr().err
    assert cli.main([*home, "token", "list"]) == 0
    assert capsys.readouterr().out == "laptop: may look and change, made just now\nAda: may only look, made just now\n"
    assert not any(made[0].encode() in path.read_bytes() for path in tmp_path.glob("studio.sqlite*"))
    assert [cli.main([*home, "token", "revoke", "Ada"]) for _ in range(2)] == [0, 2]
    assert [locked("GET", "/api/v1/projects", headers=one).status_code for one in secrets] == [200, 401]
    (tmp_path / "token").unlink()
    again = served(Studio(tmp_path), SessionStore(tmp_path))
    assert again("GET", "/api/v1/projects", headers=secrets[0]).status_code == 401


def test_the_printed_address_lets_in(tmp_path):
    """Its token becomes a cookie and leaves the address; another token, and none, open nothing."""
    keys = SessionStore(tmp_path)
    client = served(Studio(tmp_path), keys)
    answer = client("GET", f"/?project=ab&token={keys.owner}")
    assert (answer.status_code, answer.headers["location"]) == (303, "./?project=ab")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert client("GET", "/api/v1/projects", headers={"cookie": cookie}).status_code == 200
    client.cookies.clear()
    for query in ("", "?token=", f"?token={keys.owner[:-1]}", "?token=%00"):
        assert client("GET", f"/{query}").status_code == 401
    assert SessionStore(tmp_path).owner == keys.owner and (tmp_path / "token").stat().st_mode & 0o77 == 0


def test_health_is_told_to_everybody_and_readiness_says_what_is_missing(locked):
    """A probe has no token; it learns nothing of anybody's data."""
    assert locked("GET", "/api/v1/health").json() == {"status": "ok"}
    answer = locked("GET", "/api/v1/ready")
    assert answer.status_code == 503 and "No worker is running" in answer.json()["missing"][0]


# --- anything --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whatever_is_sent_no_answer_is_an_error_of_ours(tmp_path):
    """Known attacks and some requests by the description, over a connection; the laws are `hostile_studio`'s. What a
    file of each class is answered with is tried a thousand times in `test_hostile`.
    """
    with hostile_studio.serving(tmp_path / "home") as there:
        assert hostile_studio.attack(there, 200, each=1) == []
    assert sum(there.counts.values()) > 500 and {200, 401, 403, 404, 409, 413, 416, 421, 422} <= there.counts.keys()


@pytest.mark.parametrize(("asked", "status", "part"), [
    ("bytes=0-9", 206, slice(0, 10)), ("bytes=-5", 206, slice(-5, None)), ("bytes=40-", 206, slice(40, None)),
    ("bytes=9-0", 200, slice(None)), ("bytes=0-1,4-5", 200, slice(None)), ("lines=1-2", 200, slice(None)),
    ("bytes=99999999-", 416, slice(0)), ("bytes=-0", 416, slice(0)),
])  # fmt: skip
def test_a_range_of_a_download_comes_and_what_is_none_is_passed_over(ask, known, asked, status, part):
    """As RFC 9110 has it; one beyond the end is a problem as any other."""
    path = f"/api/v1/jobs/{known['job']}/artefacts/adapter.zip"
    answer = ask("GET", path, headers={"range": asked})
    assert answer.status_code == status
    if status == 416:
        assert "bytes" in answer.json()["detail"] and answer.headers["content-range"].startswith("bytes */")
    else:
        assert answer.content == ask("GET", path).content[part]


def test_a_refusal_is_short_and_prints_whatever_it_was_sent(ask, known):
    """Its sentence names the value, or the beginning of a long one; nothing of it is a control character."""
    checks = f"/api/v1/projects/{known['project']}/checks"
    for answer in (
        ask("GET", f"/api/v1/jobs/{'x' * 5000}"),
        ask("POST", checks, json={"\x1b[31m" + "y" * 500: 1}),
        ask("POST", checks, content=b'{"learning_rates": {"\\ud800\\u0007": "x"}}',
            headers=JSON),
    ):  # fmt: skip
        words = answer.json()["detail"]
        assert words.isprintable() and len(words) < 400 and words.endswith("."), words
    for deep in (150, 945, 2000):  # about Python's own limit too
        nested = b'{"filename": %s, "bytes": 1}' % (b"[" * deep + b"]" * deep)
        assert ask("POST", "/api/v1/files", content=nested, headers=JSON).status_code in (400, 422)
    half = ask("POST", "/api/v1/files", content=b'{"filename": "\\ud800", "bytes": 1}', headers=JSON)
    assert "whole characters, not have '\\ud800'" in half.json()["detail"] and half.status_code == 422
    unmarked = ask("POST", "/api/v1/files", content=b'{"bytes": 1}', headers={"content-type": "text/plain"})
    assert "send it with Content-Type: application/json" in unmarked.json()["detail"]
