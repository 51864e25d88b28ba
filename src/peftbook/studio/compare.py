"""Compare: `peftbook compare`, the studio from the command line. Same store, same jobs, same table.

The same file with the same columns, split and instruction is the same project, and a run that the project has a record
of is answered from it. Ctrl-C takes what is not done off the queue; it goes on from its checkpoint when the command is
given again.
"""

from __future__ import annotations

import argparse
import shlex

from pydantic import ValidationError
from pydantic_core import to_json

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import check_writable
from peftbook.core.options import read_options, words_of
from peftbook.core.records import write_atomically
from peftbook.decision import check_choices
from peftbook.studio.decisions import project_comparison, whole_report
from peftbook.studio.foreground import COMPARE, note, noted_failures
from peftbook.studio.own_file import OwnFile, compute, dry_run
from peftbook.studio.plan import plan
from peftbook.studio.settings import Guessed, Judging, Settings
from peftbook.studio.store import Studio
from peftbook.studio.tabular import to_csv
from peftbook.studio.terminal import as_json, show
from peftbook.studio.tuning import is_trial
from peftbook.tasks import TaskData


def compare_file(args: argparse.Namespace) -> int:
    """The command: 0 if every run is done, 1 if some failed, 130 after Ctrl-C. Raises InputError for bad input.

    Everything is checked before a project is made, and every run's need of memory before it is queued.
    """
    judging = judging_of(args)
    settings = read_options(Settings, args)
    file = OwnFile.read(args.file, read_options(Guessed, args))
    if not args.run:
        file = file.counted(settings)
    runs = [given_run(text, file.task) for text in args.run] if args.run else plan(file.task, settings, file.tokens)
    studio = Studio(args.home)
    if args.dry_run:
        dry_run(studio, file, runs, None if args.run else settings, judging.measure)
        return 0
    given = None if args.run else settings
    if (computed := compute(studio, file, runs, COMPARE, given, judging.measure)) is None:
        return 130
    project, jobs = computed
    failed = noted_failures(jobs)
    judged = [job for job in jobs if args.run or not is_trial(job.run)]
    records = [record for job in judged if (record := studio.records(project.id).get(job.run)) is not None]
    if all(record.failure for record in records):
        note("No run has finished: there is nothing to compare.")
        return 1
    own = judging.metrics
    comparison = project_comparison(studio, project.id, judged, judging.measure, margin=judging.margin, metrics=own)
    if args.json:
        body = as_json(comparison) | {"project": project.id, "jobs": [job.id for job in jobs]}
        print(to_json(body, indent=1, inf_nan_mode="null").decode())
    else:
        print(show(comparison))
    if args.report:
        page = whole_report(studio, project.id, judged, comparison, [command_of(args)])
        write_atomically(args.report, page.encode())
        note(f"Report: {args.report}")
    if args.csv:
        write_atomically(args.csv, to_csv(comparison).encode("utf-8-sig"))
        note(f"Table: {args.csv}")
    return 1 if failed else 0


def judging_of(args: argparse.Namespace) -> Judging:
    """What decides. Raises InputError, before anything is read, for it and for files that cannot be written."""
    judging = read_options(Judging, args)
    check_choices(judging.measure, margin=judging.margin, metrics=judging.metrics)
    for path in filter(None, (args.report, args.csv)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{str(path)!r} cannot be written: name a file in a folder that exists.")
        if path.absolute() == args.file.absolute():
            raise InputError(f"{str(path)!r} is the data itself: name another file for the result.")
        check_writable(path)
    return judging


def given_run(text: str, task: TaskData) -> specs.Run:
    """A run from its canonical text. Raises InputError where it is none, or is of other data."""
    try:
        run = specs.Run.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"--run is not a run ({where}: {first['msg']}): copy it from the studio or a report."
        ) from None
    if run.task != task.spec:
        raise InputError(
            f"Run {run.key[:12]} is of data {run.task.data_sha256[:12]}…, this file with these columns is "
            f"{task.data_sha256[:12]}…: give the same file, columns, split and instruction."
        )
    return run


def command_of(args: argparse.Namespace) -> str:
    """The command as it would be typed, without where its results went."""
    words = ["peftbook", "compare", args.file.name]
    for model in (Guessed, Settings, Judging):
        words += words_of(model, args)
    for text in args.run or ():
        words += ["--run", text]
    return shlex.join(words)
