"""Compare: `peftbook compare`, the studio from the command line. Same store, same jobs, same table.

The same file with the same columns, split and instruction is the same project, and a run that the project has a record
of is answered from it. Ctrl-C takes what is not done off the queue; it goes on from its checkpoint when the command is
given again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from peftbook import specs
from peftbook.base_models import model_named
from peftbook.decision import Comparison, check_choices, compare
from peftbook.errors import InputError
from peftbook.records import Record, write_atomically
from peftbook.studio import report
from peftbook.studio.markup import span
from peftbook.studio.plan import Settings, plan
from peftbook.studio.smaller import smaller_plan
from peftbook.studio.store import STARTED, Job, Project, Studio, start_worker
from peftbook.studio.terminal import Ticker, as_json, show
from peftbook.tasks import TaskData
from peftbook.tasks.files import Split, describe_reading, read_file, task_from_table
from peftbook.tasks.table import Columns

__all__ = ["Outcome", "compare_file", "find_project", "wait_for"]

PLAN = "peftbook compare"
POLL_SECONDS = 0.25
STOP_SECONDS = 15.0  # for a worker to end a job that was cancelled; it takes a fraction of one
SAID = ("command", "handler", "file", "input", "target")
PLACES = ("home", "report", "csv", "json")  # options that say where results go
REPEATED = ("run", "learning_rate")  # options that may be given several times


@dataclass(frozen=True)
class Outcome:
    """What became of a plan. comparison: of the runs that finished, None where none did."""

    studio: Studio
    project: Project
    jobs: tuple[Job, ...]
    records: tuple[Record, ...]
    comparison: Comparison | None

    @property
    def failed(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.state != "done")


def compare_file(args: argparse.Namespace, usual: argparse.Namespace) -> int:
    """The command: 0 if every run is done, 1 if some failed, 130 after Ctrl-C. Raises InputError for bad input.

    usual: what the command has where nothing is said.
    Everything is checked before a project is made, and every run's need of memory before it is queued.
    """
    check_output(args)
    content, table = read_file(args.file)
    columns, split = Columns(args.input, args.target, args.instruction_column, args.group), split_of(args)
    task = task_from_table(table, columns, split, args.instruction)
    runs = chosen_runs(args, task)
    studio = Studio(args.home)
    project = find_project(studio, table.sha256, columns, split, args.instruction)
    for line in describe_reading(args.file.name, table, columns, task):
        note(line)
    if project is not None:
        note(f"Project {project.name!r} has this file already: finished runs are taken from it.")
    refuse_misfits(studio, project, task, runs, None if args.run else settings_of(args))
    if project is None:
        project = studio.create_project(args.file.stem, content, args.file.name, columns, split, args.instruction)
    elsewhere = wanted_elsewhere(studio, project)
    plan_id = studio.submit(project.id, runs, name=PLAN)
    if not wait_for(studio, plan_id, elsewhere):
        return 130
    found = outcome(studio, project, task, studio.jobs(plan=plan_id), args)
    return write_out(found, args, usual)


# --- what was asked for ----------------------------------------------------------------------------------------


def check_output(args: argparse.Namespace) -> None:
    """Raises InputError for choices and files that cannot be, before anything is read."""
    check_choices(args.measure, margin=args.margin)
    for path in filter(None, (args.report, args.csv)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{str(path)!r} cannot be written: name a file in a folder that exists.")
        if path.absolute() == args.file.absolute():
            raise InputError(f"{str(path)!r} is the data itself: name another file for the result.")


def split_of(args: argparse.Namespace) -> Split:
    """Seed and shares of the split."""
    return Split(seed=args.split_seed, fractions=tuple(args.fractions))


def chosen_runs(args: argparse.Namespace, task: TaskData) -> tuple[specs.Run, ...]:
    """The runs of the settings, or those that are given whole by --run."""
    if args.run:
        return tuple(given_run(text, task) for text in args.run)
    return plan(task, settings_of(args))


def settings_of(args: argparse.Namespace) -> Settings:
    """What the options ask for."""
    rates = {} if args.learning_rate is None else dict(rate_named(one) for one in args.learning_rate)
    return Settings(
        models=tuple(model_named(name) for name in listed(args.models)),
        methods=listed(args.methods),
        seeds=args.seeds,
        epochs=args.epochs,
        tokens=args.tokens,
        batch_size=args.batch_size,
        max_length=args.max_length,
        max_new_tokens=args.max_new_tokens,
        test_examples=args.test_examples,
        learning_rates=rates,
        rank=args.rank,
        platform=args.platform,
        dtype=args.dtype,
    )


def listed(text: str) -> tuple[str, ...]:
    """The names in a list with commas; those within brackets divide nothing."""
    return tuple(filter(None, map(str.strip, re.split(r",(?![^\[]*\])", text))))


def rate_named(text: str) -> tuple[str, float]:
    """`lora=4e-4` as a pair. Raises InputError for another text."""
    name, sign, value = text.rpartition("=")
    try:
        return name.strip(), float(value if sign else "")
    except ValueError:
        raise InputError(f"{text!r} is no learning rate of a method: write it as lora=4e-4.") from None


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


# --- project, queue --------------------------------------------------------------------------------------------


def find_project(studio: Studio, sha256: str, columns: Columns, split: Split, instruction: str) -> Project | None:
    """The first project of this file read in this way."""
    for one in studio.projects():
        if (one.sha256, one.columns, one.split, one.instruction) == (sha256, columns, split, instruction):
            return one
    return None


def refuse_misfits(
    studio: Studio, project: Project | None, task: TaskData, runs: Sequence[specs.Run], settings: Settings | None = None
) -> None:
    """Raises InputError if a run that must be computed does not fit this machine; says how long they will take.

    settings: of the runs; where all are new and take long, the options of a smaller plan are said too.
    """
    new = [run for run in runs if project is None or run not in studio.records(project.id)]
    if not new:
        return
    from peftbook.studio.assistant import memory_for
    from peftbook.studio.plan import preflight
    from peftbook.training.calibration import known_rates
    from peftbook.training.execute import quieten_libraries

    quieten_libraries()
    timed = known_rates(new[0].platform) is not None  # measuring them beside other work can take longer than the runs
    checks = preflight(task, new, memory_for(new), timed=timed)
    for check in checks:
        if not check.fits:
            raise InputError(f"{check.label or 'A run'} cannot be run here. {check.words}")
    known = [check.seconds for check in checks if check.seconds is not None]
    about = f", about {span(sum(known))}" if len(known) == len(new) else ""
    cached = f", {len(runs) - len(new)} are at hand" if len(new) < len(runs) else ""
    note(f"{len(new)} runs to compute{about}{cached}.")
    if settings is not None and len(new) == len(runs) and (less := smaller_plan(settings, new, checks)) is not None:
        note(f"A smaller plan would take about {span(less.seconds)}: {less.options}")


def wanted_elsewhere(studio: Studio, project: Project) -> frozenset[str]:
    """Ids of the jobs that wait or run because a plan of the studio's page asked for them."""
    asked = {job for plan in studio.plans(project.id) if plan.name != PLAN for job in plan.jobs}
    return frozenset(job.id for job in studio.jobs(project.id) if job.id in asked and unfinished(job))


def unfinished(job: Job) -> bool:
    """Whether a job has not ended."""
    return job.state in ("queued", "running")


def wait_for(studio: Studio, plan_id: str, elsewhere: frozenset[str] = frozenset()) -> bool:
    """Wait until no job of a plan is queued or runs, a worker always alive; False after Ctrl-C.

    elsewhere: ids of jobs that are left to others who want them too.  A worker that this process started is ended when
    nothing is left to do, or with Ctrl-C.
    """
    try:
        with Ticker(sys.stderr) as ticker:
            while True:
                jobs = studio.jobs(plan=plan_id)
                ticker.show(jobs)
                if not any(map(unfinished, jobs)):
                    break
                start_worker(studio.home)
                time.sleep(POLL_SECONDS)
        end_worker(studio, waiting=False)
    except KeyboardInterrupt:
        note(stop(studio, plan_id, elsewhere))
        return False
    return True


def stop(studio: Studio, plan_id: str, elsewhere: frozenset[str] = frozenset()) -> str:
    """Take a plan's jobs off the queue, so that nothing waits behind them, and wait until none runs; what was done.

    The one under way is ended and keeps its last checkpoint, whoever's worker it was. Those in `elsewhere` stay.
    """
    taken = [job for job in studio.jobs(plan=plan_id) if unfinished(job) and job.id not in elsewhere]
    for job in taken:
        studio.cancel(job.id)
    end_worker(studio, waiting=True)
    deadline = time.monotonic() + STOP_SECONDS
    while any(studio.job(job.id).state == "running" for job in taken) and time.monotonic() < deadline:
        studio.release()
        time.sleep(POLL_SECONDS)
    jobs = studio.jobs(plan=plan_id)
    done, off = (sum(job.state == state for job in jobs) for state in ("done", "cancelled"))
    parts = [f"{done} of {len(jobs)} runs are done", f"{off} taken off the queue"]
    for job in taken:
        if job.state == "running":
            kept = (studio.folder(job.project) / "checkpoints" / job.key[:16] / "progress.json").is_file()
            parts.append(f"the one under way {'keeps its checkpoint' if kept else 'had no checkpoint yet'}")
    if left := sum(unfinished(job) and job.id in elsewhere for job in jobs):
        parts.append(f"{left} stay queued for the studio, which asked for them too")
    return f"Stopped: {', '.join(parts)}; give the same command again to go on."


def end_worker(studio: Studio, waiting: bool) -> bool:
    """End the worker if this process started it, and if nothing waits or that is no reason; whether it was ended."""
    busy = any(map(unfinished, studio.jobs()))
    mine = [process for process in STARTED if process.poll() is None]
    if not mine or (busy and not waiting):
        return False
    for process in mine:
        process.terminate()
    for process in mine:
        process.wait()
    STARTED[:] = [process for process in STARTED if process not in mine]
    return True


# --- results ---------------------------------------------------------------------------------------------------


def outcome(studio: Studio, project: Project, task: TaskData, jobs: Sequence[Job], args: argparse.Namespace) -> Outcome:
    """The records of a plan and their comparison."""
    store = studio.records(project.id)
    records = tuple(record for job in jobs if (record := store.get(job.run)) is not None)
    if not any(not record.failure for record in records):
        return Outcome(studio, project, tuple(jobs), records, None)
    texts = {record.key: written for record in records if (written := store.texts(record))}
    examples = task.splits[jobs[0].run.evaluation.split]
    found = compare(records, texts, examples, measure=args.measure, margin=args.margin)
    return Outcome(studio, project, tuple(jobs), records, found)


def write_out(found: Outcome, args: argparse.Namespace, usual: argparse.Namespace) -> int:
    """Print the table, write the files that were asked for; the exit status."""
    for job in found.failed:
        note(f"{job.label}: {job.state}{f', {job.error}' if job.error else ''}")
    if found.comparison is None:
        note("No run has finished: there is nothing to compare.")
        return 1
    if args.json:
        body = as_json(found.comparison) | {"project": found.project.id, "jobs": [job.id for job in found.jobs]}
        print(json.dumps(body, indent=1, ensure_ascii=False))
    else:
        print(show(found.comparison))
    if args.report:
        splits = {name: len(examples) for name, examples in found.studio.task(found.project.id).splits.items()}
        commands = [command_of(args, usual)]
        page = report.to_html(found.comparison, found.project, records=found.records, splits=splits, commands=commands)
        write_atomically(args.report, page.encode())
        note(f"Report: {args.report}")
    if args.csv:
        write_atomically(args.csv, report.to_csv(found.comparison).encode("utf-8-sig"))
        note(f"Table: {args.csv}")
    return 1 if found.failed else 0


def command_of(args: argparse.Namespace, usual: argparse.Namespace) -> str:
    """The command as it would be typed, without where its results went. usual: the same without any option."""
    words = ["peftbook", "compare", args.file.name, "--input", args.input, "--target", args.target]
    for name, default in vars(usual).items():
        value = getattr(args, name)
        if name in (*SAID, *PLACES) or value is None or as_list(value) == as_list(default):
            continue
        flag = "--" + name.replace("_", "-")
        if name in REPEATED:
            words += [part for one in value for part in (flag, one)]
        else:
            words += [flag, *(f"{one:g}" if isinstance(one, float) else str(one) for one in as_list(value))]
    return shlex.join(words)


def as_list(value: object) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def note(words: str) -> None:
    """A line on standard error."""
    print(words, file=sys.stderr, flush=True)
