"""Decisions: the finished runs of a project that may be compared, their comparison, and its report."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from peftbook.core import specs
from peftbook.core.errors import Conflict, Unknown
from peftbook.core.records import Record, Store
from peftbook.decision import COSTS, Comparison, compare, measures_with, where
from peftbook.decision.forgetting import prose_is_measured, prose_probe
from peftbook.decision.judging import PREFERRED, Judgement, say_raters, with_preferences
from peftbook.decision.own_metrics import Metric, read_metrics
from peftbook.studio import report
from peftbook.studio.data_checks import examined
from peftbook.studio.jobs import Job
from peftbook.studio.judging import pair_named
from peftbook.studio.model_card import command_line
from peftbook.studio.project_metrics import metrics_of
from peftbook.studio.store import Studio
from peftbook.studio.tuning import is_trial
from peftbook.tasks.cautions import cautions, leakage
from peftbook.tasks.files import count_labels

FIRST_MEASURE, FIRST_COST = "rougeL", next(iter(COSTS))


def evaluations(studio: Studio, project_id: str, plan_id: str = "") -> dict[str, list[Job]]:
    """The finished jobs that may be compared, by how they were scored; those on most test rows come first, of as many
    those that were queued last.

    plan_id: only those of a plan, which must be the project's.
    """
    if plan_id and plan_id not in [plan.id for plan in studio.plans(project_id)]:
        raise Unknown(f"There is no plan {plan_id!r} in this project: see its plans.")
    found: dict[str, list[Job]] = {}
    for job in studio.jobs(plan=plan_id) if plan_id else studio.jobs(project_id):
        if is_trial(job.run):
            continue
        found.setdefault(job.run.evaluation.model_dump_json(), []).append(job)
    ended = {
        name: [job for job in jobs if studio.records(project_id).get(job.run) is not None]
        for name, jobs in reversed(found.items())
    }
    sets = [(name, jobs) for name, jobs in ended.items() if jobs]
    return dict(sorted(sets, key=lambda one: -one[1][0].run.evaluation.n_generate))


def first_measure(studio: Studio, project_id: str) -> str:
    """The measure that was declared with the plan queued last, if the project still has it; else exact match where
    targets look like labels.
    """
    declared = [plan.measure for plan in studio.plans(project_id) if plan.measure]
    if declared and declared[-1] in measures_with(metrics_of(studio, project_id)):
        return declared[-1]
    splits = studio.task(project_id).splits
    return "exact_match" if count_labels(splits["train"], splits["test"]) else FIRST_MEASURE


def name_of(job: Job) -> str:
    """How a job was scored, in words."""
    scoring = job.run.evaluation
    return f"judged on {scoring.n_generate:,} test rows, by answers of at most {scoring.max_new_tokens} tokens"


def project_comparison(
    studio: Studio,
    project_id: str,
    jobs: list[Job] | None,
    measure: str = FIRST_MEASURE,
    cost: str = FIRST_COST,
    margin: float | None = None,
    metrics: Sequence[Metric] | None = None,
) -> Comparison:
    """The comparison of what has finished. measure: of MEASURES, of the user's own, or of a pair that people judged
    (`judging`), which is compared alone.  metrics: the user's own, if not those that the project has.

    Raises Conflict where there is nothing to compare.
    """
    if not jobs:
        raise Conflict("No run has finished yet: see under Runs how far they are.")
    if pair := pair_named(studio, project_id, measure):
        jobs = list(pair.jobs)
    tuned = {job for plan in studio.plans(project_id) if plan.tuning for job in plan.jobs}
    raced = {job.id in tuned for job in jobs if job.run.budget is not None}
    are_tuned = None if len(raced) == 2 else raced == {True}
    own = metrics_of(studio, project_id) if metrics is None else metrics
    said, runs = tuple(one.text() for one in own), tuple(job.run for job in jobs)
    apart = [
        other for other in evaluations(studio, project_id).values() if other[0].run.evaluation != runs[0].evaluation
    ]
    others = tuple(f"{len(other)} more runs were {name_of(other[0])}: they are not in this table." for other in apart)
    judged = pair.judgements(studio) if pair else ()
    home = str(studio.home)
    return _project_comparison(home, project_id, runs, measure, cost, margin, are_tuned, said, others, judged)


@functools.lru_cache(32)
def _project_comparison(
    home: str,
    project_id: str,
    runs: tuple[specs.Run, ...],
    measure: str,
    cost: str,
    margin: float | None,
    tuned: bool | None,
    metrics: tuple[str, ...],
    others: tuple[str, ...],
    judged: tuple[Judgement, ...],
) -> Comparison:
    """Compare the recorded runs, knowing what leaks; cached, since a record never changes."""
    studio = Studio(home)
    project = studio.project(project_id)
    seen = examined(studio.table(project_id), project.columns, project.split)
    warnings = [
        words for words, kind in cautions(seen, project.instruction) if kind == "warn" and words != leakage(seen)
    ]
    store = studio.records(project_id)
    records = [record for record in map(store.get, runs) if record is not None]
    texts = {record.key: found for record in records if (found := store.texts(record))}
    examples = studio.task(project_id).splits[runs[0].evaluation.split]
    own, prose = read_metrics(metrics, files=False), prose_of(store, records)
    if pair := pair_named(studio, project_id, measure):
        scores, ids = pair.scores(judged), [row.id for row in examples]
        records = with_preferences(*pair.records, scores, ids)
        texts = where(texts, [name in scores for name in ids])
        examples = tuple(row for row in examples if row.id in scores)
        warnings.insert(0, say_raters(judged))
    return compare(
        records, texts, examples, measure=PREFERRED if pair else measure, cost=cost, margin=margin, tuned=tuned,
        metrics=own, prose=prose, leaked=frozenset(seen.leaked), warnings=(*warnings, *others),
    )  # fmt: skip


def prose_of(store: Store, records: Sequence[Record]) -> dict[str, Record]:
    """By key of a record what was measured of its run on plain prose, where it was."""
    runs = [record.spec for record in records if isinstance(record.spec, specs.Run)]
    found = {run.key: store.get(prose_probe(run)) for run in runs if prose_is_measured(run)}
    return {key: record for key, record in found.items() if record is not None}


def whole_report(
    studio: Studio, project_id: str, jobs: list[Job], found: Comparison, commands: Sequence[str] = ()
) -> str:
    """The comparison of these jobs as one HTML file, with the commands that repeat it: of each job, if not these."""
    store = studio.records(project_id)
    records = [record for job in jobs if (record := store.get(job.run)) is not None]
    splits = {name: len(rows) for name, rows in studio.task(project_id).splits.items()}
    commands = commands or [command_line(studio, job) for job in jobs]
    return report.to_html(found, studio.project(project_id), records=records, splits=splits, commands=commands)
