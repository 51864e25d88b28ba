"""`peftbook compare`: a file to a decision, through the studio's store and worker; a second call trains nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import wait_for
from studio_home import SMALL, colours_project, finish, small_run

from peftbook import cli
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.options import read_options
from peftbook.core.records import Store
from peftbook.decision.recipe import advice
from peftbook.methods.lora import LoRA
from peftbook.studio import foreground, own_file, preflight
from peftbook.studio.data_checks import notes_of
from peftbook.studio.plan import plan as planned
from peftbook.studio.settings import Guessed, Settings
from peftbook.studio.store import Job, Project, Studio
from peftbook.studio.terminal import Ticker, progress_line
from peftbook.studio.tuning import Tuning, is_trial
from peftbook.tasks.columns import guess_columns
from peftbook.tasks.files import examine, read_file
from peftbook.training.models import load_model

ROWS = 40
SETTINGS = ("--input", "phrase", "--target", "entry", "--models", "small-llama", "--methods", "untuned,prompt",
            "--tokens", "300", "--max-new-tokens", "4", "--fractions", "0.5", "0.1", "0.4")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a made-up file whose cells are hostile, and a home for the studio."""
    folder = tmp_path_factory.mktemp("compare")
    nouns, adjectives = ("river", "stone", "garden", "letter", "engine"), ("old", "quiet", "bright", "heavy")
    with (folder / "pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["phrase", "entry"])
        for at in range(ROWS):
            noun, adjective = nouns[at % 5], adjectives[at // 5 % 4]
            writer.writerow([f"the {adjective} {noun} <script>{at}", f"=the {adjective} {noun}"])
    return folder


def command(place: Path, *more: str) -> list[str]:
    return ["compare", str(place / "pairs.csv"), *SETTINGS, "--seeds", "1", "--home", str(place / "home"), *more]


@pytest.fixture(scope="module")
def interrupted(place) -> SimpleNamespace:
    """What became of the command that was interrupted while it waited: its status, what it said, and what it left."""
    studio = Studio(place / "home")
    process = subprocess.Popen(
        [sys.executable, "-m", "peftbook.cli", *command(place)], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(job.state == "running" for job in studio.jobs()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    left, states = [worker for worker in studio.workers() if worker.alive], [job.state for job in studio.jobs()]
    return SimpleNamespace(status=process.returncode, err=err, workers=left, states=states)


@pytest.fixture(scope="module")
def decided(place, interrupted) -> SimpleNamespace:
    """The same command given again: what it printed and said, and the jobs and the workers that there are then."""
    files = ["--json", "--report", str(place / "out.html"), "--csv", str(place / "out.csv")]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main(command(place, *files)) == 0
    studio = Studio(place / "home")
    left = [worker for worker in studio.workers() if worker.alive]
    return SimpleNamespace(found=json.loads(out.getvalue()), err=err.getvalue(), jobs=studio.jobs(), workers=left)


@pytest.fixture(scope="module")
def worker(place, decided) -> Iterator[None]:
    """The studio's, which commands leave alone and which several tests share."""
    home = str(Studio(place / "home").home)
    command = [sys.executable, "-m", "peftbook.studio.worker", "--several", "--home", home]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for(lambda: any(worker.alive for worker in Studio(place / "home").workers()))
        yield
        process.terminate()


def refused(capsys, *argv: str) -> str:
    """Run a command that must be refused; returns the sentence."""
    assert cli.main(list(argv)) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("peftbook: ") and "Traceback" not in err + out
    return last


@pytest.mark.model
@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_no_worker(interrupted, decided):
    """Interrupted while it waits: status 130, one sentence, nothing left running or waiting; then it is given again."""
    assert interrupted.status == 130 and "give the same command again to go on" in interrupted.err
    assert "Traceback" not in interrupted.err and interrupted.workers == []
    off = interrupted.states.count("cancelled")
    assert set(interrupted.states) <= {"cancelled", "done"} and f"{off} taken off the queue" in interrupted.err
    assert [job.state for job in decided.jobs] == ["done", "done"] and f"{off} run" in decided.err


@pytest.mark.model
@pytest.mark.slow
def test_a_file_becomes_a_decision_and_a_second_call_trains_nothing(place, decided, capsys, monkeypatch):
    """From the file to table, page and CSV; then the same from cache, no worker started; equal to the first."""
    first = decided.found
    assert f"{ROWS} rows" in decided.err and len(decided.jobs) == 2
    assert {row["label"] for row in first["rows"]} == {"Untuned", "Prompt tuning"}
    assert all(row["scores"]["perplexity"]["mean"] > 1 for row in first["rows"])
    assert first["encoder"].startswith("all-MiniLM-L6-v2")
    page = (place / "out.html").read_text()
    assert "<script" not in page and "peftbook compare pairs.csv" in page and "--tokens 300" in page
    with (place / "out.csv").open(encoding="utf-8-sig") as stream:
        assert {line["method"] for line in csv.DictReader(stream)} == {"Untuned", "Prompt tuning"}
    studio = Studio(place / "home")
    assert decided.workers == [], "the worker that the command started has ended"

    def never(*_):
        raise AssertionError("a worker was started for runs that are at hand")

    monkeypatch.setattr(foreground, "start_worker", never)
    began = time.monotonic()
    assert cli.main(command(place, "--json")) == 0
    out, err = capsys.readouterr()
    second = json.loads(out)
    assert time.monotonic() - began < 30 and "runs to compute" not in err
    for name in ("rows", "recommendation", "project"):
        assert second[name] == first[name]
    assert len(studio.projects()) == 1
    assert {job.id for job in decided.jobs} == {job.id for job in studio.jobs(decided.jobs[0].project)}
    assert cli.main(command(place)) == 0
    assert "Prompt tuning" in capsys.readouterr().out

    metric = "entry=regex:=the (\\w+)"  # declared long after the training: computed from its texts
    assert cli.main(command(place, "--json", "--metric", metric, "--measure", "entry")) == 0
    out, err = capsys.readouterr()
    scored = json.loads(out)
    assert scored["measure"] == "entry" and "runs to compute" not in err
    assert all(0 <= row["scores"]["entry"]["mean"] <= 1 for row in scored["rows"])
    assert "itself no right answer" in refused(capsys, *command(place, "--metric", "sum=number:abs=1"))

    other = [*command(place, "--json")[:-1], "--measure", "blue"]
    assert "Unknown measure 'blue'" in refused(capsys, *other)
    untuned, run = (job.run for job in decided.jobs)
    assert cli.main([*command(place), "--run", untuned.canonical(), "--run", run.canonical()]) == 0
    foreign = run.model_copy(update={"task": run.task.model_copy(update={"data_sha256": "e" * 64})})
    assert "is of data eeeeeeeeeeee" in refused(capsys, *command(place), "--run", foreign.canonical())


@pytest.mark.model
def test_a_dry_run_says_what_would_come_and_stores_nothing(place, capsys, tmp_path):
    """Rows, runs and what the test rows can see; no project, no worker."""
    words = [str(tmp_path / "new") if word == str(place / "home") else word for word in command(place, "--dry-run")]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out == "" and "2 runs to compute" in err and "16 test rows and 1 seed decide nothing" in err
    assert Studio(tmp_path / "new").projects() == [] == Studio(tmp_path / "new").workers()


@pytest.mark.model
@pytest.mark.slow
def test_a_tuned_comparison_trains_what_its_race_asks_for(place, worker, capsys):
    """By the real worker: each whole trial goes on where its opening stopped, the finals have the chosen rate, and a
    second call trains nothing.
    """
    assert cli.main(command(place, "--tune", "--json", "--tokens", "1500")) == 0
    out, err = capsys.readouterr()
    jobs = [job for job in Studio(place / "home").jobs() if job.run.budget and job.run.budget.tokens == 1500]
    records = Studio(place / "home").records(jobs[0].project)
    trials = [job.run for job in jobs if is_trial(job.run)]
    whole = [run for run in trials if not run.budget.stop]
    assert len(whole) >= 3 and len(trials) - len(whole) >= 5
    assert all(records.get(run).provenance["resumed_from_step"] > 0 for run in whole)
    best = min(whole, key=lambda run: records.get(run).measurements["loss_nats"])
    assert {job.run.budget.learning_rate for job in jobs if not is_trial(job.run)} == {best.budget.learning_rate}
    assert f"Prompt tuning: rate {best.budget.learning_rate:g} of" in err
    assert not list((Studio(place / "home").folder(jobs[0].project) / "checkpoints").glob("*/progress.json"))
    assert {row["label"] for row in json.loads(out)["rows"]} == {"Untuned", "Prompt tuning"}
    assert cli.main(command(place, "--tune", "--json", "--tokens", "1500")) == 0
    second, err = capsys.readouterr()
    assert json.loads(second)["rows"] == json.loads(out)["rows"] and "runs to compute" not in err


def alone(place: Path, out: Path, *more: str) -> list[str]:
    """The same settings for `train`, which has one seed."""
    words = command(place)[1:]
    at = words.index("--seeds")
    del words[at : at + 2]
    for plural, single in (("--models", "--model"), ("--methods", "--method")):
        words[words.index(plural)] = single
    words[words.index("--method") + 1] = "prompt"
    return ["train", *words, "--out", str(out), *more]


def trained(out: Path) -> tuple[str, set[str]]:
    """Key of the record in a folder that `train` made, and the names beside it."""
    (record,) = Store(out / "record").all()
    return record.key, {str(path.relative_to(out)) for path in out.rglob("*")}


def check_travels(out: Path, moved: Path, capsys) -> None:
    """peft loads the folder as it is from elsewhere too, base and all; its card has intervals, and it chats."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    shutil.copytree(out, moved)
    AutoPeftModelForCausalLM.from_pretrained(moved)
    assert AutoTokenizer.from_pretrained(moved).chat_template
    card = (moved / "README.md").read_text()
    assert (
        "perplexity: " in card
        and " to " in card
        and "untuned" in card
        and "licence of the base" in card
        and "local path" in card
    )
    rows = [json.loads(line) for line in (moved / "outputs.jsonl").read_text().splitlines()]
    assert rows and all(row["input"] and row["target"] and "output" in row for row in rows)
    capsys.readouterr()
    asked = ["chat", str(moved), "--against", "small-llama", "--message", "red blue 7", "--max-new-tokens", "4"]
    assert cli.main(asked) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{moved}: ") and any(line.startswith("small-llama: ") for line in told)


@pytest.mark.model
@pytest.mark.slow
def test_train_and_compare_find_each_others_runs(place, decided, worker, tmp_path, capsys, monkeypatch):
    """The same file with the same settings is the same key: what one has trained the other takes, texts and adapter."""
    studio = Studio(place / "home")
    before = {job.key for job in studio.jobs()}
    assert cli.main(alone(place, tmp_path / "one", "--seed", "1")) == 0
    key, names = trained(tmp_path / "one")
    assert {"adapter_model.safetensors", "README.md", "outputs.jsonl", "tokenizer.json", "chat_template.jinja"} <= names
    assert {f"record/{key[:12]}.json", f"record/{key[:12]}.texts.json.gz"} <= names
    out, err = capsys.readouterr()
    assert "1 run to compute" in err and "untuned" in out and "e+0" not in out
    monkeypatch.setattr(foreground, "start_worker", lambda *_: pytest.fail("a worker was started for a run at hand"))
    assert cli.main(command(place, "--seeds", "2", "--json")) == 0
    assert "runs to compute" not in capsys.readouterr().err
    assert cli.main(alone(place, tmp_path / "two")) == 0
    assert cli.main(alone(place, tmp_path / "again", "--seed", "1")) == 0
    other, its_names = trained(tmp_path / "two")
    assert trained(tmp_path / "again") == (key, names) and other in {job.key for job in decided.jobs} and other != key
    assert {name.replace(other[:12], key[:12]) for name in its_names} == names
    check_travels(tmp_path / "two", tmp_path / "moved", capsys)
    assert {job.key for job in studio.jobs()} == before | {key}


def interrupt(monkeypatch) -> None:
    """Ctrl-C as soon as a plan is waited for."""

    def pressed(home: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(foreground, "start_worker", pressed)


def submitted(studio: Studio, project: Project, seeds: Sequence[int], name: str = foreground.COMPARE) -> str:
    """A plan of quick runs."""
    return studio.submit(project.id, [small_run(studio, project, LoRA(), seed=seed) for seed in seeds], name)


def test_after_ctrl_c_another_command_waits_behind_nothing(tmp_path, monkeypatch, capsys):
    """The jobs of an aborted plan leave the queue, and those of another stay; the same plan is queued again."""
    studio = Studio(tmp_path)
    project = colours_project(studio)
    plan, other = submitted(studio, project, (0, 1, 2)), submitted(studio, project, (3,))
    interrupt(monkeypatch)
    assert not foreground.wait_for(studio, plan)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "Stopped: 0 of 3 runs are done, 3 taken off the queue; give the same command again to go on."
    claimed = studio.claim("w", os.getpid())
    assert claimed is not None and claimed.id == studio.jobs(plan=other)[0].id
    again = studio.jobs(plan=submitted(studio, project, (0, 1, 2)))
    assert {job.state for job in again} == {"queued"}
    assert [job.id for job in again] == [job.id for job in studio.jobs(plan=plan)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_as_ctrl_c(tmp_path, monkeypatch, capsys, number):
    """`kill`, `timeout` and a closed terminal leave nothing behind either; who ignores hang-ups goes on."""
    studio = Studio(tmp_path)
    plan = submitted(studio, colours_project(studio), (0, 1))
    monkeypatch.setattr(foreground, "start_worker", lambda home: signal.raise_signal(number))
    before = signal.signal(number, signal.SIG_DFL)  # `nohup`, say, has the tests ignore hang-ups
    try:
        assert not foreground.wait_for(studio, plan) and signal.getsignal(number) is signal.SIG_DFL
        assert "2 taken off the queue" in capsys.readouterr().err
        signal.signal(number, signal.SIG_IGN)
        with foreground.ended_as_interrupted():
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("places", "said"),
    [(1, "1 of 1 under way with a checkpoint to go on from"), (2, "1 of 2 under way with a checkpoint to go on from")],
)
def test_ctrl_c_stops_what_a_worker_of_the_studio_computes_and_leaves_it(tmp_path, monkeypatch, capsys, places, said):
    """It waits until the runs have stopped, so that the same command can queue them; the checkpoint stays."""
    studio = Studio(tmp_path)
    project = colours_project(studio)
    plan = submitted(studio, project, (0, 1))
    names = ["w", "w-1"][:places]
    job, *others = [studio.claim(name, os.getpid()) for name in names]
    for one in (job, *others):
        studio.adopt(one.id, one.attempt, os.getpid())
    checkpoint = studio.folder(project.id) / "checkpoints" / job.key[:16]
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text("{}")
    real = studio.cancel

    def cancel(job_id: str) -> None:
        """And the worker, which looks after its children, stops it soon."""
        real(job_id)
        for one in (job, *others):
            if one.id == job_id:
                threading.Timer(0.3, lambda one=one: Studio(tmp_path).stopped(one.id, one.attempt)).start()

    monkeypatch.setattr(studio, "cancel", cancel)
    interrupt(monkeypatch)
    assert not foreground.wait_for(studio, plan)
    assert f"2 taken off the queue, {said}; give" in capsys.readouterr().err
    assert [one.state for one in studio.jobs(plan=plan)] == ["cancelled", "cancelled"]
    assert [worker.id for worker in studio.workers()] == names and checkpoint.is_dir()


def test_ctrl_c_leaves_what_the_studio_asked_for_too(tmp_path, monkeypatch, capsys):
    """A run that waits for a plan of the page is not taken from it; one that only commands asked for is."""
    studio = Studio(tmp_path)
    project = colours_project(studio)
    submitted(studio, project, (0,), "From the page")
    submitted(studio, project, (1,))
    plan = submitted(studio, project, (0, 1, 2))
    interrupt(monkeypatch)
    assert not foreground.wait_for(studio, plan)
    assert "2 taken off the queue, 1 stay queued for the studio" in capsys.readouterr().err
    assert [job.state for job in studio.jobs(plan=plan)] == ["queued", "cancelled", "cancelled"]


def raced(studio: Studio, project: Project, name: str) -> str:
    """A plan of one method whose rate is raced; of its openings the last is still to be computed."""
    tuning = Tuning.of(studio.task(project.id), [small_run(studio, project, LoRA())])
    plan = studio.submit(project.id, tuning.runs(studio.records(project.id).get), name, tuning=tuning)
    for job in studio.jobs(plan=plan)[:-1]:
        finish(studio, job, abs(job.run.budget.learning_rate - 1e-3))
    return plan


def test_ctrl_c_stops_what_a_race_asks_for_meanwhile(tmp_path, monkeypatch, capsys):
    """The last opening ends just before it is cancelled, and its race queues the next runs."""
    studio = Studio(tmp_path)
    project = colours_project(studio)
    plan = raced(studio, project, foreground.COMPARE)
    *_, last = studio.jobs(plan=plan)
    cancel = studio.cancel

    def too_late(job_id: str) -> None:
        if job_id == last.id:
            finish(studio, last, 1.0)
        cancel(job_id)

    monkeypatch.setattr(studio, "cancel", too_late)
    interrupt(monkeypatch)
    assert not foreground.wait_for(studio, plan)
    assert "5 of 8 runs are done, 3 taken off the queue" in capsys.readouterr().err
    assert {job.state for job in studio.jobs(plan=plan)} == {"done", "cancelled"}


def test_ctrl_c_leaves_what_a_race_of_the_studio_asks_for_meanwhile(tmp_path, monkeypatch):
    """The same plan, queued on the page and then by a command, goes on for the page."""
    studio = Studio(tmp_path)
    project = colours_project(studio)
    plan = raced(studio, project, "From the page")
    finish(studio, studio.jobs(plan=plan)[-1], 1.0)
    interrupt(monkeypatch)
    assert not foreground.wait_for(studio, plan)
    assert [job.state for job in studio.jobs(plan=plan)] == ["done"] * 5 + ["queued"] * 3


def test_a_trial_that_diverged_is_told_only_where_nothing_came_of_its_race(tmp_path):
    """A rate that is too high is what a race is there to find."""
    studio = Studio(tmp_path)
    project = colours_project(studio)
    plan = raced(studio, project, foreground.COMPARE)
    *_, last = studio.jobs(plan=plan)
    finish(studio, last, 0.0, failure="It diverged.")
    assert [job.id for job in foreground.noted_failures(studio.jobs(plan=plan)) if job.state == "failed"] == [last.id]
    while waits := [job for job in studio.jobs(plan=plan) if job.state == "queued"]:
        finish(studio, waits[0], 1.0)
    assert foreground.noted_failures(studio.jobs(plan=plan)) == []


def test_a_loss_that_rises_or_stands_still_is_told_early():
    """Within the first twentieth; one that falls is not, nor one whose first steps were not seen."""
    noise = [0.1 * (-1) ** at for at in range(12)]
    curves = {
        "rises": [3.1, *[10.803] * 11],
        "stands still": [3.0 + extra for extra in noise],
        "": [3.0 - 0.2 * at + extra for at, extra in enumerate(noise)],
    }
    for said, losses in curves.items():
        words = foreground.loss_words(list(enumerate(losses, start=1)), 240)
        assert said in words and bool(words) == bool(said)
        assert foreground.loss_words(list(enumerate(losses, start=100)), 240) == ""
    assert "after 12 of 240 steps the loss is 10.803" in foreground.loss_words(
        list(enumerate([*curves["rises"], *[1.0] * 50], start=1)), 240
    )


def a_job(state: str, **fields) -> Job:
    """A job of no project."""
    return Job(
        id="j", project="p", plan="q", run=specs.Run.model_construct(), label="LoRA\x1b[2J", state=state, **fields
    )


def test_a_log_of_a_plan_says_each_phase_once_and_each_end():
    """`nohup peftbook compare … > log`: what is waited for, and no line a quarter of a second."""
    log = io.StringIO()
    with Ticker(log) as ticker:
        ticker.show([a_job("queued")])
        for phase, done in (("loading", 0), ("scoring loss", 0), ("scoring loss", 32), ("scoring loss", 48)):
            ticker.show([a_job("running", phase=phase, phase_done=done, phase_total=64 if done else 0)])
        ticker.show([a_job("done", started=100.0, finished=130.0)])
        ticker.show([a_job("done", started=100.0, finished=130.0)])
    assert [line[9:] for line in log.getvalue().splitlines()] == [
        "0 of 1 runs done; starting",
        "0 of 1 runs done; loading the model; LoRA [2J",
        "0 of 1 runs done; scoring the loss; LoRA [2J",
        "LoRA [2J: done in 30 s",
    ]


def test_every_phase_of_a_job_has_count_elapsed_and_left(monkeypatch):
    """The line of the terminal and the card of the page say the same."""
    from peftbook.studio.pages.runs import progress

    monkeypatch.setattr(time, "time", lambda: 1020.0)
    counts = {"phase_done": 128, "phase_total": 400, "phase_began": 1000.0, "seconds_left": 42.0}
    job = a_job("running", phase="bertscore", **counts)
    resumed = a_job("running", phase="training", step=20, steps=40, loss=3.6, tokens_per_second=9.0)
    assert resumed.doing.words() == ["training"], "loss and pace are those of an earlier attempt"
    words = ["computing BERTScore", "128 of 400", "20 s so far", "42 s left"]
    assert progress_line([job]) == f"0 of 1 runs done; {', '.join(words)}; LoRA [2J"
    assert " · ".join(words) in progress(job) and 'value="32"' in progress(job)
    noisy = a_job("running", phase="training", phase_total=40, loss=9.0, tokens_per_second=7.0)
    for steps, last in ((20, 5), (400, 50)):
        told = progress(noisy, [(step, 2.0 * (step >= steps - last)) for step in range(steps)])
        assert f"mean loss of the last {last} steps 2.000, 7 tokens/s" in told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--input", "nowhere"), "no column 'nowhere'"),
        (("--methods", "untuned,lara"), "Unknown method 'lara'"),
        (("--models", "no/such/model/here"), "neither a folder nor a hub id"),
        (("--instruction", "Say it"), "{input}"),
        (("--report", "/no/such/folder/out.html"), "folder that exists"),
        (("--run", "{"), "--run is not a run"),
        (("--learning-rate", "lora"), "write it as lora=4e-4"),
        (("--margin", "-1"), "Margin -1.0"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_project(place, tmp_path, capsys, more, words):
    """Each fault is named with its fix, status 2, before anything is stored."""
    home = tmp_path / "home"
    argv = command(place)
    argv[argv.index("--home") + 1] = str(home)
    assert words in refused(capsys, *argv, *more)
    assert not (home / "projects").exists() or not any((home / "projects").iterdir())


def test_examples_that_are_too_long_are_left_out_and_nothing_else_is(place, capsys, monkeypatch):
    """A comparison by default is not refused for them; a run of theirs alone is."""
    args = cli.build_parser().parse_args(command(place))
    task = own_file.OwnFile.read(args.file, read_options(Guessed, args)).task
    settings = Settings(models=(specs.Model(name=specs.SMALL_MODEL),), methods=("fewshot", "prompt"), seeds=1)
    runs = planned(task, settings)

    def check(run: specs.Run, fits: bool) -> preflight.Check:
        return preflight.Check(run.key, run.method.label, 1, 1, 0, 60.0, 1.0, fits, "" if fits else "Too long.")

    (shown,) = (run for run in runs if run.method.examples_shown)
    monkeypatch.setattr(preflight, "preflight", lambda _, runs, *__, **___: [check(run, run != shown) for run in runs])
    assert own_file.refuse_misfits(task, runs, runs) == {shown.key}
    said = capsys.readouterr().err
    assert "Left out: 5 examples in the prompt. Too long." in said and "2 runs to compute" in said
    with pytest.raises(InputError, match="cannot be run here"):
        own_file.refuse_misfits(task, [shown], [shown])


def test_train_compare_and_recipe_say_what_rows_do_not_carry(tmp_path, capsys, monkeypatch):
    """The sentences of the studio, of columns that nobody named, before anything is trained."""
    long = [(f"{' '.join(f'word{n}_{k}' for k in range(20))} {end}", f"{n}{end}") for n in range(20) for end in "ab"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in long), encoding="utf-8")
    _, table = read_file(path)
    seen = examine(table, guess_columns(table)[0])
    said = [words for words, kind in notes_of(seen, "{input}") if kind == "warn"]
    assert [words.split()[0] for words in said] == ["The", "32", "Leakage:"]

    def stop(*_: object, **__: object) -> None:
        raise InputError("Enough.")

    monkeypatch.setattr(own_file, "refuse_misfits", stop)
    monkeypatch.setattr(own_file, "worker_ahead", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(advice, "advise", stop)
    own = ["--home", str(tmp_path / "home")]
    for words in (
        ["train", str(path), "--out", str(tmp_path / "out"), *own],
        ["compare", str(path), *own],
        ["recipe", str(path), "--model", specs.EMBEDDED_MODEL, "--memory", "8GiB"],
    ):
        assert cli.main(words) == 2
        printed = "".join(capsys.readouterr())
        assert all(one in printed for one in said) and "'question' is read, 'answer' written." in printed


def test_a_worker_begins_while_a_plan_is_judged_and_ends_with_one_that_is_refused(tmp_path):
    """It is there before the first job, and no longer once the plan is refused or interrupted."""
    studio = Studio(tmp_path)
    with pytest.raises(KeyboardInterrupt), foreground.worker_ahead(studio, 2):
        wait_for(lambda: any(worker.alive for worker in studio.workers()), 60)
        raise KeyboardInterrupt
    assert not any(worker.alive for worker in studio.workers())
    with foreground.worker_ahead(studio, 0):
        assert not foreground.STARTED, "runs that are at hand need none"


@pytest.mark.parametrize(("tokens", "said"), [("300", True), ("100000", False)])
@pytest.mark.parametrize("name", ["train", "compare"])
def test_less_than_one_pass_over_the_rows_is_a_warning(place, tmp_path, capsys, monkeypatch, name, tokens, said):
    """Of both commands, on standard error, before anything is trained."""
    monkeypatch.setattr(own_file, "worker_ahead", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(own_file, "wait_for", lambda *_: False)
    home = ("--home", str(tmp_path / "home"))
    argv = {"compare": [*command(place), *home], "train": alone(place, tmp_path / "out", *home)}[name]
    assert cli.main([*argv, "--tokens", tokens]) == 130
    out, err = capsys.readouterr()
    assert ("% of one pass over the" in err) == said and "of one pass" not in out


def test_the_data_is_never_overwritten(place, capsys):
    """A report or table may not take the place of the file that is read."""
    before = (place / "pairs.csv").read_bytes()
    assert "is the data itself" in refused(capsys, *command(place, "--csv", str(place / "pairs.csv")))
    assert (place / "pairs.csv").read_bytes() == before


def chats_file(folder: Path, rows: int = 30, words: int = 3000) -> Path:
    """Chats under one system prompt, the eighth with so many words in an earlier turn."""
    path = folder / "chats.jsonl"
    with path.open("w") as file:
        for n in range(rows):
            told = "word " * words if n == 7 else f"Hello {n}."
            said = [("system", "Be brief."), ("user", told), ("assistant", "Yes?"), ("user", f"And {n}?")]
            turns = [{"role": role, "content": text} for role, text in (*said, ("assistant", f"It is {n}."))]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def small_settings(**options) -> Settings:
    return Settings(models=(SMALL,), methods=("lora",), seeds=1, **options)


def test_a_row_beyond_the_longest_is_left_out_and_said(tmp_path):
    """Alone it stopped the plan; the project reads the same rows, and a larger length keeps it."""
    file = own_file.OwnFile.read(chats_file(tmp_path), Guessed())
    short = file.counted(small_settings(max_length=512))
    assert sum(map(len, short.task.splits.values())) == 29 and short.reading.left_out == "8"
    assert sum("1 of 30 rows" in line for line in short.words()) == 1
    checks = preflight.preflight(
        short.task, planned(short.task, small_settings(), short.tokens), 2.0**36, measure=False
    )
    assert all(check.fits for check in checks)
    studio = Studio(tmp_path / "home")
    project = studio.create_project("chats", short.content, "chats.jsonl", short.reading)
    assert studio.task(project.id).splits == short.task.splits and own_file.find_project(studio, short) == project
    assert file.counted(small_settings(max_length=8192)).task is file.task


def test_one_epoch_reads_every_training_row_once(tmp_path):
    """By the tokens that training reads, turns and all; of flat rows too."""
    from peftbook.training.encode import batch_plan, encode_training

    flat = tmp_path / "flat.csv"
    flat.write_text("q,a\n" + "".join(f"is {n} odd,{'no' if n % 2 else 'yes'}\n" for n in range(60)))
    for path in (chats_file(tmp_path), flat):
        settings = small_settings(epochs=1.0)
        file = own_file.OwnFile.read(path, Guessed()).counted(settings)
        budget = planned(file.task, settings, file.tokens)[1].budget
        lengths = [len(one.ids) for one in encode_training(load_model(SMALL).tokenizer, file.task, budget)]
        visited = [row for batch in batch_plan(lengths, budget.batch_size, budget.tokens, 0) for row in batch]
        assert sorted(visited) == list(range(len(lengths)))


def test_chats_are_named_once_and_share_their_system_prompt(tmp_path):
    """The task knows what the system says to all rows, which `train --out` writes and `chat` begins with."""
    from peftbook.views.export.roads import SYSTEM, system_of

    file = own_file.OwnFile.read(chats_file(tmp_path), Guessed())
    assert sum("chats" in line and "rows are" in line.lower() for line in file.words()) == 1
    assert file.task.system == "Be brief." and system_of(str(tmp_path)) == ""
    (tmp_path / SYSTEM).write_text(file.task.system)
    assert system_of(str(tmp_path)) == "Be brief."
