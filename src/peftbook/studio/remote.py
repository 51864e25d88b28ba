"""Remote: `peftbook compare --server`, the comparison computed by a studio elsewhere; the table is the local one."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from peftbook.core.errors import InputError
from peftbook.core.options import listed, options_of, read_options
from peftbook.core.progress import duration
from peftbook.studio.client import Client, Refused
from peftbook.studio.compare import judging_of
from peftbook.studio.foreground import ended_as_interrupted, note, noted_failures
from peftbook.studio.jobs import Job
from peftbook.studio.own_file import OwnFile
from peftbook.studio.settings import Guessed, Judging, Settings, rates_named
from peftbook.studio.terminal import Ticker

JOB = TypeAdapter(Job)


def compare_on_server(args: argparse.Namespace) -> int:
    """The command: 0 if every run is done, 1 if some failed, 130 after Ctrl-C. Raises InputError for bad input, and
    for what the server refuses, with its sentence.
    """
    if args.run or args.home:
        what, option = ("plans", "--run") if args.run else ("a home", "--home")
        raise InputError(f"--server has {what} of its own: leave out {option}.")
    judging = judging_of(args)
    settings, file = body_of(args), OwnFile.read(args.file, read_options(Guessed, args))
    for line in file.words():
        note(line)
    try:
        return run_comparison(Client(args.server, args.token or ""), args, settings, file, judging)
    except Refused as error:
        raise InputError(str(error)) from None


def body_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, as the API takes them; models by name, as the server knows them."""
    convert: dict[str, Any] = {"models": listed, "methods": listed, "learning_rates": rates_named}
    given = {name: getattr(args, name) for name in options_of(Settings)}
    return {name: convert.get(name, lambda value: value)(value) for name, value in given.items() if value is not None}


def run_comparison(
    studio: Client, args: argparse.Namespace, settings: dict[str, Any], file: OwnFile, judging: Judging
) -> int:
    """Project, check, plan, decision."""
    project, is_new = project_of(studio, args, file)
    try:
        check = studio.answered("checks", studio.post(f"projects/{project}/checks", settings)["id"])
        refuse_misfits(check)
    except BaseException:
        if is_new:
            studio.delete(f"projects/{project}")
        raise
    plan = studio.post(f"projects/{project}/plans", {"check": check["id"]})["id"]
    try:
        with ended_as_interrupted(), Ticker(sys.stderr) as ticker:
            jobs = watched(studio.events(f"plans/{plan}/events"), ticker)
    except KeyboardInterrupt:
        note("The runs go on there, and others may wait for them; give the same command again for their table.")
        return 130
    if len(failed := noted_failures(jobs)) == len(jobs):
        note("No run has finished: there is nothing to compare.")
        return 1
    for words in studio.get(f"plans/{plan}")["words"]:
        note(words)
    asked = {"measure": judging.measure, "margin": judging.margin, "metric": [one.text() for one in judging.metrics]}
    decide(studio, args, f"projects/{project}/decision", asked | {"plan": plan})
    return 1 if failed else 0


def project_of(studio: Client, args: argparse.Namespace, file: OwnFile) -> tuple[str, bool]:
    """The server's project of this file read in this way, and whether it was made for it."""
    sha256, wanted = file.table.sha256, asdict(file.reading) | {"fractions": list(file.reading.fractions)}
    for known in studio.get("projects"):
        if (known["sha256"], known["reading"]) == (sha256, wanted):
            note(f"Project {known['name']!r} has this file already: finished runs are taken from it.")
            return known["id"], False
    body = {"file": studio.send(args.file), "name": args.file.stem, **wanted}
    return studio.post("projects", body)["id"], True


def refuse_misfits(check: dict[str, Any]) -> None:
    """Raises InputError if a run cannot be run there; says how long they will take."""
    for one in check["checks"]:
        if not one["fits"]:
            raise InputError(f"{one['label'] or 'A run'} cannot be run there. {one['words']}")
    about = f", about {duration(check['seconds'])}" if check["seconds"] else ""
    note(f"{len(check['checks'])} run{'s' * (len(check['checks']) != 1)} to compute{about}.")
    for words in check["words"]:
        note(words)


def watched(events: Iterable[dict[str, Any]], ticker: Ticker) -> list[Job]:
    """The jobs as they end, each change shown."""
    jobs: dict[str, Job] = {}
    for told in events:
        jobs[told["id"]] = JOB.validate_python(told)
        ticker.show([*jobs.values()])
    return [*jobs.values()]


def decide(studio: Client, args: argparse.Namespace, path: str, query: dict[str, Any]) -> None:
    """Print the decision as JSON or as text, and keep the files that were asked for."""
    if args.json:
        print(json.dumps(studio.get(path, **query), indent=1, ensure_ascii=False))
    else:
        columns = shutil.get_terminal_size().columns
        print(studio.get(f"{path}.txt", columns=max(20, columns), **query), end="")
    for option, ending, what in ((args.report, "html", "Report"), (args.csv, "csv", "Table")):
        if option:
            studio.fetch(f"{path}.{ending}", option, **query)
            note(f"{what}: {option}")
