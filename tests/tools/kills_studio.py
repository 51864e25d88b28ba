"""Queue many tiny jobs, kill web, worker and jobs' processes at random, and check that each job finished exactly once.

    PYTHONPATH=tests python tests/tools/kills_studio.py --jobs 50 --kills 20

Not collected by pytest: it takes minutes. It prints what it killed and found, and ends with status 1 if a law is
broken: every job is done, a job becomes done once, a record is written once and stays as it is, records and jobs have
the same keys, what was killed while it trained went on from a checkpoint, and no half-written file is left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

from studio_home import SMALL, colours_project

from peftbook.core import specs
from peftbook.decision.forgetting import prose_is_measured, prose_probe
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.runtime.processes import identity, is_alive
from peftbook.studio.store import Studio

ENDS = """
CREATE TABLE ends (job TEXT, state TEXT, at REAL);
CREATE TRIGGER note_ends AFTER UPDATE OF state ON tasks WHEN new.state IN ('done', 'failed', 'cancelled')
BEGIN INSERT INTO ends VALUES (new.id, new.state, unixepoch('subsec')); END;
"""


class Web:
    """The web service, started again whenever it has died, as an init system would."""

    def __init__(self, home: Path):
        self.home = home
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def keep(self) -> None:
        if self.process is None or self.process.poll() is not None:
            given = f"Path({str(self.home)!r}), port={self.port}, token=False"
            serve = f"from peftbook.studio.app import serve; serve({given})"
            command = [sys.executable, "-c", f"from pathlib import Path; {serve}"]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self, seconds: float = 600.0) -> float:
        """Wait until it answers; how long that took."""
        began = time.monotonic()
        while not self.answers() and time.monotonic() - began < seconds:
            self.keep()
            time.sleep(0.5)
        return time.monotonic() - began

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5).status == 200
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tiny_runs(studio: Studio, project: str, count: int) -> list[specs.Run]:
    """Half of them train for some steps, half only measure: each its own seed, so each its own key."""
    runs = []
    for seed in range(count):
        trains = seed % 2 == 0
        runs.append(
            specs.Run(
                model=SMALL,
                task=studio.task(project).spec,
                method=LoRA(rank=2) if trains else Untuned(),
                budget=specs.Budget(tokens=4000, learning_rate=1e-3) if trains else None,
                evaluation=specs.Evaluation(split="test", n_loss=4, n_generate=0),
                seed=seed,
            )
        )
    return runs


def victims(studio: Studio, web: Web) -> dict[str, tuple[int, str]]:
    """Whom a kill could hit now, by what they are."""
    found = {}
    if web.process is not None and web.process.poll() is None:
        found["web"] = web.process.pid, identity(web.process.pid)
    for worker in studio.workers():
        if worker.alive:
            found["worker"] = worker.pid, identity(worker.pid)
    row = studio._row("SELECT child, child_identity FROM tasks WHERE state = 'running' AND child > 0 AND step > 1")
    if row is not None and is_alive(row["child"], row["child_identity"]):
        found["job"] = row["child"], row["child_identity"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    os.environ["PEFTBOOK_CHECKPOINT_SECONDS"] = "0"
    rng = random.Random(args.seed)
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    studio = Studio(home)
    project = colours_project(studio)
    runs = tiny_runs(studio, project.id, args.jobs)
    studio._connection().executescript(ENDS)
    web, killed, files, changed = Web(home), Counter(), {}, []
    print(f"the web service answered after {web.wait():.0f} s", flush=True)
    studio.submit(project.id, runs)
    kinds = rng.sample(["web", "worker", "job"] * -(-args.kills // 3), args.kills)  # each about as often, any order
    due = sorted(rng.uniform(0, 0.9 * args.jobs) for _ in range(args.kills))  # after so many jobs have ended
    began = time.monotonic()
    while time.monotonic() - began < 60 * args.minutes:
        web.keep()
        states = Counter(job.state for job in studio.jobs())
        ended = args.jobs - states["queued"] - states["running"]
        for path in (studio.folder(project.id) / "records").glob("[0-9a-f]*.json"):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat().st_ino, path.stat().st_mtime_ns
                if files.setdefault(path.name, state) != state:
                    changed.append(path.name)
        if ended == args.jobs:
            break
        if kinds and ended >= due[0]:
            time.sleep(rng.uniform(0, (time.monotonic() - began) / (ended + 1)))  # anywhere in a job's life
            found = victims(studio, web)
            if kinds[0] in found:
                kind, _ = kinds.pop(0), due.pop(0)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found[kind][0], signal.SIGKILL)
                    killed[kind] += 1
                    print(
                        f"{time.monotonic() - began:6.0f} s  {ended:3} of {args.jobs} ended  SIGKILL {kind}", flush=True
                    )
        time.sleep(0.1)
    seconds = time.monotonic() - began
    web.wait()
    answered = web.answers()
    jobs = studio.jobs()
    store = studio.records(project.id)
    ends = Counter(row["job"] for row in studio._rows("SELECT job FROM ends"))
    states = Counter(row["state"] for row in studio._rows("SELECT state FROM ends"))
    keys = Counter(record.key for record in store.all())  # each checked: schema, key, checksum
    wanted = {run.key for run in runs} | {prose_probe(run).key for run in runs if prose_is_measured(run)}
    left = [path.name for path in studio.folder(project.id).rglob(".*")]
    checkpoints = list((studio.folder(project.id) / "checkpoints").glob("*"))
    adapters = [path.name for path in (studio.folder(project.id) / "adapters").glob("*")]
    resumed = sum("resumed_from_step" in record.provenance for record in store.all())
    laws = {
        "every job is done": all(job.state == "done" for job in jobs) and len(jobs) == args.jobs,
        "each became done exactly once": states == {"done": args.jobs} and set(ends.values()) == {1},
        "one record a job, of its key, and one of its loss on prose": keys == Counter(wanted),
        "no record was written twice": not changed and len(files) == len(wanted),
        "every trained job has its adapter": sorted(adapters) == sorted(r.key[:12] for r in runs if r.budget),
        "what was killed while it trained went on": resumed > 0 or not killed["job"],
        "no half-written file, no checkpoint left": not left and not checkpoints,
        "all kills happened": sum(killed.values()) == args.kills,
        "the web service answers": answered,
    }
    attempts = Counter(job.attempt for job in jobs)
    print(f"{args.jobs} jobs, {sum(killed.values())} SIGKILLs ({dict(killed)}), {seconds:.0f} s")
    print(f"attempts of a job: {dict(sorted(attempts.items()))}; went on from a checkpoint: {resumed}")
    for law, holds in laws.items():
        print(f"{'holds ' if holds else 'BROKEN'}  {law}")
    for pid, _ in victims(studio, web).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    print(f"home: {home}")
    return 0 if all(laws.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
