"""A reader's file on the command line: how it is read, the project that it is in the studio, and runs on it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.decision.power import sight_words, sights_of
from peftbook.studio.decisions import FIRST_MEASURE
from peftbook.studio.foreground import TRAIN, note, wait_for, worker_ahead
from peftbook.studio.plan import check_settings
from peftbook.studio.settings import Guessed, Reading, Settings
from peftbook.studio.store import Job, Project, Studio
from peftbook.studio.tuning import Tuning, chosen_words, likely_runs
from peftbook.tasks import TaskData
from peftbook.tasks.cautions import cautions
from peftbook.tasks.files import describe_reading, examine, read_file, task_from_table
from peftbook.tasks.table import TextTable


@dataclass(frozen=True)
class OwnFile:
    """A file, its bytes, the table in them, and the task that a reading makes of it. why: how its columns were guessed,
    or nothing.  tokens: of one pass over the training rows, by model.  long: what was left out as too long, in words.
    """

    path: Path
    reading: Reading
    why: str
    content: bytes
    table: TextTable
    task: TaskData
    tokens: Mapping[specs.Model, int] = field(default_factory=dict)
    long: str = ""

    @classmethod
    def read(cls, path: Path, asked: Guessed) -> OwnFile:
        """Raises InputError for what is no file, no table, or no task."""
        content, table = read_file(path)
        reading, why = asked.on(table)
        task = task_from_table(table, reading.columns, reading.split, reading.instruction)
        return cls(path, reading, why, content, table, task)

    def counted(self, settings: Settings) -> OwnFile:
        """The file with its tokens counted, without the rows that are longer than max_length to one of the models.

        Raises InputError for settings that are none, and where too few rows remain.
        """
        from peftbook.training.preflight import row_tokens

        check_settings(settings)
        max_length = settings.max_length
        counts: dict[specs.Model, dict[str, int]] = {}
        for model in settings.models:
            with contextlib.suppress(InputError):  # of a model out of reach, which the check of its run says
                counts[model] = row_tokens(model, self.task)
        long = sorted({row for tokens in counts.values() for row, count in tokens.items() if count > max_length})
        reading, task, words = self.reading, self.task, ""
        if long:
            numbers = ",".join(filter(None, [reading.left_out, *(str(int(row.removeprefix("row-"))) for row in long)]))
            reading = replace(reading, left_out=numbers)
            words = (
                f"Left out as longer than {max_length:,} tokens (--max-length, at most {specs.MOST_LENGTH:,}): "
                f"{len(long):,} of {sum(map(len, task.splits.values())):,} rows."
            )
            try:
                task = task_from_table(self.table, reading.columns, reading.split, reading.instruction)
            except InputError as error:
                raise InputError(f"{words} {error}") from None
        once = {model: sum(tokens[one.id] for one in task.splits["train"]) for model, tokens in counts.items()}
        return replace(self, reading=reading, task=task, tokens=once, long=words)

    def words(self, stage: str = "") -> list[str]:
        """How it was read, what was left out, and what its rows do not carry, a line each.

        stage: of a recipe: dpo learns from rejected answers too, sft from every answer of a chat, as its advice says.
        """
        seen = examine(self.table, self.reading.columns, self.reading.split)
        why = "" if seen.several else self.why  # the caution on chats of several turns says it whole
        seen = replace(
            seen, unused="" if stage == "dpo" else seen.unused, several=0 if stage == "sft" else seen.several
        )
        said = [words for words, kind in cautions(seen, self.reading.instruction) if kind != "good"]
        return [*describe_reading(self.path.name, seen), *filter(None, [why, self.long]), *said]


def find_project(studio: Studio, file: OwnFile) -> Project | None:
    """The first project of this file read in this way."""
    wanted = file.table.sha256, file.reading
    return next((project for project in studio.projects() if (project.sha256, project.reading) == wanted), None)


def inspect_file(
    studio: Studio, file: OwnFile, runs: Sequence[specs.Run], settings: Settings | None
) -> tuple[Project | None, Tuning | None, Sequence[specs.Run], list[specs.Run]]:
    """Say how a file was read; its project and tuning, if any, the runs as far as they are known, and the new ones."""
    for line in file.words():
        note(line)
    project = find_project(studio, file)
    at_hand = (lambda run: None) if project is None else studio.records(project.id).get
    tuning = Tuning.of(file.task, runs) if settings is not None and settings.tune else None
    likely = runs if tuning is None else likely_runs(tuning, at_hand)
    return project, tuning, likely, [run for run in likely if at_hand(run) is None]


def compute(
    studio: Studio,
    file: OwnFile,
    runs: Sequence[specs.Run],
    plan: str,
    settings: Settings | None = None,
    measure: str = FIRST_MEASURE,
) -> tuple[Project, list[Job]] | None:
    """Have runs computed on a file, in its project, by the studio's worker; None after Ctrl-C. Those at hand are taken.

    plan: the name of the command.  settings: of the runs; without, no rate is tuned.
    measure: what will decide, by its name.
    Raises InputError where a run does not fit this machine, before a project is made.
    """
    project, tuning, likely, new = inspect_file(studio, file, runs, settings)
    if project is not None:
        note(f"Project {project.name!r} has this file already: finished runs are taken from it.")
    if new and plan == TRAIN:
        measure_machine(new[0].platform)
    with worker_ahead(studio, len(new)):
        too_long = refuse_misfits(file.task, likely, new, measure)
    runs = [run for run in runs if run.key not in too_long]
    tuning = Tuning.of(file.task, runs) if tuning is not None else None
    if project is None:
        project = studio.create_project(file.path.stem, file.content, file.path.name, file.reading)
    wanted = runs if tuning is None else tuning.runs(studio.records(project.id).get)
    submitted = studio.submit(project.id, wanted, name=plan, tuning=tuning, measure=measure)
    if new:
        names = dict.fromkeys(run.model.name for run in new)
        note(f"Loading {', '.join(names)}: a large model takes minutes, which no estimate here includes.")
    if not wait_for(studio, submitted):
        return None
    for line in chosen_words(tuning, studio.records(project.id).get) if tuning else ():
        note(line)
    return project, studio.jobs(plan=submitted)


def dry_run(studio: Studio, file: OwnFile, runs: Sequence[specs.Run], settings: Settings | None, measure: str) -> None:
    """Say what `compute` would do, how long it takes and what its test rows can see; nothing is stored or trained."""
    _, _, likely, new = inspect_file(studio, file, runs, settings)
    if not new:
        note("All runs are at hand: the comparison is answered from them.")
    refuse_misfits(file.task, likely, new, measure, anew=True)


def measure_machine(platform: str) -> None:
    """Measure how fast this machine is unless that is known, before a worker makes it busy; later plans have it."""
    from peftbook.training.preflight import known_rates, rates_beside

    if known_rates(platform) is None:
        note("Measuring how fast this machine is, once.")
        rates_beside(platform, 1)


def refuse_misfits(
    task: TaskData,
    runs: Sequence[specs.Run],
    new: Sequence[specs.Run],
    measure: str = FIRST_MEASURE,
    anew: bool = False,
) -> set[str]:
    """Raises InputError if a run that must be computed cannot be run on this machine; says how long they will take, and
    where they do not pass over all rows. Returns the keys of runs without training that are left out, which is said:
    their solved examples are too long.

    new: of the runs those that must be computed.  measure: what will decide.  anew: measure this machine, if it was not
    yet.
    """
    if not new:
        return set()
    from peftbook.core.quiet import quieten_libraries
    from peftbook.runtime.doctor import gib
    from peftbook.studio.assistant import memory_for
    from peftbook.studio.preflight import coverage_words, preflight, time_words

    quieten_libraries()
    checks = preflight(task, new, memory_for(new), measure=anew)  # it can take longer than the runs
    shown = {run.key for run in new if run.method.examples_shown}
    too_long = {check.key for check in checks if check.key in shown and not check.fits}
    for check in checks:
        if not check.fits and (check.key not in shown or len(too_long) == len(runs)):
            raise InputError(f"{check.label or 'A run'} cannot be run here. {check.words}")
        if not check.fits:
            note(f"Left out: {check.label}. {check.words}")
    checks = tuple(check for check in checks if check.key not in too_long)
    runs, new = ([run for run in part if run.key not in too_long] for part in (runs, new))
    if not new:
        return too_long
    about = f", {time_words(checks)}"
    peak = max((check.peak_bytes for check in checks if check.peak_bytes is not None), default=None)
    about += f", each in at most {gib(peak)} of memory" if peak is not None else ""
    cached = f", {len(runs) - len(new)} are at hand" if len(new) < len(runs) else ""
    note(f"{len(new)} run{'s' * (len(new) != 1)} to compute{about}{cached}.")
    for words in filter(None, (coverage_words(checks), sight_words(sights_of(runs, task, measure), measure))):
        note(words)
    return too_long
