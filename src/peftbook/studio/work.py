"""The process that computes one job: `python -m peftbook.studio.work --home H --job ID --attempt N`.

It registers itself for the attempt in the store before it touches a file, and dies with the worker that started it. A
refusal is one sentence on standard output and exit status 2; a job is done when its record is on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import json
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbook.core import specs
from peftbook.core.base_models import check_model
from peftbook.core.errors import InputError
from peftbook.core.progress import Phase
from peftbook.core.quiet import gc_paused, quieten_libraries
from peftbook.core.records import Record, Store
from peftbook.decision.forgetting import prose_is_measured, prose_probe
from peftbook.runtime.processes import die_with_parent, fast_exit
from peftbook.runtime.resources import free_micro_batch
from peftbook.studio.store import Job, Studio, keeps_trained, trained_files
from peftbook.studio.tuning import is_trial

if TYPE_CHECKING:
    from peftbook.training.execute import Trainee
    from peftbook.training.loop import Progress

NOT_MINE = 3  # exit status: the job was another's, or was cancelled, before this process began
PAUSE_SECONDS = 0.25  # between writes of progress


def main(argv: list[str] | None = None) -> None:
    """Compute the job, unless another process has it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args(argv)
    die_with_parent()
    go_first()
    studio = Studio(args.home, durable=False)
    anew = studio.adopt(args.job, args.attempt, os.getpid())
    if anew is None:
        raise SystemExit(NOT_MINE)
    with in_a_sentence(studio.home):
        compute(studio, studio.job(args.job), anew=anew, threads=args.threads)


def go_first() -> None:
    """Let the kernel kill this process before its parent when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


@contextlib.contextmanager
def in_a_sentence(home: Path) -> Iterator[None]:
    """A context in which expected errors end this process with one sentence and an exit status."""
    try:
        yield
    except Exception as error:
        if not (why := sentence_for(error, home)):
            raise
        print(why, flush=True)
        raise SystemExit(2) from None


def compute(studio: Studio, job: Job, *, anew: bool = False, threads: int = 0) -> None:
    """Compute a job of this process's own attempt: from its start if `anew`, else from its checkpoint if it has one.

    threads: as many, whatever the process that this one was forked from has; 0: as many as that.
    """
    run, folder, store = job.run, studio.folder(job.project), studio.records(job.project)
    tidy(folder, run)
    if anew or not is_whole(folder / "checkpoints" / run.checkpoint):
        shutil.rmtree(folder / "checkpoints" / run.checkpoint, ignore_errors=True)
    studio.begun(job.id, job.attempt)
    if run in store:  # its last process died between the record and the word that it is done
        return
    check_model(run.model)
    with gc_paused():
        quieten_libraries()
        from peftbook.training.execute import Watch, execute
    if threads:
        import torch

        torch.set_num_threads(threads)
    os.environ["PEFTBOOK_CHECKPOINTS"] = str(folder / "checkpoints")
    reporter = Reporter(lambda **fields: studio.progress(job.id, job.attempt, **fields))

    def keep(trainee: Trainee) -> dict[str, Any]:
        kept = keep_trained(folder, trainee)
        if prose_is_measured(run) and not is_trial(run):
            reporter.phase(Phase("scoring prose"))
            record_prose_loss(store, trainee)
        return kept

    watch = Watch(reporter.phase, reporter.step, keep)
    task, micro_batch = studio.task(job.project), free_micro_batch(run)
    try:
        execute(run, store, task=task, quiet=True, micro_batch=micro_batch, watch=watch)
    except BaseException:
        tidy(folder, run)
        raise


def record_prose_loss(store: Store, trainee: Trainee) -> None:
    """Record the loss on plain prose of a trained model, before the run's own record; nothing if it is not finite."""
    from peftbook.training.probes.curves import prose_findings
    from peftbook.training.provenance import provenance

    started, probe = datetime.datetime.now(datetime.UTC), prose_probe(trainee.run)
    if probe in store:
        return
    found = prose_findings(trainee, probe)
    if math.isfinite(found.measurements["loss_nats"] or math.nan):
        fields: dict[str, Any] = {name: dict(getattr(found, name)) for name in ("measurements", "per_example")}
        store.save(Record(key=probe.key, spec=probe, provenance=provenance(started, None), **fields))


def tidy(folder: Path, run: specs.Run) -> None:
    """Delete temporary files that killed processes of this run left; other runs may be under way."""
    for path in (*folder.glob(f"*/.{run.key[:12]}*"), *folder.glob(f"checkpoints/{run.checkpoint}/.*")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def is_whole(checkpoint: Path) -> bool:
    """Whether training can go on from a checkpoint: its progress is readable, and names tensors that are all there."""
    from safetensors import SafetensorError, safe_open

    try:
        step = json.loads((checkpoint / "progress.json").read_text())["step"]
        with safe_open(checkpoint / f"state-{step}.safetensors", framework="np"):
            return True
    except (OSError, ValueError, KeyError, SafetensorError):
        return False


class Reporter:
    """Writes the progress of a job, at most every PAUSE_SECONDS; a failed write is ignored.

    write: takes what `progress` of the store does.
    """

    def __init__(self, write: Callable[..., object], clock: Callable[[], float] = time.monotonic):
        self.write, self.clock = write, clock
        self.written = -1e9
        self.points: list[tuple[int, float]] = []
        self.last: Progress | None = None
        self.name = ""

    def step(self, progress: Progress) -> None:
        """One more step of training, which the phase is told next."""
        self.points.append((progress.step, progress.loss))
        self.last = progress

    def phase(self, phase: Phase) -> None:
        """Another phase, written at once, or more of the one that is under way."""
        if phase.name == self.name and self.clock() - self.written < PAUSE_SECONDS:
            return
        self.name = phase.name
        at, points = self.last, self.points
        fields = (
            {}
            if at is None
            else {"step": at.step, "steps": at.steps, "loss": at.loss, "tokens_per_second": at.tokens_per_second}
        )
        self.written = self.clock()
        with contextlib.suppress(sqlite3.Error, InputError):
            self.write(
                phase=phase.name,
                done=phase.done,
                total=phase.total,
                seconds=phase.seconds,
                seconds_left=phase.left,
                points=points,
                **fields,
            )
            self.points = []


def keep_trained(folder: Path, trainee: Trainee) -> dict[str, Any]:
    """Save the trained weights to the project's `adapters/<key>`: temporary folder, fsync, rename. Returns the SHA-256
    of its files for the record's provenance.
    """
    from peftbook.training.restored import save_trained

    if not keeps_trained(trainee.run):
        return {}
    target = folder / "adapters" / trainee.run.key[:12]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as work:
        save_trained(trainee.model, trainee.run.method, Path(work))
        place_whole(Path(work), target)
    return {"trained_sha256": trained_files(target, trainee.run.method)}


def place_whole(work: Path, target: Path) -> None:
    """Rename a temporary folder to its name, after fsync."""
    for path in (*work.iterdir(), work):
        sync(path)
    work.chmod(0o755)
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was killed before its record
    work.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sentence_for(error: BaseException, home: Path) -> str:
    """The sentence for an expected error; empty for a fault of the program."""
    text = str(error)
    if isinstance(error, InputError):
        return text
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in text:
        return f"The disk that holds {str(home)!r} is full: free some space, then resume the job."
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return "The memory was not enough: choose a smaller batch, shorter texts or a smaller model, then retry."
    return ""


if __name__ == "__main__":
    with fast_exit():
        main()
