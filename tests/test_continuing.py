"""Continuing with more rows: test rows stay what they are and out of training, and training starts where it ended."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studio_api import finish, served
from studio_home import COLOURS, colours_project, small_run
from tiny import tiny_task

from peftbook.core import specs
from peftbook.core.errors import Conflict, InputError
from peftbook.core.records import Record, Store
from peftbook.decision.candidates import group_records
from peftbook.evidence.comparison import paired
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.studio.archive import load_project, save_project
from peftbook.studio.continuing import continue_job, written
from peftbook.studio.decisions import project_comparison, whole_report
from peftbook.studio.store import Job, Studio
from peftbook.studio.terminal import as_json, show
from peftbook.studio.trained_model import question
from peftbook.studio.work import keep_trained
from peftbook.tasks import TaskExample
from peftbook.tasks.columns import Columns
from peftbook.tasks.files import Split, split_rows, task_from_table, usable_rows
from peftbook.tasks.table import Caps, read_table
from peftbook.training import execute as module
from peftbook.training.execute import Watch, execute, prepare
from peftbook.training.forward import trainable_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]

WORDS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
ROWS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["", "x", "y", "z"])), max_size=20)


@given(ROWS, ROWS, st.integers(0, 3))
def test_later_rows_are_trained_on_and_change_nothing_else(first, later, seed):
    """Validation and test are those of the first rows alone; no later row there comes into training, by input or
    group; every other one does, behind the rows that were there.
    """
    rows = [TaskExample(f"r{at}", *one) for at, one in enumerate([*((w, w, "") for w in "stuvw"), *first, *later])]
    count = 5 + len(first)
    alone = split_rows(rows[:count], Split(seed, (0.6, 0.2, 0.2)))
    both = split_rows(rows, Split(seed, (0.6, 0.2, 0.2), count if later else 0))
    assert both["validation"] == alone["validation"] and both["test"] == alone["test"]
    held = (*both["validation"], *both["test"])
    assert not {one.input for one in held} & {one.input for one in both["train"]}
    assert not {one.group for one in held} & {one.group for one in both["train"] if one.group}
    assert both["train"][: len(alone["train"])] == alone["train"]
    left = set(rows[count:]) - set(both["train"])
    assert all(one.input in {row.input for row in held} or one.group in {row.group for row in held} for one in left)
    with pytest.raises(InputError, match="are to be split"):
        split_rows(rows, Split(first=len(rows) + 1))


def test_chats_go_on_and_are_tried_as_chats():
    """What is written for a project that goes on has the turns; a test row that is tried has them, a typed text what
    the system says to all.
    """
    said = [{"role": role, "content": text} for role, text in (("system", "S"), ("user", "1"), ("assistant", "2"))]
    asked = ([{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(12))
    chats = [{"messages": said + last, "who": f"w{n}"} for n, last in enumerate(asked)]
    table, columns = read_table("\n".join(map(json.dumps, chats)).encode()), Columns("input", "target", group="who")
    lines, faults = written(table, columns)
    again = read_table("".join(lines).encode())
    assert not faults and usable_rows(again, columns) == usable_rows(table, columns)
    task = task_from_table(table, columns)
    row = task.splits["test"][0]
    assert question(task, row.input) == row and question(task, "Hi").turns == (("system", "S"), ("user", "Hi"))


# --- a run -----------------------------------------------------------------------------------------------------


def a_run(folder, tokens: int = 200, start: str = "") -> specs.Run:
    return specs.Run(
        model=specs.Model(name=str(folder), revision=""), task=tiny_task().spec, method=LoRA(rank=2), dtype="fp32",
        budget=specs.Budget(tokens=tokens, batch_size=4, learning_rate=1e-2), start=start,
        evaluation=specs.Evaluation(n_loss=4),
    )  # fmt: skip


def test_a_run_goes_on_from_the_trained_weights(folder, tmp_path, monkeypatch):
    """It begins with them and the loss that they had, ends elsewhere, and has a record of its own; without what it
    starts from it is refused, and an untuned run has no start.
    """
    monkeypatch.setattr(module, "get_task", lambda name: tiny_task())
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path / "cache"))
    store, first = Store(tmp_path / "records"), a_run(folder)
    one = execute(first, store, quiet=True, watch=Watch(keep=lambda trainee: keep_trained(tmp_path, trainee)))
    onward = a_run(folder, start=first.key)
    kept = tmp_path / "adapters" / first.key[:12]
    ended, begun = prepare(first), prepare(onward, start=kept)
    ended.train()
    for name, value in trainable_state(ended.model).items():
        assert value.equal(trainable_state(begun.model)[name])
    two = execute(onward, store, quiet=True, start=kept)
    assert two.curve["train_loss_nats"][0] < one.curve["train_loss_nats"][0] and two.key != one.key
    assert two.measurements["loss_nats"] != one.measurements["loss_nats"]
    for lacking in (None, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="run that one first"):
            execute(onward, Store(tmp_path / "other"), quiet=True, start=lacking)
    assert "start" not in first.canonical()
    with pytest.raises(ValueError, match="nothing to go on from"):
        specs.Run(task=first.task, method=Untuned(), start=first.key)


# --- in a studio -----------------------------------------------------------------------------------------------


def trained(studio: Studio) -> Job:
    """A job that is done, of a project of colours."""
    project = colours_project(studio)
    studio.submit(project.id, [small_run(studio, project, LoRA(rank=4), texts=2)])
    finish(studio, studio.claim("stand-in", 1))
    return studio.jobs(project.id)[0]


def more(rows: int, start: int = 100) -> bytes:
    """Rows that no earlier file has."""
    return (
        "ask,answer\n" + "".join(f"{COLOURS[at % 8]} or {at},Mix {at}.\n" for at in range(start, start + rows))
    ).encode()


def test_a_job_goes_on_in_a_project_of_its_own(tmp_path):
    """Its test rows are the first's, its run starts from the job and is at hand; again, it goes on from there."""
    studio = Studio(tmp_path)
    job = trained(studio)
    old = studio.task(job.project)
    tested = old.splits["test"][0]
    content = more(12) + f"{tested.input},Something else.\n".encode() + b",\n"
    made = continue_job(studio, job.id, content, "more.csv", epochs=2)
    assert (made.more, made.left_out) == (12, 2) and "12 more training rows, 2 left out" in made.words
    task = studio.task(made.project.id)
    for name in ("validation", "test"):
        assert [one.input for one in task.splits[name]] == [one.input for one in old.splits[name]]
    assert len(task.splits["train"]) == len(old.splits["train"]) + 12 and task.data_sha256 != old.data_sha256
    plain, onward = (one.run for one in studio.jobs(plan=made.plan))
    assert plain.method == Untuned() and onward.start == job.key and onward.task == task.spec
    assert onward.budget.tokens == made.tokens and onward.evaluation == job.run.evaluation
    start = studio.folder(made.project.id) / "starts" / onward.start[:12]
    assert (start / "adapter_model.safetensors").is_file()
    studio.delete_project(job.project)
    assert (start / "adapter_model.safetensors").is_file(), "the first project may be deleted"
    while (claimed := studio.claim("stand-in", 1)) is not None:
        finish(studio, claimed)
    again = continue_job(studio, studio.jobs(plan=made.plan)[1].id, more(5, 200), "more.csv")
    third = studio.task(again.project.id)
    assert [one.input for one in third.splits["test"]] == [one.input for one in old.splits["test"]]
    assert len(third.splits["train"]) == len(task.splits["train"]) + 5


def test_what_going_on_has_changed_stands_beside_what_it_was(tmp_path):
    """A paired interval by the book's rule over the same test rows, on page, report, text and JSON; the cost of both;
    the first project may be gone, and the second one moves with it.
    """
    studio = Studio(tmp_path / "one")
    project = colours_project(studio, rows=200)
    run = small_run(studio, project, LoRA(rank=4), texts=20)
    studio.submit(project.id, [run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"n_loss": 20})})])
    finish(studio, studio.claim("stand-in", 1), 0.3)
    (job,) = studio.jobs(project.id)
    old = studio.records(project.id).get(job.run)
    made = continue_job(studio, job.id, more(12, 300), "more.csv")
    while (claimed := studio.claim("stand-in", 1)) is not None:
        rise = 0.1 if claimed.run.start else -0.2
        finish(studio, claimed, 0.3 + rise)
    studio.delete_project(project.id)
    saved = save_project(studio, made.project.id)
    other = Studio(tmp_path / "two")
    load_project(other, saved, Caps())
    for home in (studio, other):
        jobs = studio.jobs(made.project.id)
        new = home.records(made.project.id).get(jobs[1].run)
        found = project_comparison(home, made.project.id, [one for one in jobs if one.state == "done"])
        row, before = (next(one for one in found.rows if name in one.label) for name in ("continued", "before"))
        assert [one.label for one in found.rows] == ["LoRA, continued", "LoRA, before", "Untuned"]
        assert row.against_before["rougeL"] == paired([new], [old], "rougeL")
        assert (row.before, row.train_seconds, before.train_seconds) == (before.label, 2.0, 1.0)
        assert before.against_untuned["rougeL"].mean == pytest.approx(0.2)
        (said,) = found.continued
        assert said.startswith("LoRA, continued − LoRA, before: +0.1") and "same 20 test examples" in said
        assert said in " ".join(show(found, 1000).split()).replace(" ", " ")
        told = next(one for one in as_json(found)["rows"] if one["before"])
        assert told["minus_before"]["rougeL"]["mean"] == pytest.approx(0.1) and as_json(found)["continued"] == [said]
        page = whole_report(home, made.project.id, jobs, found).replace(" ", " ")
        assert said in page and old.key[:12] in page


def test_rows_go_on_only_from_what_was_scored_alike():
    """Another evaluation is refused as ever, and so is a run of other data that nothing goes on from."""
    task, other = (specs.Task(name="files", data_sha256=sign * 64) for sign in "ab")
    one = specs.Run(task=task, method=LoRA(rank=2), budget=specs.Budget(tokens=9, learning_rate=1e-3))
    onward = one.model_copy(update={"task": other, "start": one.key})
    records = [Record(key=run.key, spec=run, measurements={}) for run in (one, onward)]
    assert [each.run for each in group_records(records)] == [onward, one]
    elsewhere = onward.model_copy(update={"start": "", "seed": 1})
    scored = one.model_copy(update={"evaluation": specs.Evaluation(n_loss=3)})
    for run in (elsewhere, scored.model_copy(update={"start": ""})):
        with pytest.raises(InputError, match="not scored on the same test examples"):
            group_records([records[0], Record(key=run.key, spec=run, measurements={})])


def test_what_cannot_go_on_is_one_sentence_and_leaves_nothing(tmp_path):
    """A job that is not done, a file of other columns, one without a new row, epochs that are none."""
    studio = Studio(tmp_path)
    job = trained(studio)
    project = studio.project(job.project)
    studio.submit(project.id, [small_run(studio, project, LoRA(rank=2))])
    waiting = studio.jobs(project.id)[-1]
    tested = studio.task(project.id).splits["test"]
    held = "ask,answer\n" + "".join(f"{one.input},Again.\n" for one in tested)
    with pytest.raises(Conflict, match="is queued"):
        continue_job(studio, waiting.id, more(5), "more.csv")
    for content, epochs, words in (
        (b"question,answer\na,b\n", 1.0, "no column 'ask'"),
        (held.encode(), 1.0, "no row that may be trained on"),
        (more(5), 0.0, "0 epochs are chosen"),
        (b"", 1.0, "."),
    ):
        with pytest.raises(InputError, match=words):
            continue_job(studio, job.id, content, "more.csv", epochs=epochs)
    assert [one.id for one in studio.projects()] == [project.id]
    assert served(studio)("POST", f"/api/v1/jobs/{job.id}/continuations", json={"file": "none"}).status_code == 404
