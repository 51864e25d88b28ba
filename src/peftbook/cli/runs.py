"""The command that makes runs: what studies lack, side by side, here or on a cluster; or one run by its key."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from peftbook.cli.arguments import Add, on_platform, positive
from peftbook.core.errors import InputError
from peftbook.core.folders import check_free


def add_commands(add: Add) -> None:
    """`run`."""
    add("run", command_run, run_options)


def run_options(run: argparse.ArgumentParser) -> None:
    """Of `run`."""
    run.add_argument("studies", nargs="*", metavar="STUDY")
    run.add_argument("--all", action="store_true", help="every study, in order")
    run.add_argument("--key", help="one run, by the first digits of its key")
    run.add_argument("--again", action="store_true", help="with --key: repeat a cached run into a temporary folder")
    run.add_argument("--limit", type=positive, help="stop after this many runs")
    run.add_argument("--workers", type=positive, help="runs side by side (default: one a core, on a GPU one)")
    run.add_argument("--processes", type=positive, default=1, help="that share each run, on a GPU one each (default 1)")
    run.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", help="of --processes (default ddp)")
    run.add_argument("--minutes", type=positive, help="start no run that would probably end later than this")
    run.add_argument("--export", type=Path, metavar="FILE.zip", help="keep the records that are made in one file too")
    run.add_argument("--engine", default="local", help="local, or ray: as tasks of a Ray cluster (default local)")
    run.add_argument(
        "--address", metavar="HOST:PORT", help="of the head of the Ray cluster (default: one started here)"
    )
    run.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="of runs under way; shared by all machines")
    on_platform(run)


def command_run(args: argparse.Namespace) -> int:
    """Compute what the named studies (or --all) lack, or one run given by --key; start it again after a stop."""
    from peftbook.runtime.queue import run_studies
    from peftbook.studies import NAMES, get_study

    check_engine(args)
    if args.key:
        return run_one(args)
    if not args.studies and not args.all:
        raise InputError(f"Name a study ({', '.join(NAMES)}), or give --all or --key KEY.")
    if args.export:
        check_free(args.export)
    studies = [get_study(name) for name in (NAMES if args.all else args.studies)]
    store = store_on(args.platform, to_run=args.engine == "local")
    with engine(args, store) as how:
        outcomes = run_studies(studies, store, limit=args.limit, minutes=args.minutes, export=args.export, **how)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        print(f"FAILED {outcome.run.key[:12]}: {outcome.message}")
    print(f"{len(outcomes) - len(failed)} runs made, {len(failed)} failed; `peftbook status` shows what is cached.")
    if args.export and args.export.exists():
        print(f"Their records are in {args.export}: `peftbook import` adds them elsewhere.")
    if failed:
        print("`peftbook run --key KEY` repeats one and shows its traceback.")
    return 1 if failed else 0


def check_engine(args: argparse.Namespace) -> None:
    """Raises InputError for options of `run` that do not go together."""
    if args.engine not in ("local", "ray"):
        raise InputError(f"Unknown engine {args.engine!r}: choose local or ray.")
    if args.address and args.engine != "ray":
        raise InputError(f"Address {args.address!r} is that of a Ray cluster: add --engine ray, or leave it out.")
    if args.key and args.engine != "local":
        raise InputError(f"Run {args.key!r} is repeated on this machine: leave out --engine {args.engine}.")
    if args.processes > 1 and args.engine != "local":
        raise InputError(f"--processes {args.processes} share a run on one machine: leave out --engine {args.engine}.")
    if args.strategy == "fsdp" and args.processes == 1:
        raise InputError("Strategy 'fsdp' spreads the weights over processes: give --processes of at least 2.")
    if args.checkpoints and not args.checkpoints.is_dir():
        raise InputError(f"There is no folder {str(args.checkpoints)!r}: make it, or leave out --checkpoints.")


@contextlib.contextmanager
def engine(args: argparse.Namespace, store) -> Iterator[dict]:
    """What `run_studies` computes with: processes on this machine, or tasks of a Ray cluster."""
    from peftbook.runtime import queue
    from peftbook.runtime.durations import predicted_here
    from peftbook.runtime.fork_server import ForkServer
    from peftbook.runtime.hardware import cores
    from peftbook.runtime.threads import best_threads
    from peftbook.training.launch import obstacle_to_split

    folder = args.checkpoints.absolute() if args.checkpoints else None
    if args.engine == "local":
        variables = {"PEFTBOOK_CHECKPOINTS": str(folder)} if folder else {}
        workers = args.workers or max(1, queue.default_workers(args.platform) // args.processes)
        shared = {"processes": args.processes, "strategy": args.strategy}
        with ForkServer() as server:
            yield {
                "compute": functools.partial(queue.run_subprocess, variables=variables, fork_server=server, **shared),
                "predict": functools.partial(predicted_here, threads=best_threads(max(1, cores() // workers))),
                "refuse": functools.partial(obstacle_to_split, count=args.processes, strategy=args.strategy),
                "workers": workers,
            }
        return
    from peftbook.runtime.ray_engine import connect

    with connect(args.address or "", store, checkpoints=folder) as ray_engine:
        workers = args.workers or ray_engine.slots(args.platform)
        yield {"compute": ray_engine.compute, "refuse": ray_engine.refuse, "workers": workers}


def run_one(args: argparse.Namespace) -> int:
    """One run by its key, with progress bar and traceback."""
    import tempfile

    from peftbook.runtime.queue import run_subprocess
    from peftbook.training.launch import refuse_to_split

    store = store_on(args.platform)
    run = find_run(args.key, store)
    if args.processes > 1:
        refuse_to_split(run, args.processes, args.strategy)
    path = store.path(run.key)
    if path is not None and not args.again:
        print(f"Run {run.key[:12]} is cached: {path}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="peftbook-rerun-")) if args.again else None  # no shipped record is replaced
    ok, message = run_subprocess(run, folder=folder, show=True, processes=args.processes, strategy=args.strategy)
    print(message or f"Run {run.key[:12]} is done{f': its record is in {folder}' if folder else ''}.")
    return 0 if ok else 1


def store_on(platform: str, *, to_run: bool = False):
    """The records at hand as seen from a platform.

    to_run: timing runs are named after this machine's GPU. Raises InputError where there is none.
    """
    from peftbook.core.records import default_store

    if platform == "cpu" or not to_run:
        return default_store().on(platform)
    from peftbook.runtime.queue import machine_here

    machine = machine_here(platform)
    if not machine:
        raise InputError(f"Platform {platform!r} needs a CUDA GPU and a CUDA build of torch: use platform 'cpu' here.")
    return default_store().on(platform, machine)


def find_run(prefix: str, store):
    """The run whose key starts with `prefix`, among the records and the studies' runs."""
    from peftbook.studies import NAMES, get_study

    known = {record.key: record.spec for record in store.all()}
    known |= {spec.key: spec for name in NAMES for spec in map(store.spec, get_study(name).runs(store))}
    matching = [run for key, run in known.items() if key.startswith(prefix)]
    if len(matching) != 1:
        raise InputError(
            f"Key {prefix!r} matches {len(matching)} runs: give the twelve digits that `peftbook status -v` prints."
        )
    return matching[0]
