"""`peftbook compare`: a file to a decision, through the studio's store and worker; a second call trains nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftbook import cli
from peftbook.studio import compare, plan
from peftbook.studio.store import Studio

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
    return ["compare", str(place / "pairs.csv"), *SETTINGS, "--home", str(place / "home"), *more]


def refused(capsys, *argv: str) -> str:
    """Run a command that must be refused; returns the sentence."""
    assert cli.main(list(argv)) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("peftbook: ") and "Traceback" not in err + out
    return last


@pytest.mark.model
@pytest.mark.slow
def test_a_file_becomes_a_decision_and_a_second_call_trains_nothing(place, capsys, monkeypatch):
    """From the file to table, page and CSV; then the same from cache, no worker started; equal to the first."""
    assert cli.main(command(place, "--json", "--report", str(place / "out.html"), "--csv", str(place / "out.csv"))) == 0
    out, err = capsys.readouterr()
    first = json.loads(out)
    assert f"{ROWS} rows" in err and "2 runs to compute" in err
    assert {row["label"] for row in first["rows"]} == {"Untuned", "Prompt tuning"}
    assert all(row["scores"]["perplexity"]["mean"] > 1 for row in first["rows"])
    assert first["encoder"].startswith("all-MiniLM-L6-v2")
    page = (place / "out.html").read_text()
    assert "<script" not in page and "peftbook compare pairs.csv" in page and "--tokens 300" in page
    with (place / "out.csv").open(encoding="utf-8-sig") as stream:
        assert {line["method"] for line in csv.DictReader(stream)} == {"Untuned", "Prompt tuning"}
    studio = Studio(place / "home")
    assert not any(worker.alive for worker in studio.workers()), "the worker that the command started has ended"

    def never(*_):
        raise AssertionError("a worker was started for runs that are at hand")

    monkeypatch.setattr(compare, "start_worker", never)
    began = time.monotonic()
    assert cli.main(command(place, "--json")) == 0
    out, err = capsys.readouterr()
    second = json.loads(out)
    assert time.monotonic() - began < 30 and "runs to compute" not in err
    for name in ("rows", "recommendation", "project"):
        assert second[name] == first[name]
    assert len(studio.projects()) == 1 and len(studio.jobs()) == 2
    assert cli.main(command(place)) == 0
    assert "Prompt tuning" in capsys.readouterr().out

    other = [*command(place, "--json")[:-1], "--measure", "blue"]
    assert "Unknown measure 'blue'" in refused(capsys, *other)
    run = studio.jobs()[1].run
    assert cli.main([*command(place), "--run", studio.jobs()[0].run.canonical(), "--run", run.canonical()]) == 0
    foreign = run.model_copy(update={"task": run.task.model_copy(update={"data_sha256": "e" * 64})})
    assert "is of data eeeeeeeeeeee" in refused(capsys, *command(place), "--run", foreign.canonical())


@pytest.mark.model
@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_no_worker(place, tmp_path):
    """Interrupted while it waits: status 130, one sentence, the job back in the queue, nothing left running."""
    home = tmp_path / "home"
    words = command(place)
    words[words.index("--home") + 1] = str(home)
    process = subprocess.Popen(
        [sys.executable, "-m", "peftbook.cli", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(job.state == "running" for job in Studio(home).jobs()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "give the same command again to go on" in err and "Traceback" not in err
    studio = Studio(home)
    assert not any(worker.alive for worker in studio.workers())
    assert {job.state for job in studio.jobs()} <= {"queued", "done"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--input", "nowhere"), "no column 'nowhere'"),
        (("--methods", "untuned,lara"), "Unknown method 'lara'"),
        (("--models", "no/such/model/here"), "neither a folder nor a hub id"),
        (("--instruction", "Say it"), "{input}"),
        (("--seeds", "11"), "11 seeds"),
        (("--seeds", "1.5"), "1.5 seeds are chosen: choose a whole number"),
        (("--tokens", "999999999999"), "999,999,999,999 training tokens"),
        (("--tokens", "-5"), "-5 training tokens"),
        (("--test-examples", "100000"), "100,000 test rows"),
        (("--report", "/no/such/folder/out.html"), "folder that exists"),
        (("--run", "{"), "--run is not a run"),
        (("--learning-rate", "lora"), "write it as lora=4e-4"),
        (("--fractions", "1", "1", "1"), "add up to 1"),
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


def test_a_plan_of_hours_says_the_options_of_a_smaller_one(place, tmp_path, capsys, monkeypatch):
    """In one line before anything is queued; nothing is said where the hour is kept, or where runs are given whole."""
    args = cli.build_parser().parse_args([*command(place), "--seeds", "3"])
    columns, split = compare.Columns(args.input, args.target), compare.split_of(args)
    task = compare.task_from_table(compare.read_file(args.file)[1], columns, split, args.instruction)
    runs, settings, studio = compare.chosen_runs(args, task), compare.settings_of(args), Studio(tmp_path / "home")

    def said(seconds: float, settings: plan.Settings | None) -> str:
        long = [plan.Check(run.key, "", 1, 1, 0, seconds, 1.0, True, "", 1.0, 0.9 * seconds) for run in runs]
        monkeypatch.setattr(plan, "preflight", lambda *_, **__: long)
        compare.refuse_misfits(studio, None, task, runs, settings)
        return capsys.readouterr().err

    assert "A smaller plan would take about" in said(1800.0, settings) and "--seeds 1\n" in said(1800.0, settings)
    assert "smaller" not in said(60.0, settings) and "smaller" not in said(1800.0, None)


def test_the_data_is_never_overwritten(place, capsys):
    """A report or table may not take the place of the file that is read."""
    before = (place / "pairs.csv").read_bytes()
    assert "is the data itself" in refused(capsys, *command(place, "--csv", str(place / "pairs.csv")))
    assert (place / "pairs.csv").read_bytes() == before


def test_a_missing_file_is_named(tmp_path, capsys):
    """A path that is no file."""
    said = refused(capsys, "compare", str(tmp_path / "gone.csv"), "--input", "a", "--target", "b")
    assert "gone.csv" in said and "check the path" in said
