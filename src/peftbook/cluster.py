"""The same runs on many machines: each one is a Ray task on a node that has room for it, and its record comes back.

    with connect("head:6379", store) as cluster:
        run_studies(studies, store, compute=cluster.compute, refuse=cluster.refuse, workers=cluster.slots("cpu"))

On its node a run is computed as everywhere, by a worker process of its own, so a record is the same file with that
node's hardware in its provenance. A run whose node dies is started again on another one, from its last checkpoint
where the checkpoints lie on storage that both see, else from the start.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import platform
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import peftbook
from peftbook import specs
from peftbook.errors import InputError, need
from peftbook.exchange import files_of, receive_record
from peftbook.records import Store
from peftbook.training import queue
from peftbook.training.hardware import cores
from peftbook.training.request import Request, request_for

__all__ = ["Answer", "Cluster", "Node", "code_here", "compute_on_node", "connect"]

RETRIES = 5  # deaths of nodes that a run survives
PATIENCE_SECONDS = 120  # for the orphan of a dead node to let go of a shared checkpoint
ANSWER_SECONDS = 120  # for a node to start a process and import peftbook
LOOK_SECONDS = 5  # between two looks at which nodes are alive
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
STORE_BYTES = 200_000_000  # of Ray's object store on this machine: records are small


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what it has in all."""

    name: str
    cpus: float
    gpus: float
    memory_bytes: float

    def holds(self, request: Request) -> bool:
        """Whether a run fits on this node when nothing else is there."""
        cores = self.cpus >= request.cpus and self.gpus >= request.gpus
        return cores and self.memory_bytes >= request.memory_bytes


@dataclass(frozen=True)
class Answer:
    """What comes back from a node: success, why not, where, and the files of the record by name."""

    ok: bool
    message: str
    node: str
    files: Mapping[str, bytes] = field(default_factory=dict)


# ---- on a node


def code_here() -> str:
    """Which peftbook this is: its version and the first digits of a SHA-256 over its modules."""
    package, digest = Path(peftbook.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(b"\0".join((path.relative_to(package).as_posix().encode(), path.read_bytes(), b"")))
    return f"{peftbook.__version__} ({digest.hexdigest()[:12]})"


def other_code(node: str, here: str, wanted: str) -> str:
    """The sentence that refuses a node with other code."""
    return f"Node {node} has peftbook {here}, the command runs {wanted}: install the same on every node."


def compute_on_node(
    canonical: str, code: str, threads: int, checkpoints: str, given: Mapping[str, bytes], node: str = ""
) -> Answer:
    """The Ray task: one run in a process of its own, on the node where this is called.

    canonical: the run's spec.  code: what the node must have.  checkpoints: the shared folder, empty for the node's
    own.  given: files of the records that a probe reads.
    """
    node = node or this_node()
    if (here := code_here()) != code:
        return Answer(False, other_code(node, here, code), node)
    if checkpoints and not Path(checkpoints).is_dir():
        return Answer(False, f"There is no folder {checkpoints!r}: mount the shared storage there on every node.", node)
    spec = TypeAdapter(specs.Run | specs.Probe).validate_json(canonical)
    variables = {"PEFTBOOK_PATIENCE": str(PATIENCE_SECONDS)}
    if checkpoints:
        variables["PEFTBOOK_CHECKPOINTS"] = checkpoints
    with tempfile.TemporaryDirectory(prefix="peftbook-", ignore_cleanup_errors=True) as folder:
        for name, data in given.items():
            (Path(folder) / name).write_bytes(data)
        ok, message = queue.run_subprocess(spec, threads, folder=Path(folder), variables=variables)
        return Answer(ok, message, node, files_of(Store(Path(folder)), spec.key) if ok else {})


def this_node() -> str:
    """The name of the node that a task runs on: its host and the first digits of Ray's id."""
    import ray

    return node_name(platform.node(), ray.get_runtime_context().get_node_id())


def node_name(host: str, identifier: str) -> str:
    """Several nodes may be on one host."""
    return f"{host}/{identifier[:6]}"


# ---- the driver


@dataclass(frozen=True)
class Submitted:
    """A task that an interrupted queue cancels."""

    ref: Any

    def terminate(self) -> None:
        """Kill the process of the task; the worker that it started ends with it."""
        import ray

        ray.cancel(self.ref, force=True)


@dataclass
class Cluster:
    """A Ray cluster that this process is connected to, which computes runs into a store.

    threads: cores a run gets.  checkpoints: a folder that every node sees, or None.  report: takes a line when a node
    is lost or joins.  nodes: those that are alive and can compute, by Ray's id.
    """

    store: Store
    code: str
    threads: int = 1
    checkpoints: Path | None = None
    report: Callable[[str], None] = queue.print_line
    nodes: dict[str, Node] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def slots(self, platform: str) -> int:
        """How many runs have room at a time by cores or GPUs, at least one."""
        with self.lock:
            rooms = [node.gpus if platform == "cuda" else node.cpus // self.threads for node in self.nodes.values()]
        return max(1, int(sum(rooms)))

    def refuse(self, spec: queue.Spec) -> str:
        """Why the cluster cannot make a run, in a sentence; empty if it can."""
        if spec.purpose == "timing":
            return "timings need a machine of their own: make them there, with `peftbook run` and no --engine."
        try:
            need = request_for(spec, self.threads)
        except InputError as error:
            return str(error)
        with self.lock:
            nodes = list(self.nodes.values())
        if not nodes or any(node.holds(need) for node in nodes):  # without nodes: wait for one
            return ""
        largest = max(node.memory_bytes for node in nodes) / 1e9
        asked = f"{need.memory_bytes / 1e9:.1f} GB of memory" + " and a GPU" * need.gpus
        return f"one needs {asked}, and no node has that (the largest has {largest:.1f} GB): add a node that has."

    def compute(self, spec: queue.Spec, threads: int = 0) -> tuple[bool, str]:
        """One run as a task of the cluster, its record into the store. Returns success and where, or why not.

        `threads` is what the queue would give it on this machine; a node gives it `self.threads`.
        """
        import ray

        submitted = Submitted(self.submit(spec))
        queue.RUNNING.add(submitted)
        try:
            while not ray.wait([submitted.ref], timeout=LOOK_SECONDS)[0]:
                self.look()
            answer = ray.get(submitted.ref)
        except ray.exceptions.RayError as error:
            return False, reason(error)
        finally:
            queue.RUNNING.discard(submitted)
        return self.keep(spec, answer)

    def submit(self, spec: queue.Spec) -> Any:
        """Hand a run to Ray, which starts it again elsewhere if its node dies; an error of the run is its end."""
        import ray

        need = request_for(spec, self.threads)
        reads = spec.runs if isinstance(spec, specs.Probe) else ()
        given = {name: data for run in reads for name, data in files_of(self.store, self.store.spec(run).key).items()}
        task = ray.remote(compute_on_node).options(
            name=spec.key[:12], num_cpus=need.cpus, num_gpus=need.gpus, memory=need.memory_bytes, max_retries=RETRIES
        )
        return task.remote(spec.canonical(), self.code, self.threads, str(self.checkpoints or ""), given)

    def keep(self, spec: queue.Spec, answer: Answer) -> tuple[bool, str]:
        """Check the record that came back and write it."""
        if not answer.ok:
            return False, f"on {answer.node}: {answer.message}"
        try:
            record = receive_record(self.store, spec.key, answer.files)
        except InputError as error:
            return False, f"on {answer.node}: {error}"
        step = record.provenance.get("resumed_from_step")
        return True, f"on {answer.node}" + (f", from the checkpoint of step {step}" if step else "")

    def look(self) -> None:
        """Find out again which nodes are alive, and say which are lost or new."""
        with self.lock:
            before, self.nodes = self.nodes, alive_nodes()
            lost = [before[identity].name for identity in before.keys() - self.nodes.keys()]
            new = [self.nodes[identity].name for identity in self.nodes.keys() - before.keys()]
            left = len(self.nodes)
        now = f"{datetime.datetime.now():%H:%M:%S}"
        for name in lost:
            self.report(f"{now} LOST  node {name}: what it computed starts again elsewhere ({left} left)")
        for name in new:
            self.report(f"{now} NEW   node {name}")


def reason(error: Exception) -> str:
    """What a Ray error says, in one line: of an exception on the node its last line, else the first."""
    import ray

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]


def alive_nodes() -> dict[str, Node]:
    """The nodes that are alive and have a core for runs, by Ray's id."""
    import ray

    nodes = {}
    for entry in ray.nodes():
        has = entry["Resources"]
        if entry["Alive"] and has.get("CPU", 0) >= 1:
            name = node_name(entry["NodeManagerHostname"], entry["NodeID"])
            nodes[entry["NodeID"]] = Node(name, has["CPU"], has.get("GPU", 0), has.get("memory", 0))
    return nodes


@contextlib.contextmanager
def connect(
    address: str,
    store: Store,
    *,
    checkpoints: Path | None = None,
    threads: int = 1,
    report: Callable[[str], None] = queue.print_line,
) -> Iterator[Cluster]:
    """Connect to the Ray cluster whose head is at `address`, HOST:PORT, or start Ray on this machine if it is empty.

    Raises InputError as `joined` does, and for nodes that have other code than this process.
    """
    with joined(address):
        cluster = Cluster(store, code_here(), threads, checkpoints, report, alive_nodes())
        check_code(cluster)
        yield cluster


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Within it this process is a driver of the Ray cluster whose head is at `address`, or of one that starts here.

    Tokens are asked for and usage is not reported unless the environment says otherwise (ENVIRONMENT).
    Raises InputError without Ray, for an address where no head answers, a missing or wrong token, and another Ray.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    need("ray", "Engine 'ray'")
    if address:
        check_address(address)
        check_token()
    options: dict[str, Any] = {"address": address}
    if not address:
        here = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
        options = {"address": "local", **here}
    try:
        with silent_stderr():
            import ray

            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray has no one class for what goes wrong here
        raise refused(address, error) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Nothing reaches the terminal's standard error: Ray's native part repeats there what it raises as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_address(address: str, seconds: float = 10) -> None:
    """Raises InputError unless something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.\-\[\]:]+", host) or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(f"Address {address!r} is not HOST:PORT: give that of the head, like 10.0.0.1:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        raise InputError(
            f"No Ray head answers at {address!r} ({error}): start one with `ray start --head`, or correct the address."
        ) from None


def check_token() -> None:
    """Raises InputError where Ray would find no token; the places are those of Ray's documentation, in its order."""
    if os.environ["RAY_AUTH_MODE"] != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not path.is_file() or not path.read_text(encoding="utf-8", errors="replace").strip():
        raise InputError(
            f"There is no token for the cluster in RAY_AUTH_TOKEN or {str(path)!r}: copy the one that its nodes have, "
            "or set RAY_AUTH_MODE=disabled if they have none."
        )


def refused(address: str, error: Exception) -> InputError:
    """What to say when Ray cannot be used."""
    cause = error.__cause__ or error
    words = " ".join(f"{type(cause).__name__}: {cause}".split())
    if "authentication" in words.lower():
        return InputError(
            f"The cluster at {address!r} refuses the token: use the one that its nodes have, in RAY_AUTH_TOKEN or "
            "~/.ray/auth_token."
        )
    where = f"The cluster at {address!r}" if address else "Ray on this machine"
    return InputError(f"{where} cannot be used ({words[:200]}): run the command on one of its nodes, with its Ray.")


def cannot_compute(node: str, error: Exception, wanted: str) -> str:
    """The sentence that refuses a node on which no task of ours runs."""
    return f"Node {node} cannot compute ({reason(error)[:160]}): install peftbook {wanted} there."


def check_code(cluster: Cluster) -> None:
    """Raises InputError unless every node can compute and has the same code as this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    ask = ray.remote(code_here)
    asked = {
        node.name: ask.options(num_cpus=0, max_retries=0, scheduling_strategy=On(identifier, soft=False)).remote()
        for identifier, node in cluster.nodes.items()
    }
    for name, ref in asked.items():
        try:
            here = ray.get(ref, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            raise InputError(cannot_compute(name, error, cluster.code)) from None
        if here != cluster.code:
            raise InputError(other_code(name, here, cluster.code))
