"""Continuing: more rows for a model that was trained, without starting again.

The rows make another project: validation and test are those of the first, row for row, the new rows are for training
alone, and those whose input or group is held out are left out. Its run begins with the trained weights and has an
optimizer, a warm-up and a budget of its own over all training rows, old and new, and so a key of its own: it is not the
run that one training on all rows would be.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from typing import Any

from peftbook.core import specs
from peftbook.core.errors import Conflict, InputError
from peftbook.core.exchange import files_of, receive_record
from peftbook.decision.forgetting import prose_probe
from peftbook.methods.untuned import Untuned
from peftbook.studio.database import clear_failures
from peftbook.studio.jobs import Job
from peftbook.studio.plan import budget_tokens, check_settings
from peftbook.studio.settings import Settings
from peftbook.studio.store import Project, Studio, link
from peftbook.tasks import TaskData
from peftbook.tasks.columns import Columns
from peftbook.tasks.files import task_from_table, usable_rows
from peftbook.tasks.table import TextTable, read_table


@dataclass(frozen=True)
class Continued:
    """A project with more rows and the plan queued in it: the untuned model, and the run that goes on; beside them the
    record of the run that it goes on from.

    more: new training rows.  left_out: new rows that are faulty, or whose input or group is held out.  tokens: of the
    new training, over all training rows.
    """

    project: Project
    plan: str
    more: int
    left_out: int
    tokens: int

    @property
    def words(self) -> str:
        """What was queued, and what it is not."""
        left = f", {self.left_out:,} left out as faulty or held out" if self.left_out else ""
        return (
            f"{self.more:,} more training rows{left}; validation and test rows stay the same. The run goes on from the "
            f"trained weights for {self.tokens:,} tokens over all training rows: another budget and another key, not "
            "what one training on all rows would be."
        )


def continue_job(
    studio: Studio, job_id: str, content: bytes, filename: str, *, name: str = "", epochs: float = 1.0
) -> Continued:
    """Queue a training that goes on from what a job trained, on its rows and those of another file.

    content: a table with the columns of the job's project.  epochs: passes over all training rows. Raises Conflict for
    a job that is not done or kept nothing, InputError for rows that cannot be used; nothing is stored then.
    """
    job = studio.job(job_id)
    trained = studio.adapter(job)
    if job.state != "done" or trained is None:
        raise Conflict(f"Job {job_id!r} is {job.state} and has nothing to go on from: choose one that was trained.")
    before, old = studio.project(job.project), studio.task(job.project)
    first, _ = written(studio.table(before.id), before.columns)
    later, faults = written(read_table(content, filename, before.caps), before.columns)
    reading = replace(before.reading, first_rows=before.split.first or len(first))
    lines = "".join([*first, *later]).encode()
    title = name or f"{before.name}, continued"
    found = read_table(lines, "rows.jsonl", before.caps)
    task = task_from_table(found, reading.columns, reading.split, reading.instruction)
    more = len(task.splits["train"]) - len(old.splits["train"])
    check_held_out(old, task)
    if more < 1:
        raise InputError(f"{filename or 'The file'} has no row that may be trained on: all are faulty or held out.")
    run, plain, tokens = runs_of(job, task, epochs)
    project = studio.create_project(title, lines, "rows.jsonl", reading, before.caps)
    try:
        with clear_failures(studio.home):
            target = studio.folder(project.id) / "starts" / job.key[:12]
            shutil.copytree(trained, target, copy_function=link)
            for key in (job.key, prose_probe(job.run).key):  # to be compared with what goes on from it
                if files := files_of(studio.records(before.id), key):
                    receive_record(studio.records(project.id), key, files)
        plan = studio.submit(project.id, [plain, run], name=f"Continues {before.name}")
    except BaseException:
        studio.delete_project(project.id)
        raise
    return Continued(project, plan, more, len(later) - more + faults, tokens)


def written(table: TextTable, columns: Columns) -> tuple[list[str], int]:
    """The usable rows of a table as lines of JSON with the columns that are read, chats as chats, and how many are not
    usable.
    """
    usable, faults = usable_rows(table, columns)
    names = [one for one in table.columns if one in asdict(columns).values()]
    places, rows = [table.columns.index(name) for name in names], dict(zip(table.numbers, table.rows, strict=True))
    kept = [rows[int(one.id.removeprefix("row-"))] for one in usable]
    said: list[dict[str, Any]] = [dict(zip(names, (row[place] for place in places), strict=True)) for row in kept]
    if table.turns:
        roles = [[*(one.turns or (("user", one.input),)), ("assistant", one.target)] for one in usable]
        chats = ([{"role": role, "content": text} for role, text in turns] for turns in roles)
        said = [{"messages": turns, **row} for turns, row in zip(chats, said, strict=True)]
    return [json.dumps(one) + "\n" for one in said], len(faults)


def check_held_out(old: TaskData, new: TaskData) -> None:
    """Raises InputError unless validation and test are what they were."""
    for name in ("validation", "test"):
        one, other = ([(row.asked, row.target, row.group) for row in task.splits[name]] for task in (old, new))
        if one != other:
            raise InputError(f"The {name} rows would not stay the same with these: make a project of all rows instead.")


def runs_of(job: Job, task: TaskData, epochs: float) -> tuple[specs.Run, specs.Run, int]:
    """The run that goes on from a job's, the untuned one beside it, and the tokens of the first."""
    run = job.run
    assert run.budget is not None
    settings = Settings(epochs=epochs, max_length=run.budget.max_length)
    check_settings(settings)
    tokens = budget_tokens(task, settings)
    budget = run.budget.model_copy(update={"tokens": tokens, "train_examples": 0, "stop": 0.0})
    onward = run.model_copy(update={"task": task.spec, "budget": budget, "start": job.key})
    plain = {"method": Untuned(), "budget": None, "start": "", "seed": 0, "checkpointing": False}
    return onward, onward.model_copy(update=plain), tokens
