"""A small studio that the tests of its parts share: one project of colours, runs of the small Llama."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from peftbook.core import specs
from peftbook.core.records import Record
from peftbook.methods import Method
from peftbook.methods.untuned import Untuned
from peftbook.studio.settings import Reading
from peftbook.studio.store import Job, Project, Studio

COLOURS = ("red", "green", "blue", "black", "white", "grey", "pink", "brown")
SMALL = specs.SMALL_LLAMA


def colours_csv(rows: int = 60) -> bytes:
    """Two colours and a number → what to mix."""
    pairs = [(COLOURS[at % 8], COLOURS[at // 8 % 8], at) for at in range(rows)]
    return "".join(["ask,answer\n", *(f"{a} {b} {n},Mix {a} with {b}.\n" for a, b, n in pairs)]).encode()


def colours_project(studio: Studio, rows: int = 60) -> Project:
    """The project of those rows."""
    return studio.create_project("Colours", colours_csv(rows), "colours.csv", Reading("ask", "answer"))


def small_run(
    studio: Studio,
    project: Project,
    method: Method,
    *,
    tokens: int = 1500,
    rate: float = 1e-3,
    seed: int = 0,
    texts: int = 0,
    model: specs.Model = SMALL,
) -> specs.Run:
    """A run of the small Llama on the project, or of another model, over in a second or so."""
    trains = not isinstance(method, Untuned)
    return specs.Run(
        model=model,
        task=studio.task(project.id).spec,
        method=method,
        budget=specs.Budget(tokens=tokens, learning_rate=rate) if trains else None,
        evaluation=specs.Evaluation(split="test", n_loss=4, n_generate=texts, max_new_tokens=8),
        seed=seed,
    )


def finish(studio: Studio, job: Job, loss: float, failure: str = "") -> None:
    """Record a job that waits, and end it, as a worker does."""
    claimed = studio.claim("w", os.getpid(), job.id)
    assert claimed is not None
    studio.adopt(job.id, claimed.attempt, os.getpid())
    measured = {} if failure else {"loss_nats": loss}
    studio.records(job.project).save(Record(key=job.key, spec=job.run, measurements=measured, failure=failure))
    studio.finish(job.id, claimed.attempt)


@dataclass
class Doing:
    """A process that a worker believes in, with the threads that it computes with and those of its environment."""

    threads: int = 1
    environment: int = 1
    status: int | None = None
    process: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(pid=os.getpid()))

    def ended(self) -> bool:
        return self.status is not None

    def failure(self) -> str:
        return "killed"

    def output_lines(self) -> list[str]:
        return ["was lost with node cpu/1"]

    def end(self) -> None: ...

    def close(self) -> None: ...


def claim_all(home: Path, worker: str) -> list[str]:
    """What one worker gets when several claim at once; here because a process that is started for it imports this
    file, and little else."""
    studio, mine = Studio(home), []
    while (job := studio.claim(worker, os.getpid())) is not None:
        mine.append(job.id)
        studio.adopt(job.id, job.attempt, os.getpid())
    return mine


def worker_alive(home: Path) -> bool:
    """Whether a worker serves this home."""
    return any(worker.alive for worker in Studio(home).workers())


def log_of(home: Path) -> str:
    """What the home's worker said, for a failing test's message."""
    log = home / "worker.log"
    return log.read_text() if log.exists() else ""
