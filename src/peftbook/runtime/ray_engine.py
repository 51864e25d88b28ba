"""The Ray engine: a process on a node of a Ray cluster computes a run of the queue or a job of the studio.

    with connect("head:6379", store) as engine:
        run_studies(studies, store, compute=engine.compute, refuse=engine.refuse, workers=engine.slots("cpu"))

A task is a process of this Python in a new folder of a node. Its input files go there first, its request is the first
line of its standard input. Lines of `progress.jsonl` and checkpoints come back while it runs, its records and adapters
when it has ended well. So a record is the file that a local run writes, with the node's hardware in its provenance.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.exchange import paths_of, receive_record
from peftbook.core.records import Store
from peftbook.runtime import queue
from peftbook.runtime.processes import Child, lock_file
from peftbook.runtime.ray_nodes import NodeMonitor, Nodes, code_mismatch, code_version, connected, error_line, this_node
from peftbook.runtime.resources import ResourceRequest, request_for

RETRIES = 5  # of a run whose node died
LOCK_SECONDS = 120  # that a run waits for the orphan of a dead node to release a shared checkpoint
POLL_SECONDS = 0.25
LOOK_SECONDS = 5.0  # between two looks at which nodes are alive
NEW_NODE_SECONDS = 60.0  # that a retry waits for what new nodes run
CHUNK_BYTES = 8_000_000  # chunks of several tasks are in memory at a time
CHUNKS_AHEAD = 4  # that a node makes before they are taken: they lie in its memory
CHECKPOINT_SHARE = 0.1  # of the time, at most, in which checkpoints are sent
FOLDER = "peftbook-ray-"  # prefix of a task's folder
FOLDER_VARIABLE = "PEFTBOOK_TASK"  # names that folder to the task's process
PROGRESS = "progress.jsonl"


class NodeLost(Exception):  # noqa: N818 — no error of the task
    """The node that computed a task is gone; the message follows the task's name."""


@dataclass(frozen=True)
class NodeTask:
    """A process for a node to run.

    words: its command after the interpreter.  request: one line for its standard input.  variables: of its environment.
    code: the peftbook that the node must have.
    """

    name: str
    words: tuple[str, ...]
    request: str
    threads: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    code: str = field(default_factory=code_version)


@dataclass(frozen=True)
class Started:
    """The node that computes the task, by its name."""

    node: str


@dataclass(frozen=True)
class ProgressLines:
    """Objects that the process has written to PROGRESS, a line each."""

    lines: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Chunk:
    """Part of a file of the task's folder, in order."""

    name: str
    data: bytes
    last: bool


@dataclass(frozen=True)
class Ended:
    """The exit status of the process, negative the signal that ended it, and why if it ended badly."""

    status: int
    why: str


Event = Started | ProgressLines | Chunk | Ended


# ---- on a node


def run_task(task: NodeTask, files: Mapping[str, Sequence[Any]]) -> Iterator[Event]:
    """The Ray task: run a process on this node in a new folder; yield its output as it is written, then its end.

    files: references to the chunks of each input, by its name.
    """
    import ray

    node = this_node()
    yield Started(node)
    if why := code_mismatch(node, code_version(), task.code):
        yield Ended(2, why)
        return
    shared = task.variables.get("PEFTBOOK_CHECKPOINTS")
    if shared and not Path(shared).is_dir():
        yield Ended(2, f"There is no folder {shared!r}: mount the shared storage there on every node.")
        return
    with task_folder() as folder:
        for name, chunks in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as stream:
                stream.writelines(map(ray.get, chunks))
        own = {FOLDER_VARIABLE: str(folder), "PEFTBOOK_RECORDS": str(folder / "records")}
        with Child(*task.words, threads=task.threads, variables={**task.variables, **own}) as child:
            child.write(f"{task.request}\n")
            outbox = Outbox(folder, files.keys())
            while not child.wait(POLL_SECONDS):
                yield from outbox.changes()
            yield from outbox.changes(last=True)
            if child.status == 0:
                yield from outbox.results()
            yield Ended(child.status, child.failure())


@contextlib.contextmanager
def task_folder() -> Iterator[Path]:
    """A new folder that is removed at the end, or, if this process is killed, by the next task on this machine."""
    temporary = Path(tempfile.gettempdir())
    for left in temporary.glob(f"{FOLDER}*"):
        if left.is_dir():
            with contextlib.suppress(InputError, OSError), lock_file(lock_of(left), "its process lives"):
                shutil.rmtree(left)
    folder = temporary / f"{FOLDER}{os.getpid()}-{time.time_ns():x}"
    with lock_file(lock_of(folder), "taken"):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def lock_of(folder: Path) -> Path:
    """The lock of a task's folder; beside it, so that it is held before the folder exists."""
    return folder.with_name(f"{folder.name}.lock")


@dataclass
class Outbox:
    """What a task's process has written and this node has not sent yet.

    inputs: names of files that were there before.  offset: in PROGRESS.  sent: the checkpoint, as inode and time.
    next_checkpoint: no checkpoint is sent before.
    """

    folder: Path
    inputs: Collection[str] = ()
    offset: int = 0
    sent: tuple[int, int] = (0, 0)
    next_checkpoint: float = -math.inf

    def changes(self, *, last: bool = False) -> Iterator[Event]:
        """New progress, and the last checkpoint unless one was sent lately; if `last`, in any case."""
        if lines := self.lines():
            yield ProgressLines(tuple(map(json.loads, lines)))
        if last or time.monotonic() >= self.next_checkpoint:
            began = time.monotonic()
            yield from self.checkpoint()
            took = time.monotonic() - began
            self.next_checkpoint = time.monotonic() + took / CHECKPOINT_SHARE

    def results(self) -> Iterator[Chunk]:
        """The adapters and records that the process has made."""
        for path in sorted((*self.folder.glob("adapters/*/*"), *self.folder.glob("records/*"))):
            if (name := path.relative_to(self.folder).as_posix()) not in self.inputs:
                with path.open("rb") as stream:
                    yield from chunks_of(name, stream)

    def lines(self) -> list[str]:
        """Whole lines of PROGRESS that were not read yet."""
        try:
            with (self.folder / PROGRESS).open("rb") as stream:
                stream.seek(self.offset)
                text = stream.read()
        except OSError:
            return []
        text = text[: text.rfind(b"\n") + 1]
        self.offset += len(text)
        return text.decode().splitlines()

    def checkpoint(self) -> Iterator[Chunk]:
        """The last checkpoint, if it is new: its tensors, then the file that names them; as they were when opened."""
        try:
            with contextlib.ExitStack() as stack:
                path = next(self.folder.glob("checkpoints/*/progress.json"))
                progress = stack.enter_context(path.open("rb"))
                state = path.with_name(f"state-{json.loads(progress.read())['step']}.safetensors")
                progress.seek(0)
                tensors = stack.enter_context(state.open("rb"))
                status = os.fstat(progress.fileno())
                before, self.sent = self.sent, (status.st_ino, status.st_mtime_ns)
                if self.sent != before:
                    yield from chunks_of(state.relative_to(self.folder).as_posix(), tensors)
                    yield from chunks_of(path.relative_to(self.folder).as_posix(), progress)
        except (StopIteration, FileNotFoundError):  # none yet, or the next one came between the two
            return


def chunks_of(name: str, stream: BinaryIO) -> Iterator[Chunk]:
    """A file in chunks, at least one."""
    data = stream.read(CHUNK_BYTES)
    while True:
        following = stream.read(CHUNK_BYTES)
        yield Chunk(name, data, last=not following)
        if not following:
            return
        data = following


# ---- the driver


def obstacle(spec: queue.Spec, nodes: Nodes, threads: int = 1) -> str:
    """Why no node can compute a run, in a sentence; empty if one can. Without nodes the run waits for one."""
    if spec.purpose == "timing":
        return "timings need a machine of their own: make them there, with `peftbook run` and no --engine."
    try:
        needs = request_for(spec, threads)
    except InputError as error:
        return str(error)
    for node in nodes.fit:
        if node.cpus >= needs.cpus and node.gpus >= needs.gpus and node.memory_bytes >= needs.memory_bytes:
            return ""
    if not nodes.fit:
        return ""
    largest = max(node.memory_bytes for node in nodes.fit) / 1e9
    wanted = f"{needs.memory_bytes / 1e9:.1f} GB of memory" + " and a GPU" * needs.gpus
    return f"one needs {wanted}, and no node has that (the largest has {largest:.1f} GB): add a node that has."


class Submission:
    """A task that was handed to Ray, which finds a fit node with room for it.

    files: its inputs by name.  needs: what it takes of the node.  staging: the folder where its files are assembled.
    node, ended: known once it has started and ended.  cancelled: by `terminate`.
    """

    def __init__(self, task: NodeTask, files: Mapping[str, Path], needs: ResourceRequest, nodes: Nodes, staging: Path):
        import ray

        self.staging, self.node, self.cancelled = staging, "", False
        self.unfinished = ""  # the file whose next chunk follows
        self.ended = Ended(-1, "ended")
        unfit = ",".join(node.id for node in nodes.unfit)
        selector = {"label_selector": {"ray.io/node-id": f"!in({unfit})"}} if unfit else {}
        remote = ray.remote(run_task).options(
            name=task.name,
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory_bytes,
            max_retries=0,
            num_returns="streaming",
            _generator_backpressure_num_objects=CHUNKS_AHEAD,
            **selector,
        )
        self.generator = remote.remote(task, {name: put_file(path) for name, path in files.items()})

    @property
    def where(self) -> str:
        """The node in words."""
        return f"node {self.node}" if self.node else "a node"

    def events(self, wait: Callable[[], object] = lambda: None) -> Iterator[ProgressLines | str]:
        """Progress, and the name of each file in `staging` once it is whole, until the process has ended.

        wait: called every LOOK_SECONDS in which nothing comes.
        Raises NodeLost if the node died, InputError if the task could not run there.
        """
        import ray

        try:
            while True:
                while not ray.wait([self.generator], timeout=LOOK_SECONDS)[0]:
                    wait()
                match event := ray.get(next(self.generator)):
                    case Started():
                        self.node = event.node
                    case ProgressLines():
                        yield event
                    case Chunk():
                        self.write(event)
                        if event.last:
                            yield event.name
                    case Ended():
                        self.ended = event
                        return
        except ray.exceptions.RayTaskError as error:
            why = f"On {self.where} this run cannot be computed ({error_line(error)}): mend that, then start it again."
            raise InputError(why) from None
        except (ray.exceptions.RayError, StopIteration):
            raise NodeLost(f"was lost with {self.where}") from None

    def write(self, chunk: Chunk) -> None:
        """Add a chunk to its file."""
        path = self.staging / chunk.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if chunk.name == self.unfinished else "wb") as stream:
            stream.write(chunk.data)
        self.unfinished = "" if chunk.last else chunk.name

    def records(self) -> dict[str, bytes]:
        """The files of records that came back, by name."""
        return {path.name: path.read_bytes() for path in (self.staging / "records").glob("*")}

    def terminate(self) -> None:
        """Kill the task's process, whose child ends with it."""
        import ray

        self.cancelled = True
        ray.cancel(self.generator, force=True)


def put_file(path: Path) -> list[Any]:
    """References to the chunks of a file in Ray's object store."""
    import ray

    with path.open("rb") as stream:
        return [ray.put(chunk.data) for chunk in chunks_of(path.name, stream)]


@dataclass
class RayEngine:
    """A Ray cluster that this process is connected to, which computes runs of the queue into a store.

    find_nodes: lists the nodes anew.  checkpoints: a folder that every node sees, or None.
    """

    store: Store
    nodes: Nodes
    find_nodes: Callable[[float], Nodes]
    checkpoints: Path | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def slots(self, platform: str) -> int:
        """How many runs have room at a time by cores or GPUs, at least one."""
        return max(1, self.nodes.slots(platform))

    def refuse(self, spec: queue.Spec) -> str:
        """Why the cluster cannot make a run, in a sentence; empty if it can."""
        return obstacle(spec, self.nodes)

    def compute(self, spec: queue.Spec, threads: int = 0) -> tuple[bool, str]:
        """Compute a run on a node and save its record; again on another one if the node dies, RETRIES times.

        Returns success and where, or why not. `threads` is for this machine; a node uses one.
        """
        why = ""
        for _ in range(RETRIES + 1):
            with tempfile.TemporaryDirectory(prefix="peftbook-") as staging:
                submission = self.submit(spec, Path(staging))
                queue.RUNNING.add(submission)
                try:
                    for _ in submission.events(self.look):
                        pass
                    return self.receive(spec, submission)
                except InputError as error:
                    return False, str(error)
                except NodeLost as error:
                    why = str(error)
                    if submission.cancelled:
                        break
                    self.look(NEW_NODE_SECONDS)
                finally:
                    queue.RUNNING.discard(submission)
        return False, why

    def submit(self, spec: queue.Spec, staging: Path) -> Submission:
        """Hand a run to Ray, with the records that a probe reads."""
        reads = spec.runs if isinstance(spec, specs.Probe) else ()
        paths = [path for run in reads for path in paths_of(self.store, self.store.spec(run).key)]
        variables = {"PEFTBOOK_PATIENCE": str(LOCK_SECONDS)}
        if self.checkpoints is not None:
            variables["PEFTBOOK_CHECKPOINTS"] = str(self.checkpoints)
        task = NodeTask(spec.key[:12], queue.WORKER, spec.canonical(), variables=variables)
        files = {f"records/{path.name}": path for path in paths}
        return Submission(task, files, request_for(spec), self.nodes, staging)

    def receive(self, spec: queue.Spec, submission: Submission) -> tuple[bool, str]:
        """Check the record that came back and save it."""
        if submission.ended.status:
            return False, f"on {submission.node}: {submission.ended.why}"
        try:
            record = receive_record(self.store, spec.key, submission.records())
        except InputError as error:
            return False, f"on {submission.node}: {error}"
        step = record.provenance.get("resumed_from_step")
        return True, f"on {submission.node}" + (f", from the checkpoint of step {step}" if step else "")

    def look(self, seconds: float = 0.0) -> None:
        """Ask which nodes are alive, waiting so long for new ones to answer; report which are lost or new."""
        with self.lock:
            before = {node.id: node.name for node in self.nodes.nodes}
            self.nodes = self.find_nodes(seconds)
            now = {node.id: node.name for node in self.nodes.nodes}
        clock = f"{datetime.datetime.now():%H:%M:%S}"
        for identifier in before.keys() - now.keys():
            lost = f"node {before[identifier]}: what it computed starts again elsewhere ({len(now)} left)"
            queue.print_line(f"{clock} LOST  {lost}")
        for identifier in now.keys() - before.keys():
            queue.print_line(f"{clock} NEW   node {now[identifier]}")


@contextlib.contextmanager
def connect(address: str, store: Store, *, checkpoints: Path | None = None) -> Iterator[RayEngine]:
    """Connect to the Ray cluster whose head is at `address`, HOST:PORT, or start Ray on this machine if it is empty.

    Raises InputError as `connected` does, and for nodes that cannot compute or have other code than this process.
    """
    with connected(address):
        monitor = NodeMonitor(address)
        nodes = monitor.look()
        if nodes.unfit:
            raise InputError(nodes.unfit[0].unfit)
        yield RayEngine(store, nodes, monitor.look, checkpoints)
