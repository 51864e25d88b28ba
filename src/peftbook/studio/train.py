"""Train: `peftbook train`, one run on a reader's file, by the studio's worker; a run that is at hand is taken."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.folders import check_free
from peftbook.core.options import read_options
from peftbook.core.progress import duration
from peftbook.decision import Comparison
from peftbook.methods.untuned import Untuned
from peftbook.studio.decisions import FIRST_MEASURE, project_comparison
from peftbook.studio.downloads import fill_folder
from peftbook.studio.foreground import TRAIN
from peftbook.studio.formats import number, size
from peftbook.studio.own_file import OwnFile, compute, dry_run
from peftbook.studio.plan import SIZES, run_alone
from peftbook.studio.settings import Guessed, Scoring, Single
from peftbook.studio.store import Job, Studio
from peftbook.studio.tabular import difference, digits, ends
from peftbook.studio.terminal import aligned


def train_on_file(args: argparse.Namespace) -> int:
    """The command: 0 if the run is done, 130 after Ctrl-C. Raises InputError for bad input and for a failed run.

    Everything is checked before anything is stored; the folder appears whole, by rename, when all is done. The untuned
    model is scored beside the one that is trained.
    """
    check_free(args.out)
    single, metrics = read_options(Single, args), read_options(Scoring, args).metrics
    file = OwnFile.read(args.file, read_options(Guessed, args)).counted(single.settings)
    run = run_alone(file.task, single, file.tokens)
    unsized: dict[str, Any] = dict.fromkeys(SIZES)
    plain = replace(single, method="untuned", seed=0, learning_rate=None, **unsized)
    runs = [run] if run.method == Untuned() else [run_alone(file.task, plain, file.tokens), run]
    studio = Studio(args.home)
    measure = FIRST_MEASURE if run.evaluation.n_generate else "perplexity"
    if args.dry_run:
        dry_run(studio, file, runs, None, measure)
        return 0
    if (computed := compute(studio, file, runs, TRAIN, measure=measure)) is None:
        return 130
    project, jobs = computed
    job = next(one for one in jobs if one.run == run)
    record = studio.records(project.id).get(run)
    if record is None or record.failure:
        raise InputError(job.error or f"The run is {job.state}: give the same command again.")
    write_out(studio, job, args.out)
    print(summary(project_comparison(studio, project.id, jobs, measure, metrics=metrics), job))
    print(f"Model, card, outputs and record are in {args.out}: peftbook chat {args.out}")
    return 0


def write_out(studio: Studio, job: Job, out: Path) -> None:
    """Write a new folder, whole or not at all."""
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".peftbook-") as folder:
        work = Path(folder)
        fill_folder(studio, job, work)
        work.chmod(0o755)
        work.replace(out)


def summary(found: Comparison, job: Job) -> str:
    """The scores of a job beside the untuned model's, and what training it took."""
    row = next(one for one in found.rows if one.run == job.run)
    plain = next((one for one in found.rows if one.plain and one is not row), None)
    measures = {one.name: one for one in found.measures}
    headers = ["", f"{row.label} (95 %)", *(["untuned", "difference (95 %)"] if plain else [])]
    cells = []
    for name, score in row.scores.items():
        against = f"{difference(row.against_untuned.get(name))} {measures[name].unit}".rstrip()
        beside = [] if plain is None else [digits(plain.scores.get(name), name), against]
        cells.append([measures[name].label, f"{digits(score, name)} ({ends(score, name)})", *beside])
    costs = [f"{number(row.trainable_parameters)} trained parameters", f"trained in {duration(row.train_seconds)}",
             f"peak memory {size(row.peak_memory_bytes)}"]  # fmt: skip
    head = f"On {found.test_examples:,} test examples:"
    return "\n".join([head, aligned(headers, cells), *([] if row.untuned else [", ".join(costs)])])
