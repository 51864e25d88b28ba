"""Gauging: what trainings have forgotten that were over before it was measured, from what they left on disk.

A training measures it at its end. Where a home is older than that, or a run was taken from one, the model as it was
trained is made again from its adapter and reads the same texts; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from peftbook.base_models import check_model
from peftbook.decision.forgetting import is_gauged, prose_probe
from peftbook.errors import InputError
from peftbook.studio.jobs import Job
from peftbook.studio.store import Studio, keeps_trained
from peftbook.studio.tuning import is_trial


def not_gauged(studio: Studio, jobs: Iterable[Job]) -> list[Job]:
    """Of these jobs those whose loss on plain prose was not measured and can be: done, and what it trained is there."""
    return [
        job for job in jobs
        if job.state == "done" and is_gauged(job.run) and not is_trial(job.run)
        and (studio.adapter(job) is not None or not keeps_trained(job.run))
        and prose_probe(job.run) not in studio.records(job.project)
    ]  # fmt: skip


def ask_to_gauge(studio: Studio, project_id: str) -> str:
    """Have it measured of all runs of a project that lack it; the id of the question, which says of how many."""
    studio.project(project_id)
    return studio.ask("gauge", {"project": project_id})


def gauge_later(studio: Studio, jobs: Iterable[Job], say: Callable[[str], object] = lambda words: None) -> int:
    """Measure it now, of those of these jobs that lack it, one after the other; returns of how many.

    say: is told before each, and why one cannot be. Loads the models: for the assistant, and for a command. Raises
    InputError where none can be.
    """
    lacking, measured, why = not_gauged(studio, jobs), 0, ""
    for at, job in enumerate(lacking, 1):
        say(f"Scoring prose with {job.label}, {at} of {len(lacking)}.")
        try:
            gauge_job(studio, job)
            measured += 1
        except InputError as error:
            say(why := str(error))
    if why and not measured:
        raise InputError(why)
    return measured


def gauge_job(studio: Studio, job: Job) -> None:
    """Measure one job. Raises InputError where its base is missing, or what it trained cannot be read."""
    from safetensors import SafetensorError

    from peftbook.core.quiet import quieten_libraries
    from peftbook.studio.work import gauge
    from peftbook.training.execute import prepare
    from peftbook.training.restored import restore

    quieten_libraries()
    check_model(job.run.model)
    kept = studio.adapter(job)
    try:
        trainee = prepare(job.run, studio.task(job.project), start=kept)
        if kept is not None:
            restore(trainee.model, job.run.method, kept)
    except (SafetensorError, OSError) as error:
        raise InputError(f"What {job.label} trained cannot be read ({error}): retry the job.") from None
    gauge(studio.records(job.project), trainee)
