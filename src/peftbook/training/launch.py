"""The processes of one run: started by torch's launcher, which accelerate's launcher also calls, or by hand.

From the queue: `launch` starts them; each gets the spec and an end of a pipe as its standard input, which closes when
the process that started them dies of anything. By hand, from a file that holds the spec:

    accelerate launch --num_processes 2 -m peftbook.training SPEC.json --strategy fsdp --adapter FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import run_lock
from peftbook.core.quiet import gc_paused, quieten_libraries
from peftbook.runtime.processes import end_with_input
from peftbook.runtime.resources import free_micro_batch

SPEC = "PEFTBOOK_SPEC"  # the variable that hands the spec to processes started here


def refuse_to_split(spec: specs.Run | specs.Probe, count: int, strategy: str) -> None:
    """Raise InputError for what cannot be computed by several processes, or not by so many."""
    if why := obstacle_to_split(spec, count, strategy):
        raise InputError(f"Run {spec.key[:12]} cannot be computed by {count} processes: {why}")


def obstacle_to_split(spec: specs.Run | specs.Probe, count: int, strategy: str) -> str:
    """Why several processes cannot compute this, in a sentence; empty if they can, or if there is one."""
    if count == 1:
        return ""
    if isinstance(spec, specs.Probe) or spec.purpose == "timing":
        return "timings and probes are measured on one process; leave out --processes."
    if spec.budget is not None and spec.budget.batch_size < count:
        return f"its batch has {spec.budget.batch_size} examples; give --processes at most that."
    if strategy == "fsdp" and (why := spec.method.unsharded):
        return f"{why}; use --strategy ddp."
    if strategy == "fsdp" and spec.dtype == "fp16":
        return "each shard would scale its fp16 gradients by itself; use --strategy ddp, or compute in bf16."
    return ""


def refuse_missing_gpus(spec: specs.Run | specs.Probe, count: int) -> None:
    """Raise InputError where a GPU would have more than one process."""
    if spec.platform == "cuda":
        import torch

        if (found := torch.cuda.device_count()) < count:
            raise InputError(f"{count} processes need a GPU each and {found} are here: give --processes at most that.")


def launch(spec: specs.Run | specs.Probe, count: int, strategy: str, *, show: bool = False) -> None:
    """Start `count` processes on this machine for a run and wait for them; they end when this process does.

    show: the first of them says on standard error how far the run is.

    Raises InputError for what cannot be split. If they refuse the run, one of them has said why: exit status 2. If one
    dies, the others are ended and why it died is the last line on standard error: exit status 1.
    """
    refuse_to_split(spec, count, strategy)
    refuse_missing_gpus(spec, count)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    hold_input()
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    os.environ |= {SPEC: spec.canonical(), "OMP_NUM_THREADS": str(max(1, threads // count))}
    asked = ["--standalone", "--nproc-per-node", str(count), "-m", "peftbook.training", "--strategy", strategy]
    if not show:
        asked.append("--quiet")
    try:
        run(get_args_parser().parse_args(asked))
    except ChildFailedError as error:
        if any(failure.exitcode == 2 for failure in error.failures.values()):
            raise SystemExit(2) from None
        rank, failure = error.get_first_failure()
        why = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit status {failure.exitcode}"
        *_, last = ["", *str(failure.message).strip().splitlines()]
        print(f"process {rank} of {count} ended with {why}: {last}", file=sys.stderr)
        raise SystemExit(1) from None


def hold_input() -> None:
    """Give what is started from here a standard input that ends when this process does."""
    reading, _ = os.pipe()  # no child inherits the other end, which stays open as long as we live
    os.dup2(reading, sys.stdin.fileno())


def main(argv: list[str] | None = None) -> None:
    """One of the processes of a run: compute it with the others; the first says why if they refuse it, status 2."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.training", description=__doc__)
    parser.add_argument("spec", type=Path, nargs="?", help="a JSON file with the run")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", help="default ddp")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="keep what was trained here")
    parser.add_argument("--quiet", action="store_true", help="do not say on standard error how far the run is")
    args = parser.parse_args(argv)
    started_by_worker = SPEC in os.environ
    if started_by_worker:
        end_with_input()
    try:
        spec = read_file(args.spec) if args.spec else parsed(os.environ.get(SPEC, ""), "the environment")
    except InputError as error:
        print(error)
        raise SystemExit(2) from None
    from torch.distributed.elastic.multiprocessing.errors import record

    record(compute_together)(spec, args.strategy, args.adapter, locked=started_by_worker, quiet=args.quiet)


def read_file(path: Path) -> specs.Run | specs.Probe:
    """The spec in a JSON file, or in a record. Raises InputError."""
    try:
        return parsed(path.read_text(), path.name)
    except OSError as error:
        raise InputError(f"{path.name!r} cannot be read ({error.strerror}): give a JSON file with a run.") from None


def parsed(text: str, where: str) -> specs.Run | specs.Probe:
    """The spec in a text. Raises InputError."""
    try:
        return TypeAdapter(specs.Run | specs.Probe).validate_json(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(f"What {where} holds is no run ({reason}): give a file with its canonical spec.") from None


def compute_together(
    spec: specs.Run | specs.Probe, strategy: str, adapter: Path | None, *, locked: bool, quiet: bool
) -> None:
    """Meet the other processes, compute the run, let the first one write; a refusal ends all with exit status 2."""
    with gc_paused():
        quieten_libraries()
        from torch import distributed

        from peftbook.core.records import default_store
        from peftbook.training.distributed import join
        from peftbook.training.execute import execute

    processes = join(strategy, spec.platform)
    status = 0
    try:
        with contextlib.ExitStack() as held:
            if processes.count > 1:
                refuse_to_split(spec, processes.count, strategy)
            if not locked:
                processes.agree(lambda: held.enter_context(run_lock(spec.key)) if processes.first else None)
            execute(
                spec,
                default_store(),
                quiet=quiet,
                adapter=adapter,
                processes=processes,
                micro_batch=free_micro_batch(spec, processes.count),
            )
    except InputError as error:
        if processes.first:
            print(error, flush=True)
        status = 2
    if processes.count > 1:
        distributed.barrier()  # the first has spoken before another's end can end it
        distributed.destroy_process_group()
    raise SystemExit(status)
