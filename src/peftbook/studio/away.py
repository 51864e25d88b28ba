"""Away: a job of the studio computed on a node of a Ray cluster, in a process of its own, and what comes back of it.

There a folder stands for the home, without a database. What the job starts from comes with it, as bytes: the project's
file, weights and checkpoint that the run goes on from. How far it is, its checkpoints, its answers, what was trained
and its records go back as news, one after the other. `python -m peftbook.studio.away` is the process that computes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from peftbook import specs
from peftbook.decision.forgetting import prose_probe
from peftbook.errors import InputError
from peftbook.exchange import files_of
from peftbook.processes import Child, die_with_parent, fast_exit, lock_file
from peftbook.records import Store
from peftbook.studio.jobs import parse_run
from peftbook.studio.store import _project, _task
from peftbook.studio.work import Reporter, compute_in, go_first, in_a_sentence

PIECE_BYTES = 8_000_000  # of a file that travels: pieces of several jobs are in memory at a time
LOOK_SECONDS = 0.25
CHECKPOINT_SHARE = 0.1  # of the time, at most, in which a checkpoint travels
FOLDER = "peftbook-away-"  # of the machine's temporary ones
ERRAND, SAID = "errand.json", "said.jsonl"


@dataclass(frozen=True)
class Began:
    """The node that computes the job, by its name."""

    node: str


@dataclass(frozen=True)
class Said:
    """How far the attempt is, once or several times, as `progress` of the store takes it."""

    progress: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Piece:
    """Some of a file of the project's folder; whole after the last one."""

    name: str
    data: bytes
    last: bool


@dataclass(frozen=True)
class Ended:
    """The exit status of the process that computed, negative the signal that ended it, and why if it ended badly."""

    status: int
    why: str


News = Began | Said | Piece | Ended


def errand_of(run: specs.Run, project: Mapping[str, Any], threads: int) -> str:
    """What the process on the node is told. project: its row in the store."""
    return json.dumps({"run": run.canonical(), "project": dict(project), "threads": threads})


# --- the task of Ray's -----------------------------------------------------------------------------------------


def compute_away(errand: str, code: str, files: Mapping[str, Sequence[Any]]) -> Iterator[News]:
    """Compute a job on the node where this is called, and say what comes of it.

    errand: of `errand_of`.  code: the peftbook that the node must have.  files: of the project's folder, each in
    pieces that are objects of Ray's.
    """
    import ray

    from peftbook.cluster import code_here, other_code, this_node

    node = this_node()
    if (here := code_here()) != code:
        yield Began(node)
        yield Ended(2, other_code(node, here, code))
        return
    told = json.loads(errand)
    with kept_while_alive() as home:
        folder = home / "projects" / told["project"]["id"]
        (home / ERRAND).write_text(errand)
        for name, pieces in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                for piece in pieces:
                    stream.write(ray.get(piece))
        yield Began(node)
        yield from compute_apart(home, folder, parse_run(told["run"]), told["threads"])


def compute_apart(home: Path, folder: Path, run: specs.Run, threads: int) -> Iterator[News]:
    """Compute a run in a process of its own, with news while it does and when it has."""
    words = ("-m", "peftbook.studio.away", "--home", str(home))
    with Child(*words, threads=threads, variables={"TOKENIZERS_PARALLELISM": "false"}) as child:
        outbox = Outbox(home, folder, run)
        while not child.wait(LOOK_SECONDS):
            yield from outbox.news()
        yield from outbox.last_news(done=child.status == 0)
        yield Ended(child.status, child.failure())


@contextlib.contextmanager
def kept_while_alive() -> Iterator[Path]:
    """A new folder that goes with this process: at once, or with the next such folder where the process was killed."""
    temporary = Path(tempfile.gettempdir())
    for left in temporary.glob(f"{FOLDER}*"):
        if left.is_dir():
            with contextlib.suppress(InputError, OSError), lock_file(lock_of(left), "its process lives"):
                shutil.rmtree(left)
    home = temporary / f"{FOLDER}{os.getpid()}-{time.time_ns():x}"
    with lock_file(lock_of(home), "taken"):
        home.mkdir(mode=0o700)
        try:
            yield home
        finally:
            shutil.rmtree(home, ignore_errors=True)


def lock_of(home: Path) -> Path:
    """What whoever fills the folder holds; beside it, so that it is held before there is a folder."""
    return home.with_name(f"{home.name}.lock")


@dataclass
class Outbox:
    """What has changed in a job's folder and not been sent.

    sent: what a file was when it was sent, by its name.  rest: until then no checkpoint travels.
    """

    home: Path
    folder: Path
    run: specs.Run
    place: int = 0
    sent: dict[str, object] = field(default_factory=dict)
    rest: float = -math.inf

    def news(self) -> Iterator[News]:
        """Progress, answers that were written, and the last checkpoint if the one before came long ago."""
        if lines := self.lines():
            yield Said(tuple(map(json.loads, lines)))
        yield from self.changed(f"answers/{self.run.key[:12]}.json")
        if time.monotonic() >= self.rest:
            began = time.monotonic()
            yield from self.checkpoint()
            took = time.monotonic() - began
            self.rest = time.monotonic() + took / CHECKPOINT_SHARE

    def last_news(self, *, done: bool) -> Iterator[News]:
        """What is left to say when the process has ended; of one that is done, all that it made."""
        self.rest = -math.inf
        yield from self.news()
        if done:
            for path in sorted((self.folder / "adapters" / self.run.key[:12]).glob("*")):
                with path.open("rb") as stream:
                    yield from pieces(path.relative_to(self.folder).as_posix(), stream)
            store = Store(self.folder / "records")
            for key in (prose_probe(self.run).key, self.run.key):
                for name, data in files_of(store, key).items():
                    yield Piece(f"records/{name}", data, last=True)

    def lines(self) -> list[str]:
        """Whole lines that the process has written since they were read."""
        try:
            with (self.home / SAID).open("rb") as stream:
                stream.seek(self.place)
                said = stream.read()
        except OSError:
            return []
        whole = said[: said.rfind(b"\n") + 1]
        self.place += len(whole)
        return whole.decode().splitlines()

    def changed(self, name: str) -> Iterator[Piece]:
        """A file that is replaced whole, if it was since it was sent."""
        try:
            with (self.folder / name).open("rb") as stream:
                if self.is_new(name, stream):
                    yield from pieces(name, stream)
        except FileNotFoundError:
            return

    def checkpoint(self) -> Iterator[Piece]:
        """The last one, if it is new: its tensors, then the file that names them; as it was when it was opened."""
        place = f"checkpoints/{self.run.checkpoint}"
        try:
            with contextlib.ExitStack() as stack:
                progress = stack.enter_context((self.folder / place / "progress.json").open("rb"))
                state = f"{place}/state-{json.loads(progress.read())['step']}.safetensors"
                progress.seek(0)
                tensors = stack.enter_context((self.folder / state).open("rb"))
                if self.is_new(place, progress):
                    yield from pieces(state, tensors)
                    yield from pieces(f"{place}/progress.json", progress)
        except FileNotFoundError:  # there is none yet, or the next one came between the two
            return

    def is_new(self, name: str, stream: BinaryIO) -> bool:
        """Whether a file is another than the one that was sent under this name; then it counts as sent."""
        status = os.fstat(stream.fileno())
        now = status.st_ino, status.st_mtime_ns
        before, self.sent[name] = self.sent.get(name), now
        return now != before


def pieces(name: str, stream: BinaryIO) -> Iterator[Piece]:
    """A file of the project's folder, piece by piece."""
    data = stream.read(PIECE_BYTES)
    while True:
        after = stream.read(PIECE_BYTES)
        yield Piece(name, data, last=not after)
        if not after:
            return
        data = after


# --- the process -----------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """Compute what the errand in a folder says; a refusal is a sentence on standard output and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.studio.away", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    args = parser.parse_args(argv)
    die_with_parent()
    go_first()
    told = json.loads((args.home / ERRAND).read_text())
    project = _project(told["project"])
    with (args.home / SAID).open("a") as said, in_a_sentence(args.home):

        def write(**fields: Any) -> None:
            said.write(json.dumps(fields) + "\n")
            said.flush()

        folder = args.home / "projects" / project.id
        compute_in(folder, parse_run(told["run"]), lambda: _task(str(args.home), project), Reporter(write))


if __name__ == "__main__":
    with fast_exit():
        main()
