"""The studio in a real browser, from upload to download, with the small Llama.

One session is played once and looked at by several tests. What the browser complains about, and what it asks of other
hosts, is collected throughout.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from conftest import wait_for

from peftbook.core import specs
from peftbook.studio.preflight import Check
from peftbook.studio.settings import Reading
from peftbook.studio.store import Studio

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 600_000  # ms, for what a worker on a busy machine does; everything else answers in seconds
STEPS = {
    "data": ".two",
    "plan": "#check",
    "runs": ".job",
    "decision": ".verdict",
    "try": "#try-go",
    "files": ".take li",
}
PAPER, DARK = "rgb(252, 251, 248)", "rgb(20, 24, 29)"
HOSTILE = '<img src=x onerror="window.hacked=1">'


def table() -> str:
    """Forty rows that anybody could learn, one with markup in it, one without an input, one that is ragged."""
    things = ("red fox", "old boat", "tall tree", "grey stone", "small house")
    rows = [(f"Name {number} sees the {things[number % 5]}.", f"the {things[number % 5]}") for number in range(40)]
    rows += [(f"{HOSTILE} was here", f"<b>bold</b>{HOSTILE}"), ("", "no input")]
    written = io.StringIO()
    csv.writer(written).writerows([("question", "answer"), *rows])
    return written.getvalue() + "ragged\n"


def start(home: Path, port: int = 0, *options: str, token: bool = False) -> tuple[subprocess.Popen[str], str]:
    """A studio that lets in everybody on this machine, or by a token; returns its process and address."""
    options = options if token else ("--no-token", *options)
    command = [sys.executable, "-m", "peftbook", "studio", "--home", str(home), "--port", str(port), *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://" in line, line
    return process, line.split()[4]


def stop(process: subprocess.Popen[str]) -> None:
    """End a studio."""
    process.kill()
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A studio on an empty home, with its worker; both end with this module."""
    home = tmp_path_factory.mktemp("studio")
    process, address = start(home)
    box = SimpleNamespace(home=home, process=process, address=address)
    yield box
    stop(box.process)
    for worker in Studio(home).workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def visit(browser, running):
    """Opens the studio; returns the page and all that it complained about or asked other hosts for."""
    contexts = []

    def visit(path="", viewport=DESKTOP, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
        contexts.append(context)
        page, troubles = context.new_page(), []
        page.set_default_timeout(60_000)
        page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        own = (running.address, "data:", "blob:")
        page.on("request", lambda r: troubles.append(r.url) if not r.url.startswith(own) else None)
        page.goto(running.address + path)
        page.wait_for_selector("header .brand")
        return page, troubles

    yield visit
    for context in contexts:
        context.close()


def open_step(page, name: str) -> None:
    """Go to a step by its link and wait for what it shows."""
    page.locator(f"nav.steps a[href$='/{name}']").click()
    page.wait_for_selector(STEPS[name])


def until(page, expression: str, timeout: int = 60_000) -> None:
    """Wait until something is true in the page, whose policy lets nobody evaluate words there in a loop."""
    wait_for(lambda: page.evaluate(expression), timeout / 1000, pause=0.2)


@pytest.fixture(scope="module")
def session(visit, running) -> SimpleNamespace:
    """Upload, plan and train: what every test below looks at."""
    page, troubles = visit()
    page.wait_for_selector("#live .empty")
    page.set_input_files("#file", {"name": f"{HOSTILE}.csv", "mimeType": "text/csv", "buffer": table().encode()})
    page.wait_for_selector("#create")
    page.wait_for_selector("#live .faults")
    findings = page.inner_text("#live")
    page.click("#create")
    page.wait_for_selector("nav.steps")
    open_step(page, "plan")
    page.get_by_label("Small Llama").check()
    page.get_by_label("SmolLM2").uncheck()
    page.click("#advanced summary")
    page.get_by_label("Training tokens").fill("2000")
    page.get_by_label("Longest answer").fill("8")
    page.click("#check")
    page.wait_for_selector("button[name=queue]", timeout=PATIENCE)
    page.click("button[name=queue]")
    page.wait_for_selector(".job-running .bar", timeout=PATIENCE)
    until(page, "document.querySelectorAll('.job-done').length === 3", timeout=PATIENCE)
    page.wait_for_selector(".job svg.curve")
    project = f"/projects/{page.url.split('/projects/')[1].partition('/')[0]}"
    return SimpleNamespace(page=page, troubles=troubles, findings=findings, project=project)


def test_findings_name_rows_and_repetition(session):
    """What is left out stands there with its row number, and what the test split shares with training."""
    assert "2 rows are left out" in session.findings and "42" in session.findings and "43" in session.findings
    assert "is empty" in session.findings and "cells" in session.findings and "test rows" in session.findings


def test_the_browser_has_nothing_to_complain_about(session):
    """From upload to the last run: no error, no warning, no request to another host."""
    assert session.troubles == []


def test_the_decision_is_words_first_and_sorts(session):
    """A recommendation, the table with intervals, a plot; heads are buttons that sort."""
    page = session.page
    open_step(page, "decision")
    assert len(page.inner_text(".verdict .words")) > 40
    assert page.locator("table.decision tbody tr").count() == 3 and page.locator(".pareto svg").count() == 2
    heads = page.locator("table.decision th button")
    heads.nth(3).click()
    first = page.locator("table.decision tbody tr").first.inner_text()
    heads.nth(3).click()
    assert page.locator("table.decision tbody tr").first.inner_text() != first
    page.click(".choose summary")
    page.fill("input[data-filter]", "untuned")
    assert page.locator("table.decision tbody tr:visible").count() == 1
    page.select_option("#f-measure", "bertscore_f1")
    page.wait_for_url("**measure=bertscore_f1**")
    assert page.locator("table.decision tbody tr:visible").count() == 1 and "filter=untuned" in page.url
    page.go_back()
    assert page.locator("#f-measure").input_value() == "rougeL"


def test_everything_can_be_taken_away(session, tmp_path):
    """Adapter with its card, outputs, table and report, all by ids."""
    page = session.page
    open_step(page, "files")
    assert all("peftbook compare" in text for text in page.locator(".take pre").all_text_contents())
    taken = {}
    for words in ("Adapter", "Test outputs"):
        with page.expect_download() as waiting:
            page.locator(".take a", has_text=words).last.click()
        waiting.value.save_as(tmp_path / words)
        taken[words] = tmp_path / words
    names = zipfile.ZipFile(taken["Adapter"]).namelist()
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(names)
    assert len(list(csv.reader(taken["Test outputs"].read_text("utf-8-sig").splitlines()))) > 2
    open_step(page, "decision")
    for words, start_ in (("Table as CSV", ""), ("Report as one HTML file", "<!doctype html>")):
        with page.expect_download() as waiting:
            page.locator("a[download]", has_text=words).click()
        waiting.value.save_as(tmp_path / "taken")
        text = (tmp_path / "taken").read_text("utf-8-sig")
        assert text.startswith(start_) and "LoRA" in text and "<img" not in text


def test_a_studio_that_is_told_to_end_takes_its_idle_worker_along(tmp_path):
    """SIGTERM ends both and is a success, as systemd sees it; nothing is left running that has nothing to do."""
    process, _ = start(tmp_path / "home")
    try:
        wait_for(lambda: any(worker.alive for worker in Studio(tmp_path / "home").workers()))
        process.terminate()
        assert process.wait(60) == 0
        assert not any(worker.alive for worker in Studio(tmp_path / "home").workers())
    finally:
        stop(process)


def test_the_address_lets_in_who_has_the_token(browser, tmp_path):
    """Without a token or with a wrong one the page says how to come in; nothing of the studio is seen."""
    process, address = start(tmp_path / "home", 0, "--no-worker", token=True)
    try:
        page = browser.new_context(viewport=PHONE).new_page()
        plain, _, token = address.partition("?token=")
        for query in ("", "?token=wrong"):
            page.goto(plain + query)
            assert "file `token` of its folder" in page.inner_text("body")
        page.goto(f"{plain}?token={token}")
        page.wait_for_selector("#live .empty")
        assert token not in page.url
        page.context.close()
    finally:
        stop(process)


@pytest.fixture(scope="module")
def planning(browser, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The plan of a project in a studio without a worker: tests compute its checks."""
    home = tmp_path_factory.mktemp("planning")
    studio = Studio(home)
    rows = table().rpartition("ragged")[0].encode()
    project = studio.create_project("plan", rows, "plan.csv", Reading("question", "answer"))
    process, address = start(home, 0, "--no-worker")
    page, troubles = browser.new_context(viewport=DESKTOP).new_page(), []
    page.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(f"{address}projects/{project.id}/plan")
    page.click("#advanced summary")
    yield SimpleNamespace(studio=studio, page=page, troubles=troubles, fields=page.locator("#advanced"))
    page.context.close()
    stop(process)


def last_state(studio: Studio) -> str:
    """Of the task that was queued last."""
    return studio._row("SELECT state FROM tasks ORDER BY number DESC")["state"]


def test_a_check_counts_the_seconds_and_is_cancelled_or_goes_with_a_change(planning):
    """Cancel, a change of the form and another check each cancel the one that waits."""
    page, studio = planning.page, planning.studio
    page.click("#check")
    page.wait_for_selector("button[name=cancel]")
    until(page, "parseInt(document.querySelector('#live [data-since]').textContent) >= 1")
    assert last_state(studio) == "queued"
    page.click("button[name=cancel]")
    until(page, "!document.querySelector('button[name=cancel]')")
    assert last_state(studio) == "cancelled"
    page.click("#check")
    page.wait_for_selector("button[name=cancel]")
    page.evaluate("document.querySelector('#advanced').open = true")
    planning.fields.get_by_label("Test rows").fill("11")
    page.wait_for_selector("button[name=cancel]", state="hidden")
    wait_for(lambda: last_state(studio) == "cancelled")
    assert "check=" not in page.url and planning.troubles == []


def test_what_is_found_appears_and_goes_with_a_change(planning):
    """In the page that waits; a reload shows it again, with what was typed; a change takes it away."""
    page, studio = planning.page, planning.studio
    page.evaluate("document.querySelector('#advanced').open = true")
    page.get_by_label("Training tokens").fill("20000")
    page.click("#check")
    page.wait_for_selector("button[name=cancel]")
    task = studio.take("w", 1)
    runs = [specs.Run.model_validate_json(text) for text in task.payload["runs"]]
    checks = [Check(run.key, "A run", 9, 99, 0, 9.0, 1e9, True) for run in runs]
    studio.complete(task.id, task.attempt, result=[dataclasses.asdict(check) for check in checks])
    page.wait_for_selector("button[name=queue]")
    page.reload()
    assert page.locator("button[name=queue]").count() == 1
    assert page.get_by_label("Training tokens").input_value() == "20000"
    page.get_by_label("Training tokens").fill("2000")
    page.wait_for_selector("button[name=queue]", state="detached")
    assert planning.troubles == []


def test_two_models_answer_side_by_side(session):
    """The text of both grows in the page; the web process has no model."""
    page = session.page
    open_step(page, "try")
    page.click("#try-row")
    page.wait_for_selector(".said-target")
    page.click("#try-go")
    ended = (
        "!document.querySelector('.caret, .side-by-side .loading') && document.querySelectorAll('.side-by-side .said')"
    )
    until(page, f"{ended}.length === 2", timeout=PATIENCE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(session, visit, scheme):
    """No sideways scrolling at 390 pixels on any step, light or dark; the address of a step opens it."""
    page, troubles = visit(session.project[1:] + "/decision", PHONE, scheme)
    page.wait_for_selector(STEPS["decision"])
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == DARK
    assert dark == (scheme == "dark")
    for step in STEPS:
        open_step(page, step)
        page.evaluate("document.fonts.ready")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], step
    assert troubles == []


def test_the_keyboard_reaches_everything(visit, session):
    """From the top: theme, project, step, each with a focus that is seen; Enter opens."""
    page, troubles = visit()
    page.wait_for_selector(".card")
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); "
            "return [e.className + e.id, s.outlineStyle !== 'none' || e.type === 'file']; })()"
        )
        seen.append(here[0])
        assert here[1] or here[0] == "", f"{here[0]} is focused and does not show it"
        if "card" in here[0]:
            break
    assert "card" in seen[-1]
    page.keyboard.press("Enter")
    page.wait_for_selector("nav.steps")
    assert troubles == []


def test_a_bad_file_is_one_sentence_in_place(visit):
    """What cannot be a table is refused where it was dropped, and the page goes on."""
    page, _ = visit()
    page.wait_for_selector(".drop")
    page.set_input_files("#file", {"name": "x.csv", "mimeType": "text/csv", "buffer": b"PK\x03\x04 not a table"})
    page.wait_for_selector("#refused .note-trouble")
    assert "zip" in page.inner_text("#refused") and page.locator(".drop").count() == 1


def test_an_upload_goes_on_where_it_broke_off(visit):
    """The bytes that have come are not sent again."""
    page, _ = visit()
    sent = []

    def cut(route) -> None:
        """The first part arrives and its answer does not."""
        sent.append(route.request.url.partition("offset=")[2])
        if len(sent) == 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    page.route("**/content?offset=*", cut)
    page.set_input_files("#file", {"name": "x.csv", "mimeType": "text/csv", "buffer": table().encode()})
    page.wait_for_selector("#create")
    assert sent == ["0", str(len(table().encode()))]


def test_the_theme_that_was_chosen_stays(visit):
    """On the next page too, whatever the system has."""
    page, troubles = visit(scheme="light")
    for dark in (True, False, True):
        page.get_by_role("button", name="Switch between light and dark").click()
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (DARK if dark else PAPER)
    assert troubles == []


def test_the_page_survives_a_killed_web_process(session, running):
    """SIGKILL, start again at the same port: the open page goes on where it was."""
    page = session.page
    open_step(page, "runs")
    port = int(running.address.rstrip("/").rpartition(":")[2])
    stop(running.process)
    running.process, address = start(running.home, port)
    assert address == running.address
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            open_step(page, "files")
            if page.locator(".take li").count() == 3:
                break
    assert page.locator(".take li").count() == 3


def test_the_web_process_holds_no_torch(running, session):
    """After a whole session its memory maps name no library of torch; what peft thinks of a method, another asks it."""
    plan = running.address + session.project[1:] + "/plan"
    typed = {"seeds": "1", "models": specs.SMALL_MODEL, "own_methods": "peft:NOTHING"}
    found = httpx.post(plan, data=typed, follow_redirects=True, timeout=60).url
    wait_for(lambda: "peft has no method" in httpx.get(found, timeout=60).text, PATIENCE / 1000, pause=1.0)
    maps = Path(f"/proc/{running.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()
