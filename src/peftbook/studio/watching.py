"""Watching: the process that looks at the nodes of a Ray cluster, and whoever keeps it.

`python -m peftbook.studio.watching --home H --ray HOST:PORT` looks at them every few seconds, asks each new one what it
runs, and leaves what it saw in the home (`nodes`).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbook.errors import InputError
from peftbook.processes import Child, die_with_parent
from peftbook.studio.nodes import Seen, SeenNode, address_of, leave, seen, take_gpu
from peftbook.studio.store import is_open

LOOK_SECONDS = 2.0
AGAIN_SECONDS = 5.0  # between two processes that look


class Watched:
    """The cluster of a home as its worker sees it: which it is, and a process that looks at its nodes.

    address: empty where jobs are computed on this machine.
    """

    def __init__(self, home: Path):
        self.home, self.address = home, ""
        self.child: Child | None = None
        self.begun = -math.inf

    def look(self) -> None:
        """Find out which cluster the open studio wants, and keep a process looking at it."""
        if is_open(self.home) and (wanted := address_of(self.home)) != self.address:
            self.end()
            self.address = wanted
        if self.child is not None and self.child.ended():
            self.end()
        if self.address and self.child is None and time.monotonic() - self.begun > AGAIN_SECONDS:
            self.begun = time.monotonic()
            self.child = looking(self.home, self.address)

    @property
    def seen(self) -> Seen:
        """The nodes."""
        found = seen(self.home, self.address)
        take_gpu(found)
        return found

    def end(self) -> None:
        """End the process that looks."""
        if self.child is not None:
            self.child.end()
            self.child.close()
        self.child = None


def looking(home: Path, address: str, *more: str) -> Child:
    """A process that looks at the nodes."""
    words = ("--home", str(home), "--ray", address, *more)
    return Child("-m", "peftbook.studio.watching", *words, threads=1)


def ask_all(home: Path, address: str) -> Seen:
    """Ask every node of a cluster what it runs. Raises InputError where the cluster, or a node, cannot be used."""
    with looking(home, address, "--once") as child:
        child.wait()
        if child.status:
            raise InputError(child.failure() or "The nodes could not be asked.")
    found = seen(home, address)
    take_gpu(found)
    return found


# --- looking, with Ray -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """What a node says of itself: its peftbook, and of the GPU that it has the compute capability and bytes."""

    code: str
    capability: str = ""
    gpu_bytes: float = 0.0


def describe() -> dict[str, Any]:
    """On a node: the fields of `Described`. Ray shows a task no GPU that it did not ask for; NVIDIA's program does."""
    from peftbook.cluster import code_here

    said = ""
    command = ["nvidia-smi", "--query-gpu=compute_cap,memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return {"code": code_here(), **gpu_of(said)}


def gpu_of(said: str) -> dict[str, Any]:
    """Capability and bytes of the first GPU, as `nvidia-smi` says them: `8.0, 40960`, in MiB; nothing without one."""
    with contextlib.suppress(ValueError, IndexError):
        capability, mebibytes = (part.strip() for part in said.splitlines()[0].split(","))
        return {"capability": capability, "gpu_bytes": float(mebibytes) * 2**20}
    return {}


class Looking:
    """A driver of the cluster that asks each new node what it runs and remembers the answer."""

    def __init__(self, address: str):
        from peftbook.cluster import code_here

        self.address, self.code = address, code_here()
        self.asked: dict[str, tuple[Any, float]] = {}
        self.answers: dict[str, dict[str, Any]] = {}  # fields of a `SeenNode`

    def look(self, seconds: float = LOOK_SECONDS) -> Seen:
        """The nodes that are alive now; whoever is asked has so long to answer."""
        import ray

        from peftbook.cluster import alive_nodes

        alive = alive_nodes()
        for identity in alive.keys() - self.asked.keys():
            self.asked[identity] = self.ask(identity), time.monotonic()
        waiting = [self.asked[identity][0] for identity in alive if identity not in self.answers]
        if waiting:
            ray.wait(waiting, num_returns=len(waiting), timeout=seconds)
        nodes = []
        for identity, node in alive.items():
            told = self.answer(identity, node.name)
            nodes.append(SeenNode(identity, node.name, node.cpus, node.gpus, node.memory_bytes, **told))
        return Seen(self.address, time.time(), tuple(sorted(nodes, key=lambda node: node.name)))

    def ask(self, identity: str) -> Any:
        """Have a node describe itself."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        there = ray.remote(describe).options(
            num_cpus=0, max_retries=0, scheduling_strategy=On(identity, soft=False)
        )  # fmt: skip
        return there.remote()

    def answer(self, identity: str, name: str) -> dict[str, Any]:
        """What a node has answered, and why it is unfit: it is, too, until it has answered."""
        import ray

        from peftbook.cluster import ANSWER_SECONDS, cannot_compute, other_code

        if identity in self.answers:
            return self.answers[identity]
        reference, began = self.asked[identity]
        if not ray.wait([reference], timeout=0)[0]:
            late = time.monotonic() - began > ANSWER_SECONDS
            why = f"has not answered for {ANSWER_SECONDS} s: look at its log" if late else "is being asked what it runs"
            return {"unfit": f"Node {name} {why}."}
        try:
            told = Described(**ray.get(reference))
            unfit = "" if told.code == self.code else other_code(name, told.code, self.code)
            answer = {"capability": told.capability, "gpu_bytes": told.gpu_bytes, "unfit": unfit}
        except (ray.exceptions.RayError, TypeError) as error:
            answer = {"unfit": cannot_compute(name, error, self.code)}
        self.answers[identity] = answer
        return answer


def main(argv: list[str] | None = None) -> None:
    """Look until told to stop; or once, when all have answered: then a node that is unfit is exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.studio.watching", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ray", required=True, metavar="HOST:PORT")
    parser.add_argument("--once", action="store_true", help="until all have answered")
    args = parser.parse_args(argv)
    die_with_parent()
    from peftbook.cluster import ANSWER_SECONDS, joined

    driver = Looking(args.ray)
    try:
        with joined(args.ray):
            if args.once:
                found = driver.look(ANSWER_SECONDS)
                leave(args.home, found)
                if found.unfit:
                    raise InputError(found.unfit[0].unfit)
                return
            while True:
                leave(args.home, driver.look())
                time.sleep(LOOK_SECONDS)
    except InputError as error:
        leave(args.home, Seen(args.ray, time.time(), trouble=str(error)))
        print(error, flush=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
