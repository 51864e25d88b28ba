"""The Ray engine: a run of the queue is a task of a Ray cluster, and its record comes back.

    with connect("head:6379", store) as engine:
        run_studies(studies, store, compute=engine.compute, refuse=engine.refuse, workers=engine.slots("cpu"))

A task starts the process that the local engine starts, on a node with a free core or GPU and enough memory. So a record
is the file that a local run writes, with the node's hardware in its provenance. Ray repeats the task if its node dies.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peftbook
from peftbook.core import specs
from peftbook.core.errors import InputError, need
from peftbook.core.exchange import files_of, receive_record
from peftbook.core.records import Store
from peftbook.runtime import queue
from peftbook.runtime.hardware import cores
from peftbook.runtime.resources import memory_bytes

RETRIES = 5  # of a run whose node died
LOCK_SECONDS = 120  # that a run waits for the orphan of a dead node to release a shared checkpoint
ANSWER_SECONDS = 120  # for a node to start a process and import peftbook
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
STORE_BYTES = 200_000_000  # of Ray's object store on this machine: records are small


# ---- on a node


def compute_on_node(
    spec: queue.Spec, records: Mapping[str, bytes], checkpoints: str, code: str
) -> tuple[bool, str, dict[str, bytes]]:
    """The Ray task: compute a run in a process of this node.

    records: files that a probe reads, by name.  checkpoints: a folder that all nodes see, or empty.  code: the peftbook
    that the node must have. Returns success, where or why not, and the files of the run's record.
    """
    node = platform.node()
    if code_version() != code:
        return False, other_code(node, code_version(), code), {}
    if checkpoints and not Path(checkpoints).is_dir():
        return False, f"on {node}: There is no folder {checkpoints!r}: mount the shared storage on every node.", {}
    variables = {"PEFTBOOK_PATIENCE": str(LOCK_SECONDS)}
    variables |= {"PEFTBOOK_CHECKPOINTS": checkpoints} if checkpoints else {}
    with tempfile.TemporaryDirectory(prefix="peftbook-ray-") as folder:
        for name, data in records.items():
            Path(folder, name).write_bytes(data)
        ok, why = queue.run_subprocess(spec, 1, folder=Path(folder), variables=variables)
        return ok, f"on {node}{f': {why}' if why else ''}", files_of(Store(Path(folder)), spec.key)


def code_version() -> str:
    """The version of peftbook and the first digits of a SHA-256 over its modules."""
    package, digest = Path(peftbook.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(b"\0".join((path.relative_to(package).as_posix().encode(), path.read_bytes(), b"")))
    return f"{peftbook.__version__} ({digest.hexdigest()[:12]})"


def other_code(node: str, code: str, required: str) -> str:
    """The sentence that refuses a node with other code."""
    return f"Node {node} has peftbook {code}, the command runs {required}: install the same on every node."


# ---- the driver


@dataclass
class RayEngine:
    """A Ray cluster that this process is connected to, which computes runs of the queue into a store.

    nodes: the resources of each node that computes, in Ray's names.  checkpoints: a folder that every node sees, or
    empty.
    """

    store: Store
    nodes: Sequence[Mapping[str, float]]
    checkpoints: str = ""

    def slots(self, platform: str) -> int:
        """How many runs have room at a time by cores or GPUs, at least one."""
        return max(1, int(sum(node.get("GPU" if platform == "cuda" else "CPU", 0) for node in self.nodes)))

    def refuse(self, spec: queue.Spec) -> str:
        """Why no node can compute a run, in a sentence; empty if one can. Without nodes the run waits for one."""
        if spec.purpose == "timing":
            return "timings need a machine of their own: make them there, with `peftbook run` and no --engine."
        try:
            needs = resources_of(spec)
        except InputError as error:
            return str(error)
        if not self.nodes or any(all(node.get(name, 0) >= needs[name] for name in needs) for node in self.nodes):
            return ""
        largest = max(node.get("memory", 0) for node in self.nodes) / 1e9
        wanted = f"{needs['memory'] / 1e9:.1f} GB of memory" + " and a GPU" * needs["GPU"]
        return f"one needs {wanted}, and no node has that (the largest has {largest:.1f} GB): add a node that has."

    def compute(self, spec: queue.Spec, threads: int = 0) -> tuple[bool, str]:
        """Compute a run on a node and save its record here. Returns success and where, or why not.

        `threads` is for this machine; a node uses one.
        """
        import ray

        needs = resources_of(spec)
        read = [self.store.spec(run).key for run in spec.runs] if isinstance(spec, specs.Probe) else []
        records = {name: data for key in read for name, data in files_of(self.store, key).items()}
        options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "memory": needs["memory"]}
        task = ray.remote(compute_on_node).options(name=spec.key[:12], max_retries=RETRIES, **options)
        result = task.remote(spec, records, self.checkpoints, code_version())
        cancel = functools.partial(ray.cancel, result, force=True)
        queue.RUNNING.add(cancel)
        try:
            ok, where, files = ray.get(result)
            if not ok:
                return False, where
            step = receive_record(self.store, spec.key, files).provenance.get("resumed_from_step")
            return True, where + (f", from the checkpoint of step {step}" if step else "")
        except (InputError, ray.exceptions.RayError) as error:
            return False, error_line(error)
        finally:
            queue.RUNNING.discard(cancel)


def resources_of(spec: queue.Spec) -> dict[str, int]:
    """What a run takes of a node, in Ray's names. Raises InputError where a model's shape is unknown."""
    return {"CPU": 1, "GPU": int(spec.platform == "cuda"), "memory": memory_bytes(spec)}


@contextlib.contextmanager
def connect(address: str, store: Store, *, checkpoints: Path | None = None) -> Iterator[RayEngine]:
    """Connect to the Ray cluster whose head is at `address`, HOST:PORT, or start Ray on this machine if it is empty.

    Tokens are required and usage is not reported unless the environment says otherwise (ENVIRONMENT).
    Raises InputError without Ray, for an address where no head answers, a missing or wrong token, another Ray, and
    nodes that cannot compute or have other code than this process.
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
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        check_nodes(nodes)
        yield RayEngine(store, [node["Resources"] for node in nodes], str(checkpoints or ""))
    finally:
        ray.shutdown()


def check_address(address: str, seconds: float = 10) -> None:
    """Raises InputError unless something listens at HOST:PORT; Ray itself would try for half a minute."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.\-\[\]:]+", host) or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(f"Address {address!r} is not HOST:PORT: give that of the head, like 10.0.0.1:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        raise InputError(
            f"No Ray head answers at {address!r} ({error}): start one with `ray start --head`, or correct the address."
        ) from None


def check_nodes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError for a node that does not answer or has other code than this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ask = ray.remote(code_version).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked.append((node["NodeManagerHostname"], ask.remote()))
    required = code_version()
    for name, answer in asked:
        try:
            code = ray.get(answer, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            why = f"Node {name} cannot compute ({error_line(error)[:160]})"
            raise InputError(f"{why}: install peftbook {required} there.") from None
        if code != required:
            raise InputError(other_code(name, code, required))


def connection_error(address: str, error: Exception) -> InputError:
    """A failed `ray.init` as a sentence."""
    cause = error.__cause__ or error
    words = " ".join(f"{type(cause).__name__}: {cause}".split())
    if address and "authentication" in words.lower():
        return InputError(
            f"The cluster at {address!r} gets no token or a wrong one: put that of its nodes into RAY_AUTH_TOKEN or "
            "~/.ray/auth_token, or set RAY_AUTH_MODE=disabled if they have none."
        )
    if not address:
        return InputError(f"Ray cannot be started on this machine ({words[:200]}): leave out --engine ray.")
    why = f"The cluster at {address!r} cannot be used ({words[:200]})"
    return InputError(f"{why}: run the command on one of its nodes, with its Ray.")


def error_line(error: Exception) -> str:
    """An error in one line: of an exception on the node the last one, else the first."""
    import ray

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]


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
