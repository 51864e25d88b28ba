"""Peeks: what the answers of a plan's runs say while they are written, each trained model against the untuned one.

A run whose evaluation has the order `random` leaves its answers in the project's `answers/<key>.json` as they come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbook import specs
from peftbook.decision.peeking import Peek, peek, peekable
from peftbook.errors import Conflict
from peftbook.methods.untuned import Untuned
from peftbook.own_metrics import Metric
from peftbook.records import write_atomically
from peftbook.studio.jobs import Job
from peftbook.studio.store import Studio
from peftbook.studio.tuning import is_trial


@dataclass(frozen=True)
class Against:
    """A trained run and what its answers say so far against those of the untuned model."""

    job: Job
    peek: Peek


def path_of(folder: Path, run: specs.Run) -> Path:
    return folder / "answers" / f"{run.key[:12]}.json"


def write_answers(folder: Path, run: specs.Run, texts: Mapping[int, str]) -> None:
    """Leave the answers that there are, by place of the row."""
    write_atomically(path_of(folder, run), json.dumps(texts, ensure_ascii=False).encode(), lasting=False)


def forget_answers(folder: Path, run: specs.Run) -> None:
    """Of a run whose record has them, or that begins again."""
    path_of(folder, run).unlink(missing_ok=True)


def answers_of(studio: Studio, job: Job) -> dict[int, str]:
    """The answers that a job has written, by place of the row: all that its record has, or those there are by now."""
    store = studio.records(job.project)
    if (record := store.get(job.run)) is not None:
        return dict(enumerate(store.texts(record)))
    try:
        said = json.loads(path_of(studio.folder(job.project), job.run).read_bytes())
    except (OSError, ValueError):
        return {}
    return {int(at): text for at, text in said.items()}


def peeks_of(
    studio: Studio, project_id: str, plan_id: str, measure: str = "rougeL", own: Sequence[Metric] = ()
) -> list[Against]:
    """Each trained run of a plan, in its order, against the untuned model of its own; the intervals of all of them hold
    together at 95 %, so that the best of them may be picked after a look.

    Raises InputError for a measure that cannot be looked at, Conflict for a plan whose rows are not answered in random
    order: what is there of it then are its longest rows.
    """
    peekable(measure, own)
    jobs = [job for job in studio.jobs(plan=plan_id) if job.project == project_id and not is_trial(job.run)]
    if not any(job.run.evaluation.order == "random" for job in jobs):
        raise Conflict("This plan answers its longest rows first, which are no fair part: queue one with peek.")
    plain = {job.run.model: answers_of(studio, job) for job in jobs if job.run.method == Untuned()}
    trained = [job for job in jobs if job.run.budget is not None and job.run.model in plain]
    found = []
    for job in trained:
        wanted = job.run.evaluation
        examples = wanted.chosen(studio.task(project_id).splits[wanted.split], wanted.n_generate)
        said, usual = answers_of(studio, job), plain[job.run.model]
        found.append(Against(job, peek(said, usual, examples, measure, own, len(trained))))
    return found
