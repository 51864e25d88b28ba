"""Nodes: the machines of a Ray cluster that compute a studio's jobs, as they were seen last.

A process of the worker's looks at them and leaves what it saw in the home (`watching`). To read that needs no Ray.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbook.records import write_atomically
from peftbook.studio.store import is_open

if TYPE_CHECKING:
    from peftbook import specs

STALE_SECONDS = 60.0  # after which what was seen is no more to be relied on
MOST_THREADS = 8  # of a job: in an adapter's small products more of them gain little
GPU_VARIABLE = "PEFTBOOK_GPU_CAPABILITY"  # what this machine takes for its GPU's, as 8.0
FILE = "nodes.json"


@dataclass(frozen=True)
class SeenNode:
    """A node and what it has in all.

    memory_bytes: for runs.  capability, gpu_bytes: of its GPU, as 8.0.  unfit: why no job may go there, one sentence.
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
class Seen:
    """The nodes of a cluster. at: when, in seconds since 1970.  trouble: why they cannot be seen, one sentence."""

    address: str = ""
    at: float = 0.0
    nodes: tuple[SeenNode, ...] = ()
    trouble: str = ""

    @property
    def fit(self) -> list[SeenNode]:
        """Those that jobs may go to."""
        return [] if self.trouble else [node for node in self.nodes if not node.unfit]

    @property
    def unfit(self) -> list[SeenNode]:
        return [node for node in self.nodes if node.unfit]

    def threads(self, jobs: int) -> int:
        """The cores of each of so many jobs at a time, one at least: a share of the smallest node."""
        each = math.ceil(jobs / max(1, len(self.fit)))
        return max(1, min(MOST_THREADS, int(min((node.cpus for node in self.fit), default=1)) // each))

    def has_room(self, run: specs.Run, beside: Collection[specs.Run]) -> bool:
        """Whether there are cores, and for a run on a GPU one of those, beside what runs; Ray finds the place."""
        if run.platform == "cuda":
            return sum(int(node.gpus) for node in self.fit) > sum(one.platform == "cuda" for one in beside)
        return sum(int(node.cpus) for node in self.fit) > len(beside)

    def room(self, runs: Collection[specs.Run]) -> float:
        """Bytes that the largest node has for any of these: of its GPU, if one of them runs there."""
        gpu = any(run.platform == "cuda" for run in runs)
        return max((node.gpu_bytes if gpu else node.memory_bytes for node in self.fit), default=0.0)

    @property
    def troubles(self) -> list[str]:
        """What keeps jobs from being computed, a sentence each."""
        if self.trouble:
            return [self.trouble]
        none = [] if self.fit else [f"No node of the cluster at {self.address!r} computes: start one, or mend one."]
        return none + [node.unfit for node in self.nodes if node.unfit]


def leave(home: Path, found: Seen) -> None:
    """Leave what was seen for others; where the disk is full they find out by its age."""
    with contextlib.suppress(OSError):
        write_atomically(home / FILE, json.dumps(asdict(found)).encode(), lasting=False)


def seen(home: Path, address: str = "") -> Seen:
    """What was seen last; of this cluster, if an address is given."""
    try:
        told = json.loads((home / FILE).read_bytes())
        found = Seen(told["address"], told["at"], tuple(SeenNode(**node) for node in told["nodes"]), told["trouble"])
    except (OSError, ValueError, TypeError, KeyError):
        found = Seen()
    if address not in ("", found.address) or not found.at:
        return Seen(address, trouble=f"The nodes of the cluster at {address!r} are being asked what they have.")
    if (silent := time.time() - found.at) > STALE_SECONDS:
        return Seen(found.address, found.at, trouble=f"Nobody has looked at the nodes for {silent:,.0f} s.")
    return found


def address_of(home: Path) -> str:
    """The cluster of the studio that is open there; empty where none is, or it computes on its own machine."""
    with contextlib.suppress(OSError):
        return (home / "open").read_text().strip() if is_open(home) else ""
    return ""


def take_gpu(found: Seen) -> None:
    """Plans made here may be for a GPU where a node has one; the lesser where they differ."""
    has = [node.capability for node in found.fit if node.capability]
    if has:
        os.environ[GPU_VARIABLE] = min(has, key=lambda text: [*map(int, text.split("."))])
