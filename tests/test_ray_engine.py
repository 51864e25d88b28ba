"""The Ray engine: runs are placed by the byte model, records come back whole, and a node's death loses no run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from kills_studio import ENDS
from studio_home import colours_project
from test_cli import refused
from test_queue import a_run, a_study, interpreter

import peftbook
from peftbook.core import specs
from peftbook.core.records import Record, Store, default_store, write_atomically
from peftbook.memory import SHAPES
from peftbook.methods import usual
from peftbook.methods.adapter import Adapter
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.qlora import QLoRA
from peftbook.runtime import queue, ray_engine
from peftbook.runtime.processes import Child, lock_file
from peftbook.runtime.ray_engine import CHECKPOINT_SHARE, FOLDER, Outbox, RayEngine, task_folder
from peftbook.runtime.ray_nodes import ENVIRONMENT, Node, Nodes, code_version
from peftbook.runtime.resources import WORKER_BYTES, request_for, setup_of, shape_of
from peftbook.studio import machine
from peftbook.studio.store import Studio, say_open
from peftbook.studio.work import Reporter, compute_in
from peftbook.studio.worker import Worker
from peftbook.tasks import get_task
from peftbook.training.execute import execute

LOCAL = specs.Model()
SMALL = specs.SMALL_LLAMA


# ---- what a run asks for


def test_the_requested_memory_covers_what_was_measured():
    """Of 99 in 100 shipped runs, and in the median by less than three times: else nodes would stand half empty."""
    shipped = [one for one in default_store().all() if isinstance(one.spec, specs.Run) and one.spec.platform == "cpu"]
    measured = [one.measurements["peak_memory_bytes"] for one in shipped if not one.failure]
    asked = [request_for(one.spec).memory_bytes for one in shipped if not one.failure]
    ratios = sorted(need / peak for need, peak in zip(asked, measured, strict=True))
    assert len(ratios) > 300 and ratios[len(ratios) // 100] >= 1
    assert statistics.median(ratios) <= 3


@pytest.mark.parametrize("method", [method for method in usual().values() if method.trains])
def test_every_method_has_a_request(method):
    """Those that the byte model does not know are counted as the nearest that needs as much."""
    need = request_for(a_run(0, method=method), threads=2)
    weights = 4 * SHAPES["smollm2-135m"].parameters
    assert need.cpus == 2 and need.gpus == 0 and weights < need.memory_bytes < 12e9


def test_a_request_grows_with_what_is_trained_and_with_the_batch():
    """The byte model's terms reach the request: width of an adapter, rank, rows, and 4-bit weights."""

    def asked(method, **budget) -> int:
        values = {"tokens": 10, "learning_rate": 1e-3} | budget
        return request_for(a_run(0, method=method, budget=specs.Budget(**values))).memory_bytes

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
    on_gpu = request_for(a_run(0, method=Full(), platform="cuda"))
    assert on_gpu.gpus == 1 and on_gpu.memory_bytes == request_for(a_run(0, platform="cuda")).memory_bytes


def test_a_probe_is_counted_as_the_largest_of_its_runs():
    """And never below what the queue counts for any run."""
    runs = tuple(a_run(seed, method=Full()) for seed in range(3))
    probe = specs.Probe(measure="curves.learning_curve", runs=runs)
    assert request_for(probe).memory_bytes == request_for(runs[0]).memory_bytes > WORKER_BYTES
    assert request_for(specs.Probe(measure="codebooks.codebook_error")).memory_bytes == WORKER_BYTES


def test_the_shape_of_a_model_comes_from_its_name_or_its_folder(tmp_path):
    """A hub id is known by the table of shapes; another is refused, and so is the run."""
    assert shape_of(LOCAL) == SHAPES["smollm2-135m"]
    assert shape_of(specs.Model(name="meta-llama/Llama-2-7b-hf", revision="")) == SHAPES["llama-2-7b"]
    assert shape_of(specs.Model(name="Qwen/Qwen2.5-1.5B-Instruct", revision="")) == SHAPES["qwen2.5-1.5b"]
    assert (shape_of(SMALL).layers, shape_of(SMALL).hidden) == (6, 256)
    other = a_run(0, model=specs.Model(name="someone/else", revision=""))
    assert "someone/else" in an_engine(Store(tmp_path)).refuse(other)


# ---- what the cluster refuses


def an_engine(store: Store, *nodes: Node, **options) -> RayEngine:
    found = Nodes(nodes=nodes)
    return RayEngine(store, found, lambda seconds: found, **options)


def test_timings_are_left_to_machines_of_their_own(tmp_path):
    """A neighbour on the node would slow them down; the line says how to make them."""
    assert "peftbook run" in an_engine(Store(tmp_path)).refuse(a_run(0, purpose="timing", machine="m"))


def test_a_run_that_no_node_can_hold_is_refused(tmp_path):
    """Ray would wait for a node for ever. Without nodes the queue waits, as it does for a node that restarts."""
    small, large = Node("1", "small", 4, 0, 2e9), Node("2", "large", 1, 0, 64e9)
    run = a_run(0, method=Full())
    sentence = an_engine(Store(tmp_path), small).refuse(run)
    assert "2.0 GB" in sentence and f"{request_for(run).memory_bytes / 1e9:.1f} GB" in sentence
    assert an_engine(Store(tmp_path), small, large).refuse(run) == ""
    assert an_engine(Store(tmp_path)).refuse(run) == ""
    assert "GPU" in an_engine(Store(tmp_path), large).refuse(a_run(0, platform="cuda"))


def test_as_many_runs_go_side_by_side_as_nodes_have_room_for(tmp_path):
    """By cores or GPUs, at least one."""
    engine = an_engine(Store(tmp_path), Node("1", "a", 3, 1, 1e9), Node("2", "b", 4, 0, 1e9))
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

    def wait(self, references, timeout):
        return references, []

    def get(self, value):
        return value

    put = get

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "0" * 56)

    def cancel(self, reference, force): ...


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", InThisProcess())


def test_a_node_with_other_code_or_without_the_shared_folder_computes_nothing(in_this_process, tmp_path, monkeypatch):
    """The sentence names node and both codes, or the folder: made silently, it would not be shared."""
    assert "/no/such" in an_engine(Store(tmp_path), checkpoints=Path("/no/such")).compute(a_run(0))[1]
    monkeypatch.setattr(ray_engine, "code_version", lambda: "0.0.1 (abc)")
    ok, why = an_engine(Store(tmp_path)).compute(a_run(0))
    assert not ok and all(word in why for word in (f"{platform.node()}/000000", "0.0.1 (abc)", code_version()))


def test_a_node_computes_in_a_process_of_its_own_and_gives_the_files_back(in_this_process, tmp_path, monkeypatch):
    """Record and texts byte for byte, and not what a probe reads; the process is told where checkpoints lie."""
    monkeypatch.setattr(ray_engine, "CHUNK_BYTES", 100)
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
    ok, where = an_engine(store, checkpoints=tmp_path).compute(probe)
    assert ok and where == f"on {platform.node()}/000000"
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
    assert outcome == (False, f"on {platform.node()}/000000: {message}") and not (tmp_path / "mine").exists()


def test_a_record_that_was_damaged_on_its_way_is_a_failure(tmp_path):
    """It is checked as on every load, and nothing of it is written."""
    made, mine = Store(tmp_path / "made"), Store(tmp_path / "mine")
    run = a_run(0)
    made.save(Record(key=run.key, spec=run), ["a text"])
    files = files_in(tmp_path / "made")
    name, texts = f"{run.key[:12]}.json", f"{run.key[:12]}.texts.json.gz"

    def received(run, files):
        task = SimpleNamespace(ended=ray_engine.Ended(0, ""), node="here", records=lambda: files)
        return an_engine(mine).receive(run, task)

    for damaged in ({}, {name: files[name]}, files | {texts: b"no gzip"}, files | {name: files[name][:-20]}):
        ok, why = received(run, damaged)
        assert not ok and run.key[:12] in why
    assert not received(a_run(1), {f"{a_run(1).key[:12]}.json": files[name]})[0] and not (tmp_path / "mine").exists()


@pytest.mark.parametrize(("lost", "attempts"), [(2, 3), (9, ray_engine.RETRIES + 1)])
def test_a_run_is_repeated_where_its_node_was_lost_and_for_no_error_of_its_own(tmp_path, monkeypatch, lost, attempts):
    """The same task, on five nodes more; what the run itself reports is its end."""
    calls = []

    def compute(task, files):
        calls.append(task)
        yield ray_engine.Started("n")
        if len(calls) <= lost:
            raise ConnectionError
        yield ray_engine.Ended(1, "KeyError: 'a'")

    monkeypatch.setitem(sys.modules, "ray", InThisProcess(compute))
    ok, why = an_engine(Store(tmp_path)).compute(a_run(0))
    assert len(calls) == attempts and all(task == calls[0] for task in calls)
    assert not ok and why == ("on n: KeyError: 'a'" if lost < 5 else "was lost with node n")


# ---- what comes back


@pytest.fixture
def outbox(tmp_path) -> Outbox:
    return Outbox(tmp_path / "node")


def leave_checkpoint(outbox: Outbox, step: int, name: str = "0123") -> None:
    """What a training leaves: tensors, then the file that names them; those before go."""
    folder = outbox.folder / "checkpoints" / name
    write_atomically(folder / f"state-{step}.safetensors", bytes([step]) * 25)
    write_atomically(folder / "progress.json", json.dumps({"step": step}).encode())
    for old in folder.glob("state-*"):
        if old.name != f"state-{step}.safetensors":
            old.unlink()


def files_in(folder: Path) -> dict[str, bytes]:
    """All files by their names."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=30)
@given(data=st.binary(max_size=50), size=st.integers(1, 20))
def test_a_file_is_the_sum_of_its_chunks(data, size):
    """The last one, and no other, says that it is; of an empty file, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "CHUNK_BYTES", size)
        chunks = [*ray_engine.chunks_of("file", io.BytesIO(data))]
    assert b"".join(chunk.data for chunk in chunks) == data
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_a_checkpoint_that_is_replaced_while_it_is_sent_arrives_as_it_was(outbox, monkeypatch):
    """Its tensors are those that its file names; the next one follows, once."""
    monkeypatch.setattr(ray_engine, "CHUNK_BYTES", 10)
    leave_checkpoint(outbox, 1)
    chunks = outbox.checkpoint()
    first = next(chunks)
    leave_checkpoint(outbox, 2)
    sent = [first, *chunks]
    assert b"".join(chunk.data for chunk in sent if "state" in chunk.name) == b"\1" * 25
    assert json.loads(sent[-2].data + sent[-1].data) == {"step": 1}
    assert {Path(chunk.name).name for chunk in outbox.checkpoint()} == {"state-2.safetensors", "progress.json"}
    assert [*outbox.changes(last=True)] == []


def test_checkpoints_are_sent_for_a_tenth_of_the_time_at_most(outbox, monkeypatch):
    """Whatever the network; but the last one always is."""
    clock, seconds = [100.0], 0.0
    monkeypatch.setattr(ray_engine.time, "monotonic", lambda: clock[0])
    for step in range(1, 100):
        leave_checkpoint(outbox, step)
        for _ in outbox.changes():
            clock[0] += 2.0
            seconds += 2.0
        clock[0] += 1.0
    assert 0 < seconds <= 1.5 * CHECKPOINT_SHARE * (clock[0] - 100.0)
    leave_checkpoint(outbox, 100)
    assert [*outbox.changes(last=True)]


def test_the_folder_of_a_killed_task_goes_with_the_next_one(tmp_path, monkeypatch):
    """And that of one that runs stays."""
    monkeypatch.setattr(ray_engine.tempfile, "gettempdir", lambda: str(tmp_path))
    dead, alive = (tmp_path / f"{FOLDER}{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "data.bin").write_bytes(b"rows")
    with lock_file(ray_engine.lock_of(alive), ""):
        with task_folder() as mine:
            assert not dead.exists() and alive.exists() and mine.stat().st_mode & 0o777 == 0o700
        assert not mine.exists()
    assert {path.name for path in tmp_path.iterdir()} == {alive.name}


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


# ---- a real cluster

TOKEN = "0123456789abcdef" * 4
AGENT_PORTS = (
    "--dashboard-agent-grpc-port", "--dashboard-agent-listen-port", "--metrics-export-port", "--runtime-env-agent-port",
)  # fmt: skip
DRIVER = """
import pathlib, sys
sys.path.insert(0, {tests!r})
from pydantic import TypeAdapter
from test_queue import a_study
from peftbook.core import specs
from peftbook.core.records import Store
from peftbook.runtime.ray_engine import connect
from peftbook.runtime.queue import run_studies
address, folder, checkpoints, *runs = sys.argv[1:]
store = Store(pathlib.Path(folder))
runs = [TypeAdapter(specs.Run | specs.Probe).validate_json(one) for one in runs]
with connect(address, store, checkpoints=pathlib.Path(checkpoints) if checkpoints else None) as engine:
    studies = [a_study("one", runs), a_study("two", runs[:1])]
    run_studies(studies, store, compute=engine.compute, refuse=engine.refuse, workers=engine.slots("cpu"))
"""


LONG = 120  # steps: seconds, in which the process that computes them is stopped


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


@dataclass
class Machines:
    """Ray nodes on this machine, each with processes, a cache and a log of its own, as on machines of their own."""

    folder: Path
    nodes: dict[str, subprocess.Popen] = field(default_factory=dict)
    buried: set[str] = field(default_factory=set)
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def environment(self, name: str) -> dict[str, str]:
        """A node's variables. Ray ends what computes where a machine's memory is nearly full, though it may be others
        that fill it, as other tests do here: it does not look.
        """
        own = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
            "PEFTBOOK_CACHE": str(self.folder / name), "PEFTBOOK_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1", "RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0",
            "RAY_memory_monitor_refresh_ms": "0",
        }  # fmt: skip
        return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | own

    def start(self, name: str, *options: str) -> None:
        """Start a node; `up` waits for it. Where ports are given, Ray does not wait for its agents to choose some."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", "127.0.0.1"]
        limits = ["--object-store-memory", "80000000", "--include-log-monitor", "false"]
        limits += ["--min-worker-port", "0", "--max-worker-port", "0"]
        for option, port in zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True):
            limits += [option, str(port)]
        with (self.folder / f"{name}.log").open("w") as log:
            self.nodes[name] = subprocess.Popen(
                [*command, *limits, *options], env=self.environment(name), stdout=log, stderr=log
            )

    def up(self, name: str) -> None:
        """Wait until a node has joined."""
        log = self.folder / f"{name}.log"
        wait_for(lambda: "Ray runtime started" in log.read_text() or self.nodes[name].poll() is not None, 120)
        assert self.nodes[name].poll() is None, log.read_text()[-3000:]

    def fill(self, count: int) -> None:
        """Start nodes of one core, with memory for one small run, until so many compute; in turn, since two at the
        same time would choose the same name of a socket.
        """
        lost = [name for name in self.nodes if name != "head" and not self.computes(name)]
        for name in sorted(set(lost) - self.buried):
            print(f"node {name} ended by itself; its log:\n{(self.folder / f'{name}.log').read_text()[-3000:]}")
        self.buried.update(lost)
        for _ in range(count - (len(self.nodes) - 1 - len(lost))):
            name = f"node{len(self.nodes)}"
            self.start(name, "--address", self.address, "--num-cpus", "1", "--memory", "4000000000")
            self.up(name)

    def computes(self, name: str) -> bool:
        """Whether the node's raylet lives."""
        return any(process.name() == "raylet" for process in family(self.nodes[name].pid))

    def wait(self, condition: Callable[[], object], seconds: float = 600) -> None:
        """Wait until something is true, with the logs if it does not come. Meanwhile a cluster without a node gets
        another, as its operator would see to: on a starved machine Ray has given up nodes that nobody had killed.
        """
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, self.logs()
            self.fill(1)
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of the logs of nodes and driver."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    @contextlib.contextmanager
    def driver(self, store: Path, checkpoints: Path, *runs: specs.Run) -> Iterator[subprocess.Popen]:
        """A command that runs two studies, which share the first run, on the cluster; what it says goes to a log."""
        script = DRIVER.format(tests=str(Path(__file__).parent))
        arguments = [self.address, str(store), str(checkpoints), *(one.canonical() for one in runs)]
        with (self.folder / "driver.log").open("w") as log, subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, *arguments],
            env=self.environment("head"), stdout=log, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def computing(self, module: str, holds: str = "") -> tuple[str, psutil.Process]:
        """The node that computes now, and its process: that of the module, and with such a file open."""
        for name, node in self.nodes.items():
            for process in family(node.pid):
                with contextlib.suppress(psutil.Error):
                    works = module in process.cmdline()
                    if works and (not holds or any(holds in one.path for one in process.open_files())):
                        return name, process
        raise AssertionError("no node computes this")

    def kill(self, name: str, worker: psutil.Process) -> None:
        """SIGKILL the node's raylet: what it started is orphaned, as when a node is lost. Its worker stands still, so
        that it is not done before.
        """
        worker.suspend()
        self.buried.add(name)
        for process in psutil.Process(self.nodes[name].pid).children():
            if process.name() == "raylet":
                process.kill()

    def stop(self) -> None:
        """End all processes of all nodes."""
        every = [child for one in self.nodes.values() for child in family(one.pid)]
        for node in reversed(self.nodes.values()):
            node.terminate()
        psutil.wait_procs(every, timeout=10)
        for process in every:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for node in self.nodes.values():
            node.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in servers]


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, as far as they are alive."""
    with contextlib.suppress(psutil.Error):
        one = psutil.Process(pid)
        return [one, *one.children(recursive=True)]
    return []


@pytest.fixture(scope="module")
def head() -> Iterator[Machines]:
    """A head that computes nothing, with token authentication; nodes join it as tests need them."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:  # sockets have short names
        found = Machines(Path(folder))
        try:
            (found.port,) = free_ports(1)
            options = ("--port", str(found.port), "--num-cpus", "0", "--temp-dir", str(found.folder / "ray"))
            found.start("head", "--head", *options)
            found.up("head")
            yield found
        finally:
            found.stop()


@pytest.fixture
def machines(head: Machines) -> Machines:
    """The cluster with two nodes that compute."""
    head.fill(2)
    return head


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


def kill_mid_run(machines: Machines, driver: subprocess.Popen, run: specs.Run, folder: Path) -> None:
    """Kill the node that computes a run after its third step, wait until nothing of it is left. Its
    process is looked for when it has the run's lock, seconds before: then it imports its libraries.
    """
    machines.wait(lambda: (folder / f"{run.key[:16]}.lock").exists() or driver.poll() is not None)
    assert driver.poll() is None, machines.logs()
    name, worker = machines.computing("peftbook.runtime.worker", f"{run.key[:16]}.lock")
    wait_for(lambda: progress(folder, run) >= 3, 120)
    machines.kill(name, worker)
    wait_for(lambda: is_gone(worker), 60)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


UNLIKE = """
import sys, types, peftbook, ray
from peftbook.runtime import ray_nodes
def ask():
    print(ray_nodes.list_nodes(sys.argv[1]).troubles[-1], flush=True)
real = ray.__version__
ray.__version__ = "2.0.0"
ask()
ray.__version__ = real
peftbook.__version__ = "0.0.1"
ask()
module = sys.modules["only_here"] = types.ModuleType("only_here")
exec("def describe(): pass", module.__dict__)
ray_nodes.describe_node = module.describe
ask()
"""


@pytest.mark.slow
def test_nodes_unlike_this_process_are_refused(head):
    """With another Ray, with another peftbook, without any: a sentence each."""
    head.fill(1)
    command = ("-W", "ignore", "-c", UNLIKE, head.address)
    with Child(*command, variables=head.environment("head")) as child:
        assert child.wait(300)
        said = child.output_lines()
    words = ("2.0.0", "with its Ray"), ("0.0.1", code_version(), "install the same"), ("only_here", "install peftbook")
    for sentence, expected in zip(said, words, strict=True):
        assert all(word in sentence for word in expected), sentence


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_killed_node_loses_no_run(machines, tmp_path):
    """A run whose node dies goes on from its shared checkpoint on the other node; two studies that share a run compute
    it once, and every record is that of an uninterrupted run here.
    """
    long, short = small_run(0, LONG), small_run(1, 4, n_generate=2)
    shared, store, here = tmp_path / "checkpoints", Store(tmp_path / "cluster"), Store(tmp_path / "here")
    shared.mkdir()
    with machines.driver(store.folders[0], shared, long, short, long) as driver:
        kill_mid_run(machines, driver, long, shared)
        machines.wait(lambda: driver.poll() is not None)
    assert driver.returncode == 0, machines.logs()
    lines = (machines.folder / "driver.log").read_text().splitlines()
    assert sum("start [" in line for line in lines) == 2 and sum(" done " in line for line in lines) == 2
    steps = store.get(long).measurements["train_steps"]
    assert 3 <= store.get(long).provenance["resumed_from_step"] < steps
    assert "resumed_from_step" not in store.get(short).provenance
    assert not (shared / long.key[:16]).exists()  # a finished run leaves no checkpoint
    torch.set_num_threads(1)  # as on a node
    for run in (long, short):
        execute(run, here, quiet=True)
        assert measured(store.get(run)) == measured(here.get(run))
        assert store.texts(store.get(run)) == here.texts(here.get(run))
    assert len(store.texts(store.get(short))) == 2 and store.get(long).curve["train_loss_nats"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_wrong_token_is_refused(head):
    """One sentence and status 2, before anything runs."""
    command = [sys.executable, "-m", "peftbook", "run", "methods", "--engine", "ray", "--address", head.address]
    environment = head.environment("head") | {"RAY_AUTH_TOKEN": "f" * 64}
    wrong = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("peftbook: ") and "token" in wrong.stderr and wrong.stderr.count("\n") == 1


# ---- a studio's jobs on it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_studios_job_outlives_a_cancel_and_its_node(machines, tmp_path, monkeypatch):
    """Cancelled on one node, resumed, its node killed: it goes on from what had come back, and ends once with the
    record, the curve and the adapter of the same job here.
    """
    for name, value in machines.environment("head").items():
        monkeypatch.setenv(name, value)
    home, here = Studio(tmp_path / "home"), tmp_path / "here"
    project = colours_project(home)
    run = specs.Run(
        model=SMALL, task=home.task(project.id).spec, method=LoRA(rank=2, targets=("q_proj", "v_proj")), seed=0,
        budget=specs.Budget(tokens=12_000, learning_rate=1e-3), evaluation=specs.Evaluation(n_loss=4, n_generate=0),
    )  # fmt: skip
    job, checkpoints = home.jobs(plan=home.submit(project.id, [run]))[0].id, home.folder(project.id) / "checkpoints"
    home._connection().executescript(ENDS)
    worker = Worker(home.home)
    worker.begin()

    def comes(condition: Callable[[], object]) -> None:
        def now() -> object:
            say_open(home.home, machines.address)
            worker.tick()
            return condition()

        machines.wait(now)

    try:
        comes(lambda: progress(checkpoints, run) >= 3 and home.job(job).step >= 3)
        assert len(machine.nodes(home)) == 2
        _, process = machines.computing("peftbook.studio.ray_jobs")
        home.cancel(job)
        comes(lambda: home.job(job).state == "cancelled")
        wait_for(lambda: is_gone(process), 60)
        reached = progress(checkpoints, run)
        home.resume(job)
        comes(lambda: progress(checkpoints, run) > reached)
        name, process = machines.computing("peftbook.studio.ray_jobs")
        machines.kill(name, process)
        comes(lambda: home.job(job).state not in ("queued", "running"))
        wait_for(lambda: is_gone(process), 60)
    finally:
        worker.end()
    assert (home.job(job).state, home.job(job).attempt, home.job(job).error) == ("done", 3, "")
    assert [tuple(row) for row in home._rows("SELECT job, state FROM ends")] == [(job, "cancelled"), (job, "done")]
    record, folder = home.records(project.id).get(run), home.folder(project.id)
    assert record.provenance["resumed_from_step"] > reached and not home.workers()
    assert not list(checkpoints.iterdir()) and not list(folder.rglob(".*"))
    assert not list(Path(tempfile.gettempdir()).glob(f"{FOLDER}*/data.bin"))

    monkeypatch.setenv("PEFTBOOK_CHECKPOINTS", "")
    torch.set_num_threads(1)
    compute_in(here, run, lambda: home.task(project.id), Reporter(lambda **fields: None))
    undisturbed = Store(here / "records").get(run)
    assert measured(record) == measured(undisturbed) and "resumed_from_step" not in undisturbed.provenance
    assert [loss for _, loss in home.curve(job)] == undisturbed.curve["train_loss_nats"]
    trained = home.adapter(home.job(job)), here / "adapters" / run.key[:12]
    one, other = ((folder / "adapter_model.safetensors").read_bytes() for folder in trained)
    assert one == other and len({tuple(sorted(path.name for path in folder.iterdir())) for folder in trained}) == 1
