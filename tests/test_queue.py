"""The queue: what is missing, once each, in order; a failure stops nothing; later stages appear by themselves."""

from __future__ import annotations

import stat

import pytest

from peftbook import specs
from peftbook.records import Record, Store
from peftbook.studies import Study, Verdict
from peftbook.training import queue
from peftbook.training.queue import describe, run_studies, run_subprocess


def a_run(seed: int, **fields) -> specs.Run:
    values = {
        "task": specs.Task(name="t", data_sha256="0" * 64),
        "method": specs.LoRA(),
        "budget": specs.Budget(tokens=10, learning_rate=1e-3),
    }
    return specs.Run(**values | fields, seed=seed)


def a_study(name: str, runs) -> Study:
    """A study of these runs: a list, or a function of the store."""
    return Study(
        name=name, title="", claim="", source="", refuted_if="", does_not_show="", chapter="",
        runs=runs if callable(runs) else lambda store: list(runs),
        quantities=lambda store: {},
        verdict=lambda store: Verdict("not yet run", ""),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


class Worker:
    """Saves an empty record for every run but those it fails on, and remembers what it was given."""

    def __init__(self, store: Store, fails: tuple[int, ...] = ()):
        self.store, self.fails, self.seeds = store, fails, []

    def __call__(self, run: specs.Run) -> tuple[bool, str]:
        self.seeds.append(run.seed)
        if run.seed in self.fails:
            return False, "out of memory"
        self.store.save(Record(key=run.key, spec=run))
        return True, ""


def go(studies, store, worker, **options):
    return run_studies(studies, store, compute=worker, report=lambda line: None, **options)


def test_only_what_is_missing_is_computed(store):
    """In the study's order; a second call has nothing to do."""
    store.save(Record(key=a_run(1).key, spec=a_run(1)))
    worker = Worker(store)
    study = a_study("s", [a_run(seed) for seed in range(4)])
    outcomes = go([study], store, worker)
    assert worker.seeds == [0, 2, 3] and all(one.ok for one in outcomes)
    assert go([study], store, worker) == [] and worker.seeds == [0, 2, 3]


def test_a_failure_does_not_stop_the_queue_and_is_tried_once(store):
    """It is reported with its message, and the next call tries it again."""
    worker, lines = Worker(store, fails=(1,)), []
    study = a_study("s", [a_run(seed) for seed in range(3)])
    outcomes = run_studies([study], store, compute=worker, report=lines.append)
    assert worker.seeds == [0, 1, 2]
    assert [(one.ok, one.message) for one in outcomes] == [(True, ""), (False, "out of memory"), (True, "")]
    assert any("FAILED" in line and "out of memory" in line for line in lines)
    worker.fails = ()
    assert [one.run.seed for one in go([study], store, worker)] == [1]


def test_a_run_that_two_studies_share_is_computed_once(store):
    """Records are stored by key, not by study; studies are served in the order given."""
    worker = Worker(store)
    go([a_study("one", [a_run(0), a_run(1)]), a_study("two", [a_run(1), a_run(2)])], store, worker)
    assert worker.seeds == [0, 1, 2]


def test_a_failing_shared_run_is_tried_once(store):
    """Not once for each study."""
    worker = Worker(store, fails=(1,))
    go([a_study("one", [a_run(1)]), a_study("two", [a_run(1), a_run(2)])], store, worker)
    assert worker.seeds == [1, 2]


def test_a_later_stage_appears_when_the_earlier_one_has_records(store):
    """Final runs need the rate that the sweep chose."""

    def staged(store: Store) -> list[specs.Run]:
        sweep = [a_run(0), a_run(1)]
        return sweep + ([a_run(2), a_run(3)] if all(run in store for run in sweep) else [])

    worker = Worker(store)
    go([a_study("s", staged)], store, worker)
    assert worker.seeds == [0, 1, 2, 3]
    other = Store(store.folders[0] / "other")
    failing = Worker(other, fails=(1,))
    go([a_study("s", staged)], other, failing)
    assert failing.seeds == [0, 1]


def test_a_limit_stops_early_and_the_next_call_goes_on(store):
    """`--limit` is for a first look; nothing is lost or repeated."""
    worker, study = Worker(store), a_study("s", [a_run(seed) for seed in range(3)])
    assert len(go([study], store, worker, limit=2)) == 2
    assert len(go([study], store, worker, limit=2)) == 1 and worker.seeds == [0, 1, 2]
    assert go([a_study("t", [a_run(9)])], store, worker, limit=0) == []


def test_a_run_is_described_in_one_line():
    """Enough to find it: key, task, method, rate or shots, seed, split."""
    line = describe(a_run(3))
    assert line == f"{a_run(3).key[:12]} t lora r16 lr 0.001 seed 3 (validation)"
    untuned = a_run(0, method=specs.Untuned(shots=2), budget=None)
    assert describe(untuned) == f"{untuned.key[:12]} t untuned 2-shot seed 0 (validation)"


def interpreter(folder, script: str) -> str:
    """A program that stands for Python and behaves like a worker process."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\ncat > {folder}/spec\nprintenv PEFTBOOK_RECORDS > {folder}/records\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo progress >&2; echo done; exit 0", (True, "")),
        (
            "echo a note; echo 'Task is unknown: fix it.'; echo progress >&2; exit 2",
            (False, "Task is unknown: fix it."),
        ),
        ("exit 1", (False, "")),
        ("kill -9 $$", (False, "")),
    ],
)
def test_a_worker_process_reports_by_exit_status_and_last_line(tmp_path, monkeypatch, script, expected):
    """Each run has a process of its own, which gets the spec on standard input and may die of anything."""
    monkeypatch.setattr(queue.sys, "executable", interpreter(tmp_path, script))
    assert run_subprocess(a_run(0)) == expected
    assert specs.Run.model_validate_json((tmp_path / "spec").read_text()) == a_run(0)


def test_a_worker_writes_where_it_is_told(tmp_path, monkeypatch):
    """`verify` repeats runs into a folder of its own; without one the worker's environment is ours."""
    monkeypatch.setattr(queue.sys, "executable", interpreter(tmp_path, "exit 0"))
    monkeypatch.setenv("PEFTBOOK_RECORDS", "/mine")
    for folder, written in [(None, "/mine"), (tmp_path / "other", str(tmp_path / "other"))]:
        run_subprocess(a_run(0), folder)
        assert (tmp_path / "records").read_text().strip() == written
