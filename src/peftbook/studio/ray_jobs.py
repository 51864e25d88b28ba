"""A job of the studio as a task of a Ray cluster: what the node gets, and what becomes of the files that come back.

Only this machine writes the database. The task's folder on the node is the job's project folder, and
`python -m peftbook.studio.ray_jobs` is the process there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.exchange import receive_record
from peftbook.decision.forgetting import prose_probe
from peftbook.runtime.processes import die_with_parent, fast_exit
from peftbook.runtime.ray_engine import (
    FOLDER_VARIABLE,
    PROGRESS,
    NodeLost,
    NodeTask,
    ProgressLines,
    Submission,
    obstacle,
)
from peftbook.runtime.ray_nodes import Nodes, connected
from peftbook.runtime.resources import request_for
from peftbook.studio import work
from peftbook.studio.jobs import parse_run
from peftbook.studio.store import Job, Studio, keeps_trained, project_of, ray_nodes, task_of

# ---- here


def compute(studio: Studio, job: Job, *, anew: bool, address: str, threads: int) -> None:
    """Have a node compute a job: from its start if `anew`, else from the last checkpoint that came back.

    Ends the process with LOST if the node is lost. Raises InputError for what cannot be computed there.
    """
    if not work.begin(studio, job, anew=anew):
        return

    def report(**fields: Any) -> None:
        with contextlib.suppress(sqlite3.Error, InputError):  # progress that cannot be written stops nothing
            studio.progress(job.id, job.attempt, **fields)

    folder = studio.folder(job.project)
    (folder / "checkpoints").mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder / "checkpoints", prefix=f".{job.key[:12]}."))
    try:
        with connected(address):
            report(phase="placing")
            submission = submit(studio, job, threads, staging)
            for event in submission.events():
                if isinstance(event, ProgressLines):
                    for fields in event.lines:
                        report(**fields)
                elif event.startswith("checkpoints/"):
                    place_checkpoint(staging / event, folder / event)
        receive(studio, job, submission)
    except NodeLost as error:
        print(error, flush=True)
        raise SystemExit(work.LOST) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        work.tidy(folder, job.run)


def submit(studio: Studio, job: Job, threads: int, staging: Path) -> Submission:
    """Hand a job to Ray. Raises InputError if no node has room for it."""
    nodes = ray_nodes(studio.home) or Nodes()
    if why := obstacle(job.run, nodes, threads):
        raise InputError(f"No node can take this run: {why}")
    row = studio._row("SELECT * FROM projects WHERE id = ?", job.project)
    assert row is not None
    request = json.dumps({"run": job.run.canonical(), "project": dict(row)})
    words, variables = ("-m", "peftbook.studio.ray_jobs"), {"TOKENIZERS_PARALLELISM": "false"}
    task = NodeTask(job.id, words, request, threads, variables)
    return Submission(task, inputs(studio, job), request_for(job.run, threads), nodes, staging)


def inputs(studio: Studio, job: Job) -> Mapping[str, Path]:
    """The files of the project's folder that a job starts from: rows, checkpoint, weights."""
    folder = studio.folder(job.project)
    folders = [folder / "checkpoints" / job.run.checkpoint, work.start_of(folder, job.run)]
    paths = [folder / "data.bin", *(path for each in folders if each for path in sorted(each.glob("*")))]
    return {path.relative_to(folder).as_posix(): path for path in paths}


def place_checkpoint(path: Path, target: Path) -> None:
    """Move a file of a checkpoint to where the next attempt looks for it; the last one removes older tensors."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work.sync(path)
    path.replace(target)
    if target.name == "progress.json":
        state = f"state-{json.loads(target.read_bytes())['step']}.safetensors"
        for old in target.parent.glob("state-*.safetensors"):
            if old.name != state:
                old.unlink()


def receive(studio: Studio, job: Job, submission: Submission) -> None:
    """Save what a finished task made: the adapter, its loss on plain prose, and last the record.

    Raises NodeLost if the process was killed, InputError for a refusal.
    """
    ended, where = submission.ended, submission.where
    if ended.status < 0:
        raise NodeLost(f"was {ended.why} on {where}")
    if ended.status:
        raise (InputError if ended.status == 2 else RuntimeError)(f"On {where}: {ended.why}")
    run, store, folder = job.run, studio.records(job.project), studio.folder(job.project)
    adapter = Path("adapters", run.key[:12])
    if keeps_trained(run) and (submission.staging / adapter).is_dir():
        (folder / adapter).parent.mkdir(exist_ok=True)
        work.place_whole(submission.staging / adapter, folder / adapter)
    files, prose = submission.records(), prose_probe(run).key
    if f"{prose[:12]}.json" in files:
        receive_record(store, prose, files)
    record = receive_record(store, run.key, files)
    if run.whole is run or record.failure:
        shutil.rmtree(folder / "checkpoints" / run.checkpoint, ignore_errors=True)


# ---- on the node


def main() -> None:
    """Compute the job that standard input describes; a refusal is a sentence on standard output and exit status 2."""
    request = json.loads(sys.stdin.buffer.readline())
    die_with_parent()
    work.go_first()
    folder, project = Path(os.environ[FOLDER_VARIABLE]), project_of(request["project"])
    with (folder / PROGRESS).open("a") as stream, work.in_a_sentence(folder):

        def write(**fields: Any) -> None:
            stream.write(json.dumps(fields) + "\n")
            stream.flush()

        work.compute_in(folder, parse_run(request["run"]), lambda: task_of(folder, project), work.Reporter(write))


if __name__ == "__main__":
    with fast_exit():
        main()
