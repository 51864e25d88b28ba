"""The Ray engine: runs are placed by the byte model, records come back whole, and a node's death loses no run."""

from __future__ import annotations

import contextlib
import json
import platform
import socket
import statistics
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import wait_for
from test_cli import refused
from test_queue import a_run, a_study, interpreter

import peftbook
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store, default_store
from peftbook.memory import SHAPES
from peftbook.methods import usual
from peftbook.methods.adapter import Adapter
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.qlora import QLoRA
from peftbook.runtime import queue, ray_engine
from peftbook.runtime.ray_engine import ENVIRONMENT, RayEngine, code_version, connect, resources_of
from peftbook.runtime.resources import WORKER_BYTES, memory_bytes, setup_of, shape_of
from peftbook.tasks import get_task
from peftbook.training.execute import execute

LOCAL = specs.Model()
SMALL = specs.SMALL_LLAMA


# ---- what a run asks for


def test_the_requested_memory_covers_what_was_measured():
    """Of 99 in 100 shipped runs, and in the median by less than three times: else nodes would stand half empty."""
    shipped = [one for one in default_store().all() if isinstance(one.spec, specs.Run) and one.spec.platform == "cpu"]
    measured = [one.measurements["peak_memory_bytes"] for one in shipped if not one.failure]
    asked = [memory_bytes(one.spec) for one in shipped if not one.failure]
    ratios = sorted(need / peak for need, peak in zip(asked, measured, strict=True))
    assert len(ratios) > 300 and ratios[len(ratios) // 100] >= 1
    assert statistics.median(ratios) <= 3


@pytest.mark.parametrize("method", [method for method in usual().values() if method.trains])
def test_every_method_has_a_request(method):
    """Those that the byte model does not know are counted as the nearest that needs as much."""
    weights = 4 * SHAPES["smollm2-135m"].parameters
    assert weights < memory_bytes(a_run(0, method=method)) < 12e9


def test_a_request_grows_with_what_is_trained_and_with_the_batch():
    """The byte model's terms reach the request: width of an adapter, rank, rows, and 4-bit weights."""

    def asked(method, **budget) -> int:
        values = {"tokens": 10, "learning_rate": 1e-3} | budget
        return memory_bytes(a_run(0, method=method, budget=specs.Budget(**values)))

    assert asked(LoRA(rank=4)) < asked(LoRA(rank=64)) < asked(Full())
    assert asked(Adapter(width=8)) < asked(Adapter(width=512))
    assert asked(LoRA(), batch_size=2) < asked(LoRA(), batch_size=16)
    assert asked(LoRA(), max_length=64) < asked(LoRA(), max_length=512)
    assert setup_of(a_run(0, method=QLoRA()), SHAPES["smollm2-135m"]).quantised == "nf4"
    assert (
        setup_of(a_run(0, method=QLoRA(quant="int4")), SHAPES["smollm2-135m"]).quantised == ""
    )  # held dense: see its docstring


def test_a_gpu_is_asked_for_on_its_platform_alone():
    """A run has the GPU to itself, and what trains there takes no memory of the host."""
    on_gpu = resources_of(a_run(0, method=Full(), platform="cuda"))
    assert on_gpu == resources_of(a_run(0, platform="cuda")) and on_gpu["GPU"] == 1
    assert resources_of(a_run(0))["GPU"] == 0


def test_a_probe_is_counted_as_the_largest_of_its_runs():
    """And never below what the queue counts for any run."""
    runs = tuple(a_run(seed, method=Full()) for seed in range(3))
    probe = specs.Probe(measure="curves.learning_curve", runs=runs)
    assert memory_bytes(probe) == memory_bytes(runs[0]) > WORKER_BYTES
    assert memory_bytes(specs.Probe(measure="codebooks.codebook_error")) == WORKER_BYTES


def test_the_shape_of_a_model_comes_from_its_name_or_its_folder(tmp_path):
    """A hub id is known by the table of shapes; another is refused, and so is the run."""
    assert shape_of(LOCAL) == SHAPES["smollm2-135m"]
    assert shape_of(specs.Model(name="meta-llama/Llama-2-7b-hf", revision="")) == SHAPES["llama-2-7b"]
    assert shape_of(specs.Model(name="Qwen/Qwen2.5-1.5B-Instruct", revision="")) == SHAPES["qwen2.5-1.5b"]
    assert (shape_of(SMALL).layers, shape_of(SMALL).hidden) == (6, 256)
    other = a_run(0, model=specs.Model(name="someone/else", revision=""))
    assert "someone/else" in an_engine(Store(tmp_path)).refuse(other)


# ---- what the cluster refuses


def an_engine(store: Store, *nodes: dict[str, float], **options) -> RayEngine:
    return RayEngine(store, nodes, **options)


def test_timings_are_left_to_machines_of_their_own(tmp_path):
    """A neighbour on the node would slow them down; the line says how to make them."""
    assert "peftbook run" in an_engine(Store(tmp_path)).refuse(a_run(0, purpose="timing", machine="m"))


def test_a_run_that_no_node_can_hold_is_refused(tmp_path):
    """Ray would wait for a node for ever. Without nodes the queue waits, as it does for a node that restarts."""
    small, large = {"CPU": 4, "memory": 2e9}, {"CPU": 1, "memory": 64e9}
    run = a_run(0, method=Full())
    sentence = an_engine(Store(tmp_path), small).refuse(run)
    assert "2.0 GB" in sentence and f"{memory_bytes(run) / 1e9:.1f} GB" in sentence
    assert an_engine(Store(tmp_path), small, large).refuse(run) == ""
    assert an_engine(Store(tmp_path)).refuse(run) == ""
    assert "GPU" in an_engine(Store(tmp_path), large).refuse(a_run(0, platform="cuda"))


def test_as_many_runs_go_side_by_side_as_nodes_have_room_for(tmp_path):
    """By cores or GPUs, at least one."""
    engine = an_engine(Store(tmp_path), {"CPU": 3, "GPU": 1, "memory": 1e9}, {"CPU": 4, "memory": 1e9})
    assert engine.slots("cpu") == 7 and engine.slots("cuda") == 1
    assert an_engine(Store(tmp_path)).slots("cpu") == 1


def test_a_queue_passes_over_what_its_engine_refuses(tmp_path):
    """Once a study, with the reason; the rest is computed."""
    store, lines = Store(tmp_path), []
    timed = [a_run(seed, purpose="timing", machine="m") for seed in (1, 2)]

    def compute(run, threads):
        store.save(Record(key=run.key, spec=run))
        return True, ""

    outcomes = queue.run_studies(
        [a_study("s", [a_run(0), *timed])], store, compute=compute, report=lines.append, refuse=an_engine(store).refuse
    )
    assert [one.run for one in outcomes] == [a_run(0)]
    assert sum("2 runs left out: timings" in line for line in lines) == 1


# ---- on a node


def test_a_change_in_any_module_is_other_code(tmp_path, monkeypatch):
    """Version and commit would not see an edit; the hash does, whatever the folder and the files beside the modules."""
    for name in ("a", "b"):
        package = tmp_path / name / "peftbook"
        (package / "inner").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "inner/module.py").write_text("x = 1\n")
    (package / "records.json").write_text("{}")
    found = []
    for folder in ("a", "b", "b"):
        monkeypatch.setattr(peftbook, "__file__", str(tmp_path / folder / "peftbook/__init__.py"))
        found.append(code_version())
        if len(found) == 2:
            (package / "inner/module.py").write_text("x = 2\n")
    assert found[0] == found[1] != found[2] and found[0].startswith(peftbook.__version__)


class InThisProcess:
    """What stands for Ray: a remote function is a plain call, an object its own reference."""

    exceptions = SimpleNamespace(RayError=ConnectionError, RayTaskError=ConnectionRefusedError)

    def __init__(self, function=None):
        self.function = function

    def remote(self, function):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self.function or function))

    def get(self, value):
        if isinstance(value, Exception):
            raise value
        return value

    def cancel(self, reference, force): ...


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", InThisProcess())


def files_in(folder: Path) -> dict[str, bytes]:
    """All files by their names."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_node_with_other_code_or_without_the_shared_folder_computes_nothing(in_this_process, tmp_path, monkeypatch):
    """The sentence names node and both codes, or the folder: made silently, it would not be shared."""
    assert "/no/such" in an_engine(Store(tmp_path), checkpoints="/no/such").compute(a_run(0))[1]
    ok, why, files = ray_engine.compute_on_node(a_run(0), {}, "", "0.0.1 (abc)")
    assert not ok and not files and all(word in why for word in (platform.node(), "0.0.1 (abc)", code_version()))


def test_a_node_computes_in_a_process_of_its_own_and_gives_the_files_back(in_this_process, tmp_path, monkeypatch):
    """Record and texts byte for byte, and not what a probe reads; the process is told where checkpoints lie."""
    run, made, store = a_run(0), Store(tmp_path / "made"), Store(tmp_path / "mine")
    probe = specs.Probe(measure="curves.learning_curve", runs=(run,))
    store.save(Record(key=run.key, spec=run), ["a text"])
    made.save(Record(key=probe.key, spec=probe), ["another text"])
    script = (
        f'cp -r "$PEFTBOOK_RECORDS" {tmp_path}/read; echo "$PEFTBOOK_CHECKPOINTS $PEFTBOOK_PATIENCE" '
        f'> {tmp_path}/variables; cp {tmp_path}/made/* "$PEFTBOOK_RECORDS"'
    )
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, script))
    given = files_in(tmp_path / "mine")
    assert an_engine(store, checkpoints=str(tmp_path)).compute(probe) == (True, f"on {platform.node()}")
    assert files_in(tmp_path / "read") == given
    assert files_in(tmp_path / "mine") == given | files_in(tmp_path / "made")
    assert (tmp_path / "variables").read_text().split() == [str(tmp_path), str(ray_engine.LOCK_SECONDS)]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Data are missing: fetch them.'; exit 2", "Data are missing: fetch them."),
        ("kill -9 $$", "ended by signal 9 (out of memory?)"),
    ],
)
def test_what_fails_on_a_node_is_said_as_it_is_here(in_this_process, tmp_path, monkeypatch, script, message):
    """A refusal keeps its sentence, a crash its signal; neither leaves a record."""
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, script))
    outcome = an_engine(Store(tmp_path / "mine")).compute(a_run(0))
    assert outcome == (False, f"on {platform.node()}: {message}") and not (tmp_path / "mine").exists()


def test_a_run_whose_nodes_die_again_and_again_is_a_failure_in_one_line(tmp_path, monkeypatch):
    """What Ray says after its last attempt; the queue goes on."""
    lost = ConnectionError("Task failed due to the node dying.\n\nThe node (IP: 10.0.0.2) was terminated.")
    monkeypatch.setitem(sys.modules, "ray", InThisProcess(lambda *given: lost))
    assert an_engine(Store(tmp_path)).compute(a_run(0)) == (False, "Task failed due to the node dying.")
    assert not queue.RUNNING


def test_a_record_that_was_damaged_on_its_way_is_a_failure(tmp_path, monkeypatch):
    """It is checked as on every load, and nothing of it is written."""
    made, mine = Store(tmp_path / "made"), Store(tmp_path / "mine")
    run = a_run(0)
    made.save(Record(key=run.key, spec=run), ["a text"])
    files = files_in(tmp_path / "made")
    name, texts = f"{run.key[:12]}.json", f"{run.key[:12]}.texts.json.gz"

    def received(run, files):
        monkeypatch.setitem(sys.modules, "ray", InThisProcess(lambda *given: (True, "on n", files)))
        return an_engine(mine).compute(run)

    for damaged in ({}, {name: files[name]}, files | {texts: b"no gzip"}, files | {name: files[name][:-20]}):
        ok, why = received(run, damaged)
        assert not ok and run.key[:12] in why
    assert not received(a_run(1), {f"{a_run(1).key[:12]}.json": files[name]})[0] and not (tmp_path / "mine").exists()


# ---- the command line


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home without a token, and an environment that a command may set."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "spark"), ("'spark'", "ray")),
        (("--address", "head:6379"), ("head:6379", "--engine ray")),
        (("--engine", "ray", "--address", "head"), ("'head'", "HOST:PORT")),
        (("--engine", "ray", "--address", "head:99999"), ("99999", "HOST:PORT")),
        (("--engine", "ray", "--key", "0123"), ("0123", "--engine")),
        (("--engine", "ray", "--checkpoints", "/no/such/folder"), ("/no/such/folder", "--checkpoints")),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, home, options, words):
    """One sentence with the value and the fix."""
    said = refused(capsys, "run", "methods", *options)
    assert all(word in said for word in words), said


@contextlib.contextmanager
def listening() -> Iterator[str]:
    """The address of a port that listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_where_nothing_listens_is_refused(capsys, home):
    """Before Ray is asked, which would try for half a minute."""
    with listening() as address:
        pass
    assert address in (said := refused(capsys, "run", "methods", "--engine", "ray", "--address", address))
    assert "ray start --head" in said


def test_a_missing_token_is_refused(capsys, home):
    """It says where a token is looked for."""
    with listening() as address:
        said = refused(capsys, "run", "methods", "--engine", "ray", "--address", address)
    assert "RAY_AUTH_TOKEN" in said and "~/.ray/auth_token" in said


def test_without_ray_the_engine_says_what_to_install(capsys, home, monkeypatch):
    """Everything else works without the extra."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "peftbook[cluster]" in refused(capsys, "run", "methods", "--engine", "ray")


def test_a_ray_that_does_not_start_here_sends_nobody_to_a_cluster():
    """Without an address there are no nodes to run the command on."""
    local, there = (str(ray_engine.connection_error(address, RuntimeError("Timed out"))) for address in ("", "a:1"))
    assert "Timed out" in local and "leave out --engine ray" in local and "nodes" not in local
    assert "a:1" in there and "nodes" in there


# ---- a real cluster


def small_run(seed: int, steps: int, n_generate: int = 0) -> specs.Run:
    """A real run: the small Llama on short lists of numbers, 80 to 100 tokens a step."""
    task = get_task("sort")
    return specs.Run(
        model=SMALL,
        task=specs.Task(name="sort", data_sha256=task.data_sha256, version=task.version),
        method=LoRA(rank=4, targets=("q_proj", "v_proj")),
        budget=specs.Budget(tokens=steps * 100, batch_size=2, learning_rate=1e-3, max_length=128, train_examples=64),
        evaluation=specs.Evaluation(n_loss=4, n_generate=n_generate, max_new_tokens=4),
        seed=seed,
    )


def measured(record: Record) -> dict:
    """A record without what differs between two machines: provenance, seconds, memory, checksum."""
    body = record.model_dump(mode="json", exclude={"provenance", "checksum"})
    clock = ("seconds", "per_second", "memory_bytes")
    body["measurements"] = {key: value for key, value in body["measurements"].items() if not key.endswith(clock)}
    return body


def progress(folder: Path, run: specs.Run) -> int:
    """The step of a run's last checkpoint, 0 without one."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / run.key[:16] / "progress.json").read_text())["step"]
    return 0


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of a cluster on this machine: a head that computes nothing, with token authentication, and two nodes of one core.

    Ray ends what computes where a machine's memory is nearly full, though other tests may fill it: it does not look.
    It reads its variables when it is imported.
    """
    variables = ENVIRONMENT | {
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0",
        "PEFTBOOK_CACHE": str(tmp_path_factory.mktemp("cache")), "PEFTBOOK_CHECKPOINT_SECONDS": "0",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        cluster = pytest.importorskip("ray.cluster_utils").Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False)
            for _ in range(2):
                cluster.add_node(num_cpus=1, memory=4_000_000_000, object_store_memory=80_000_000)
            yield cluster.address
        finally:
            cluster.shutdown()


def computing(key: str) -> tuple[psutil.Process, psutil.Process]:
    """The raylet whose node computes a run, and the run's process: that which has the run's lock open."""
    for raylet in (child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"):
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(key in one.path for one in process.open_files()):
                    return raylet, process
    raise AssertionError("no node computes this")


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_killed_node_loses_no_run(address, tmp_path):
    """Its run goes on from the shared checkpoint on the other node, and the record is that of an uninterrupted run."""
    run, lines = small_run(0, 40, n_generate=2), []
    shared, store, here = tmp_path / "checkpoints", Store(tmp_path / "cluster"), Store(tmp_path / "here")
    shared.mkdir()
    with connect(address, store, checkpoints=shared) as engine, ThreadPoolExecutor(1) as pool:
        how = {"compute": engine.compute, "refuse": engine.refuse, "workers": engine.slots("cpu")}
        outcomes = pool.submit(queue.run_studies, [a_study("one", [run])], store, report=lines.append, **how)
        wait_for(lambda: progress(shared, run) >= 3 or outcomes.done(), 300)
        assert not outcomes.done(), lines
        raylet, worker = computing(run.key[:16])
        worker.suspend()  # so that it is not done before it ends with its node
        raylet.kill()
        raylet.wait()
        wait_for(lambda: is_gone(worker), 60)
        (outcome,) = outcomes.result(600)
    record = store.get(run)
    assert outcome.ok and len(lines) == 2, lines
    assert 3 <= record.provenance["resumed_from_step"] < record.measurements["train_steps"]
    assert f"from the checkpoint of step {record.provenance['resumed_from_step']}" in lines[-1]
    assert not (shared / run.key[:16]).exists()  # a finished run leaves no checkpoint
    torch.set_num_threads(1)  # as on a node
    execute(run, here, quiet=True)
    assert measured(record) == measured(here.get(run)) and record.curve["train_loss_nats"]
    assert store.texts(record) == here.texts(here.get(run)) and len(store.texts(record)) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_nodes_unlike_this_process_are_refused(address, tmp_path, monkeypatch):
    """With another Ray, with another peftbook, without any: a sentence each."""
    import ray

    def words() -> str:
        with pytest.raises(InputError) as refusal, connect(address, Store(tmp_path)):
            pass
        return str(refusal.value)

    with monkeypatch.context() as patch:
        patch.setattr(ray, "__version__", "2.0.0")
        assert "2.0.0" in (said := words()) and "with its Ray" in said
    real = code_version()
    with monkeypatch.context() as patch:
        patch.setattr(peftbook, "__version__", "0.0.1")
        said = words()
        assert f"has peftbook {real}, the command runs 0.0.1 (" in said and "install the same" in said
    module = types.ModuleType("only_here")
    exec("def code_version(): return 'mine'", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    monkeypatch.setattr(ray_engine, "code_version", module.code_version)
    assert "only_here" in (said := words()) and "install peftbook mine" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_wrong_token_is_refused(address, monkeypatch):
    """One sentence and status 2, before anything runs."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    command = [sys.executable, "-m", "peftbook", "run", "methods", "--engine", "ray", "--address", address]
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("peftbook: ") and "token" in wrong.stderr and wrong.stderr.count("\n") == 1
