"""Train: `peftbook train`, one run on a reader's file, by the studio's worker; a run that is at hand is taken."""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.core.exchange import files_of, receive_record
from peftbook.core.options import read_options
from peftbook.core.records import Record, Store
from peftbook.decision.own_metrics import own_scores
from peftbook.studio.artefacts import SHOWN as SCORES
from peftbook.studio.foreground import TRAIN
from peftbook.studio.own_file import OwnFile, compute
from peftbook.studio.plan import run_alone
from peftbook.studio.settings import Guessed, Scoring, Single
from peftbook.studio.store import Job, Studio

SHOWN = (*SCORES, "trainable_parameters", "train_steps", "train_seconds", "peak_memory_bytes")


def train_on_file(args: argparse.Namespace) -> int:
    """The command: 0 if the run is done, 130 after Ctrl-C. Raises InputError for bad input and for a failed run.

    Everything is checked before anything is stored; the folder appears whole, by rename, when all is done.
    """
    if args.out.exists():
        raise InputError(f"Output folder {str(args.out)!r} exists: name a new one, results are never overwritten.")
    single, metrics = read_options(Single, args), read_options(Scoring, args).metrics
    file = OwnFile.read(args.file, read_options(Guessed, args))
    run = run_alone(file.task, single)
    studio = Studio(args.home)
    if (computed := compute(studio, file, [run], TRAIN)) is None:
        return 130
    project, (job,) = computed
    record = studio.records(project.id).get(run)
    if record is None or record.failure:
        raise InputError(job.error or f"The run is {job.state}: give the same command again.")
    targets = [example.target for example in file.task.splits["test"]]
    written = studio.records(project.id).texts(record)
    own = {one.name: own_scores(one, [written], targets)[0] for one in metrics if written}
    write_out(studio, job, args.out)
    print_measurements(record)
    for name, scores in own.items():
        print(f"{name:<22} {math.fsum(scores) / len(scores):,.4g}")
    print(f"Record, texts{' and adapter' if run.budget else ''} are in {args.out}")
    return 0


def write_out(studio: Studio, job: Job, out: Path) -> None:
    """Copy record, texts and what was trained into a new folder, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".peftbook-") as folder:
        work = Path(folder)
        receive_record(Store(work), job.key, files_of(studio.records(job.project), job.key))
        if (trained := studio.adapter(job)) is not None:
            shutil.copytree(trained, work / "adapter")
        work.replace(out)


def print_measurements(record: Record) -> None:
    for name in SHOWN:
        if name in record.measurements:
            print(f"{name:<22} {record.measurements[name]:,.4g}")
