"""The nodes of a Ray cluster: connect to it, ask each node what it has and which code it runs, check that jobs fit.

`python -m peftbook.runtime.ray_nodes FILE HOST:PORT` writes the nodes to a file every few seconds. Reading it
needs no Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peftbook
from peftbook.core.errors import InputError, need
from peftbook.core.records import write_atomically
from peftbook.runtime.hardware import cores
from peftbook.runtime.processes import Child, end_with_input

if TYPE_CHECKING:
    from peftbook.core import specs

ANSWER_SECONDS = 120  # for a node to start a process and import peftbook
LOOK_SECONDS = 2.0
RESTART_SECONDS = 5.0  # between two starts of the process that watches the nodes
STALE_SECONDS = 60.0  # after which a written list of nodes is not used
MAX_THREADS = 8  # of a job: in an adapter's small products more of them gain little
GPU_VARIABLE = "PEFTBOOK_GPU_CAPABILITY"  # overrides the compute capability of this machine's GPU, as 8.0
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
STORE_BYTES = 200_000_000  # of Ray's object store on this machine: records are small


@dataclass(frozen=True)
class Node:
    """A node and its total resources.

    memory_bytes: for runs.  capability, gpu_bytes: of its first GPU, as 8.0.  unfit: why it gets no task, one sentence.
    """

    id: str
    name: str
    cpus: float
    gpus: float
    memory_bytes: float
    capability: str = ""
    gpu_bytes: float = 0.0
    unfit: str = ""

    @property
    def words(self) -> str:
        """One line."""
        gpus = f", {self.gpus:g} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        has = f"{self.cpus:g} core{'s' * (self.cpus > 1)}{gpus}, {self.memory_bytes / 1e9:.1f} GB for runs"
        return f"{self.name}: {has}{f'. {self.unfit}' if self.unfit else ''}"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster. at: seconds since 1970.  trouble: why they are unknown, one sentence."""

    address: str = ""
    at: float = 0.0
    nodes: tuple[Node, ...] = ()
    trouble: str = ""

    @property
    def fit(self) -> list[Node]:
        """Nodes that may get tasks."""
        return [] if self.trouble else [node for node in self.nodes if not node.unfit]

    @property
    def unfit(self) -> list[Node]:
        return [node for node in self.nodes if node.unfit]

    @property
    def troubles(self) -> list[str]:
        """What keeps tasks from being computed, a sentence each."""
        if self.trouble:
            return [self.trouble]
        none = [] if self.fit else [f"No node of the cluster at {self.address!r} computes: start one, or mend one."]
        return none + [node.unfit for node in self.unfit]

    def slots(self, platform: str) -> int:
        """How many runs of one thread the nodes compute at a time, by their cores or GPUs."""
        return sum(int(node.gpus if platform == "cuda" else node.cpus) for node in self.fit)

    def threads(self, jobs: int) -> int:
        """Threads of each of so many jobs at a time, at least one: a share of the smallest node's cores."""
        each = math.ceil(jobs / max(1, len(self.fit)))
        return max(1, min(MAX_THREADS, int(min((node.cpus for node in self.fit), default=1)) // each))

    def has_room(self, run: specs.Run, running: Collection[specs.Run]) -> bool:
        """Whether a core, or the GPU that a run needs, is free beside the running ones; Ray chooses the node."""
        beside = [other for other in running if run.platform in ("cpu", other.platform)]
        return self.slots(run.platform) > len(beside)

    def largest_room(self, runs: Collection[specs.Run]) -> float:
        """Bytes of memory of the largest node: of its GPU if one of the runs needs it."""
        gpu = any(run.platform == "cuda" for run in runs)
        return max((node.gpu_bytes if gpu else node.memory_bytes for node in self.fit), default=0.0)

    def export_gpu_capability(self) -> None:
        """Let plans made in this process use the nodes' GPUs: set GPU_VARIABLE to the lowest compute capability."""
        if capabilities := [node.capability for node in self.fit if node.capability]:
            os.environ[GPU_VARIABLE] = min(capabilities, key=lambda text: [*map(int, text.split("."))])

    def write(self, file: Path) -> None:
        """Write them for other processes; on a full disk those see that the file is stale."""
        with contextlib.suppress(OSError):
            write_atomically(file, json.dumps(asdict(self)).encode(), lasting=False)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Nodes:
        """The nodes of which these are the fields, as JSON has them."""
        return cls(**{**fields, "nodes": tuple(Node(**node) for node in fields["nodes"])})

    @classmethod
    def read(cls, file: Path, address: str) -> Nodes:
        """What was last written for the cluster at this address."""
        try:
            found = cls.of(json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            found = cls()
        if address != found.address or not found.at:
            return cls(address, trouble=f"The nodes of the cluster at {address!r} are being asked what they have.")
        if (silent := time.time() - found.at) > STALE_SECONDS:
            return cls(address, found.at, trouble=f"The nodes have not been watched for {silent:,.0f} s.")
        return found


# ---- connection


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to the Ray cluster whose head is at `address`, or start Ray here if that is empty.

    Tokens are required and usage is not reported unless the environment says otherwise (ENVIRONMENT).
    Raises InputError without Ray, for an address where no head answers, a missing or wrong token, and another Ray.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    need("ray", "Engine 'ray'")
    options: dict[str, Any] = {"address": address}
    if address:
        check_address(address)
    else:
        local = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
        options = {"address": "local", **local}
    try:
        with silent_stderr():
            import ray

            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray has no one class for what goes wrong here
        raise connection_error(address, error) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard standard error: Ray's native part repeats there what it raises as an exception."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


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


def connection_error(address: str, error: Exception) -> InputError:
    """A failed `ray.init` as a sentence."""
    cause = error.__cause__ or error
    words = " ".join(f"{type(cause).__name__}: {cause}".split())
    if "authentication" in words.lower():
        return InputError(
            f"The cluster at {address!r} gets no token or a wrong one: put that of its nodes into RAY_AUTH_TOKEN or "
            "~/.ray/auth_token, or set RAY_AUTH_MODE=disabled if they have none."
        )
    where = f"The cluster at {address!r}" if address else "Ray on this machine"
    return InputError(f"{where} cannot be used ({words[:200]}): run the command on one of its nodes, with its Ray.")


def error_line(error: Exception) -> str:
    """A Ray error in one line: of an exception on the node the last one, else the first."""
    import ray

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]


# ---- on a node


def code_version() -> str:
    """The version of peftbook and the first digits of a SHA-256 over its modules."""
    package, digest = Path(peftbook.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(b"\0".join((path.relative_to(package).as_posix().encode(), path.read_bytes(), b"")))
    return f"{peftbook.__version__} ({digest.hexdigest()[:12]})"


def code_mismatch(node: str, code: str, required: str) -> str:
    """The sentence that refuses a node with other code; empty if it is the same."""
    same = "install the same on every node"
    return "" if code == required else f"Node {node} has peftbook {code}, the command runs {required}: {same}."


def this_node() -> str:
    """The name of the node that a task runs on."""
    import ray

    return node_name(platform.node(), ray.get_runtime_context().get_node_id())


def node_name(host: str, identifier: str) -> str:
    """Host and the first digits of Ray's id, since one host may run several nodes."""
    return f"{host}/{identifier[:6]}"


def describe_node() -> dict[str, Any]:
    """The code of the node that this runs on, and capability and bytes of its GPU.

    Plain values, which any other peftbook can read. Ray hides GPUs from a task that asked for none: ask nvidia-smi.
    """
    output = ""
    command = ["nvidia-smi", "--query-gpu=compute_cap,memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return {"code": code_version(), **parse_gpu(output)}


def parse_gpu(output: str) -> dict[str, Any]:
    """Capability and bytes of the first GPU that `nvidia-smi` lists, as `8.0, 40960` in MiB; empty without one."""
    with contextlib.suppress(ValueError, IndexError):
        capability, mebibytes = (part.strip() for part in output.splitlines()[0].split(","))
        return {"capability": capability, "gpu_bytes": float(mebibytes) * 2**20}
    return {}


# ---- discovery


class NodeMonitor:
    """Lists the nodes of the cluster that this process is connected to, and asks each new one what it has, once."""

    def __init__(self, address: str):
        self.address, self.code = address, code_version()
        self.asked: dict[str, tuple[Any, float]] = {}  # the task that describes a node, and when it was submitted
        self.answers: dict[str, dict[str, Any]] = {}  # fields of a Node

    def look(self, seconds: float = ANSWER_SECONDS) -> Nodes:
        """The nodes that are alive and have a core for runs. seconds: to wait for the answers of new nodes."""
        import ray

        alive = {entry["NodeID"]: entry for entry in ray.nodes() if entry["Alive"]}
        alive = {identifier: entry for identifier, entry in alive.items() if entry["Resources"].get("CPU", 0) >= 1}
        for identifier in alive.keys() - self.asked.keys():
            self.asked[identifier] = self.ask(identifier), time.monotonic()
        if waiting := [self.asked[identifier][0] for identifier in alive.keys() - self.answers.keys()]:
            ray.wait(waiting, num_returns=len(waiting), timeout=seconds)
        nodes = []
        for identifier, entry in alive.items():
            name, has = node_name(entry["NodeManagerHostname"], identifier), entry["Resources"]
            amounts = has["CPU"], has.get("GPU", 0), has.get("memory", 0)
            nodes.append(Node(identifier, name, *amounts, **self.answer(identifier, name)))
        return Nodes(self.address, time.time(), tuple(sorted(nodes, key=lambda node: node.name)))

    def ask(self, identifier: str) -> Any:
        """Have a node describe itself."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(identifier, soft=False)
        return ray.remote(describe_node).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()

    def answer(self, identifier: str, name: str) -> dict[str, Any]:
        """What a node answered, and why it is unfit; it is unfit until it has answered."""
        import ray

        if identifier in self.answers:
            return self.answers[identifier]
        reference, began = self.asked[identifier]
        if not ray.wait([reference], timeout=0)[0]:
            late = time.monotonic() - began > ANSWER_SECONDS
            why = f"has not answered for {ANSWER_SECONDS} s: look at its log" if late else "is being asked what it runs"
            return {"unfit": f"Node {name} {why}."}
        try:
            answer = ray.get(reference)
            answer["unfit"] = code_mismatch(name, answer.pop("code"), self.code)
        except (ray.exceptions.RayError, KeyError, TypeError) as error:
            why = f"Node {name} cannot compute ({error_line(error)[:160]})"
            answer = {"unfit": f"{why}: install peftbook {self.code} there."}
        self.answers[identifier] = answer
        return answer


def list_nodes(address: str) -> Nodes:
    """The nodes of a cluster, each asked what it has, or why they are unknown."""
    try:
        with connected(address):
            return NodeMonitor(address).look()
    except InputError as error:
        return Nodes(address, time.time(), trouble=str(error))


class MonitorProcess:
    """Keeps a process running that writes the nodes of a cluster to a file.

    address: of the cluster, empty for none.
    """

    def __init__(self, file: Path):
        self.file, self.address = file, ""
        self.child: Child | None = None
        self.started = -math.inf

    def follow(self, address: str) -> None:
        """Watch this cluster from now on; start the process again if it has ended."""
        if address != self.address or (self.child is not None and self.child.ended()):
            self.end()
            self.address = address
        if self.address and self.child is None and time.monotonic() - self.started > RESTART_SECONDS:
            self.started = time.monotonic()
            self.child = start_monitor(self.file, self.address)

    @property
    def nodes(self) -> Nodes:
        """The nodes as they were written last."""
        nodes = Nodes.read(self.file, self.address)
        nodes.export_gpu_capability()
        return nodes

    def end(self) -> None:
        """End the process."""
        if self.child is not None:
            self.child.end()
            self.child.close()
        self.child = None


def start_monitor(file: Path, address: str) -> Child:
    """Start the process that writes the nodes of a cluster to a file."""
    return Child("-m", "peftbook.runtime.ray_nodes", str(file), address, threads=1)


def main() -> None:
    """Write the nodes of the cluster at the second argument to the file named by the first, until the parent ends."""
    file, address = Path(sys.argv[1]), sys.argv[2]
    end_with_input()
    try:
        with connected(address):
            monitor = NodeMonitor(address)
            while True:
                monitor.look(LOOK_SECONDS).write(file)
                time.sleep(LOOK_SECONDS)
    except InputError as error:
        Nodes(address, time.time(), trouble=str(error)).write(file)


if __name__ == "__main__":
    main()
