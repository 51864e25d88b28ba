"""A process that computes tasks of one kind: `python -m peftbook.studio.assistant --home H --kind K --worker NAME`.

It generates several texts in turn, one token at a time, or checks one plan after the other, or makes one file after the
other. It runs at low priority, so that a training job keeps its cores, and ends when there was no task for
IDLE_SECONDS, which frees the memory of its models. The worker that started it kills it at the limits of a task.
"""

from __future__ import annotations

import argparse
import functools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peftbook.core import specs
from peftbook.core.canonical import build
from peftbook.core.errors import InputError
from peftbook.runtime.hardware import free_memory, platform_here
from peftbook.runtime.processes import die_with_parent
from peftbook.runtime.threads import best_threads
from peftbook.studio.playground import sampling_of
from peftbook.studio.store import Studio
from peftbook.studio.tasks import ASSISTED, LIMITS, Task
from peftbook.studio.work import go_first, sentence_for

IDLE_SECONDS = 300.0
WRITE_SECONDS = 0.05  # between two writes of one text


@dataclass
class Stream:
    """A text that is being generated."""

    task: Task
    ids: Iterator[int]
    tokenizer: Any
    limit: int
    written: list[int] = field(default_factory=list)
    ended: bool = False
    written_at: float = -1e9

    def advance(self) -> None:
        """Generate one token, or end."""
        token = next(self.ids)
        self.ended = token == self.tokenizer.eos_token_id
        if not self.ended:
            self.written.append(token)
            self.ended = len(self.written) >= self.limit

    def text(self) -> str:
        """The text so far, without an incomplete character at its end."""
        text = self.tokenizer.decode(self.written, skip_special_tokens=True).strip()
        return text if self.ended else text.rstrip("\ufffd")


class Assistant:
    """An assistant of one kind; `tick` takes a task if there is one, and adds a token to every text."""

    def __init__(self, studio: Studio, kind: str, worker: str = "assistant"):
        from peftbook.studio.trained_model import ModelCache

        self.studio, self.kind, self.worker = studio, kind, worker
        self.models = ModelCache(studio)
        self.streams: list[Stream] = []

    def tick(self) -> bool:
        """One round of work; False if there was nothing to do."""
        task = None
        if len(self.streams) < LIMITS[self.kind].streams:
            task = self.studio.take(self.worker, os.getpid(), (self.kind,))
        if task is not None:
            self.guarded(task, functools.partial(self.begin, task))
        streams = list(self.streams)
        for stream in streams:
            if not self.guarded(stream.task, functools.partial(self.advance, stream)) or stream.ended:
                self.streams.remove(stream)
        return task is not None or bool(streams)

    def guarded(self, task: Task, work: Callable[[], None]) -> bool:
        """Do some work for a task; an error becomes its answer and ends nothing else."""
        try:
            work()
        except sqlite3.Error:
            raise
        except Exception as error:
            why = sentence_for(error, self.studio.home) or f"This could not be computed ({type(error).__name__})."
            self.studio.fail(task.id, task.attempt, why)
            return False
        return True

    def begin(self, task: Task) -> None:
        """Compute a check or a file, or start a text."""
        if task.kind == "generate":
            self.streams.append(self.stream(task))
        elif task.kind == "check":
            self.check(task)
        else:
            from peftbook.studio.downloads import artefact_of

            job = self.studio.job(task.payload["job"])
            artefact_of(self.studio, job, task.payload["name"]).make(self.studio, job)
            self.studio.complete(task.id, task.attempt)

    def advance(self, stream: Stream) -> None:
        """Advance a text, and store its progress."""
        studio, task = self.studio, stream.task
        stream.advance()
        if stream.ended:
            studio.complete(task.id, task.attempt, text=stream.text())
        elif time.monotonic() - stream.written_at > WRITE_SECONDS:
            stream.ended = not studio.write_text(task.id, task.attempt, stream.text())
            stream.written_at = time.monotonic()
            if stream.ended:
                studio.stopped(task.id, task.attempt)

    def stream(self, task: Task) -> Stream:
        """Start a text. Raises InputError for values out of bounds."""
        import torch

        from peftbook.studio.trained_model import answer_ids

        payload, project = task.payload, self.studio.task(task.project)
        how = sampling_of(payload)
        run = None
        if payload.get("job"):
            job = self.studio.job(payload["job"])
            if job.project != task.project:
                raise InputError(f"Job {job.id!r} is of another project: choose one of this project.")
            loaded, platform, run = self.models.of_job(job), platform_here(job.run.platform), job.run
        else:
            platform = payload.get("platform", "cpu")
            loaded = self.models.as_it_comes(build(specs.Model, **payload.get("model", {})), platform)
        torch.set_num_threads(1 if self.trains() else best_threads())
        ids = answer_ids(loaded, project, str(payload.get("text", "")), how, run, platform)
        return Stream(task, ids, loaded.tokenizer, how.max_new_tokens)

    def check(self, task: Task) -> None:
        """Check the runs that a task names."""
        import psutil
        import torch

        from peftbook.studio.preflight import preflight

        torch.set_num_threads(best_threads())  # the rates are those of so many
        runs = [specs.Run.model_validate_json(text) for text in task.payload["runs"]]
        parent = psutil.Process().parent()
        family = [] if parent is None else parent.children()
        measure = not self.trains()  # beside a training, it takes many minutes
        room = memory_for(runs, family)
        checks = preflight(self.studio.task(task.project), runs, room, measure=measure)
        self.studio.complete(task.id, task.attempt, result=[asdict(check) for check in checks])

    def trains(self) -> bool:
        """Whether a job has the cores now."""
        return any(job.state == "running" for job in self.studio.jobs())


def memory_for(runs: Sequence[specs.Run], family: Sequence[Any] = ()) -> float:
    """Bytes that a job of these may take: what is free now, and what the processes in `family` (of psutil) will give
    back before it starts: the jobs under way, the assistant itself.
    """
    if any(run.platform == "cuda" for run in runs):
        import torch

        if torch.cuda.is_available():
            return float(torch.cuda.mem_get_info()[1])
    return free_memory(family)


def main(argv: list[str] | None = None) -> None:
    """Compute until there was nothing to do for IDLE_SECONDS."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.studio.assistant", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--kind", choices=ASSISTED, required=True)
    parser.add_argument("--worker", required=True, help="the name under which it claims tasks")
    args = parser.parse_args(argv)
    die_with_parent()
    go_first()
    os.nice(10)
    from peftbook.core.quiet import quieten_libraries

    quieten_libraries()
    assistant = Assistant(Studio(args.home, durable=False), args.kind, args.worker)
    last = time.monotonic()
    while time.monotonic() - last < IDLE_SECONDS:
        if assistant.tick():
            last = time.monotonic()
        else:
            time.sleep(0.1)


if __name__ == "__main__":
    main()
