"""The studio's pages without scripts: every view has an address, every form works, what is refused says why.

All of it behind a proxy that takes a prefix off. A stand-in answers for worker and assistant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import pytest
from markupsafe import Markup
from plain_browser import ORIGIN, PREFIX, Plain
from studio_api import check_of, finish, work
from studio_home import SMALL

from peftbook.core import specs
from peftbook.core.options import options_of
from peftbook.methods import preset, presets
from peftbook.studio import access, app, data_checks
from peftbook.studio.jobs import parse_run
from peftbook.studio.judging import measure_of
from peftbook.studio.pages import runs
from peftbook.studio.pages.form import PLANS
from peftbook.studio.plan import plan
from peftbook.studio.project_metrics import declare
from peftbook.studio.settings import Reading, Settings
from peftbook.studio.store import Studio
from peftbook.tasks.table import Caps

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of threads that have ended

HOSTILE = '<img src=x onerror="window.hacked=1">'
SUMS = [b"What is %d and one?,It is %d\n" % (n, n + 1) for n in range(400)]
ROWS = b"question,answer\n" + b"".join(SUMS[:40])
STEPS = ("data", "plan", "runs", "decision", "judge", "try", "files")
MINE = {
    "models": [specs.SMALL_MODEL],
    "methods": ["untuned", "lora"],
    "tokens": "300",
    "max_new_tokens": "4",
}  # of a plan


@pytest.fixture
def studio(tmp_path) -> Studio:
    return Studio(tmp_path)


@pytest.fixture
def window(studio) -> Plain:
    """A browser before a studio; uploads of at most 10,000 bytes."""
    return Plain(app.build_app(studio, Caps(bytes=10_000)))


def project_of(studio: Studio, rows: bytes = ROWS, name: str = "Sums") -> str:
    return studio.create_project(name, rows, "sums.csv", Reading("question", "answer")).id


def checked(window: Plain, studio: Studio, project: str, **typed) -> Plain:
    """The plan's page with what was found."""
    window.open(f"/projects/{project}/plan").press("Check the plan", **MINE | typed)
    assert "Counting tokens" in window.text, window.refused
    work(studio)
    return window.open()


def trained(window: Plain, studio: Studio) -> str:
    """A project whose runs are done."""
    project = project_of(studio)
    checked(window, studio, project).press("Queue the 2 runs")
    work(studio)
    return project


# --- every page ------------------------------------------------------------------------------------------------


class Inline(HTMLParser):
    """What a policy without `unsafe-inline` would keep from working, and ids and labels that are not right."""

    def __init__(self):
        super().__init__()
        self.found, self.ids, self.named, self.fields = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self.found += [name for name in said if name.startswith("on") or name == "style"]
        self.found += [tag] * (tag == "style" or (tag == "script" and "src" not in said))
        self.found += [value for value in said.values() if value and value.startswith(("javascript:", "data:"))]
        self.ids += [said["id"]] if "id" in said else []
        self.named |= {said.get("for")}


def walk(window: Plain, addresses: list[str]) -> dict[str, str]:
    """Every page that links lead to, by its address without its query."""
    seen: dict[str, str] = {}
    while addresses:
        window.open(addresses.pop())
        path = window.path.partition("?")[0]
        if path in seen or path.startswith("/api/"):
            continue
        assert window.status == 200, (path, window.text)
        seen[path] = window.answer.text
        links = [link["href"] for link in window.soup.find_all("a") if not link["href"].startswith("#")]
        base = window.address
        addresses += [urlsplit(inside(base, link)).path.removeprefix(PREFIX) for link in links]
    return seen


def inside(base: str, link: str) -> str:
    """Where a link leads, which is not out of the studio."""
    joined = urljoin(base, link)
    assert joined.startswith(ORIGIN + PREFIX + "/"), f"{link} on {base} leads out of the studio"
    return joined


def test_every_view_has_an_address_and_nothing_inline(window, studio):
    """All pages that links lead to, with runs that are done; the policy has no `unsafe` that they could need."""
    project = trained(window, studio)
    seen = walk(window, ["/"])
    assert {f"/projects/{project}/{step}" for step in STEPS} <= seen.keys()
    assert "unsafe" not in access.HEADERS["content-security-policy"]
    for path, text in seen.items():
        parser = Inline()
        parser.feed(text)
        assert not parser.found, (path, parser.found)
        assert len(parser.ids) == len(set(parser.ids)), (path, [one for one in parser.ids if parser.ids.count(one) > 1])
        assert window.answer.headers["content-security-policy"] == access.HEADERS["content-security-policy"]


def test_every_field_has_a_label_and_every_hint_a_field(window, studio):
    """By `for`, or around it."""
    project = trained(window, studio)
    for path in ("/", *(f"/projects/{project}/{step}" for step in STEPS)):
        soup = window.open(path).soup
        named = {label.get("for") for label in soup.find_all("label")}
        for field in soup.find_all(["input", "select", "textarea"]):
            assert field.get("id") in named or field.find_parent("label"), (path, str(field))
            for hint in (field.get("aria-describedby") or "").split():
                assert soup.find(id=hint), (path, hint)


def test_markup_in_the_data_is_text(window, studio):
    """Names, cells, labels, what was typed and what was asked for are shown, not run, on every page."""
    rows = ROWS.replace(b"What is 7", HOSTILE.replace('"', '""').join(['"', '"']).encode())
    window.open("/").press("Read the file", file=(f"{HOSTILE}.csv", rows))
    pages = [window.answer.text]
    window.press("Create the project", name=HOSTILE)
    project = window.path.split("/")[2]
    checked(window, studio, project)
    window.press("Queue the 2 runs")
    while (job := studio.claim("stand-in", 1)) is not None:
        finish(studio, job, texts=[HOSTILE] * job.run.evaluation.n_generate)
    for path in ("/", *(f"/projects/{project}/{step}?filter={HOSTILE}" for step in STEPS)):
        pages.append(window.open(path).answer.text)
    pages.append(window.open(f"/projects/{project}/plan").press("Check the plan", other_models=HOSTILE).answer.text)
    assert window.status == 422 and HOSTILE in window.refused
    assert all("<img src=x" not in page for page in pages)
    assert sum("&lt;img src=x" in page for page in pages) == len(pages)


@pytest.mark.parametrize(
    "path",
    ["/new/abcd", "/projects/abcd", *(f"/projects/abcd/{step}" for step in STEPS), "/projects/{}/runs?plan=abcd"],
)
def test_an_unknown_id_is_a_page_that_says_so(window, studio, path):
    """With the way back to what there is."""
    window.open(path.format(project_of(studio)))
    assert window.status == 404 and window.refused.endswith((".", ":")) and window.soup.find("a", string="All projects")


def test_another_projects_job_plan_and_answer_are_unknown(window, studio):
    """An id is good in its own project alone."""
    project, other = trained(window, studio), project_of(studio)
    job = studio.jobs(project)[0].id
    window.open(f"/projects/{other}/plan?check={check_asked(studio, project)}")
    assert "no check of this project" in window.text
    for path, form in (("runs", f"cancel={job}"), ("files", f"make={job}+model.zip")):
        answer = window._go("POST", f"{PREFIX}/projects/{other}/{path}", content=form)
        assert answer.status == 404 and "There is no job" in answer.refused


def check_asked(studio: Studio, project: str) -> str:
    """The id of the last check of a project."""
    return studio._row("SELECT id FROM tasks WHERE project = ? AND kind = 'check' ORDER BY number DESC", project)["id"]


def test_the_pages_own_files_are_named_by_their_content_and_kept(window):
    """Style sheet, script and icon are asked for once."""
    window.open("/")
    named = [one.get("href") or one["src"] for one in window.soup.head.select("link:not([rel=preload]), script")]
    assert len(named) == 3
    for name in named:
        content = window.open(urljoin(window.address, name)).answer
        assert content.headers["cache-control"] == "public, max-age=31536000, immutable", name
        assert name.endswith(f"?v={hashlib.blake2b(content.content, digest_size=8).hexdigest()}")
        window.open("/")


# --- from a file to a project ----------------------------------------------------------------------------------


def test_a_file_becomes_a_project_with_what_was_chosen(window, studio):
    """The reading is in the address while it is looked at, and in the project when it is made."""
    window.open("/")
    assert "No project yet" in window.text
    window.press("Read the file", file=("sums.csv", ROWS))
    assert window.path.startswith("/new/") and window.field("input") == "question" and "40" in window.text
    window.press("Look again", input="answer", target="question", validation="20", test="20")
    asked = parse_qs(urlsplit(window.address).query)
    assert asked["input"] == ["answer"] and "24" in window.text
    again = Plain(window.served).open(window.path)
    assert [again.field(name) for name in ("input", "target", "test")] == ["answer", "question", "20"]
    window.press("Create the project", name="Backwards")
    (project,) = studio.projects()
    assert window.path == f"/projects/{project.id}/data" and window.status == 200
    assert (project.name, project.columns.input, project.split.fractions) == ("Backwards", "answer", (0.6, 0.2, 0.2))
    assert "Backwards" in window.open("/").text


def test_a_pasted_table_becomes_a_project_too(window, studio):
    window.open("/").press("Read the pasted table", pasted=ROWS.decode())
    window.press("Create the project")
    assert studio.projects()[0].name == "Pasted data"


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"file": ("x.csv", b"PK\x03\x04 not a table")}, 422, "zip"),
        ({"pasted": "one line"}, 422, "row"),
        ({}, 422, "Nothing was sent"),
        ({"file": ("x.csv", b"x" * 200_000)}, 413, "10,000 bytes"),
        ({"file": ("x.csv", b"x" * 10_001)}, 413, "10,000 bytes"),
    ],
)
def test_an_upload_that_is_refused_leaves_nothing(window, studio, sent, status, words):
    """The page again with the sentence and what was pasted; no draft stays."""
    window.open("/").press("Read the file", **sent)
    assert window.status == status and words in window.refused and window.soup.find(id="upload")
    assert window.field("pasted") == sent.get("pasted", "")
    assert not list((studio.home / "drafts").iterdir())


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"input": "answer"}, "chosen twice"),
        ({"test": "90"}, "A test share of 90 %"),
        ({"test": "many"}, "A test share of 'many' %"),
        ({"split_seed": ""}, "A split seed of ''"),
        ({"instruction": "no place"}, "{input}"),
        ({"name": "  "}, "needs a name"),
    ],
)
def test_a_reading_that_is_refused_keeps_what_was_typed(window, studio, typed, words):
    """The sentence once, and no project."""
    window.open("/").press("Read the file", file=("sums.csv", ROWS))
    window.press("Create the project", **typed)
    assert window.status == 422 and words in window.refused and window.text.count(window.refused) == 1
    assert all(window.field(name) == value for name, value in typed.items())
    assert studio.projects() == []


def test_what_cannot_be_a_project_says_why_once_and_has_no_button_for_it(window):
    """Too few rows for a split; the button that would say it again is off."""
    window.open("/").press("Read the file", file=("few.csv", b"question,answer\na,b\nc,d\ne,f\n"))
    assert window.text.count("a split needs at least") == 1 and window.soup.find(id="create").has_attr("disabled")


def test_a_project_gets_another_name_and_goes_with_all_that_belongs_to_it(window, studio):
    """A name that is none is refused where it was typed."""
    project = project_of(studio)
    window.open(f"/projects/{project}/plan").press("Rename", at=0, rename="  ")
    assert window.status == 422 and "needs a name" in window.refused and window.field("rename") == "  "
    window.press("Rename", rename="Better")
    assert window.path == f"/projects/{project}/data" and window.soup.h1.get_text() == "Better"
    window.press("Delete for good")
    assert window.path == "/" and "No project yet" in window.text and studio.projects() == []


# --- plans -----------------------------------------------------------------------------------------------------


def test_the_form_of_the_plan_has_every_setting_with_its_default(window, studio):
    """But those that a recipe begins with; each number by its own name and words."""
    window.open(f"/projects/{project_of(studio)}/plan")
    for name, option in options_of(Settings).items():
        if option.bound is None:
            continue
        label = window.soup.find("label", attrs={"for": f"f-{name}"}).get_text()
        usual = {"seeds": PLANS["quick"][3], "tokens": PLANS["quick"][4]}.get(name, getattr(Settings, name))
        assert label == option.label and option.help in window.text
        assert window.field(name) == ("" if usual is None else f"{usual:g}" if isinstance(usual, float) else str(usual))
    ticked = {one["value"] for one in window.soup.select("input[name=methods]")}
    assert ticked == {preset.name for preset in presets()}


def test_what_the_plans_form_shows_as_an_example_is_accepted(window, studio):
    """Typed as it stands there; a method by the parser that asks peft too."""
    window.open(f"/projects/{project_of(studio)}/plan")
    examples = {one["name"]: one["placeholder"] for one in window.soup.select("form#plan [placeholder]")}
    assert examples.keys() == {"other_models", "own_methods", "learning_rates"}
    assert window.press("Check the plan", **MINE | examples).refused == "" and "Counting tokens" in window.text
    assert preset(examples["own_methods"]).method.config


@pytest.mark.parametrize("name", PLANS)
def test_a_recipe_fills_the_form_and_leaves_the_rest(window, studio, name):
    """By an address that can be kept."""
    words, _, methods, seeds, tokens = PLANS[name]
    window.open(f"/projects/{project_of(studio)}/plan").press(f"{words} {PLANS[name][1]}", batch_size="4", tokens="7")
    for page in (window, Plain(window.served).open(window.path)):
        assert set(page.field("methods")) == set(methods) and page.field("batch_size") == "4"
        assert (page.field("seeds"), page.field("tokens")) == (seeds, tokens)
        assert page.soup.find("button", attrs={"aria-pressed": "true"})["value"] == name


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"seeds": "1.5"}, "1.5 seeds are chosen: choose a whole number from 1 to 10"),
        ({"seeds": ""}, "The field for seeds is empty"),
        ({"batch_size": "nan"}, "A batch size of nan"),
        ({"learning_rates": "lora"}, "'lora' is no learning rate"),
        ({"own_methods": "lora:rank=none"}, "none"),
        ({"other_models": "/no/such/folder"}, "/no/such/folder"),
        ({"models": []}, "model"),
        ({"dtype": "fp7"}, "'fp7'"),
    ],
)
def test_a_plan_that_is_refused_keeps_what_was_typed_and_asks_nothing(window, studio, typed, words):
    """One sentence that names the value."""
    window.open(f"/projects/{project_of(studio)}/plan").press("Check the plan", **typed)
    assert window.status == 422 and words in window.refused and window.text.count(window.refused) == 1
    for name, value in typed.items():
        assert name == "dtype" or window.field(name) == value
    assert studio.take("w", 1) is None


def test_a_plan_is_checked_and_queued_as_it_was_checked(window, studio):
    """The address of the check can be opened again and in another window; a change after it is refused."""
    project = project_of(studio)
    checked(window, studio, project)
    assert "2 runs" in window.text and "Untuned" in window.text and "GB" in window.text
    other = Plain(window.served).open(window.path)
    assert other.field("tokens") == "300" and "Queue the 2 runs" in other.text
    other.press("Queue the 2 runs", tokens="301")
    assert other.status == 409 and "changed after the check" in other.refused and other.field("tokens") == "301"
    assert studio.jobs(project) == []
    window.press("Queue the 2 runs")
    (plan,) = studio.plans(project)
    assert window.path == f"/projects/{project}/runs?plan={plan.id}" and len(plan.jobs) == 2


def test_two_windows_queue_one_plan(window, studio):
    """Each has checked for itself; a second press of the button changes nothing either."""
    project = project_of(studio)
    other = Plain(window.served)
    for one in (window, other):
        checked(one, studio, project)
    kept = other.address
    for one in (window, other):
        one.press("Queue the 2 runs")
    other.open(kept).press("Queue the 2 runs")
    assert len(studio.plans(project)) == 1 and len(studio.jobs(project)) == 2 and window.path == other.path


def test_a_check_is_cancelled_and_another_takes_its_place(window, studio):
    """Nobody computes what nobody waits for."""
    project = project_of(studio)
    window.open(f"/projects/{project}/plan").press("Check the plan", **MINE)
    window.press("Cancel")
    assert "check" not in parse_qs(urlsplit(window.address).query) and window.field("tokens") == "300"
    assert studio.take("w", 1) is None
    window.press("Check the plan").press("Check the plan", tokens="400")
    assert [parse_run(text).budget.tokens for text in studio.take("w", 1).payload["runs"][1:]] == [400] and studio.take(
        "w", 1
    ) is None


def test_a_plan_of_hours_is_told_to_take_less(window, studio):
    """Before it is queued, with the time that it takes."""
    project = project_of(studio)
    window.open(f"/projects/{project}/plan").press("Check the plan", **MINE)
    task = studio.take("w", 1)
    checks = [check_of(parse_run(text)) for text in task.payload["runs"]]
    result = [dataclasses.asdict(dataclasses.replace(one, seconds=4500.0)) for one in checks]
    studio.complete(task.id, task.attempt, result=result)
    assert "2 h 30 min" in window.open().text and "more than an hour" in window.text


def test_a_check_that_failed_says_why_in_its_place(window, studio):
    project = project_of(studio)
    window.open(f"/projects/{project}/plan").press("Check the plan", **MINE)
    studio.fail(studio.take("w", 1).id, 1, "The check was ended.")
    assert "The check was ended." in window.open().text and window.field("tokens") == "300"


# --- runs, decision, answers, files ----------------------------------------------------------------------------


@pytest.mark.parametrize(("measure", "said"), [("rouge2", "ROUGE-2 between two"), ("sum", "in “sum” between two")])
def test_what_test_rows_can_see_is_said_of_what_will_decide(window, studio, measure, said):
    """Of a metric of one's own too; another than those of the project is none."""
    project = project_of(studio, ROWS + b"".join(SUMS[40:]))
    declare(studio, project, [{"name": "sum", "kind": "number", "rel": 0.01}])
    assert said in checked(window, studio, project, measure=measure).text and window.field("measure") == measure
    assert "Unknown measure 'luck'" in window.open(window.path.replace(f"measure={measure}", "measure=luck")).text


def test_jobs_are_cancelled_resumed_and_started_anew(window, studio):
    """Each by its own button, and the rest of a plan by one; what cannot be done is a sentence."""
    project = project_of(studio)
    checked(window, studio, project).press("Queue the 2 runs")
    labels = [job.label for job in studio.jobs(project)]
    window.press(f"Cancel {labels[1]}")
    assert [job.state for job in studio.jobs(project)] == ["queued", "cancelled"] and "plan=" in window.path
    stale = Plain(window.served).open(window.path)
    window.press(f"Start {labels[1]} anew")
    assert [job.state for job in studio.jobs(project)] == ["queued", "queued"]
    stale.press(f"Resume {labels[1]}")
    assert stale.status in (409, 422) and labels[1] in stale.text
    window.press("Cancel the rest of plan 1")
    assert [job.state for job in studio.jobs(project)] == ["cancelled", "cancelled"]
    window.press(f"Resume {labels[0]}")
    assert studio.jobs(project)[0].state == "queued"


def test_the_live_part_of_a_page_is_at_an_address_of_its_own(window, studio):
    """With who works; nothing is sent to a browser that has it, and it is what the whole page has."""
    project = project_of(studio)
    checked(window, studio, project).press("Queue the 2 runs")
    whole = window.soup.find(id="live")
    part = Plain(window.served).open(window.path + "&part=live")
    assert str(part.soup.find(id="live")) == str(whole) and part.soup.find(id="status") and not part.soup.find("h1")
    mark = part.answer.headers["etag"]
    again = Plain(window.served)
    again._go("GET", f"{PREFIX}{window.path}&part=live", headers={"if-none-match": mark})
    assert again.status == 304 and not again.answer.content
    work(studio)
    again._go("GET", f"{PREFIX}{window.path}&part=live", headers={"if-none-match": mark})
    assert again.status == 200 and "done" in again.answer.text


def test_what_has_ended_is_drawn_once(window, studio, monkeypatch):
    """A curve that cannot change is not drawn again; one that was started anew is."""
    project = trained(window, studio)
    window.open(f"/projects/{project}/runs")
    first, drawn = window.answer.text, []
    monkeypatch.setattr(runs, "curve", lambda *said: drawn.append(said) or Markup("drawn"))
    assert window.open(f"/projects/{project}/runs").answer.text == first and not drawn
    (job,) = (job for job in studio.jobs(project) if job.run.budget is not None)
    with studio._write() as db:
        db.execute("UPDATE tasks SET attempt = attempt + 1 WHERE id = ?", (job.id,))
    assert "drawn" in window.open(f"/projects/{project}/runs").text and len(drawn) == 1


def test_a_decision_is_what_its_address_chooses(window, studio):
    """Words first, then the table; each choice by the form, kept in the address, as CSV and as a report."""
    project = project_of(studio)
    assert "No run has finished" in window.open(f"/projects/{project}/decision").text
    project = trained(window, studio)
    window.open(f"/projects/{project}/decision")
    assert len(window.soup.select_one(".verdict .words").get_text()) > 40
    assert len(window.soup.select("table.decision tbody tr")) == 2 and len(window.soup.select(".pareto svg")) == 2
    window.press("Show", measure="bertscore_f1", cost="peak_memory_bytes", filter="lora")
    other = Plain(window.served).open(window.path)
    for page in (window, other):
        assert [page.field(name) for name in ("measure", "cost")] == ["bertscore_f1", "peak_memory_bytes"]
        assert len(page.soup.select("table.decision tbody tr")) == 1
    files = [link["href"] for link in window.soup.select("a[download]")]
    for file in files:
        taken = Plain(window.served)
        taken.address = window.address
        assert taken.open(file).status == 200 and "LoRA" in taken.answer.text and "measure=bertscore_f1" in file
    assert Plain(window.served).open(f"/projects/{project}/decision?measure=luck").status == 422
    for none in ("7", "²", "-1", "9" * 5000):  # more digits than Python makes a number of
        assert Plain(window.served).open(f"/projects/{project}/decision?runs={none}").status == 404


def test_a_metric_of_ones_own_is_declared_and_decides(window, studio):
    """One a line; it stands in the table and may be chosen; what declares none is refused and stays typed."""
    project = trained(window, studio)
    window.open(f"/projects/{project}/decision").press("Score by these", metrics="sum=luck:")
    assert window.status == 422 and "luck" in window.refused and window.field("metrics") == "sum=luck:"
    window.press("Score by these", metrics="sum=number:rel=0.01")
    assert window.status == 200 and "sum" in window.soup.select_one("table.all thead").get_text()
    window.press("Show", measure="sum")
    assert window.field("measure") == "sum" and "number" in window.field("metrics")


def test_two_models_answer_and_the_address_keeps_what_was_asked(window, studio):
    """A test row, its target, both texts, and how they were written; an empty input is refused."""
    project = trained(window, studio)
    window.open(f"/projects/{project}/try").press("Generate", text="  ")
    assert window.status == 422 and "input is empty" in window.refused
    window.press("Take a test row", temperature="0.5")
    first = window.field("text")
    assert "whose target is" in window.text and window.field("temperature") == "0.5" and window.status == 200
    assert window.press("Take a test row").field("text") != first
    window.press("Generate", text="What is 3 and one?\r\nSay it.", max_new_tokens="6")
    assert window.text.count("Waiting for the model") == 2
    work(studio)
    for page in (window.open(), Plain(window.served).open(window.path)):
        assert [one.get_text() for one in page.soup.select(".side-by-side .said")] == ["8", "8"]
        assert page.field("text") == "What is 3 and one?\nSay it." and page.field("max_new_tokens") == "6"
        assert page.field("left").startswith("model:") and page.field("right").startswith("job:")
    window.press("Generate", seed="-1")
    assert window.status == 422 and "seed is -1" in window.refused and window.field("seed") == "-1"
    window.press("Generate", seed="1").press("Stop")
    assert studio.take("w", 1) is None and window.soup.select_one(".side-by-side").get_text().count("stopped") == 2


def test_files_are_taken_made_and_taken(window, studio):
    """What is there by its link; a merged model when it was asked for."""
    project = project_of(studio)
    assert "Nothing to take away" in window.open(f"/projects/{project}/files").text
    project = trained(window, studio)
    window.open(f"/projects/{project}/files")
    label = studio.jobs(project)[1].label
    links = {link.get_text(): link["href"] for link in window.soup.select("a.file")}
    for words in ("Download adapter", "Download test outputs"):
        taken = Plain(window.served)
        taken.address = window.address
        assert taken.open(links[words]).status == 200 and taken.answer.content
    assert all("peftbook compare" in one.get_text() for one in window.soup.select(".take pre"))
    window.press(f"Make merged model of {label}")
    assert f"Merged model of {label}: it is being made" in window.text
    studio.fail(studio.take("w", 1).id, 1, "There is no room.")
    assert "There is no room." in window.open().text


# --- who may come in -------------------------------------------------------------------------------------------


def test_a_form_of_too_many_fields_is_refused(window, studio):
    project = project_of(studio)
    assert window._go("POST", f"{PREFIX}/projects/{project}/plan", content="a=1&" * 600).status == 422
    assert "more than 500 fields" in window.refused


ODD = ["", "../../etc/passwd", HOSTILE, "x" * 5000, "\x00", "é\u202e", "-1", "nan", "1e999", "9" * 400, "1", "²", "{",
       "lora:", "peft:", "lora:rank=1e9", "/etc", "model:small-llama", "sum=regex:("]  # fmt: skip
NAMES = """input target group validation split_seed instruction check models other_models methods own_methods seeds
    tokens epochs rank platform dtype learning_rates start cancel queue smaller resume retry cancel-plan plan runs
    measure cost filter metrics left right text row answer stop temperature seed asked make model memory rename
    part""".split()  # noqa: SIM905


def test_whatever_is_typed_no_page_breaks(window, studio):
    """Odd values in fields that there are and that there are not, looked at and sent."""
    project, draw = trained(window, studio), random.Random(0)
    ids = [check_asked(studio, project), studio.jobs(project)[1].id, studio.plans(project)[0].id]
    window.open("/").press("Read the file", file=("sums.csv", ROWS))
    views = [f"/projects/{project}/{step}" for step in STEPS] + ["/", window.path]
    for _ in range(250):
        typed = urlencode([(draw.choice(NAMES), draw.choice(ODD + ids)) for _ in range(draw.randint(1, 5))])
        asked = {"method": "POST", "content": typed} if draw.random() < 0.5 else {"method": "GET"}
        view = PREFIX + draw.choice(views) + (f"?{typed}" if asked["method"] == "GET" else "")
        window._go(asked.pop("method"), view, **asked)
        assert window.status < 500 and HOSTILE not in window.answer.text, (view, typed)


def doubled_csv(count: int = 40) -> bytes:
    """Rows of which every second comes again, but for a word of its ten, so that test rows leak."""
    rows = [" ".join(f"word{n}{letter}" for letter in "abcdefghij") for n in range(count)]
    copies = [f"{row} again" for row in rows[::2]]
    return "\n".join(["question,answer", *(f"{row},yes" for row in [*rows, *copies])]).encode()


def test_what_leaks_travels_from_the_rows_to_the_decision_and_is_mended_there(window, studio):
    """Data, decision, report, API and command say it; a button makes another project of the same two columns, whose
    near copies stay together.
    """
    project = project_of(studio, doubled_csv())
    leaks = studio_findings(studio, project).near_duplicates
    assert leaks and f"{leaks} of" in window.open(f"/projects/{project}/data").text
    checked(window, studio, project).press("Queue the 2 runs")
    work(studio)
    decided = window.open(f"/projects/{project}/decision").text
    assert f"Leakage: {leaks} of" in decided and "Without near copies" in decided
    api = f"/api/v1/projects/{project}/decision"
    for name in ("", ".txt", ".html"):
        assert f"Leakage: {leaks} of" in " ".join(Plain(window.served).open(api + name).answer.text.split())
    window.open(f"/projects/{project}/decision").press("together in one split")
    assert window.path.startswith("/new/") and window.field("near_copies") == "together"
    window.press("Create the project")
    again = window.path.split("/")[2]
    assert again != project and not studio_findings(studio, again).near_duplicates


def studio_findings(studio: Studio, project: str):
    """What is in a project's rows."""
    found = studio.project(project)
    return data_checks.examined(studio.table(project), found.columns, found.split)


def test_a_smaller_test_set_does_not_replace_a_larger_one(window, studio):
    """The decision opens with the runs that were judged on most rows, says how many, and names the others."""
    project = trained(window, studio)
    checked(window, studio, project, test_examples="3").press("Queue the 2 runs")
    work(studio)
    window.open(f"/projects/{project}/decision")
    assert "on 4 test rows" in window.soup.select_one(".kicker").get_text()
    assert "2 more runs were judged on 3 test rows" in window.text
    window.press("Show", runs="1")
    assert "on 3 of 4 test rows" in window.soup.select_one(".kicker").get_text()


def test_a_run_is_named_by_what_sets_it_apart_wherever_it_stands(window, studio):
    """By tokens where they differ, with seeds where there are several; a plan by its methods, tokens and seeds."""
    project = trained(window, studio)
    assert [job.label for job in studio.jobs(project)] == ["Untuned", "LoRA"]
    checked(window, studio, project, tokens="600").press("Queue the 2 runs")
    work(studio)
    names = ["LoRA, 300 tokens", "LoRA, 600 tokens"]
    assert [job.label for job in studio.jobs(project)] == ["Untuned", *names]
    for step in ("runs", "files", "try"):
        shown = window.open(f"/projects/{project}/{step}").text
        assert all(name in shown for name in names), step
    assert [plan.name for plan in studio.plans(project)] == ["LoRA · 300 tokens", "LoRA · 600 tokens"]
    runs = [job.run for job in studio.jobs(project)]
    budget = runs[1].budget.model_copy(update={"max_length": 99, "learning_rate": 2e-4})
    more = [runs[1].model_copy(update={"budget": budget, "seed": seed}) for seed in (0, 1)]
    studio.submit(project, more)
    labels = [job.label for job in studio.jobs(project)]
    assert labels[-1] == "LoRA, 300 tokens, rate 2e-4, max length 99, seed 1" and len({*labels}) == len(labels)


def test_the_decision_opens_with_the_measure_that_the_plan_declared(window, studio):
    """By page, API and text; another one by the address."""
    project = project_of(studio)
    checked(window, studio, project, measure="perplexity").press("Queue the 2 runs")
    work(studio)
    assert "Perplexity on" in window.open(f"/projects/{project}/decision").soup.select_one(".kicker").get_text()
    api = f"/api/v1/projects/{project}/decision"
    assert Plain(window.served).open(api).answer.json()["measure"] == "perplexity"
    assert Plain(window.served).open(f"{api}?measure=rouge1").answer.json()["measure"] == "rouge1"


def test_each_page_says_what_is_next_and_how_long_it_takes(window, studio):
    """A new project leads to its plan by the one main button, a plan to its runs, and ended runs to the decision."""
    project = project_of(studio)
    assert main_buttons(window.open(f"/projects/{project}/data")) == ["Plan the runs"]
    text = checked(window, studio, project, tokens="10,000").text
    assert window.field("tokens") == "10,000"
    assert re.search(r"2 runs(, 2 at once)?: (about|roughly) [\d.]+ ", text)
    window.press("Queue the 2 runs")
    assert main_buttons(window.open()) == []
    work(studio)
    assert main_buttons(window.open()) == ["Read the decision"]
    assert "Read the decision" in Plain(window.served).open(f"{window.path}&part=live").answer.text
    assert re.search(r"loss of the last (\d+ steps|step) \d", window.text)
    window.open(f"/projects/{project}/plan")
    assert window.soup.select_one("[name=models][checked]")["value"] == specs.SMALL_MODEL


def main_buttons(window: Plain) -> list[str]:
    """Those that are shown and lead on, but for what stands in a fold."""
    found = window.soup.select("main .act-main")
    return [one.get_text() for one in found if one.find_parent("details") is None]


def judged_project(studio: Studio, right: float) -> tuple[str, str, str]:
    """A project and two of its jobs: the first says "yes" to that share of the test rows and "no" to the others, the
    second the contrary; every fifth row has the same answer of both.
    """
    project = project_of(studio, b"question,answer\n" + b"".join(SUMS))
    settings = Settings(models=(SMALL,), methods=("lora",), seeds=1, tokens=300, max_new_tokens=4)
    studio.submit(project, plan(studio.task(project), settings))
    jobs = []
    while (job := studio.claim("stand-in", os.getpid())) is not None:
        rows = job.run.evaluation.n_generate
        good = [(at % 10 < 10 * right) != bool(jobs) for at in range(rows)]
        finish(studio, job, texts=["same" if at % 5 == 0 else "yes" if one else "no" for at, one in enumerate(good)])
        jobs.append(job.id)
    return project, *jobs


def judge_all(window: Plain, project: str, first: str, second: str, rater: str, most: int = 1000) -> int:
    """A rater to whom "yes" is better, through the page; how many rows were asked."""
    window.open(f"/projects/{project}/judge").press("Judge blind", first=first, second=second, rater=rater)
    for asked in range(most):
        if not (sides := window.soup.select(".pair .said")):
            return asked
        assert {one.get_text() for one in sides} == {"yes", "no"}
        window.press("Left is better" if sides[0].get_text() == "yes" else "Right is better")
    return most


def test_people_judge_blind_and_what_they_say_decides(window, studio):
    """Every row on which the two differ is asked once of each rater; the decision has the score that follows."""
    project, first, second = judged_project(studio, right=0.2)
    asked = judge_all(window, project, first, second, "ann")
    rows = studio.job(first).run.evaluation.n_generate
    assert asked == sum(at % 5 != 0 for at in range(rows)) and "All " in window.text
    judge_all(window, project, second, first, "bob", most=3)
    decided = window.open(f"/projects/{project}/decision?measure={measure_of(*sorted((first, second)))}").text
    assert "Take LoRA: it is the clear winner" in decided
    assert f"on {rows} test rows" in decided and f"ann {asked} rows, bob 3 rows" in decided and "100 % of 3" in decided
    api = f"/api/v1/projects/{project}"
    measure = Plain(window.served).open(f"{api}/judgements").answer.json()[0]["measure"]
    found = Plain(window.served).open(f"{api}/decision?measure={measure}").answer.json()
    means = sorted(row["scores"]["preferred"]["mean"] for row in found["rows"])
    assert means == pytest.approx([0.2, 0.8])  # of ten rows two are ties, one goes to the first, seven to the second
    window.open(f"/projects/{project}/judge?first={first}&second={second}&rater=bob")
    assert window.press("Take the last one back").text.count("2 of ") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"second": "{first}"}, "one run"),
        ({"rater": " "}, "Judge blind"),
        ({"rater": "\x07"}, "no name of a rater"),
        ({"first": "nobody"}, "There is no job"),
    ],
)
def test_who_cannot_be_judged_is_said(window, studio, change, words):
    project, first, second = judged_project(studio, right=0.5)
    asked = {"first": first, "second": second, "rater": "ann"} | {k: v.format(first=first) for k, v in change.items()}
    window.open(f"/projects/{project}/judge?{urlencode(asked)}")
    assert words in window.text and window.status < 500 and not studio.judgements(project)
    unjudged = window.open(f"/projects/{project}/decision?measure={measure_of(*sorted((first, second)))}")
    assert "Nobody has judged" in unjudged.text
