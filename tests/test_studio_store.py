"""The store of the studio: atomic claims, one job a run, legal ways only, nothing half-written, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import wait_for
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from plain_browser import Plain
from studio_home import SMALL, claim_all, colours_csv, colours_project, finish, small_run

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record
from peftbook.core.stamp import changed_since
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.runtime.processes import end_group, identity, is_alive
from peftbook.studio import worker_queue
from peftbook.studio.app import build_app
from peftbook.studio.backup import back_up, restore
from peftbook.studio.database import SCHEMA
from peftbook.studio.decisions import evaluations, project_comparison
from peftbook.studio.downloads import file_of
from peftbook.studio.plan_checks import ask_check, queue_checked
from peftbook.studio.preflight import Check
from peftbook.studio.sessions import SessionStore, digest
from peftbook.studio.store import Job, Project, Studio
from peftbook.studio.tasks import LIMITS
from peftbook.studio.tuning import Tuning, is_trial, likely_runs

ME = os.getpid()
FIRST = Path(__file__).parent / "first_studio"
BUDGET = specs.Budget(tokens=10, learning_rate=1.0)
EDGES = {  # the drawing in `peftbook.studio.jobs`
    "queued": ("running", "cancelled"),
    "running": ("done", "failed", "cancelled", "queued"),
    "done": (),
    "failed": ("queued",),
    "cancelled": ("queued",),
}


@pytest.fixture
def studio(tmp_path) -> Studio:
    return Studio(tmp_path / "home")


@pytest.fixture
def project(studio) -> Project:
    return colours_project(studio)


def runs(count: int) -> list[specs.Run]:
    task = specs.Task(name="files", data_sha256="a" * 64)
    return [specs.Run(model=SMALL, task=task, method=Untuned(), seed=seed) for seed in range(count)]


def save_record(studio: Studio, project: Project, run: specs.Run, failure: str = "") -> None:
    studio.records(project.id).save(Record(key=run.key, spec=run, measurements={"loss_nats": 1.0}, failure=failure))


# --- projects --------------------------------------------------------------------------------------------------


def test_an_upload_comes_back_as_it_came(studio, project):
    """Bytes, columns, split and instruction; the name on disk is the server's own."""
    assert studio.projects() == [project] and studio.project(project.id) == project
    assert (studio.folder(project.id) / "data.bin").read_bytes() == colours_csv()
    assert [path.name for path in studio.folder(project.id).iterdir()] == ["data.bin"]
    task = studio.task(project.id)
    assert sum(map(len, task.splits.values())) == 60 and studio.table(project.id).columns == ("ask", "answer")
    studio.rename(project.id, "  Other\n name ")
    assert studio.project(project.id).name == "Other name"


@pytest.mark.parametrize("change", ["edited", "lost"])
def test_data_that_were_changed_on_the_disk_are_not_read(studio, project, change):
    """Neither from the cache nor by another process, though size and date are those of the upload; the page says so,
    old outputs are not written beside new inputs, and the upload put back is read again.
    """
    run = small_run(studio, project, Untuned(), texts=2)
    save_record(studio, project, run)
    (job,) = studio.jobs(plan=studio.submit(project.id, [run]))
    file = studio.folder(project.id) / "data.bin"
    upload, state = file.read_bytes(), file.stat()
    wait_for(lambda: not changed_since(time.time(), [file]))  # a date is no finer than the kernel's clock
    if change == "edited":
        file.write_bytes(upload.replace(b"red", b"tan"))
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        file.unlink()
    for read in (studio.table, studio.task, Studio(studio.home).task):
        with pytest.raises(InputError, match="is not the file that was uploaded: restore a backup, or make a new proj"):
            read(project.id)
    with pytest.raises(InputError, match="is not the file that was uploaded"):
        file_of(studio, job, "outputs.csv")
    window = Plain(build_app(studio, project.caps)).open(f"/projects/{project.id}/data")
    assert window.status == 422 and "is not the file that was uploaded" in window.text
    file.write_bytes(upload)
    assert studio.task(project.id).spec == run.task


@pytest.mark.parametrize("hostile", ["../../etc", "", "x' OR '1'='1", "\x00", "projects"])
def test_unknown_ids_are_refused_and_never_become_a_path(studio, project, hostile):
    """Whatever a browser sends as an id: one sentence, no file."""
    calls = (studio.project, studio.folder, studio.records, studio.task, studio.delete_project, studio.job,
             studio.cancel, studio.retry, studio.curve, studio.get_task)  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match="There is no"):
            call(hostile)
    with pytest.raises(InputError, match="There is no project"):
        studio.submit(hostile, runs(1))
    with pytest.raises(InputError, match="There is no project"):
        studio.enqueue("generate", {"project": hostile, "text": ""})
    assert studio.projects() == [project]


def test_a_home_of_another_version_or_no_database_is_refused(tmp_path):
    """One sentence, and the file stays as it is."""
    Studio(tmp_path / "newer")
    with sqlite3.connect(tmp_path / "newer" / "studio.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(InputError, match="version 99"):
        Studio(tmp_path / "newer")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "studio.sqlite").write_text("something else\n" * 100)
    with pytest.raises(InputError, match="no studio database"):
        Studio(tmp_path / "other")


TASKS = """
DROP INDEX tasks_by_state;
DELETE FROM tasks WHERE kind != 'run';
ALTER TABLE tasks DROP COLUMN result;
ALTER TABLE tasks DROP COLUMN text;
ALTER TABLE tasks DROP COLUMN kind;
ALTER TABLE tasks RENAME COLUMN payload TO run;
ALTER TABLE tasks RENAME TO jobs;
CREATE INDEX jobs_by_state ON jobs (state, queued);
CREATE TABLE requests (id TEXT, project TEXT REFERENCES projects ON DELETE CASCADE)"""  # of version 6 and before
TOKENS = """
DROP TABLE sessions;
DROP TABLE tokens;
CREATE TABLE sessions (token TEXT PRIMARY KEY, name TEXT, password TEXT, until REAL);
INSERT INTO sessions VALUES ('c', 'owner', 'o', 9e9);
CREATE TABLE tokens (id TEXT, token TEXT, label TEXT, name TEXT, password TEXT, created REAL, used REAL);
INSERT INTO tokens VALUES ('1', '{token}', 'nightly', 'owner', '{owner}', 1.0, NULL);
INSERT INTO tokens VALUES ('2', 'u', 'nightly', 'ann', 'p', 1.0, NULL)"""  # of version 7 and before
SESSIONS, TUNING = "DROP TABLE sessions", "ALTER TABLE plans DROP COLUMN tuning"
BEGAN = "ALTER TABLE jobs DROP COLUMN phase_began"


@pytest.mark.parametrize(("version", "lacks"), [(1, (SESSIONS, TUNING)), (2, (BEGAN,)), (6, ())])
def test_a_home_of_an_earlier_version_gets_what_it_lacks(studio, project, version, lacks):
    """Version 1 had no sessions, version 2 no time since when a phase goes on, version 6 jobs and requests apart, and
    until version 7 tokens could be of a user with a password. Jobs, their curves, their plans and the owner's tokens
    stay; what waited for an answer, sessions and other tokens go.
    """
    owner, token = SessionStore(studio.home).owner, secrets.token_hex(8)
    plan = studio.submit(project.id, runs(2))
    job = studio.claim("w", ME)
    studio.progress(job.id, job.attempt, phase="training", points=[(1, 2.0)])
    studio.stopped(job.id, job.attempt)
    studio.enqueue("check", {"project": project.id, "runs": []})
    before = [replace(job, phase_began=None) for job in studio.jobs()]
    with studio._write() as db:
        tokens = TOKENS.format(token=digest(token), owner=digest(owner))
        for change in (*TASKS.split(";"), *tokens.split(";"), *lacks, f"PRAGMA user_version = {version}"):
            db.execute(change)
    again = Studio(studio.home)
    assert [replace(job, phase_began=None) for job in again.jobs(plan=plan)] == before and again.take("w", ME) is None
    assert again.curve(job.id) == [(1, 2.0)] and again.projects() == [project]
    assert not again.get_task(again.enqueue("check", {"project": project.id, "runs": []})).ended
    sessions = SessionStore(studio.home)
    assert [*sessions.tokens()] == ["nightly"]
    assert sessions.access_of({"authorization": f"Bearer {token}"}) == "write"
    assert again._rows("SELECT * FROM sessions") == [] and again._row("PRAGMA user_version")[0] == SCHEMA
    claimed = again.claim("w", ME)
    assert claimed.phase_began is not None and again.stopped(claimed.id, claimed.attempt)
    again.delete_project(project.id)
    assert again._rows("SELECT * FROM points") == again._rows("SELECT * FROM tasks") == []


@pytest.fixture
def first(tmp_path) -> Path:
    """The home that the first studio made, as its files lay."""
    home = tmp_path / "first"
    shutil.copytree(FIRST / "projects", home / "projects")
    with contextlib.closing(sqlite3.connect(home / "studio.sqlite")) as db:
        db.executescript((FIRST / "studio.sql").read_text())
        db.execute("PRAGMA journal_mode = WAL")
    return home


def card_of(studio: Studio, job: Job) -> str:
    with zipfile.ZipFile(file_of(studio, job, "adapter.zip")) as archive:
        return archive.read("README.md").decode()


def test_a_home_of_the_first_studio_opens_unchanged(first):
    """Its project, plans, runs, curve, records, texts and adapter are those that it had; what waits can be claimed.
    No hash of the adapter was recorded: its card says so, and still nothing else may lie beside it.
    """
    studio = Studio(first)
    (project,) = studio.projects()
    (untuned, lora, waiting), task = studio.jobs(project.id), studio.task(project.id)
    assert (project.name, len(studio.table(project.id).rows), len(studio.plans(project.id))) == ("Colours", 60, 2)
    assert [job.state for job in studio.jobs()] == ["done", "done", "queued"] and len(studio.curve(lora.id)) == 3
    for job in (untuned, lora, waiting):  # a key names settings and data for ever
        assert studio._row("SELECT key FROM tasks WHERE id = ?", job.id)[0] == job.run.key
        assert job.run.task == task.spec
    for job in (untuned, lora):
        record = studio.records(project.id).get(job.run)
        assert len(studio.records(project.id).texts(record)) == 4 == len(record.per_example["rougeL"])
    (jobs,) = evaluations(studio, project.id).values()
    assert (
        len(project_comparison(studio, project.id, jobs).rows) == 2 and len(list(studio.adapter(lora).iterdir())) == 2
    )
    assert "weights: not in the record, which an earlier version wrote" in card_of(studio, lora)
    (studio.adapter(lora) / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(InputError, match="is neither weights nor configuration of LoRA: remove it"):
        studio.adapter(lora)
    assert studio.claim("w", ME).id == waiting.id and studio._row("PRAGMA user_version")[0] == SCHEMA


@pytest.mark.slow
def test_a_home_of_the_first_studio_goes_on(first, tmp_path):
    """After a backup of it and the loss of the original: its adapter gives the losses of its record, and the run that
    waited is computed.
    """
    from peftbook.studio import work
    from peftbook.studio.trained_model import load_trained
    from peftbook.training.encode import encode_example
    from peftbook.training.loop import losses

    back_up(first, tmp_path / "backup.zip")
    shutil.rmtree(first)
    restore(tmp_path / "backup.zip", first)
    studio = Studio(first)
    _, lora, waiting = studio.jobs()
    with zipfile.ZipFile(file_of(studio, lora, "adapter.zip")) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {*archive.namelist()}
    loaded, task = load_trained(studio, lora), studio.task(lora.project)
    encoded = [encode_example(loaded.tokenizer, task, one, 512) for one in task.splits["test"][:4]]
    nats, _ = losses(loaded.model, encoded, pad_id=loaded.tokenizer.pad_token_id)
    assert nats == pytest.approx(studio.records(lora.project).get(lora.run).per_example["loss_nats"], rel=2e-3)
    claimed = studio.claim("w", ME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTBOOK_CHECKPOINTS", "set by compute")
        work.compute(studio, claimed, anew=bool(studio.adopt(claimed.id, claimed.attempt, ME)))
    assert studio.finish(waiting.id, claimed.attempt) and studio.adapter(studio.job(waiting.id))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(studio, monkeypatch):
    """Neither a folder without a row nor a row without a folder."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="is full: free some space"):
            colours_project(studio)
    assert studio.projects() == [] and list((studio.home / "projects").iterdir()) == []
    pages = studio._connection().execute("PRAGMA page_count").fetchone()[0]
    studio._connection().execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own word for a full disk
    with pytest.raises(InputError, match="is full: free some space"):
        for _ in range(200):
            studio.submit(colours_project(studio).id, runs(50))
    studio.close()
    rows = {one.id for one in studio.projects()}
    assert rows == {path.name for path in (studio.home / "projects").iterdir()}


def test_a_deleted_project_leaves_no_row_and_no_file(studio, project):
    """Its name and what was typed are not in the database's files either."""
    other = colours_project(studio, 40)
    plan = studio.submit(project.id, runs(3), "secret plan")
    job = studio.claim("w", ME)
    studio.progress(job.id, job.attempt, phase="training", points=[(1, 2.0)])
    task = studio.enqueue("generate", {"project": project.id, "text": "secret words"})
    studio.stopped(job.id, job.attempt)
    studio.delete_project(project.id)
    assert studio.projects() == [other] and studio.jobs() == [] and studio.jobs(plan=plan) == []
    assert [path.name for path in (studio.home / "projects").iterdir()] == [other.id]
    for call, name in ((studio.job, job.id), (studio.get_task, task), (studio.project, project.id)):
        with pytest.raises(InputError):
            call(name)
    for table in ("plans", "tasks", "plan_jobs", "points"):
        assert studio._row(f"SELECT count(*) FROM {table}")[0] == 0
    assert not any(b"secret" in path.read_bytes() for path in studio.home.glob("studio.sqlite*"))


def test_a_project_is_deleted_when_its_last_job_has_stopped(studio, project):
    """Until then it is in no list, takes no new job, and its files stay for the process that uses them."""
    studio.submit(project.id, runs(2))
    job = studio.claim("w", ME)
    assert studio.adopt(job.id, job.attempt, ME) is False
    studio.delete_project(project.id)
    assert studio.projects() == [] and studio.jobs() == [] and studio.claim("other", ME) is None
    assert (studio.home / "projects" / project.id).exists() and not studio.wanted(job.id, job.attempt)
    assert studio.stopped(job.id, job.attempt) and studio.purge() == [project.id]
    assert not (studio.home / "projects" / project.id).exists()


# --- plans and jobs --------------------------------------------------------------------------------------------


def test_an_identical_run_is_one_job_whichever_plans_ask(studio, project):
    """Queued once, named by both plans; within a plan too."""
    first, second = studio.submit(project.id, runs(3)), studio.submit(project.id, [*runs(4), *runs(2)], "more")
    a, b = studio.jobs(plan=first), studio.jobs(plan=second)
    assert [job.id for job in a] == [job.id for job in b[:3]] and len(b) == 4 and len(studio.jobs(project.id)) == 4
    assert [job.plan for job in studio.jobs(project.id)] == [first] * 3 + [second]
    assert [plan.jobs for plan in studio.plans(project.id)] == [tuple(j.id for j in a), tuple(j.id for j in b)]
    assert [plan.name for plan in studio.plans(project.id)] == ["", "more"]


def test_a_run_whose_record_is_at_hand_is_done_at_once(studio, project):
    """And says that it is from the cache; a recorded failure is failed at once, with its sentence."""
    good, bad, new = runs(3)
    save_record(studio, project, good)
    save_record(studio, project, bad, "Training diverged at step 3 (loss nan): lower the learning rate.")
    found = studio.jobs(plan=studio.submit(project.id, [good, bad, new]))
    assert [(job.state, job.cached) for job in found] == [("done", True), ("failed", True), ("queued", False)]
    assert "diverged" in found[1].error and found[0].attempt == 0
    job = studio.claim("w", ME)
    save_record(studio, project, new)
    assert studio.finish(job.id, job.attempt)
    again = studio.jobs(plan=studio.submit(project.id, [new]))
    assert [(job.state, job.cached) for job in again] == [("done", True)] and again[0].id == job.id
    assert not studio.job(job.id).cached  # its first plan had to wait for it


def test_a_run_of_another_project_on_the_same_data_is_taken_over(studio, project):
    """With what it trained, under the new project's own names: deleting the first takes nothing from the second."""
    untuned, trained, lost = (
        runs(1)[0],
        *(runs(1)[0].model_copy(update={"method": LoRA(), "budget": BUDGET, "seed": seed}) for seed in (0, 1)),
    )
    for run in (untuned, trained, lost):
        save_record(studio, project, run)
    kept = studio.folder(project.id) / "adapters" / trained.key[:12] / "adapter_model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    studio.submit(project.id, [untuned, trained, lost])
    other = colours_project(studio)
    found = studio.jobs(plan=studio.submit(other.id, [untuned, trained, lost]))
    assert [(job.state, job.cached) for job in found] == [("done", True), ("done", True), ("queued", False)]
    studio.delete_project(project.id)
    assert (studio.adapter(found[1]) / kept.name).read_bytes() == b"weights"
    assert studio.records(other.id).get(trained).measurements == {"loss_nats": 1.0}
    assert not list(studio.folder(other.id).rglob(".*"))


def tuned(studio: Studio, project: Project) -> Tuning:
    """A plan of one method whose rate is raced."""
    return Tuning.of(studio.task(project.id), [small_run(studio, project, LoRA(rank=1), seed=seed) for seed in (0, 1)])


def carry_out(studio: Studio, plan: str) -> None:
    """Record what is queued of a plan, as its worker does: the more a rate is above the start, the better."""
    for job in studio.jobs(plan=plan):
        if job.state == "queued":
            finish(studio, job, 1 / job.run.budget.learning_rate)


def test_a_tuned_plan_grows_until_its_finals_are_done(studio, project):
    """Stage after stage; it never looks as if it had ended before, and what lost leaves no checkpoint."""
    tuning = tuned(studio, project)
    start = [*map(tuning.races[0].opening, tuning.races[0].first_rates())]
    plan = studio.submit(project.id, start, tuning=tuning)
    folder = studio.folder(project.id) / "checkpoints"
    for run in start:
        (folder / run.checkpoint).mkdir(parents=True)
    sizes = []
    while any(job.state == "queued" for job in studio.jobs(plan=plan)):
        carry_out(studio, plan)
        sizes.append(len(studio.jobs(plan=plan)))
        assert sizes[-1] == len({job.key for job in studio.jobs(plan=plan)})
    jobs = studio.jobs(plan=plan)
    assert {job.state for job in jobs} == {"done"} and sizes == sorted(sizes)
    finals = [job.run for job in jobs if job.run.evaluation.split == "test"]
    assert [run.seed for run in finals] == [0, 1]
    assert {run.budget.learning_rate for run in finals} == {max(job.run.budget.learning_rate for job in jobs)}
    assert len(list(folder.iterdir())) < len(start)
    assert studio.submit(project.id, tuning.runs(studio.records(project.id).get), tuning=tuning) != plan
    assert len(studio.jobs()) == len(jobs)


def test_a_tuned_plan_is_queued_once_and_stops_where_a_job_was_cancelled(studio, project):
    """Two tabs make one plan; a cancelled one wants nothing more until it is resumed."""
    tuning = tuned(studio, project)
    start = tuning.runs(studio.records(project.id).get)
    plan = studio.submit(project.id, start, tuning=tuning)
    assert studio.submit(project.id, start, tuning=tuning) == plan
    first, *others = studio.jobs(plan=plan)
    studio.cancel(first.id)
    for job in others:
        save_record(studio, project, job.run)
    save_record(studio, project, first.run)
    studio.advance(project.id)
    assert len(studio.jobs(plan=plan)) == len(start)
    studio.resume(first.id)
    studio.advance(project.id)
    assert len(studio.jobs(plan=plan)) > len(start)


def test_a_run_that_ends_while_a_tuned_plan_is_queued_advances_it_too(studio, project):
    """Its record came between the look at what is wanted and the queue."""
    tuning = tuned(studio, project)
    start = tuning.runs(studio.records(project.id).get)
    for run in start:
        save_record(studio, project, run)
    assert len(studio.jobs(plan=studio.submit(project.id, start, tuning=tuning))) > len(start)


def test_a_race_removes_no_checkpoint_that_another_run_goes_on_from(studio, project):
    """What lost in one plan is at work for another, as a run that was asked for by itself."""
    tuning = tuned(studio, project)
    start = tuning.runs(studio.records(project.id).get)
    loser = tuning.races[0].trial(start[0].budget.learning_rate)
    (job,) = studio.jobs(plan=studio.submit(project.id, [loser]))
    checkpoint = studio.folder(project.id) / "checkpoints" / loser.checkpoint
    checkpoint.mkdir(parents=True)
    plan = studio.submit(project.id, start, tuning=tuning)
    studio.claim("v", ME, job.id)
    carry_out(studio, plan)
    assert checkpoint.is_dir()
    save_record(studio, project, loser)
    studio.finish(job.id, 1)
    assert not checkpoint.exists()


def test_a_method_whose_trials_do_not_fit_is_not_raced(studio, project):
    """Of a plan that was checked what fits is queued, and nothing else."""
    finals = [small_run(studio, project, method) for method in (Untuned(), LoRA(rank=1), LoRA(rank=2))]
    tuning = Tuning.of(studio.task(project.id), finals)
    asked = ask_check(studio, project.id, likely_runs(tuning), tuning)
    task = studio.take("w", ME)
    runs = [specs.Run.model_validate_json(text) for text in task.payload["runs"]]
    fits = {run.key: not (is_trial(run) and run.method == LoRA(rank=2)) for run in runs}
    checks = [asdict(Check(run.key, "", 1, 1, 0, 1.0, 1.0, fits[run.key])) for run in runs]
    studio.complete(task.id, task.attempt, result=checks)
    plan, _ = queue_checked(studio, project.id, asked)
    assert {job.run.method for job in studio.jobs(plan=plan)} == {Untuned(), LoRA(rank=1)}


def test_a_diverged_job_can_be_retried_but_not_resumed(studio, project):
    """There is nothing to go on from; a retry removes the record first, so that there is one record a run."""
    run = runs(1)[0]
    save_record(studio, project, run, "Training diverged.")
    job = studio.jobs(plan=studio.submit(project.id, [run]))[0]
    with pytest.raises(InputError, match="retry it from the start"):
        studio.resume(job.id)
    studio.retry(job.id)
    assert studio.job(job.id).state == "queued" and run not in studio.records(project.id)
    claimed = studio.claim("w", ME)
    assert studio.adopt(job.id, claimed.attempt, ME) is True  # anew
    studio.begun(job.id, claimed.attempt)
    assert studio._row("SELECT anew FROM tasks")[0] == 0


def test_jobs_are_claimed_oldest_first_and_a_resumed_one_waits_its_turn(studio, project):
    """First come, first served."""
    ids = [job.id for job in studio.jobs(plan=studio.submit(project.id, runs(3)))]
    studio.cancel(ids[0])
    studio.resume(ids[0])
    order = []
    for worker in "abc":
        order.append(studio.claim(worker, ME).id)
    assert order == [ids[1], ids[2], ids[0]] and studio.claim("d", ME) is None


def test_progress_is_what_the_page_sees(studio, project):
    """Phase, step, loss, speed, times and curve; a point written twice is one point."""
    studio.submit(project.id, runs(1))
    job = studio.claim("w", ME)
    assert studio.job(job.id).phase == "loading"
    for step in (1, 2, 2):
        assert studio.progress(
            job.id, job.attempt, phase="training", done=step, total=9, step=step, steps=9, loss=1 / step,
            tokens_per_second=100.0, seconds_left=7.0, points=[(step, 1 / step)],
        )  # fmt: skip
    seen = studio.job(job.id)
    assert (seen.phase, seen.step, seen.steps, seen.loss, seen.tokens_per_second, seen.seconds_left) == (
        "training", 2, 9, 0.5, 100.0, 7.0
    )  # fmt: skip
    assert seen.doing.words() == ["training", "step 2 of 9", "7 s left", "loss 0.500, 100 tokens/s"]
    assert studio.curve(job.id) == [(1, 1.0), (2, 0.5)]
    studio.cancel(job.id)
    assert studio.job(job.id).cancelling and not studio.progress(job.id, job.attempt, phase="training")


def test_a_phase_has_one_beginning_however_often_it_is_told(studio, project):
    """Loading began when the job was claimed, before its process could speak; the next phase when it says."""
    studio.submit(project.id, runs(1))
    job = studio.claim("w", ME)
    studio.progress(job.id, job.attempt, phase="loading", seconds=0.0)
    assert studio.job(job.id).phase_began == job.phase_began
    for done in (0, 64, 128):
        studio.progress(job.id, job.attempt, phase="generating", done=done, total=200, seconds_left=9.0)
    with studio._write() as db:
        db.execute("UPDATE tasks SET phase_began = phase_began - 100")
    name, count, so_far, left = studio.job(job.id).doing.words()
    assert (name, count, left) == ("generating answers", "128 of 200", "9 s left") and so_far.startswith("1 min 4")


def test_who_lost_a_job_changes_nothing_about_it(studio, project):
    """A process of an earlier attempt that still runs for a moment writes into the void."""
    studio.submit(project.id, runs(1))
    first = studio.claim("w", ME)
    assert studio.died(first.id, first.attempt, "was killed")
    second = studio.claim("w", ME)
    assert (second.id, second.attempt) == (first.id, 2)
    before = studio.job(second.id)
    assert studio.adopt(first.id, 1, ME) is None and not studio.wanted(first.id, 1)
    assert not studio.progress(first.id, 1, phase="training", step=5, points=[(5, 9.0)])
    assert not studio.fail(first.id, 1, "no") and not studio.stopped(first.id, 1) and not studio.died(first.id, 1, "no")
    save_record(studio, project, second.run)
    assert not studio.finish(first.id, 1)
    assert studio.job(second.id) == before and studio.curve(second.id) == []
    assert studio.adopt(second.id, 2, ME) is False and studio.adopt(second.id, 2, ME) is None  # one process an attempt


def test_a_job_whose_process_is_killed_again_and_again_fails(studio, project):
    """A job that takes all memory must not be tried for ever."""
    studio.submit(project.id, runs(1))
    for _ in range(LIMITS["run"].tries):
        job = studio.claim("w", ME)
        studio.died(job.id, job.attempt, "was ended by signal 9 (out of memory?)")
    assert studio.job(job.id).state == "failed" and "signal 9" in studio.job(job.id).error
    studio.resume(job.id)
    assert studio.claim("w", ME).attempt == LIMITS["run"].tries + 1


# --- workers ---------------------------------------------------------------------------------------------------


def test_a_claim_is_atomic_over_threads_and_processes(studio, project):
    """Sixty jobs, eight threads and four processes: each job has exactly one owner and one attempt."""
    studio.submit(project.id, runs(60))
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool, ThreadPoolExecutor(8) as threads:
        others = pool.starmap_async(claim_all, [(studio.home, f"process {at}") for at in range(4)])
        mine = list(threads.map(lambda at: claim_all(studio.home, f"thread {at}"), range(8)))
        claimed = [job for worker in (*mine, *others.get(60)) for job in worker]
    assert sorted(claimed) == sorted(job.id for job in studio.jobs()) and len(set(claimed)) == 60
    assert {job.attempt for job in studio.jobs()} == {1}


def test_submitting_at_once_makes_one_plan_and_each_job_once(studio, project):
    """Eight pages press the button together; another plan than that, or one after it has ended, is another plan."""
    barrier = threading.Barrier(8)

    def press(_):
        barrier.wait()
        return studio.submit(project.id, runs(10))

    with ThreadPoolExecutor(8) as pool:
        plans = list(pool.map(press, range(8)))
    assert len(set(plans)) == 1 and len(studio.jobs(project.id)) == 10
    assert studio.submit(project.id, runs(9)) != plans[0] == studio.submit(project.id, runs(10)[::-1])
    for job in studio.jobs(plan=plans[0]):
        studio.cancel(job.id)
    assert studio.submit(project.id, runs(10)) != plans[0]


def test_a_dead_workers_job_is_released_and_a_living_ones_is_not(studio, project):
    """Death is told by pid and start time: a pid that another process has by now is not the worker's."""
    studio.submit(project.id, runs(2))
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lost, kept = studio.claim("dead", dead.pid), studio.claim("alive", ME)
    assert studio.release() == []
    dead.communicate()
    assert [worker.alive for worker in studio.workers()] == [False, True]
    with studio._write() as db:  # the same pid, given to a process that started at another time
        db.execute("UPDATE workers SET pid = ? WHERE id = 'dead'", (ME,))
    assert studio.release() == [lost.id]
    assert studio.job(lost.id).state == "queued" and studio.job(kept.id).state == "running"
    assert [worker.id for worker in studio.workers()] == ["alive"]


def test_a_silent_worker_on_another_machine_counts_as_dead(studio, project):
    """Its process cannot be looked at; after two minutes without a word its job is free."""
    studio.submit(project.id, runs(1))
    job = studio.claim("far", ME)
    with studio._write() as db:
        db.execute("UPDATE workers SET host = 'elsewhere', pid = 1, identity = 'x'")
    assert studio.release() == []
    with studio._write() as db:
        db.execute("UPDATE workers SET beat = beat - ?", (worker_queue.STALE_SECONDS + 1,))
    assert studio.release() == [job.id]


def test_release_ends_the_child_that_a_dead_worker_left(studio, project):
    """Else two processes would write one run's checkpoint; a child that comes too late is refused."""
    studio.submit(project.id, runs(2))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    with child:
        jobs = [studio.claim("gone", ME), studio.claim("gone too", ME)]
        assert studio.adopt(jobs[0].id, 1, child.pid) is False
        studio.leave("gone")
        studio.leave("gone too")
        assert sorted(studio.release()) == sorted(job.id for job in jobs)
        assert child.wait(5) == -9
    assert studio.adopt(jobs[1].id, 1, ME) is None


def test_release_finishes_what_is_finished_and_cancels_what_was_cancelled(studio, project):
    """The worker died between the record and the word that it is there, or between cancel and kill."""
    studio.submit(project.id, runs(2))
    done, cancelled = studio.claim("a", ME), studio.claim("b", ME)
    save_record(studio, project, done.run)
    studio.cancel(cancelled.id)
    studio.leave("a")
    studio.leave("b")
    studio.release()
    assert studio.job(done.id).state == "done" and studio.job(cancelled.id).state == "cancelled"


def test_sweeping_removes_what_nobody_will_and_nothing_else(studio, project):
    """A folder without a row, a half-made download, yesterday's download; not what is new, not what is a project's."""
    downloads = studio.folder(project.id) / "downloads"
    orphan, young = studio.home / "projects" / ("a" * 16), studio.home / "projects" / ("b" * 16)
    for path, age in ((downloads / ".half", 2), (downloads / "old.zip", 25), (downloads / "new.zip", 2),
                      (orphan / "data.bin", 2), (young / "data.bin", 0)):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        then = time.time() - 3600 * age
        os.utime(path, (then, then))
        if path.parent != downloads:
            os.utime(path.parent, (then, then))
    studio.sweep()
    assert [path.name for path in downloads.iterdir()] == ["new.zip"]
    assert young.exists() and not orphan.exists() and studio.table(project.id).rows


def test_a_record_that_cannot_be_read_fails_its_job(studio, project):
    """And says what to do, instead of keeping the worker busy with it for ever."""
    studio.submit(project.id, runs(1))
    job = studio.claim("w", ME)
    save_record(studio, project, job.run)
    studio.records(project.id).path(job.key).write_text("{")
    assert studio.finish(job.id, job.attempt)
    assert studio.job(job.id).state == "failed" and "corrupted" in studio.job(job.id).error


def test_identities_tell_processes_apart():
    """Alive while it runs, dead as a zombie and after, never equal to another process's."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    known = identity(process.pid)
    assert is_alive(process.pid, known) and not is_alive(process.pid, identity(ME)) and known != identity(ME)
    end_group(process.pid, known)
    assert not is_alive(process.pid, known)  # a zombie: nobody has waited for it yet
    process.communicate()
    assert identity(process.pid) == "" and not is_alive(process.pid, "")


# --- checks, texts and files -----------------------------------------------------------------------------------


def test_a_text_grows_and_ends(studio, project):
    """Queued, running with text, done; a check after it, with a result."""
    first = studio.enqueue("generate", {"project": project.id, "text": "a"})
    second = studio.enqueue("check", {"project": project.id, "runs": []})
    assert studio.get_task(first).state == "queued"
    task = studio.take("w", ME)
    assert (task.id, task.payload["text"]) == (first, "a") and studio.write_text(first, 1, "Mi")
    assert studio.get_task(first).text == "Mi" and not studio.get_task(first).ended
    assert studio.complete(first, 1, text="Mix")
    assert (studio.get_task(first).state, studio.get_task(first).text) == ("done", "Mix")
    assert studio.take("w", ME).id == second and studio.take("w", ME) is None
    assert studio.complete(second, 1, result=[{"fits": True}])
    assert studio.get_task(second).result == [{"fits": True}]


def test_a_cancelled_text_stays_cancelled(studio, project):
    """At once while it waits; while it is written when its process ends, though that comes with an answer."""
    waiting, running = [studio.enqueue("generate", {"project": project.id, "text": text}) for text in "ab"]
    studio.take("w", ME)
    for task in (waiting, running):
        studio.cancel(task)
    waiting, running = running, waiting  # the first was taken
    assert studio.get_task(waiting).state == "cancelled" and studio.get_task(running).cancelling
    assert not studio.write_text(running, 1, "x")
    studio.complete(running, 1, text="late")
    assert (studio.get_task(running).state, studio.get_task(running).text) == ("cancelled", "x")


def test_a_kind_of_task_can_be_left_for_later(studio, project):
    """A long one of another kind is not in its way, and no assistant takes a run."""
    studio.submit(project.id, runs(1))
    texts = [studio.enqueue("generate", {"project": project.id, "text": "a"}) for _ in range(2)]
    check = studio.enqueue("check", {"project": project.id, "runs": []})
    assert studio.take("w", ME, ["check", "make"]).id == check and studio.take("w", ME, ["check"]) is None
    assert [studio.take("w", ME).id for _ in texts] == texts and studio.take("w", ME) is None
    assert [job.id for job in studio.jobs()] == [studio.claim("w", ME).id]


@pytest.mark.parametrize(("kind", "words"), [("check", "fewer models"), ("generate", "with a shorter text")])
def test_a_task_that_its_process_dies_over_twice_has_failed(studio, project, kind, words):
    """The first time may be bad luck; the process that died before writes nothing any more."""
    task = studio.enqueue(kind, {"project": project.id, "runs": [], "text": "a"})
    for attempt in range(1, LIMITS[kind].tries + 1):
        assert studio.get_task(task).state == "queued", attempt
        studio.take("w", ME)
        assert not studio.complete(task, attempt - 1, text="of the dead")
        studio.died(task, attempt, "was ended by signal 9 (out of memory?)")
    answer = studio.get_task(task)
    assert answer.state == "failed" and words in answer.error and "signal 9 (out of memory?) 2 times" in answer.error


def test_what_a_dead_assistant_computed_is_queued_again(studio, project):
    """Without a lost try; what was cancelled is cancelled."""
    kept, cancelled = [studio.enqueue("generate", {"project": project.id, "text": text}) for text in "ab"]
    for attempt in range(1, 4):
        while (task := studio.take("w", ME)) is not None:
            studio.write_text(task.id, attempt, "so far")
        if attempt == 3:
            studio.cancel(cancelled)
        with studio._write() as db:  # a process of another time, which nobody ends
            db.execute("UPDATE tasks SET child_identity = 'x'")
        studio.leave("w")
        assert sorted(studio.release()) == sorted([kept, cancelled])
    assert [studio.get_task(task).state for task in (kept, cancelled)] == ["queued", "cancelled"]
    assert studio.get_task(kept).text == ""


# --- random operations -----------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Pages, workers and deaths in any order."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.studio = Studio(Path(self.folder.name), durable=False)  # whether the disk has it is another question
        self.project = colours_project(self.studio, 12)
        self.held: dict[str, tuple[str, int]] = {}  # worker → job, attempt
        self.seen: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.computed: set[tuple[str, int]] = set()

    def teardown(self):
        self.studio.close()
        self.folder.cleanup()

    @rule(seeds=st.lists(st.integers(0, 5), min_size=1, max_size=4))
    def submit(self, seeds):
        plan = self.studio.submit(self.project.id, [runs(6)[seed] for seed in seeds])
        assert len(self.studio.jobs(plan=plan)) == len(set(seeds))

    @rule(worker=st.sampled_from("ab"))
    def claim(self, worker):
        if worker not in self.held and (job := self.studio.claim(worker, ME)) is not None:
            assert all(job.id != other for other, _ in self.held.values())
            self.held[worker] = job.id, job.attempt

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        end=st.sampled_from(["finish", "diverge", "fail", "stopped", "died", "worker"]),
    )
    def end(self, data, end):
        worker = data.draw(st.sampled_from(sorted(self.held)))
        job, attempt = self.held.pop(worker)
        if end in ("finish", "diverge"):
            run = self.studio.job(job).run
            assert run not in self.studio.records(self.project.id)  # nothing is computed twice
            save_record(self.studio, self.project, run, "Training diverged." if end == "diverge" else "")
            self.studio.finish(job, attempt)
        elif end == "worker":
            self.studio.leave(worker)
            self.studio.release()
        else:
            getattr(self.studio, end)(job, attempt, *(["It failed."] if end != "stopped" else []))

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), what=st.sampled_from(["cancel", "retry", "resume"]))
    def press(self, data, what):
        job = data.draw(st.sampled_from(list(self.seen)))  # as they came: ids are random, and a replay must be the same
        state = self.studio.job(job).state
        try:
            getattr(self.studio, what)(job)
        except InputError:
            assert what != "cancel" and (state not in ("failed", "cancelled") or what == "resume")

    @invariant()
    def states_move_along_legal_edges(self):
        jobs = self.studio.jobs()
        for job in jobs:
            before = self.seen.get(job.id)
            reachable = {before, *EDGES[before]} if before else {"queued", "done", "failed"}
            if before == "running":  # released, and claimed or cancelled since
                reachable |= {"queued", "cancelled"}
            assert job.state in reachable, (before, job.state)
            assert job.attempt >= self.attempts.get(job.id, 0)
            self.seen[job.id], self.attempts[job.id] = job.state, job.attempt
            assert (job.state == "done") == (
                job.run in self.studio.records(self.project.id)
                and not self.studio.records(self.project.id).get(job.run).failure
            )
        running = {job.id for job in jobs if job.state == "running"}
        assert running == {job for job, _ in self.held.values()}
        assert len({job.key for job in jobs}) == len(jobs)


AnyOrder.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyOrder = AnyOrder.TestCase
