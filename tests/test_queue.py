"""The queue: what is missing, once each, in order; a failure or a kill loses nothing; timings run alone."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from conftest import wait_for

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.exchange import import_records
from peftbook.core.records import Record, Store
from peftbook.methods.full import Full
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.runtime.durations import Estimates
from peftbook.runtime.hardware import cores, cpu_model
from peftbook.runtime.precision import products_here
from peftbook.runtime.processes import lock_file
from peftbook.runtime.queue import run_studies, run_subprocess
from peftbook.runtime.resources import cuda_micro_batch, fitting_rows
from peftbook.runtime.threads import best_threads
from peftbook.studies import Study, Verdict
from peftbook.tasks import get_task


def a_run(seed: int, **fields) -> specs.Run:
    values = {
        "task": specs.Task(name="t", data_sha256="0" * 64),
        "method": LoRA(),
        "budget": specs.Budget(tokens=10, learning_rate=1e-3),
    }
    return specs.Run(**values | fields, seed=seed)


def a_study(name: str, runs) -> Study:
    """A study of these runs: a list, or a function of the store."""
    return Study(
        name=name, title="", claim="", source="", refuted_if="", does_not_show="", chapter="",
        runs=runs if callable(runs) else lambda store: list(runs),
        measure=lambda store: {},
        judge=lambda store: Verdict("not yet run", ""),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


class Worker:
    """Saves an empty record for every run but those it fails on, and remembers what it was given."""

    def __init__(self, store: Store, fails: tuple[int, ...] = ()):
        self.store, self.fails, self.seeds = store, fails, []

    def __call__(self, run: specs.Run, threads: int) -> tuple[bool, str]:
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


@pytest.mark.parametrize("fails", [(), (1,)])
def test_a_run_that_two_studies_share_is_tried_once(store, fails):
    """Records are stored by key, not by study; studies are served in the order given. A failure is not tried again."""
    worker = Worker(store, fails)
    go([a_study("one", [a_run(0), a_run(1)]), a_study("two", [a_run(1), a_run(2)])], store, worker)
    assert worker.seeds == [0, 1, 2]


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


def timed(seed: int, machine: str = "") -> specs.Run:
    return a_run(seed, purpose="timing", machine=machine)


def test_runs_go_side_by_side_with_their_share_of_the_cores(store):
    """Two wait for each other: were they served in turn, the barrier would break."""
    barrier, given = threading.Barrier(2, timeout=20), []

    def compute(run, threads):
        barrier.wait()
        given.append(threads)
        store.save(Record(key=run.key, spec=run))
        return True, ""

    outcomes = go([a_study("s", [a_run(seed) for seed in range(4)])], store, compute, workers=2)
    assert len(outcomes) == 4 and given == [best_threads(max(1, cores() // 2))] * 4


def test_a_timing_run_has_the_machine_to_itself(store):
    """Nothing runs beside it and it gets all cores; the order of worth is kept."""
    now, seen, lock = set(), [], threading.Lock()

    def compute(run, threads):
        with lock:
            now.add(run.seed)
            seen.append((run.seed, threads, frozenset(now)))
        time.sleep(0.02)
        with lock:
            seen.append((run.seed, threads, frozenset(now)))
            now.remove(run.seed)
        store.save(Record(key=run.key, spec=run))
        return True, ""

    runs = [a_run(0), a_run(1), timed(2), timed(3), a_run(4), a_run(5), timed(6)]
    outcomes = go([a_study("s", runs)], store, compute, workers=3)
    assert sorted(one.run.seed for one in outcomes) == list(range(7))
    for seed, threads, beside in seen:
        assert beside == {seed} and threads == cores() if seed in (2, 3, 6) else not beside & {2, 3, 6}
    firsts = [seed for seed, *_ in seen]
    assert firsts.index(2) < firsts.index(3) < min(firsts.index(4), firsts.index(5)) < firsts.index(6)


def test_timings_of_another_machine_are_left_out(store):
    """A record that carries a machine's name was made there."""
    worker, lines = Worker(store), []
    study = a_study("s", [timed(0, "mine"), timed(1, "theirs"), a_run(2)])
    run_studies([study], store, compute=worker, report=lines.append, this_machine=lambda platform: "mine")
    assert sorted(worker.seeds) == [0, 2]
    assert sum("theirs" in line for line in lines if "SKIP" in line) == 1


def test_runs_without_their_data_are_named_and_passed_over(store, monkeypatch):
    """E2E cannot ship: its studies say what to set and the next study goes on."""
    monkeypatch.delenv("PEFTBOOK_E2E", raising=False)
    get_task.cache_clear()
    task = specs.Task(name="e2e", data_sha256="0" * 64)
    probe = specs.Probe(measure="curves.learning_curve", runs=(a_run(0, task=task),))
    worker, lines = Worker(store), []
    studies = [a_study("one", [a_run(1, task=task), probe]), a_study("two", [a_run(2)])]
    outcomes = run_studies(studies, store, compute=worker, report=lines.append)
    assert [one.run.seed for one in outcomes] == [2] and outcomes[0].ok
    (said,) = [line for line in lines if "SKIP" in line]
    assert "one: 2 runs" in said and "PEFTBOOK_E2E" in said and "\n" not in said


def made(seed: int, seconds: int, **fields) -> Record:
    run = a_run(seed, **fields)
    clock = {
        "started": "2026-01-01T00:00:00+00:00",
        "finished": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}+00:00",
    }
    here = {"cpu": cpu_model(), "bf16_products": "native" if products_here().native else "widened"}
    return Record(key=run.key, spec=run, provenance=clock | here)


def test_the_time_that_a_run_takes_is_the_median_of_its_like():
    """Else of its platform, else unknown; another platform's speed says nothing."""
    estimates = Estimates()
    assert estimates.of(a_run(0)) is None
    for seed, seconds in enumerate((10, 30, 700)):
        estimates.note(a_run(seed), made(seed, seconds).wall_seconds)
    estimates.note(a_run(9, method=Full()), 50)
    assert estimates.of(a_run(5)) == 30 and estimates.of(a_run(5, method=Full())) == 50
    assert estimates.of(a_run(5, method=IA3())) == 40
    assert estimates.of(a_run(5, platform="cuda")) is None
    assert Record(key="k", spec=a_run(0)).wall_seconds is None


def test_no_run_starts_that_would_end_too_late(store):
    """One is tried whatever it takes; a quicker kind of run still fits; the rest is left for the next call."""
    for seed in (0, 1, 2):
        store.save(made(seed, 600))
    store.save(made(3, 5, method=Full()))
    runs = [a_run(4), a_run(5), a_run(6, method=Full()), a_run(7)]
    worker, lines = Worker(store), []
    run_studies([a_study("s", runs)], store, compute=worker, report=lines.append, minutes=1)
    assert worker.seeds == [4, 6] and "STOP  2 runs" in lines[-1]
    run_studies([a_study("s", runs)], store, compute=worker, report=lines.append, minutes=11)
    assert worker.seeds == [4, 6, 5, 7] and "[8/" not in lines[-1] and "last ones" in lines[-1]


def test_the_lines_say_what_is_done_what_is_known_and_what_is_left(store):
    """One event, one line: good on a terminal and in a log."""
    store.save(made(0, 240))
    lines = []
    run_studies([a_study("s", [a_run(0), a_run(1), a_run(2)])], store, compute=Worker(store), report=lines.append)
    assert len(lines) == 4 and not any("\n" in line for line in lines)
    assert "start [1/3]" in lines[0] and a_run(1).key[:12] in lines[0]
    assert "[2/3" in lines[1] and "left]" in lines[1] and "[3/3, last ones]" in lines[3]


def test_the_records_of_one_call_go_into_one_file(store, tmp_path):
    """A borrowed machine gives back one file, whole after every run; what was at hand before is not in it."""
    store.save(made(0, 240))
    export, other = tmp_path / "made.zip", Store(tmp_path / "other")
    sizes = []

    def compute(run, threads):
        sizes.append(export.exists() and len(import_records(Store(tmp_path / f"look{run.seed}"), export)[0]))
        store.save(Record(key=run.key, spec=run), [f"text {run.seed}"])
        return True, ""

    go([a_study("s", [a_run(seed) for seed in range(3)])], store, compute, export=export)
    added, refused = import_records(other, export)
    assert sizes == [False, 1] and not refused
    assert set(added) == {a_run(1).key, a_run(2).key}
    assert other.texts(other.get(a_run(2))) == ["text 2"]


def test_the_same_studies_run_on_another_platform(store):
    """Only platform and, for timings, machine change; the CPU's records stay and nothing is mixed."""
    store.save(Record(key=a_run(0).key, spec=a_run(0)))
    probe = specs.Probe(measure="curves.learning_curve", runs=(a_run(7),))

    def staged(seen: Store):
        return [a_run(0), timed(1, "a CPU"), probe] + ([a_run(2)] if a_run(0) in seen else [])

    given = []

    def compute(run, threads):
        given.append(run)
        store.save(Record(key=run.key, spec=run))
        return True, ""

    seen = store.on("cuda", "a GPU")
    study = a_study("s", staged)
    go([study], seen, compute, this_machine=lambda platform: "a GPU")
    assert {one.platform for one in given} == {"cuda"} and given[2].runs[0] == a_run(7, platform="cuda")
    assert [one.machine for one in given] == ["", "a GPU", "", ""]
    assert study.missing(seen) == [] and [one.spec for one in study.records(seen)] == given
    assert [one.spec for one in study.records(store)] == [a_run(0)]


def test_a_gpu_takes_as_many_examples_at_a_time_as_fit():
    """The batch, or half of it, or a quarter: at least one; more memory never means fewer."""
    sizes = [cuda_micro_batch(8, gigabytes * 1e9) for gigabytes in range(0, 80)]
    assert sizes[0] == 1 and sizes[-1] == 8 and sizes == sorted(sizes) and set(sizes) == {1, 2, 4, 8}


def test_a_gpu_takes_no_more_of_a_large_model_than_the_byte_model_says():
    """Its weights alone may take all there is, and checkpointing makes room; for the book's model nothing changes."""
    budget = specs.Budget(tokens=10, learning_rate=1e-3)
    small = a_run(0, platform="cuda", budget=budget)
    for gigabytes in (8, 16, 24, 80):
        room = gigabytes * 1e9
        assert cuda_micro_batch(8, room, fitting_rows(small, room)) == cuda_micro_batch(8, room)
        large = specs.Model(name="llama-3.1-8b")
        plain, checkpointed = (
            a_run(0, platform="cuda", budget=budget, model=large, weights="bf16", checkpointing=checkpointing)
            for checkpointing in (False, True)
        )
        few, many = fitting_rows(plain, room), fitting_rows(checkpointed, room)
        assert few <= many and cuda_micro_batch(8, room, few) <= max(1, few)
    assert few < many
    assert fitting_rows(a_run(0, model=specs.Model(name="nobody/knows-it")), 80e9) is None


def test_two_processes_never_compute_one_run_at_a_time(tmp_path):
    """Both would write the same checkpoint. The lock goes with the process, so a killed one leaves nothing held."""
    path = tmp_path / "run.lock"
    ask = f"""
import pathlib, sys
from peftbook.core.errors import InputError
from peftbook.runtime.processes import lock_file
try:
    with lock_file(pathlib.Path({str(path)!r}), "Another process has it."):
        print("mine")
except InputError as error:
    print(error)
"""
    with lock_file(path, ""):
        assert "Another process" in subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout
    assert subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout == "mine\n"


def test_a_patient_process_waits_until_the_other_one_ends(tmp_path):
    """What a dead node left behind may take a moment to end; then the run is ours."""
    path = tmp_path / "run.lock"
    holder = f"""
import pathlib, time
from peftbook.runtime.processes import lock_file
with lock_file(pathlib.Path({str(path)!r}), ""):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match="Another process"),
            lock_file(path, "Another process has it.", patience=0.3),
        ):
            pass
        threading.Timer(0.5, other.kill).start()
        began = time.monotonic()
        with lock_file(path, "", patience=60):
            assert 0.4 < time.monotonic() - began < 60


def interpreter(folder, script: str) -> str:
    """A program that stands for Python and behaves like a worker process."""
    path = folder / "python"
    told = "printenv PEFTBOOK_RECORDS OMP_NUM_THREADS"
    path.write_text(f'#!/bin/sh\nread -r spec; echo "$spec" > {folder}/spec\n{told} > {folder}/told\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo progress >&2; echo done; exit 0", (True, "")),
        ("echo a note; echo 'Task is unknown: fix it.'; echo noise >&2; exit 2", (False, "Task is unknown: fix it.")),
        ("echo a note; echo Traceback >&2; echo 'ValueError: no' >&2; exit 1", (False, "ValueError: no")),
        ("exit 3", (False, "ended with exit status 3")),
        ("kill -9 $$", (False, "ended by signal 9 (out of memory?)")),
    ],
)
def test_a_worker_process_reports_by_exit_status_and_last_line(tmp_path, monkeypatch, script, expected):
    """Each run has a process of its own, which gets the spec on standard input and may die of anything."""
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, script))
    assert run_subprocess(a_run(0)) == expected
    assert specs.Run.model_validate_json((tmp_path / "spec").read_text()) == a_run(0)


def test_a_worker_is_told_where_to_write_and_how_many_threads_to_use(tmp_path, monkeypatch):
    """`verify` repeats runs into a folder of its own; without one the worker's environment is ours."""
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, "exit 0"))
    monkeypatch.setenv("PEFTBOOK_RECORDS", "/mine")
    for folder, threads, told in [(None, 3, ["/mine", "3"]), (tmp_path, 0, [str(tmp_path), str(best_threads())])]:
        run_subprocess(a_run(0), threads, folder=folder)
        assert (tmp_path / "told").read_text().split() == told


@pytest.mark.parametrize("show", [False, True])
def test_a_worker_says_how_far_it_is_only_where_it_is_shown(tmp_path, monkeypatch, show):
    """The lines of several runs side by side would be read by nobody."""
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, f'echo "$@" > {tmp_path}/asked'))
    run_subprocess(a_run(0), show=show)
    assert ("--show" in (tmp_path / "asked").read_text().split()) == show


FAKE_WORKER = """
import os, pathlib, time
from peftbook.core.records import Record, Store
from peftbook.runtime.worker import read_spec
spec, folder = read_spec(), pathlib.Path(os.environ["PEFTBOOK_RECORDS"])
checkpoint = folder / f"{spec.seed}.step"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
with (folder / "log").open("a") as log:
    log.write(f"{spec.seed} {step}\\n")
while step < 12:
    time.sleep(0.05)
    step += 1
    checkpoint.with_suffix(".new").write_text(str(step))
    checkpoint.with_suffix(".new").replace(checkpoint)
Store(folder).save(Record(key=spec.key, spec=spec))
"""
QUEUE = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import test_queue
from peftbook.core.records import Store
from peftbook.runtime import queue
queue.WORKER = ({worker!r},)
test_queue.run_studies(
    [test_queue.a_study("s", [test_queue.a_run(seed) for seed in range(6)])], Store(pathlib.Path({folder!r})), workers=2
)
"""


def test_a_killed_queue_is_started_again_and_goes_on(tmp_path):
    """kill -9 of the queue ends its workers; what was finished stays, what was under way resumes, nothing is lost."""
    folder = tmp_path / "records"
    folder.mkdir()
    worker = tmp_path / "worker.py"
    worker.write_text(FAKE_WORKER)
    script = QUEUE.format(tests=os.path.dirname(__file__), worker=str(worker), folder=str(folder))  # noqa: PTH120
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PEFTBOOK_RECORDS": str(folder)}

    def steps() -> dict[str, int]:
        return {path.stem: int(path.read_text()) for path in folder.glob("*.step")}

    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    wait_for(lambda: len(list(folder.glob("*.json"))) >= 2 and any(2 <= step < 10 for step in steps().values()))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()  # its workers held its standard output: it closes when they end
    finished, interrupted = {path.stem for path in folder.glob("*.json")}, steps()
    time.sleep(0.3)
    assert steps() == interrupted  # no worker outlived the queue
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("*.json"))) == 6
    started = [line.split() for line in (folder / "log").read_text().splitlines()]
    for seed in range(6):
        begun = [int(step) for number, step in started if number == str(seed)]
        if a_run(seed).key[:12] in finished:
            assert begun == [0]
        elif str(seed) in interrupted and len(begun) == 2:
            assert begun == [0, interrupted[str(seed)]]
    assert any(int(step) > 0 for _, step in started)
