"""The process that answers requests: `python -m peftbook.studio.assistant --home H`.

It generates text, one token at a time and several texts in turn, checks plans in short slices between the tokens, and
merges models for download. It runs at low priority, so that a training job keeps its cores, and ends when there was no
request for IDLE_SECONDS, which frees the memory of its models.
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
from typing import TYPE_CHECKING, Any

from peftbook.core import specs
from peftbook.core.canonical import build
from peftbook.core.errors import InputError
from peftbook.runtime.hardware import free_memory, platform_here
from peftbook.runtime.processes import die_with_parent
from peftbook.runtime.threads import best_threads
from peftbook.studio.playground import sampling_of
from peftbook.studio.requests import KINDS, Request
from peftbook.studio.store import Studio
from peftbook.studio.work import sentence_for

if TYPE_CHECKING:
    from peftbook.studio.preflight import Check

IDLE_SECONDS = 300.0
PAUSE_SECONDS = 0.05  # between two writes of one text
MOMENT_SECONDS = 0.05  # of work on a check before the texts have their turn
CHECK_SECONDS = 180.0  # a file of 55 MB and two models take one minute beside a training
CHECK_PAUSE = 0.5  # seconds between two writes of a check
STREAMS, CHECKS = 4, 4  # texts, and checks of plans, in turn


@dataclass
class Stream:
    """A text that is being generated."""

    request: str
    ids: Iterator[int]
    tokenizer: Any
    limit: int
    written: list[int] = field(default_factory=list)
    ended: bool = False
    written_at: float = -1e9
    result = None
    pause = PAUSE_SECONDS

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


@dataclass
class RunningCheck:
    """A check of a plan under way. result: the checks so far, as dictionaries."""

    request: str
    steps: Iterator[Check | None]
    began: float = field(default_factory=time.monotonic)
    result: list[dict] = field(default_factory=list)
    ended: bool = False
    written_at: float = -1e9
    pause = CHECK_PAUSE

    def advance(self) -> None:
        """Work for MOMENT_SECONDS, or to the end. Raises InputError when it has taken too long."""
        until = time.monotonic() + MOMENT_SECONDS
        for check in self.steps:
            if check is not None:
                self.result.append(asdict(check))
            if (now := time.monotonic()) > self.began + CHECK_SECONDS:
                raise InputError(
                    f"The check was ended after {CHECK_SECONDS / 60:.0f} minutes: choose fewer models or methods, or "
                    "check again when this machine does less."
                )
            if now > until:
                return
        self.ended = True

    def text(self) -> str:
        return ""


class Assistant:
    """The assistant; `tick` takes a request if there is one, adds a token to every text and advances every check."""

    def __init__(self, studio: Studio):
        from peftbook.studio.trained_model import ModelCache

        self.studio = studio
        self.models = ModelCache(studio)
        self.under_way: list[Stream | RunningCheck] = []

    def tick(self) -> bool:
        """One round of work; False if there was nothing to do."""
        request = self.studio.take(self.room())
        if request is not None:
            self.studio.work_on(request.id)
            self.guarded(request.id, functools.partial(self.begin, request))
        under_way = list(self.under_way)
        for one in under_way:
            if not self.guarded(one.request, functools.partial(self.advance, one)) or one.ended:
                self.under_way.remove(one)
        return request is not None or bool(under_way)

    def room(self) -> list[str]:
        """The kinds of requests that can be taken now."""
        texts = sum(isinstance(one, Stream) for one in self.under_way)
        full = {"generate": texts >= STREAMS, "preflight": len(self.under_way) - texts >= CHECKS}
        return [kind for kind in KINDS if not full.get(kind)]

    def guarded(self, request: str, work: Callable[[], None]) -> bool:
        """Do some work for a request; an error becomes its answer and ends nothing else."""
        try:
            work()
        except sqlite3.Error:
            raise
        except Exception as error:
            why = sentence_for(error, self.studio.home) or f"This could not be computed ({type(error).__name__})."
            self.studio.settle(request, error=why)
            return False
        return True

    def begin(self, request: Request) -> None:
        """Answer at once, or start a text or a check."""
        if request.kind == "generate":
            self.under_way.append(self.stream(request))
        elif request.kind == "preflight":
            self.under_way.append(RunningCheck(request.id, self.preflight(request.payload)))
        else:
            from peftbook.studio.downloads import artefact_of

            job = self.studio.job(request.payload["job"])
            artefact_of(self.studio, job, request.payload["name"]).make(self.studio, job)
            self.studio.settle(request.id)

    def advance(self, one: Stream | RunningCheck) -> None:
        """Advance a text or a check, and store its progress."""
        if isinstance(one, RunningCheck):
            self.studio.work_on(one.request)
        one.advance()
        if one.ended:
            self.studio.settle(one.request, text=one.text(), result=one.result)
        elif time.monotonic() - one.written_at > one.pause:
            one.ended = not self.studio.say(one.request, one.text())
            one.written_at = time.monotonic()

    def stream(self, request: Request) -> Stream:
        """Start the text of a "generate" request. Raises InputError for values out of bounds."""
        import torch

        from peftbook.studio.trained_model import answer_ids

        asked = request.payload
        how = sampling_of(asked)
        task = self.studio.task(asked["project"])
        run = None
        if asked.get("job"):
            job = self.studio.job(asked["job"])
            if job.project != asked["project"]:
                raise InputError(f"Job {job.id!r} is of another project: choose one of this project.")
            loaded, platform, run = self.models.of_job(job), platform_here(job.run.platform), job.run
        else:
            platform = asked.get("platform", "cpu")
            loaded = self.models.as_it_comes(build(specs.Model, **asked.get("model", {})), platform)
        torch.set_num_threads(1 if self.trains() else best_threads())
        ids = answer_ids(loaded, task, str(asked.get("text", "")), how, run, platform)
        return Stream(request.id, ids, loaded.tokenizer, how.max_new_tokens)

    def preflight(self, asked: dict) -> Iterator[Check | None]:
        """The steps of `plan.preflight` for the runs that a request names."""
        import psutil
        import torch

        from peftbook.studio.preflight import preflight_steps

        torch.set_num_threads(best_threads())  # the rates are those of so many
        runs = [specs.Run.model_validate_json(text) for text in asked["runs"]]
        task = self.studio.task(asked["project"])
        parent = psutil.Process().parent()
        family = [] if parent is None else parent.children()
        measure = not self.trains()  # beside a training, it takes many minutes
        return preflight_steps(task, runs, memory_for(runs, family), measure=measure)

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
    """Answer until nobody has asked for IDLE_SECONDS."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.studio.assistant", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    args = parser.parse_args(argv)
    die_with_parent()
    os.nice(10)
    from peftbook.core.quiet import quieten_libraries

    quieten_libraries()
    assistant = Assistant(Studio(args.home, durable=False))
    last = time.monotonic()
    while time.monotonic() - last < IDLE_SECONDS:
        if assistant.tick():
            last = time.monotonic()
        else:
            time.sleep(0.1)


if __name__ == "__main__":
    main()
