"""Jobs on a cluster's nodes: what travels arrives whole, who waits for which node, what is said where one is missing.

What needs Ray itself is in `test_cluster`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studio_home import colours_project, small_run

from peftbook.decision.forgetting import prose_probe
from peftbook.errors import InputError
from peftbook.methods.lora import LoRA
from peftbook.processes import lock_file
from peftbook.records import Record, Store, write_atomically
from peftbook.studio import away, health, machine, nodes, placed, watching
from peftbook.studio import worker as studio_worker
from peftbook.studio.away import Began, Ended, Outbox, Piece
from peftbook.studio.nodes import Seen, SeenNode, seen
from peftbook.studio.store import Studio, say_open
from peftbook.studio.watching import Watched
from peftbook.studio.work import LOST, Lost
from peftbook.studio.worker import Worker
from peftbook.training import precision

HEAD = "10.0.0.1:6379"


# --- what travels ----------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """A studio's job in its attempt, as the process of it has adopted it."""
    studio = Studio(tmp_path / "home")
    project = colours_project(studio)
    studio.submit(project.id, [small_run(studio, project, LoRA(rank=2))])
    claimed = studio.claim("w", os.getpid())
    studio.adopt(claimed.id, claimed.attempt, os.getpid())
    return studio, claimed


@pytest.fixture
def there(job, tmp_path) -> Outbox:
    """The folder of that job on a node."""
    return Outbox(tmp_path / "node", tmp_path / "node" / "projects" / job[1].project, job[1].run)


def leave_checkpoint(box: Outbox, step: int) -> None:
    """What a training leaves: tensors, then the file that names them; those before go."""
    place = box.folder / "checkpoints" / box.run.checkpoint
    write_atomically(place / f"state-{step}.safetensors", bytes([step]) * 25)
    write_atomically(place / "progress.json", json.dumps({"step": step}).encode())
    for old in place.glob("state-*"):
        if old.name != f"state-{step}.safetensors":
            old.unlink()


def files_in(folder: Path) -> dict[str, bytes]:
    """All files by their names."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_job_leaves_on_a_node_arrives_as_if_it_had_been_computed_here(job, there, monkeypatch):
    """In pieces of any size: progress and checkpoints at once, the rest when it is done, and nothing beside."""
    monkeypatch.setattr(away, "PIECE_BYTES", 10)
    studio, claimed = job
    run, folder = claimed.run, studio.folder(claimed.project)
    for step in (1, 2):
        leave_checkpoint(there, step)
        write_atomically(there.folder / f"answers/{run.key[:12]}.json", json.dumps({"0": "a" * step}).encode())
        (there.home / away.SAID).write_text('{"phase": "training", "step": 2, "points": [[1, 0.5], [2, 0.25]]}\n{"ph')
        with placed.Inbox(studio, claimed) as inbox:
            for news in [Began("n"), *there.news()]:
                inbox.take(news)
        for part in (f"checkpoints/{run.checkpoint}", "answers"):
            assert files_in(folder / part) == files_in(there.folder / part)
        assert [*there.news()] == []  # nothing twice
        there.rest = 0.0
    assert studio.curve(claimed.id) == [(1, 0.5), (2, 0.25)] and studio.job(claimed.id).phase == "training"
    write_atomically(there.folder / f"adapters/{run.key[:12]}/adapter_model.safetensors", b"w" * 25)
    for one in (run, prose_probe(run)):
        Store(there.folder / "records").save(Record(key=one.key, spec=one))
    with placed.Inbox(studio, claimed) as inbox:
        for news in [Began("n"), *there.last_news(done=True), Ended(0, "")]:
            assert not list((folder / "records").glob("*")) and studio.adapter(claimed) is None
            inbox.take(news)
        inbox.keep()
    kept = {**files_in(there.folder / "adapters"), **files_in(there.folder / "records")}
    assert {**files_in(folder / "adapters"), **files_in(folder / "records")} == kept and len(kept) == 3
    assert files_in(folder).keys() == {"data.bin", *(f"adapters/{name}" for name in files_in(folder / "adapters")),
                                       *(f"records/{name}" for name in files_in(folder / "records"))}  # fmt: skip
    assert studio.finish(claimed.id, claimed.attempt) and studio.job(claimed.id).state == "done"


@pytest.mark.parametrize(
    ("ended", "error", "words"),
    [
        (Ended(-9, "ended by signal 9 (out of memory?)"), Lost, "was ended by signal 9 (out of memory?) on node n"),
        (Ended(2, "The model is missing: get it."), InputError, "On node n: The model is missing: get it."),
        (Ended(1, "KeyError: 'a'"), RuntimeError, "on node n: KeyError: 'a'"),
    ],
)
def test_what_ends_badly_there_is_said_as_it_is_here_and_leaves_only_its_checkpoint(job, there, ended, error, words):
    """Whatever else had arrived."""
    studio, claimed = job
    leave_checkpoint(there, 3)
    with placed.Inbox(studio, claimed) as inbox:
        for news in [Began("n"), *there.last_news(done=False), Piece("adapters/a/b", b"half", last=False), ended]:
            inbox.take(news)
        with pytest.raises(error) as raised:
            inbox.keep()
    assert str(raised.value) == words
    left = files_in(studio.folder(claimed.project)).keys() - {"data.bin"}
    assert left == {f"checkpoints/{claimed.run.checkpoint}/{name}" for name in ("state-3.safetensors", "progress.json")}


@settings(max_examples=30)
@given(data=st.binary(max_size=50), size=st.integers(1, 20))
def test_a_file_is_the_sum_of_its_pieces(tmp_path_factory, data, size):
    """The last one, and no other, says that it is; of an empty file, too."""
    path = tmp_path_factory.mktemp("file") / "file"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as stream:
        patch.setattr(away, "PIECE_BYTES", size)
        sent = [*away.pieces("file", stream)]
    assert b"".join(piece.data for piece in sent) == data
    assert [piece.last for piece in sent] == [False] * (len(sent) - 1) + [True]


def test_a_checkpoint_that_is_replaced_while_it_travels_arrives_as_it_was(there, monkeypatch):
    """Its tensors are those that its file names; the next one follows."""
    monkeypatch.setattr(away, "PIECE_BYTES", 10)
    leave_checkpoint(there, 1)
    travelling = there.checkpoint()
    first = next(travelling)
    leave_checkpoint(there, 2)
    sent = [first, *travelling]
    assert b"".join(piece.data for piece in sent if "state" in piece.name) == b"\1" * 25
    assert json.loads(sent[-2].data + sent[-1].data) == {"step": 1}
    assert {piece.name.rpartition("/")[2] for piece in there.checkpoint()} == {"state-2.safetensors", "progress.json"}


def test_checkpoints_travel_for_a_tenth_of_the_time_at_most(there, monkeypatch):
    """Whatever the network; but the last one always does."""
    clock = [100.0]
    monkeypatch.setattr(away.time, "monotonic", lambda: clock[0])
    travelled = 0.0
    for step in range(1, 100):
        leave_checkpoint(there, step)
        for _ in there.news():
            clock[0] += 2.0
            travelled += 2.0
        clock[0] += 1.0
    assert 0 < travelled <= 0.15 * (clock[0] - 100.0)
    leave_checkpoint(there, 100)
    assert [*there.last_news(done=False)]


def test_what_a_killed_task_left_on_a_node_goes_with_the_next_one(tmp_path, monkeypatch):
    """And what another one that lives has there stays."""
    monkeypatch.setattr(away.tempfile, "gettempdir", lambda: str(tmp_path))
    dead, alive = (tmp_path / f"{away.FOLDER}{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "data.bin").write_bytes(b"rows")
    with lock_file(away.lock_of(alive), ""):
        with away.kept_while_alive() as mine:
            assert not dead.exists() and alive.exists() and mine.stat().st_mode & 0o777 == 0o700
        assert not mine.exists()
    assert {path.name for path in tmp_path.iterdir()} == {alive.name}


# --- which node ------------------------------------------------------------------------------------------------

CPU = SeenNode("1", "cpu/1", 4, 0, 8e9)
GPU = SeenNode("2", "gpu/2", 8, 1, 32e9, "8.6", 24e9)


def leave_seen(home: Path, *has: SeenNode, at: float | None = None, trouble: str = "") -> Seen:
    """Write what a process that looks at nodes would."""
    found = Seen(HEAD, time.time() if at is None else at, has, trouble)
    nodes.leave(home, found)
    return found


def test_a_job_gets_a_share_of_a_node(tmp_path):
    """Alone the smallest node's cores, in company its part of them, and one at least."""
    found = leave_seen(tmp_path, CPU, GPU)
    assert [found.threads(jobs) for jobs in (1, 2, 3, 4, 8, 100)] == [4, 4, 2, 2, 1, 1]
    assert Seen().threads(3) == 1 and Seen(nodes=(replace(GPU, cpus=64),)).threads(1) == nodes.MOST_THREADS
    assert seen(tmp_path) == found


@dataclass
class Doing:
    """A process that a worker believes in."""

    status: int | None = None
    process: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(pid=os.getpid()))

    def ended(self) -> bool:
        return self.status is not None

    def why(self) -> str:
        return "refused"

    def said(self) -> list[str]:
        return ["was lost with node cpu/1"]

    def end(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def crew(tmp_path, monkeypatch):
    """A worker of a studio on a cluster, whose processes do nothing; what they were asked for."""
    studio, asked = Studio(tmp_path), []

    def start(module, *words, threads, by):
        asked.append((module, *words[words.index("--ray") :]))
        return Doing()

    monkeypatch.setattr(studio_worker, "start", start)
    monkeypatch.setattr(watching, "looking", lambda *given: Doing())
    monkeypatch.setenv(nodes.GPU_VARIABLE, "")
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
    leave_seen(studio.home, replace(CPU, unfit="Node cpu/1 has peftbook 0: install the same on every node."))
    assert states() == "qqqqq"
    leave_seen(studio.home, replace(CPU, cpus=2))
    assert [states() for _ in range(4)] == ["rqqqq", "rqrqq", "rqrqq", "rqrqq"]
    leave_seen(studio.home, replace(CPU, cpus=2), replace(GPU, cpus=1))
    assert [states() for _ in range(3)] == ["rrrqq", "rrrqq", "rrrqq"]
    assert {words[:3] for words in asked} == {("placed", "--ray", HEAD)}
    assert all(job.run.platform == "cuda" for job in studio.jobs(plan=plan)[1:2])
    worker.places[0].child.status = 1
    assert [states() for _ in range(3)] == ["frrrq", "frrrq", "frrrq"]
    worker.end()


def test_a_job_whose_node_is_lost_is_queued_again_before_all_others(crew):
    """It is no sign of too little memory here, and after five nodes there is something wrong with it."""
    studio, project, worker, _ = crew
    leave_seen(studio.home, replace(CPU, cpus=1))
    plan = studio.submit(project.id, [small_run(studio, project, LoRA(), seed=seed) for seed in range(2)])
    for attempt in range(1, 6):
        worker.tick()
        assert [job.attempt for job in studio.jobs(plan=plan)] == [attempt, 0]
        worker.places[0].child.status = LOST
    worker.tick()
    first, second = studio.jobs(plan=plan)
    assert first.state == "failed" and "was lost with node cpu/1 5 times" in first.error
    assert second.state == "running" and not worker.alone
    worker.end()


def test_a_worker_follows_the_studio_that_is_open(tmp_path, monkeypatch):
    """A cluster that was named stays while the studio starts again; the next one may name another, or none."""
    ended = []
    monkeypatch.setattr(watching, "looking", lambda home, address: Doing())
    monkeypatch.setattr(Doing, "end", lambda self: ended.append(self))
    watched, found = Watched(tmp_path), []
    for address in ("", HEAD, "10.0.0.2:6379", ""):
        for closed in (False, True):
            say_open(tmp_path, address)
            if closed:
                os.utime(tmp_path / "open", (0, 0))
            watched.look()
            found.append((watched.address, watched.child is not None))
            watched.begun = -1e9
    assert found[::2] == found[1::2] == [("", False), (HEAD, True), ("10.0.0.2:6379", True), ("", False)]
    assert len(ended) == 2


def test_what_is_missing_is_said_and_the_nodes_are_shown(tmp_path):
    """By `/ready` and on the machine's part of the plan's page; nothing of it without a cluster."""
    studio = Studio(tmp_path)
    studio.beat("w", os.getpid())
    say_open(tmp_path)
    leave_seen(tmp_path, CPU)
    assert health.troubles(studio) == [] == health.nodes(studio) and "cpu/1" not in machine.machine_words(tmp_path)
    say_open(tmp_path, HEAD)
    assert health.troubles(studio) == [] and "cpu/1: 4 cores, 8.0 GB for runs" in machine.machine_words(tmp_path)
    other = "Node gpu/2 has peftbook 0: install the same on every node."
    for left, said in [
        ({"has": [CPU, replace(GPU, unfit=other)]}, other),
        ({"has": []}, HEAD),
        ({"has": [CPU], "at": time.time() - 300}, "Nobody has looked"),
        ({"has": [], "trouble": "No Ray head answers at '10.0.0.1:6379': start one."}, "start one"),
    ]:
        leave_seen(tmp_path, *left.pop("has"), **left)
        (why,) = health.troubles(studio) if said != HEAD else health.troubles(studio)[:1]
        assert said in why
    (tmp_path / nodes.FILE).write_text("{")
    assert "are being asked" in health.troubles(studio)[0] and HEAD in machine.machine_words(tmp_path)


def test_a_plan_may_be_for_a_gpu_that_only_a_node_has(tmp_path, monkeypatch):
    """In the type of the lesser one; with its memory as the room that there is."""
    monkeypatch.setenv(nodes.GPU_VARIABLE, "")
    for name in ("capability", "elsewhere"):  # in this process or in another one
        monkeypatch.setattr(precision, name, lambda *given: None)
    precision.gpu_capability.cache_clear()
    with pytest.raises(InputError):
        precision.chosen_dtype("auto", "cuda")
    found = leave_seen(tmp_path, CPU, GPU, replace(GPU, id="3", capability="10.0"))
    nodes.take_gpu(found)
    assert precision.chosen_dtype("auto", "cuda") == precision.gpu_dtype(8, 6)
    precision.gpu_capability.cache_clear()
    studio = Studio(tmp_path)
    run = small_run(studio, colours_project(studio), LoRA())
    assert found.room([run]) == GPU.memory_bytes
    assert found.room([run, run.model_copy(update={"platform": "cuda"})]) == GPU.gpu_bytes
    assert watching.gpu_of("8.6, 24576\n8.0, 40960\n") == {"capability": "8.6", "gpu_bytes": 24576 * 2**20}
    assert watching.gpu_of("") == watching.gpu_of("no devices were found") == {}


def test_what_was_seen_reads_as_it_was_written(tmp_path):
    """Whatever is in it."""
    found = leave_seen(tmp_path, CPU, GPU)
    assert asdict(seen(tmp_path, HEAD)) == asdict(found) and seen(tmp_path, "10.9.9.9:1").nodes == ()


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
    from test_cli import refused

    said = refused(capsys, "studio", "--home", str(tmp_path), "--ray", address, *more)
    assert all(word in said for word in words), said
