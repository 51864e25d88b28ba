"""The process of a job that a node of a Ray cluster computes: `python -m peftbook.studio.placed`, as `work` is called.

It runs beside the store and writes what comes back: progress, checkpoints and answers at once, in the end what was
trained and the record, in the order in which `work` leaves them. Whoever ends it ends the job's task, wherever that is.
When the node is lost, so is this attempt: the next one goes on from the last checkpoint that came back.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftbook.decision.forgetting import prose_probe
from peftbook.errors import InputError
from peftbook.exchange import receive_record
from peftbook.studio.away import PIECE_BYTES, Began, Ended, Piece, Said, compute_away, errand_of
from peftbook.studio.nodes import seen
from peftbook.studio.store import Job, Studio, keeps_trained
from peftbook.studio.work import Lost, attend, begin, options, place_whole, start_of, sync, tidy
from peftbook.training.request import request_for

AHEAD = 4  # news that a node makes before they are taken: they lie in its memory


def main(argv: list[str] | None = None) -> None:
    """Have a node compute the job, unless it is another's."""
    parser = options(__doc__)
    parser.add_argument("--ray", required=True, metavar="HOST:PORT")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    attend(args, functools.partial(compute, address=args.ray, threads=args.threads))


def compute(studio: Studio, job: Job, *, anew: bool, address: str, threads: int) -> None:
    """Have a job computed on the cluster: from its start if `anew`, else from its checkpoint if it has one.

    Raises Lost where the node is, InputError for what cannot be computed there.
    """
    if not begin(studio, job, anew=anew):
        return
    from peftbook.cluster import joined, reason

    inbox = Inbox(studio, job)
    with joined(address), inbox:
        import ray

        inbox.take(Said(({"phase": "placing"},)))
        try:
            for reference in submitted(studio, job, threads, [node.id for node in seen(studio.home).unfit]):
                inbox.take(ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            why = f"On {inbox.where} this run cannot be computed ({reason(error)}): mend that, then resume the job."
            raise InputError(why) from None
        except ray.exceptions.RayError:
            raise Lost(f"was lost with {inbox.where}") from None
        inbox.keep()


def submitted(studio: Studio, job: Job, threads: int, avoided: list[str]) -> Any:
    """Hand a job to Ray, which finds a node with room; what it will yield. Raises InputError if no node ever has.

    avoided: ids of nodes that it may not go to.
    """
    import ray

    from peftbook.cluster import Cluster, alive_nodes, code_here

    nodes = {name: node for name, node in alive_nodes().items() if name not in avoided}
    if why := Cluster(studio.records(job.project), code_here(), threads, nodes=nodes).refuse(job.run):
        raise InputError(f"No node can take this run: {why}")
    need = request_for(job.run, threads)
    selector = {"label_selector": {"ray.io/node-id": f"!in({','.join(avoided)})"}} if avoided else {}
    task = ray.remote(compute_away).options(
        name=job.id, num_cpus=need.cpus, num_gpus=need.gpus, memory=need.memory_bytes, max_retries=0,
        num_returns="streaming", _generator_backpressure_num_objects=AHEAD, **selector,
    )  # fmt: skip
    row = studio._row("SELECT * FROM projects WHERE id = ?", job.project)
    assert row is not None
    files = {name: [ray.put(piece) for piece in whole(path)] for name, path in needed(studio, job).items()}
    return task.remote(errand_of(job.run, dict(row), threads), code_here(), files)


def needed(studio: Studio, job: Job) -> Mapping[str, Path]:
    """The files of the project's folder that a job starts from, by their names there."""
    folder = studio.folder(job.project)
    folders = [folder / "checkpoints" / job.run.checkpoint, start_of(folder, job.run)]
    paths = [folder / "data.bin", *(path for one in folders if one is not None for path in sorted(one.glob("*")))]
    return {path.relative_to(folder).as_posix(): path for path in paths}


def whole(path: Path) -> Iterator[bytes]:
    """A file, piece by piece."""
    with path.open("rb") as stream:
        while data := stream.read(PIECE_BYTES):
            yield data


class Inbox(contextlib.AbstractContextManager):
    """What has come from a node of one attempt, and where it belongs. Used with `with`.

    Files are put together aside. Checkpoints and answers then take the place of those before; the rest waits until all
    is there.
    """

    def __init__(self, studio: Studio, job: Job):
        self.studio, self.job = studio, job
        self.folder = studio.folder(job.project)
        self.node = ""
        self.ended: Ended | None = None

    def __enter__(self) -> Inbox:
        checkpoints = self.folder / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        self.aside = Path(tempfile.mkdtemp(dir=checkpoints, prefix=f".{self.job.key[:12]}."))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)
        tidy(self.folder, self.job.run)

    @property
    def where(self) -> str:
        """The node in words."""
        return f"node {self.node}" if self.node else "a node"

    def take(self, news: Any) -> None:
        """Do with news what is to be done with it."""
        match news:
            case Began():
                self.node = news.node
            case Said():
                for fields in news.progress:
                    with contextlib.suppress(sqlite3.Error, InputError):  # which stops nothing, as in `work`
                        self.studio.progress(self.job.id, self.job.attempt, **fields)
            case Piece():
                self.write(news)
            case Ended():
                self.ended = news

    def write(self, piece: Piece) -> None:
        """Some of a file. One that is whole, and may change again, is put where the next attempt and the page look."""
        path = self.aside / piece.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(piece.data)
        if piece.last and piece.name.startswith(("answers/", "checkpoints/")):
            target = self.folder / piece.name
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(path)
            path.replace(target)
            if target.name == "progress.json":
                drop_older(target)

    def keep(self) -> None:
        """What a finished attempt leaves: what was trained, its loss on plain prose, and last the record.

        Raises Lost for one whose process was killed, InputError for a refusal.
        """
        ended = self.ended or Ended(-1, "was ended")
        if ended.status < 0:
            raise Lost(f"{ended.why.replace('ended', 'was ended', 1)} on {self.where}")
        if ended.status == 2:
            raise InputError(f"On {self.where}: {ended.why}")
        if ended.status:
            raise RuntimeError(f"on {self.where}: {ended.why}")
        run, store = self.job.run, self.studio.records(self.job.project)
        adapter = Path("adapters", run.key[:12])
        if keeps_trained(run) and (self.aside / adapter).is_dir():
            (self.folder / adapter).parent.mkdir(exist_ok=True)
            place_whole(self.aside / adapter, self.folder / adapter)
        files = {path.name: path.read_bytes() for path in (self.aside / "records").glob("*")}
        (self.folder / "answers" / f"{run.key[:12]}.json").unlink(missing_ok=True)
        if f"{prose_probe(run).key[:12]}.json" in files:
            receive_record(store, prose_probe(run).key, files)
        record = receive_record(store, run.key, files)
        if run.whole is run or record.failure:
            shutil.rmtree(self.folder / "checkpoints" / run.checkpoint, ignore_errors=True)


def drop_older(progress: Path) -> None:
    """Remove the tensors of checkpoints before the one that this file names."""
    named = f"state-{json.loads(progress.read_bytes())['step']}.safetensors"
    for path in progress.parent.glob("state-*.safetensors"):
        if path.name != named:
            path.unlink()


if __name__ == "__main__":
    main()
