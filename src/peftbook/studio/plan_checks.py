"""Check a plan before it runs, and queue the runs of a check that fit; for page and API alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

from peftbook.core import specs
from peftbook.core.errors import Conflict, InputError
from peftbook.decision import check_choices
from peftbook.decision.power import Sight, sights_of
from peftbook.studio.decisions import FIRST_MEASURE
from peftbook.studio.jobs import Plan, parse_run
from peftbook.studio.plan import plan
from peftbook.studio.preflight import Check
from peftbook.studio.project_metrics import metrics_of
from peftbook.studio.settings import Settings
from peftbook.studio.store import Studio
from peftbook.studio.tasks import Task
from peftbook.studio.tuning import Tuning, chosen_words, is_trial, likely_runs
from peftbook.tasks import TaskData

NAMED = 3  # methods in the name of a plan
CHANGED = "The settings were changed after the check: check the plan again."


def planned(task: TaskData, settings: Settings) -> tuple[list[specs.Run], Tuning | None]:
    """The runs of settings, as far as they are known, and the tuning if their rates are raced."""
    runs = plan(task, settings)
    tuning = Tuning.of(task, runs) if settings.tune else None
    return list(runs) if tuning is None else likely_runs(tuning), tuning


def chosen_rates(studio: Studio, plan: Plan) -> list[str]:
    """The rate that each method of a tuned plan was given, a line each, for races that have ended."""
    if not plan.tuning:
        return []
    return chosen_words(Tuning.read(plan.tuning), studio.records(plan.project).get)


def ask_check(studio: Studio, project_id: str, runs: Sequence[specs.Run], tuning: Tuning | None = None) -> str:
    """Queue a check of runs; its id. tuning: if they are likely runs of one."""
    payload = {"project": project_id, "runs": [run.canonical() for run in runs]}
    payload["tuning"] = "" if tuning is None else tuning.text()
    return studio.enqueue("check", payload)


def checks_of(task: Task) -> tuple[Check, ...]:
    """The checks that a task found. Raises Conflict where there is none yet, InputError for its failure."""
    if task.state != "done":
        raise (InputError if task.error else Conflict)(
            task.error or "The plan has not been checked yet: check it first."
        )
    names = {one.name for one in dataclasses.fields(Check)}
    return tuple(Check(**{key: value for key, value in one.items() if key in names}) for one in task.result)


def runs_of_check(studio: Studio, project_id: str, request_id: str) -> list[specs.Run]:
    """The runs of a check of this project. Raises InputError for another task."""
    task = studio.get_task(request_id)
    if task.kind != "check" or task.project != project_id:
        raise InputError(f"Answer {request_id!r} is no check of this project's: check a plan of it first.")
    return [parse_run(text) for text in task.payload["runs"]]


def sights_of_check(studio: Studio, request_id: str, measure: str = FIRST_MEASURE) -> tuple[Sight, ...]:
    """What the test rows of a checked plan can see, with its seeds and with more. measure: what decides, by its name.

    Raises InputError for one that the project does not have.
    """
    project_id = studio.get_task(request_id).project
    check_choices(measure, metrics=metrics_of(studio, project_id))
    return sights_of(runs_of_check(studio, project_id, request_id), studio.task(project_id), measure)


def queue_checked(studio: Studio, project_id: str, request_id: str, measure: str = FIRST_MEASURE) -> tuple[str, int]:
    """Queue the runs that a check found to fit: the plan's id and how many they are. Raises Conflict for none.

    measure: what is declared to decide, by its name. Raises InputError for one that the project does not have.
    """
    check_choices(measure, metrics=metrics_of(studio, project_id))
    runs = runs_of_check(studio, project_id, request_id)
    task = studio.get_task(request_id)
    text = task.payload.get("tuning", "")
    fitting = {check.key for check in checks_of(task) if check.fits}
    if not fitting:
        raise Conflict("No run of this plan can be run here; the check says why.")
    chosen = [run for run in runs if run.key in fitting]
    name = plan_name(chosen)
    if not text:
        return studio.submit(project_id, chosen, name, measure=measure), len(chosen)
    unfit = {(run.model, run.method) for run in runs if is_trial(run) and run.key not in fitting}
    finals = tuple(run for run in chosen if not is_trial(run) and (run.model, run.method) not in unfit)
    if not finals:
        raise Conflict("No run of this plan can be run here; the check says why.")
    tuning = replace(Tuning.read(text), finals=finals)
    first = tuning.runs(studio.records(project_id).get)
    return studio.submit(project_id, first, name, tuning=tuning, measure=measure), len(chosen)


def plan_name(runs: Sequence[specs.Run]) -> str:
    """What a plan is called: its methods, tokens and seeds."""
    trained = [run for run in runs if not is_trial(run) and run.budget is not None]
    methods = list(dict.fromkeys(run.method.label for run in trained or runs))
    parts = [", ".join(methods[:NAMED]) + f" and {len(methods) - NAMED} more" * (len(methods) > NAMED)]
    parts += [f"{tokens:,} tokens" for tokens in sorted({run.budget.tokens for run in trained if run.budget})[:1]]
    seeds = len({run.seed for run in trained})
    return " · ".join([*parts, *[f"{seeds} seeds"] * (seeds > 1)])
