"""The studio's jobs on a cluster: what comes back is saved once, who waits for which node, what is said where one is
missing. What needs Ray itself is in `test_ray_engine`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from studio_home import Doing, colours_project, small_run
from test_cli import refused
from test_ray_engine import InThisProcess, files_in, leave_checkpoint

from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store, write_atomically
from peftbook.decision.forgetting import prose_probe
from peftbook.methods.lora import LoRA
from peftbook.runtime import precision, ray_engine, ray_nodes
from peftbook.runtime.ray_engine import PROGRESS, Chunk, Ended, Outbox, Started
from peftbook.runtime.ray_nodes import Node, Nodes
from peftbook.studio import machine, ray_jobs
from peftbook.studio import worker as studio_worker
from peftbook.studio.store import NODES, Studio, say_open
from peftbook.studio.work import LOST
from peftbook.studio.worker import Worker

HEAD = "10.0.0.1:6379"


# --- what comes back -------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A studio's job in its attempt, as the process of it has adopted it, and a cluster that there is."""
    monkeypatch.setattr(ray_jobs, "connected", contextlib.nullcontext)
    studio = Studio(tmp_path / "home")
    project = colours_project(studio)
    studio.submit(project.id, [small_run(studio, project, LoRA(rank=2))])
    claimed = studio.claim("w", os.getpid())
    studio.adopt(claimed.id, claimed.attempt, os.getpid())
    return studio, claimed


@pytest.fixture
def outbox(job, tmp_path) -> Outbox:
    """The folder of that job on a node, with its second checkpoint."""
    outbox = Outbox(tmp_path / "node")
    leave_checkpoint(outbox, 2, job[1].run.checkpoint)
    return outbox


def compute(job, monkeypatch, *events, threads: int = 1) -> None:
    """Compute the job on a cluster from which this comes."""
    monkeypatch.setitem(sys.modules, "ray", InThisProcess(lambda task, files: iter(events)))
    ray_jobs.compute(*job, anew=False, address=HEAD, threads=threads)


def test_what_a_job_leaves_on_a_node_arrives_as_if_it_had_been_computed_here(job, outbox, monkeypatch, capsys):
    """In chunks of any size: progress and checkpoints at once, the rest when it is done, and nothing beside."""
    monkeypatch.setattr(ray_engine, "CHUNK_BYTES", 10)
    studio, claimed = job
    run, folder = claimed.run, studio.folder(claimed.project)
    (outbox.folder / PROGRESS).write_text('{"phase": "training", "step": 2, "points": [[1, 0.5], [2, 0.25]]}\n{"ph')
    with pytest.raises(SystemExit) as ended:
        compute(job, monkeypatch, Started("n"), *outbox.changes(), Chunk("adapters/a/b", b"half", last=False))
    assert ended.value.code == LOST and capsys.readouterr().out == "was lost with node n\n"
    assert files_in(folder / "checkpoints") == files_in(outbox.folder / "checkpoints")
    assert studio.curve(claimed.id) == [(1, 0.5), (2, 0.25)] and studio.job(claimed.id).phase == "training"
    write_atomically(outbox.folder / f"adapters/{run.key[:12]}/adapter_model.safetensors", b"w" * 25)
    for each in (run, prose_probe(run)):
        Store(outbox.folder / "records").save(Record(key=each.key, spec=each))
    leave_checkpoint(outbox, 4, run.checkpoint)
    compute(job, monkeypatch, Started("n"), *outbox.changes(last=True), *outbox.results(), Ended(0, ""))
    made = {name: data for name, data in files_in(outbox.folder).items() if name.startswith(("adapters", "records"))}
    assert files_in(folder) == made | {"data.bin": (folder / "data.bin").read_bytes()} and len(made) == 3
    assert studio.finish(claimed.id, claimed.attempt) and studio.job(claimed.id).state == "done"


@pytest.mark.parametrize(
    ("ended", "error", "words"),
    [
        (Ended(-9, "ended by signal 9 (out of memory?)"), SystemExit, str(LOST)),
        (Ended(2, "The model is missing: get it."), InputError, "On node n: The model is missing: get it."),
        (Ended(1, "KeyError: 'a'"), RuntimeError, "On node n: KeyError: 'a'"),
    ],
)
def test_what_ends_badly_there_is_said_as_it_is_here_and_leaves_only_its_checkpoint(
    job, outbox, monkeypatch, capsys, ended, error, words
):
    """Whatever else had arrived."""
    studio, claimed = job
    half = Chunk("adapters/a/b", b"half", last=False)
    with pytest.raises(error) as raised:
        compute(job, monkeypatch, Started("n"), *outbox.changes(last=True), half, ended)
    assert str(raised.value) == words
    assert (capsys.readouterr().out == "was ended by signal 9 (out of memory?) on node n\n") == (ended.status == -9)
    left = files_in(studio.folder(claimed.project)).keys() - {"data.bin"}
    assert left == {f"checkpoints/{claimed.run.checkpoint}/{name}" for name in ("state-2.safetensors", "progress.json")}


# --- which node ------------------------------------------------------------------------------------------------

CPU = Node("1", "cpu/1", 4, 0, 8e9)
GPU = Node("2", "gpu/2", 8, 1, 32e9, "8.6", 24e9)


def write_nodes(home: Path, *has: Node, at: float | None = None, trouble: str = "") -> Nodes:
    """Write what the process that watches the nodes would."""
    nodes = Nodes(HEAD, time.time() if at is None else at, has, trouble)
    nodes.write(home / NODES)
    return nodes


def test_a_job_gets_a_share_of_a_node():
    """Alone the smallest node's cores, in company its part of them, and one at least."""
    nodes = Nodes(nodes=(CPU, GPU))
    assert [nodes.threads(jobs) for jobs in (1, 2, 3, 4, 8, 100)] == [4, 4, 2, 2, 1, 1]
    assert Nodes().threads(3) == 1
    assert Nodes(nodes=(replace(GPU, cpus=64),)).threads(1) == ray_nodes.MAX_THREADS


@pytest.fixture
def crew(tmp_path, monkeypatch):
    """A worker of a studio on a cluster, whose processes do nothing; what they were asked for."""
    studio, asked = Studio(tmp_path), []

    def start(module, *words, threads, by):
        asked.append((module, *words[words.index("--ray") :]))
        return Doing()

    monkeypatch.setattr(studio_worker, "start", start)
    monkeypatch.setattr(ray_nodes, "start_monitor", lambda *given: Doing())
    monkeypatch.setenv(ray_nodes.GPU_VARIABLE, "")
    say_open(tmp_path, HEAD)
    return studio, colours_project(studio), Worker(tmp_path), asked


def test_jobs_wait_for_the_nodes_that_they_can_go_to(crew):
    """No job before a node is fit; one for each core; one on a GPU passes those that wait for a core, and none by."""
    studio, project, worker, asked = crew
    runs = [small_run(studio, project, LoRA(), seed=seed) for seed in range(4)]
    runs[1:1] = [small_run(studio, project, LoRA(), seed=9).model_copy(update={"platform": "cuda"})]
    plan = studio.submit(project.id, runs)

    def states() -> str:
        worker.tick()
        return "".join(job.state[0] for job in studio.jobs(plan=plan))

    assert states() == "qqqqq"
    write_nodes(studio.home, replace(CPU, unfit="Node cpu/1 has peftbook 0: install the same on every node."))
    assert states() == "qqqqq"
    write_nodes(studio.home, replace(CPU, cpus=2))
    assert [states() for _ in range(4)] == ["rqqqq", "rqrqq", "rqrqq", "rqrqq"]
    write_nodes(studio.home, replace(CPU, cpus=2), replace(GPU, cpus=1))
    assert [states() for _ in range(3)] == ["rrrqq", "rrrqq", "rrrqq"]
    assert {words[:3] for words in asked} == {("work", "--ray", HEAD)}
    assert all(job.run.platform == "cuda" for job in studio.jobs(plan=plan)[1:2])
    worker.slots[0].child.status = 1
    assert [states() for _ in range(3)] == ["frrrq", "frrrq", "frrrq"]
    worker.end()


def test_a_job_whose_node_is_lost_is_queued_again_before_all_others(crew):
    """It is no sign of too little memory here, and after five nodes there is something wrong with it."""
    studio, project, worker, _ = crew
    write_nodes(studio.home, replace(CPU, cpus=1))
    plan = studio.submit(project.id, [small_run(studio, project, LoRA(), seed=seed) for seed in range(2)])
    for attempt in range(1, 6):
        worker.tick()
        assert [job.attempt for job in studio.jobs(plan=plan)] == [attempt, 0]
        worker.slots[0].child.status = LOST
    worker.tick()
    first, second = studio.jobs(plan=plan)
    assert first.state == "failed" and "was lost with node cpu/1 5 times" in first.error
    assert second.state == "running" and not worker.alone
    worker.end()


def test_a_worker_follows_the_studio_that_is_open(tmp_path, monkeypatch):
    """A cluster that was named stays while the studio starts again; the next one may name another, or none."""
    ended = []
    monkeypatch.setattr(ray_nodes, "start_monitor", lambda file, address: Doing())
    monkeypatch.setattr(Doing, "end", lambda self: ended.append(self))
    monkeypatch.setattr(ray_nodes, "RESTART_SECONDS", -1.0)
    worker, found = Worker(tmp_path), []
    for address in ("", HEAD, "10.0.0.2:6379", ""):
        for closed in (False, True):
            say_open(tmp_path, address)
            if closed:
                os.utime(tmp_path / "open", (0, 0))
            worker.tick()
            found.append((worker.cluster.address, worker.cluster.child is not None))
    assert found[::2] == found[1::2] == [("", False), (HEAD, True), ("10.0.0.2:6379", True), ("", False)]
    assert len(ended) == 2


def test_what_is_missing_is_said_and_the_nodes_are_shown(tmp_path):
    """By `/ready` and on the machine's part of the plan's page; nothing of it without a cluster."""
    studio = Studio(tmp_path)
    studio.beat("w", os.getpid())
    say_open(tmp_path)
    write_nodes(tmp_path, CPU)
    assert machine.troubles(studio) == [] == machine.nodes(studio) and "cpu/1" not in machine.machine_words(tmp_path)
    say_open(tmp_path, HEAD)
    assert machine.troubles(studio) == [] and "cpu/1: 4 cores, 8.0 GB for runs" in machine.machine_words(tmp_path)
    other = "Node gpu/2 has peftbook 0: install the same on every node."
    for left, said in [
        ({"has": [CPU, replace(GPU, unfit=other)]}, other),
        ({"has": []}, HEAD),
        ({"has": [CPU], "at": time.time() - 300}, "not been watched"),
        ({"has": [], "trouble": "No Ray head answers at '10.0.0.1:6379': start one."}, "start one"),
    ]:
        write_nodes(tmp_path, *left.pop("has"), **left)
        (why,) = machine.troubles(studio) if said != HEAD else machine.troubles(studio)[:1]
        assert said in why
    (tmp_path / NODES).write_text("{")
    assert "are being asked" in machine.troubles(studio)[0] and HEAD in machine.machine_words(tmp_path)


def test_a_plan_may_be_for_a_gpu_that_only_a_node_has(tmp_path, monkeypatch):
    """In the type of the lesser one; with its memory as the room that there is."""
    monkeypatch.setenv(ray_nodes.GPU_VARIABLE, "")
    for name in ("capability", "call_in_child"):  # in this process or in another one
        monkeypatch.setattr(precision, name, lambda *given: None)
    precision.gpu_capability.cache_clear()
    with pytest.raises(InputError):
        precision.chosen_dtype("auto", "cuda")
    nodes = Nodes(nodes=(CPU, GPU, replace(GPU, id="3", capability="10.0")))
    nodes.export_gpu_capability()
    assert precision.chosen_dtype("auto", "cuda") == precision.gpu_dtype(8, 6)
    precision.gpu_capability.cache_clear()
    studio = Studio(tmp_path)
    run = small_run(studio, colours_project(studio), LoRA())
    assert nodes.largest_room([run]) == GPU.memory_bytes
    assert nodes.largest_room([run, run.model_copy(update={"platform": "cuda"})]) == GPU.gpu_bytes
    assert ray_nodes.parse_gpu("8.6, 24576\n8.0, 40960\n") == {"capability": "8.6", "gpu_bytes": 24576 * 2**20}
    assert ray_nodes.parse_gpu("") == ray_nodes.parse_gpu("no devices were found") == {}


def test_nodes_are_read_as_they_were_written(tmp_path):
    """Those of the cluster that is asked for."""
    nodes = write_nodes(tmp_path, CPU, GPU)
    assert Nodes.read(tmp_path / NODES, HEAD) == nodes and Nodes.read(tmp_path / NODES, "10.9.9.9:1").nodes == ()


@pytest.mark.parametrize(
    ("address", "more", "words"),
    [
        ("head", (), ("'head'", "HOST:PORT")),
        ("127.0.0.1:9", (), ("127.0.0.1:9", "ray start --head")),
        ("127.0.0.1:9", ("--no-worker",), ("127.0.0.1:9", "leave out --no-worker")),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused(tmp_path, capsys, monkeypatch, address, more, words):
    """Before anything is served: the value and the fix, in a sentence."""
    said = refused(capsys, "studio", "--home", str(tmp_path), "--ray", address, *more)
    assert all(word in said for word in words), said
