"""The process that computes one run for the queue: spec on standard input, refusal on standard output.

One process a run, so that its peak memory is its own and a crash stops nothing else. The first line of standard input
is the run's canonical spec; the process ends when standard input does, so no worker outlives a killed queue. With
`--processes` it starts others, which compute the run together and end with it in the same way (`training.launch`).
"""

from __future__ import annotations

import argparse
import os
import sys

from pydantic import TypeAdapter

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import run_lock
from peftbook.core.quiet import gc_paused, quieten_libraries
from peftbook.runtime.processes import die_with_parent, fast_exit
from peftbook.runtime.resources import free_micro_batch
from peftbook.training.launch import launch


def read_spec() -> specs.Run | specs.Probe:
    """The spec of the first line; from then on the process ends with its standard input."""
    line = sys.stdin.buffer.readline()
    die_with_parent()
    return TypeAdapter(specs.Run | specs.Probe).validate_json(line)


def compute(spec: specs.Run | specs.Probe, show: bool) -> None:
    """Compute the run in this process and save its record."""
    with gc_paused():
        quieten_libraries()
        from peftbook.core.records import default_store
        from peftbook.training.execute import execute

    execute(spec, default_store(), quiet=not show, micro_batch=free_micro_batch(spec))


def main(argv: list[str] | None = None) -> None:
    """Compute the run whose spec comes in; a refusal is one line on standard output and exit status 2.

    `PEFTBOOK_PATIENCE`: seconds to wait for another process that computes this run, 0 by default.
    """
    parser = argparse.ArgumentParser(prog="python -m peftbook.runtime.worker", description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--show", action="store_true", help="how far the run is, on standard error")
    args = parser.parse_args(argv)
    spec = read_spec()
    try:
        with run_lock(spec.key, patience=float(os.environ.get("PEFTBOOK_PATIENCE", 0))):
            if args.processes == 1:
                compute(spec, args.show)
            else:
                launch(spec, args.processes, args.strategy, show=args.show)
    except InputError as error:
        print(error)
        raise SystemExit(2) from None


if __name__ == "__main__":
    with fast_exit():
        main()
