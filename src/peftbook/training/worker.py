"""The process that computes one run for the queue: spec on standard input, refusal on standard output.

One process a run, so that its peak memory is its own and a crash stops nothing else. The first line of standard input
is the run's canonical spec; the process ends when standard input does, so no worker outlives a killed queue. With
`--processes` it starts others, which compute the run together and end with it in the same way (`training.launch`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter

from peftbook import specs
from peftbook.errors import InputError

__all__ = ["alone", "cuda_micro_batch", "end_with_input", "free_micro_batch", "read_spec"]

# On a GPU: what weights, optimiser and libraries may take, and an example of 512 tokens with its activations. At 135M
# parameters the second is about 0.9 GB (fp32 weights, bf16 autocast), most of it kept for the backward pass.
CUDA_RESERVED_BYTES, CUDA_EXAMPLE_BYTES = 6e9, 1e9


def read_spec() -> specs.Run | specs.Probe:
    """The spec of the first line; from then on the process ends with its standard input."""
    line = sys.stdin.buffer.readline()
    end_with_input()
    return TypeAdapter(specs.Run | specs.Probe).validate_json(line)


def end_with_input() -> None:
    """From now on the process ends with what is its standard input now."""
    threading.Thread(target=_end_with, args=(os.dup(sys.stdin.fileno()),), daemon=True).start()


def _end_with(descriptor: int) -> None:
    while os.read(descriptor, 1024):
        pass
    os._exit(1)


@contextlib.contextmanager
def alone(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file, so that two queues never write one run's checkpoint. Raises InputError if it is held.

    patience: seconds to wait for a holder that may be dying.  The system lets go of the lock when the process dies.
    Where there is no flock nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise InputError(
                        "Another process is computing this run: wait for it, then run the command again."
                    ) from None
            time.sleep(0.2)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def cuda_micro_batch(batch_size: int, free_bytes: float) -> int:
    """Examples at a time on a GPU: the largest of batch, batch/2, batch/4, … whose bytes fit into what is free.

    It changes memory and speed, never what is computed, and is written into the record's provenance.
    """
    fits = max(1, int((free_bytes - CUDA_RESERVED_BYTES) // CUDA_EXAMPLE_BYTES))
    while batch_size > fits:
        batch_size = (batch_size + 1) // 2
    return batch_size


def free_micro_batch(spec: specs.Run | specs.Probe, processes: int = 1) -> int | None:
    """What `cuda_micro_batch` finds for a process's part of the batch on its GPU; None on a CPU."""
    if spec.platform != "cuda" or not isinstance(spec, specs.Run) or spec.budget is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return cuda_micro_batch(-(-spec.budget.batch_size // processes), torch.cuda.mem_get_info()[0])


def compute(spec: specs.Run | specs.Probe, show: bool) -> None:
    """Compute the run in this process and save its record."""
    from peftbook.records import default_store
    from peftbook.training.execute import execute, quieten_libraries

    quieten_libraries()
    execute(spec, default_store(), quiet=not show, micro_batch=free_micro_batch(spec))


def main(argv: list[str] | None = None) -> None:
    """Compute the run whose spec comes in; a refusal is one line on standard output and exit status 2.

    `PEFTBOOK_PATIENCE`: seconds to wait for another process that computes this run, 0 by default.
    """
    parser = argparse.ArgumentParser(prog="python -m peftbook.training.worker", description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--show", action="store_true", help="how far the run is, on standard error")
    args = parser.parse_args(argv)
    spec = read_spec()
    from peftbook.training.folders import checkpoints_folder

    try:
        patience = float(os.environ.get("PEFTBOOK_PATIENCE", 0))
        with alone(checkpoints_folder() / f"{spec.key[:16]}.lock", patience):
            if args.processes == 1:
                compute(spec, args.show)
            else:
                from peftbook.training.launch import launch

                launch(spec, args.processes, args.strategy, show=args.show)
    except InputError as error:
        print(error)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
