"""Public runs of huggingface/peft: what the shipped tables keep to, and what their builder makes of a small history."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from public_runs import BENCHMARK, COMMIT, ID_DIGITS, build

from peftbook.core.errors import InputError
from peftbook.evidence.public_runs import (
    PUBLIC_RUNS,
    TEST_ROWS,
    outcomes,
    public_runs,
    read_outcomes,
    read_settings,
)

SUCCESSES = [outcome for outcome in outcomes().values() if outcome.status == "success"]
LATEST, FIRST = "2026-01-02T03:04:05+00:00", "2025-06-19T00:00:00+00:00"  # start of a rerun, and of the other runs


def test_an_id_is_the_start_of_its_blob_and_names_one_run():
    """The table leads back to the file, and no version of a file counts twice, as a run or as a copy."""
    runs = public_runs()
    ids = [each for run in runs for each in (run.id, *run.copies)]
    assert len(ids) == len(set(ids))
    assert all(run.blob.startswith(run.id) and len(run.id) == ID_DIGITS for run in runs)
    assert len({(run.experiment, run.created_at) for run in runs}) == len(runs)


def test_settings_and_outcomes_are_of_the_same_runs():
    """What was set is read apart from what was measured, and still belongs to it."""
    assert {run.id: run.status for run in public_runs()} == {each.id: each.status for each in outcomes().values()}
    for name in ("settings", "outcomes"):
        header = json.loads((PUBLIC_RUNS / f"{name}.jsonl").read_text(encoding="utf-8").partition("\n")[0])
        assert (header["source"]["commit"], header["source"]["licence"]) == (COMMIT, "Apache-2.0")


def test_every_run_says_what_it_ran_on():
    """Only library versions, benchmark code and hardware tell two runs of one configuration apart."""
    libraries = {"bitsandbytes", "datasets", "peft", "peft_commit", "torch", "transformers"}
    for run in public_runs():
        assert libraries <= run.versions.keys() and {"gsm8k", "metamath"} <= run.datasets.keys()
        assert run.accelerator and run.model_sha and run.train_config["model_id"] and run.train_config["seed"] == 0
        assert run.peft_config is not None or run.method == "full-finetuning"


def test_a_test_accuracy_is_a_count_of_right_answers():
    """All 1,319 rows are scored, none by halves, so the count can be recovered from the fraction."""
    for outcome in SUCCESSES:
        right = round(outcome.test_accuracy * TEST_ROWS)
        assert 0 <= right <= TEST_ROWS
        assert math.isclose(right / TEST_ROWS, outcome.test_accuracy, rel_tol=0, abs_tol=1e-9)


def test_curves_ascend_to_the_last_step():
    """A curve has one finite value for each step, and validation accuracies are fractions."""
    steps = {run.id: run.train_config["max_steps"] for run in public_runs()}
    for outcome in SUCCESSES:
        for curve in (outcome.validation_accuracy, outcome.train_loss):
            assert all(before < after for (before, _), (after, _) in itertools.pairwise(curve))
            assert curve[-1][0] <= steps[outcome.id] and all(map(math.isfinite, dict(curve).values()))
        assert all(0 <= accuracy <= 1 for _, accuracy in outcome.validation_accuracy)


def test_bytes_tokens_and_parameters_are_whole_and_seconds_are_not_negative():
    """A field that was renamed is found in every file: each successful run has all but parameters and forgetting."""
    whole = ("peak_reserved_bytes", "mean_reserved_bytes", "reserved_bytes_99th", "train_tokens", "file_size_bytes")
    for outcome in SUCCESSES:
        assert all(isinstance(getattr(outcome, name), int) and name in outcome.called for name in whole)
        assert 0 < outcome.train_seconds <= outcome.total_seconds
    for run in public_runs():
        counts = (run.trainable_parameters, run.total_parameters)
        measured = outcomes()[run.id]
        assert counts == (measured.trainable_parameters, measured.total_parameters)
        assert counts == (None, None) or 0 < counts[0] <= counts[1]


def record(experiment: str, start: str, prefix: str, status: str = "success") -> dict[str, Any]:
    """A result file as the benchmark writes it; prefix: cuda in old files, accelerator in new ones."""
    metrics = [
        {"step": step, "valid accuracy": step / 50, "train loss": 1 / step, "elapsed time": 0.5} for step in (10, 20)
    ]
    measured = {
        f"{prefix}_memory_max": 30,
        f"{prefix}_memory_reserved_avg": 10,
        f"{prefix}_memory_reserved_99th": 20,
        "train_time": 1.25,
        "file_size": 400,
        "status": status,
    }
    if status == "success":
        test = {"step": 20, "test accuracy": 660 / TEST_ROWS, "train loss": 1 / 20, "train total tokens": 5000}
        metrics.append(test | ({"forgetting": 0.125} if start == LATEST else {}))
    if prefix == "accelerator" and start == LATEST:
        measured |= {"num_trainable_params": 12, "num_total_params": 100}
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["v_proj", "q_proj"], "revision": None, "peft_version": "1"}
    return {
        "run_info": {
            "created_at": start,
            "total_time": 2.5,
            "experiment_name": experiment,
            "peft_branch": "main",
            "train_config": {"model_id": "maker/Tiny-1B", "seed": 0, "max_steps": 20, "use_amp": False, "init": None},
            "peft_config": None if experiment.startswith("full") else lora,
        },
        "train_info": measured | {"metrics": metrics},
        "meta_info": {
            "model_info": {"sha": "m1", "created_at": FIRST},
            "dataset_info": {"gsm8k": {"sha": "d1", "created_at": FIRST}},
            "package_info": {"peft-version": "0.15", "peft-commit-hash": "0" * 40, "torch-commit-hash": None},
            "system_info": {"gpu" if prefix == "cuda" else "accelerator": "L40S"},
        },
    }


class Repository:
    """A repository in which files can be committed."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir()
        self.git("init", "--quiet")

    def git(self, *words: str) -> str:
        environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        environment |= {"GIT_AUTHOR_DATE": LATEST, "GIT_COMMITTER_DATE": LATEST}
        command = ["git", "-C", str(self.root), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, files: dict[str, dict[str, Any] | None]) -> str:
        """Commit files, path → content or None to delete; returns the commit."""
        for name, content in files.items():
            path = self.root / BENCHMARK / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_text(json.dumps(content), encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "results")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> tuple[Path, str, str, Path]:
    """A repository and its two commits: LoRA, full fine-tuning and a cancelled run; then LoRA again, the second file
    renamed and the third moved. And the tables that are built of the second one.
    """
    folder = tmp_path_factory.mktemp("history")
    repository = Repository(folder / "repository")
    cancelled = record("ia3/tiny-1B-default", FIRST, "cuda", status="canceled")
    first = repository.commit(
        {
            "results/lora--tiny-1B-rank2.json": record("lora/tiny-1B-rank2", FIRST, "cuda"),
            "results/full--tiny-1B-old.json": record("full/tiny-1B-lr_1e-5", FIRST, "cuda"),
            "cancelled_results/ia3.json": cancelled,
            "experiments/lora/tiny-1B-rank2/adapter_config.json": {"r": 2},
        }
    )
    second = repository.commit(
        {
            "results/lora--tiny-1B-rank2.json": record("lora/tiny-1B-rank2", LATEST, "accelerator"),
            "results/full--tiny-1B-old.json": None,
            "results/full--tiny-1B-new.json": record("full/tiny-1B-lr_1e-5", FIRST, "accelerator"),
            "cancelled_results/ia3.json": None,
            "temporary_results/ia3.json": cancelled,
        }
    )
    build(repository.root / ".git", second, folder / "built")
    return repository.root / ".git", first, second, folder / "built"


def test_a_history_gives_each_run_once(history):
    """A rerun is a run, a file with new names or at a new path is not, and a cancelled run keeps a row."""
    _, first, second, built = history
    runs = read_settings(built)
    rows = [(run.configuration, run.created_at, run.status, run.folder, run.commit) for run in runs]
    assert rows == [
        ("full--lr_1e-5", FIRST, "success", "results", first),
        ("ia3--default", FIRST, "canceled", "cancelled", first),
        ("lora--rank2", FIRST, "success", "results", first),
        ("lora--rank2", LATEST, "success", "results", second),
    ]
    assert [len(run.copies) for run in runs] == [1, 0, 0, 0]
    assert {run.committed for run in runs} == {LATEST} and {run.accelerator for run in runs} == {"L40S"}
    train_config = {"max_steps": 20, "model_id": "maker/Tiny-1B", "seed": 0, "use_amp": False}
    assert all(run.train_config == train_config for run in runs)
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"]}
    assert [run.peft_config for run in runs] == [None, lora, lora, lora]
    assert [run.trainable_parameters for run in runs] == [None, None, None, 12]
    assert all(run.versions == {"peft": "0.15", "peft_commit": "0" * 40} and run.harness == {} for run in runs)


def test_old_and_new_names_give_the_same_outcome(history):
    """Values keep every digit, whatever a file called them, and `called` says what that was."""
    _, cancelled, old, new = read_outcomes(history[-1])
    for outcome in (old, new):
        assert (outcome.test_accuracy, outcome.train_tokens) == (660 / TEST_ROWS, 5000)
        assert outcome.validation_accuracy == ((10, 10 / 50), (20, 20 / 50))
        assert outcome.train_loss == ((10, 1 / 10), (20, 1 / 20))
        assert (outcome.mean_reserved_bytes, outcome.reserved_bytes_99th, outcome.peak_reserved_bytes) == (10, 20, 30)
        assert (outcome.train_seconds, outcome.total_seconds, outcome.file_size_bytes) == (1.25, 2.5, 400)
    assert old.called["peak_reserved_bytes"] == "train_info.cuda_memory_max"
    assert new.called["peak_reserved_bytes"] == "train_info.accelerator_memory_max"
    assert (old.forgetting, old.called.get("forgetting")) == (None, None)
    assert (new.forgetting, new.called["forgetting"]) == (0.125, "train_info.metrics[].forgetting")
    assert (cancelled.status, cancelled.test_accuracy) == ("canceled", None)
    assert (cancelled.train_loss, cancelled.called) == ((), {})


def test_a_commit_gives_the_same_bytes_and_none_of_what_came_later(history, tmp_path):
    """The tables depend on the commit that is named, and on nothing else."""
    git, first, second, built = history
    assert len(build(git, first, tmp_path / "first")) == 3
    build(git, second, tmp_path / "second")
    for name in ("settings.jsonl", "outcomes.jsonl"):
        assert (tmp_path / "second" / name).read_bytes() == (built / name).read_bytes()


def test_one_run_with_two_results_is_refused(tmp_path):
    """A result that was edited afterwards must be looked at by a person, not be taken for a copy or for a rerun."""
    repository = Repository(tmp_path / "repository")
    original = record("lora/tiny-1B-rank2", FIRST, "cuda")
    repository.commit({"results/lora.json": original})
    edited = original | {"run_info": original["run_info"] | {"total_time": 3.5}}
    commit = repository.commit({"results/lora.json": edited})
    with pytest.raises(InputError, match=r"differs in \['total_seconds'\]"):
        build(repository.root / ".git", commit, tmp_path / "built")
