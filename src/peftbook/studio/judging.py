"""Judging in a project: two runs whose answers people compare, which rows they are asked, and the measure of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from peftbook.core.errors import Conflict, InputError
from peftbook.core.records import Record
from peftbook.decision.judging import Judgement, drawn, preferences
from peftbook.studio.jobs import Job
from peftbook.studio.store import Studio
from peftbook.tasks import TaskExample

PREFIX = "people"  # of the name of a measure: `people:JOB:JOB`
RATER_CHARS = 40


@dataclass(frozen=True)
class Pair:
    """Two finished jobs that were scored on the same test rows. texts: of each.  rows: that were generated for."""

    jobs: tuple[Job, Job]
    records: tuple[Record, Record]
    texts: tuple[list[str], list[str]]
    rows: tuple[TaskExample, ...]

    @property
    def ids(self) -> tuple[str, str]:
        return self.jobs[0].id, self.jobs[1].id

    @cached_property
    def examples(self) -> dict[str, tuple[TaskExample, str, str]]:
        """By its id, in the order in which they are judged: a test row, and both answers."""
        found = {row.id: (row, *both) for row, *both in zip(self.rows, *self.texts, strict=False)}
        return {name: found[name] for name in drawn(self.ids, list(found))}  # type: ignore[misc]

    @cached_property
    def same(self) -> set[str]:
        """Ids of the rows on which both wrote the same: ties that nobody is asked about."""
        return {name for name, (_, first, second) in self.examples.items() if first.strip() == second.strip()}

    def judgements(self, studio: Studio) -> tuple[Judgement, ...]:
        """What people said of the two."""
        said = studio.judgements(self.jobs[0].project)
        return tuple(one for one in said if (one.first, one.second) == self.ids)

    def waiting(self, studio: Studio, rater: str) -> tuple[list[str], int]:
        """Ids of the rows that a rater has still to judge, and of how many."""
        asked = [name for name in self.examples if name not in self.same]
        done = {one.example for one in self.judgements(studio) if one.rater == rater}
        return [name for name in asked if name not in done], len(asked)

    def scores(self, judgements: tuple[Judgement, ...]) -> dict[str, float]:
        """By id of a test row the first job's score. Raises Conflict where nothing has been judged."""
        if not (found := preferences(list(self.examples), self.same, judgements)):
            raise Conflict("Nobody has judged these two runs yet: judge some rows first.")
        return found


def pair_of(studio: Studio, project_id: str, first: str, second: str) -> Pair:
    """The pair of two jobs, in the order of their ids. Raises InputError for jobs that cannot be judged so."""
    if first == second:
        raise InputError("These are one run: choose two different ones.")
    jobs = [studio.job(name) for name in sorted((first, second))]
    store, found = studio.records(project_id), []
    for job in jobs:
        record = store.get(job.run) if job.project == project_id else None
        if record is None or not (written := store.texts(record)):
            raise InputError(f"Job {job.id!r} has written no texts in this project: choose a finished run.")
        found.append((record, written))
    one, two = (job.run for job in jobs)
    if one.evaluation != two.evaluation:
        raise InputError("These two runs were not scored on the same test rows: choose two of one plan.")
    if one.seed != two.seed and one.method.random and two.method.random:
        raise InputError(f"These runs have the seeds {one.seed} and {two.seed}: choose two with the same seed.")
    rows = studio.task(project_id).splits[one.evaluation.split]
    records, texts = zip(*found, strict=True)
    return Pair((jobs[0], jobs[1]), records, texts, rows)


def measure_of(first: str, second: str) -> str:
    """The name of what people said of two jobs, as a measure of a comparison."""
    return f"{PREFIX}:{first}:{second}"


def pair_named(studio: Studio, project_id: str, measure: str) -> Pair | None:
    """The pair that a measure's name means; None for another measure."""
    kind, _, names = measure.partition(":")
    first, _, second = names.partition(":")
    return pair_of(studio, project_id, first, second) if kind == PREFIX and second else None


def judged_measures(studio: Studio, project_id: str) -> list[tuple[str, str]]:
    """The pairs that people have judged, as measures: name, and what it is called."""
    found = dict.fromkeys((one.first, one.second) for one in studio.judgements(project_id))
    return [
        (measure_of(*pair), f"Preferred by people: {' or '.join(studio.job(job).label for job in pair)}")
        for pair in found
    ]


def rater_named(text: str) -> str:
    """The name of a rater. Raises InputError for none."""
    name = " ".join(text.split())[:RATER_CHARS]
    if not name or not name.isprintable():
        raise InputError(f"{text[:RATER_CHARS]!r} is no name of a rater: say who judges.")
    return name
