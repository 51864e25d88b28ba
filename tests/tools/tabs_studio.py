"""From tab to tab in the studio, 28 finished runs in the project, beside a training that has every core.

    PYTHONPATH=tests python tests/tools/tabs_studio.py [--rounds 7] [--address http://127.0.0.1:7861/]

Prints for each tab the median and the largest time from a click until its page is seen (first contentful paint) and
until it is whole, and how much of it was the server's. The gate is a median of 0.3 s. Not collected by pytest: what it
says is of this machine and of what else it does. Another studio, with a project of its own, is measured by `--address`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from load_studio import browser
from studio_home import COLOURS, SMALL
from test_studio import DESKTOP, STEPS, start, stop

from peftbook.core.records import Record
from peftbook.studio.plan import plan
from peftbook.studio.settings import Reading, Settings
from peftbook.studio.store import Job, Studio

METHODS = ("lora", "qlora", "prompt", "full", "dora", "ia3", "lora+", "pissa", "rslora")
RUNS, TRAIN_STEPS, ROWS, REST = 28, 400, 1000, 0.4  # seconds on a tab
CLICKED = """document.addEventListener('click', () => {
  sessionStorage.clicked = performance.timeOrigin + performance.now();
}, true)"""
SEEN = """(() => {
  const page = performance.getEntriesByType('navigation')[0];
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  const since = performance.timeOrigin - Number(sessionStorage.clicked);
  return paint && page.loadEventEnd ? [since + paint.startTime, since + page.loadEventEnd, page.responseStart] : null;
})()"""


def finished_project(studio: Studio) -> str:
    """A project whose runs are recorded, with curves and texts that were drawn."""
    luck = random.Random(0)
    rows = [f"{' '.join(luck.choices(COLOURS, k=20))} {at},Mix {luck.choice(COLOURS)} with {at}." for at in range(ROWS)]
    content = "\n".join(["ask,answer", *rows]).encode()
    project = studio.create_project("Colours", content, "colours.csv", Reading("ask", "answer")).id
    settings = Settings(models=(SMALL,), methods=METHODS, seeds=3, test_examples=100)
    studio.submit(project, plan(studio.task(project), settings)[:RUNS])
    for job in studio.jobs(project):
        record(studio, job, luck)
    studio.leave("stand-in")
    return project


def record(studio: Studio, job: Job, luck: random.Random) -> None:
    """What a run of 400 steps leaves."""
    attempt = studio.claim("stand-in", os.getpid(), job.id).attempt
    studio.adopt(job.id, attempt, os.getpid())
    scores = [round(luck.random(), 6) for _ in range(job.run.evaluation.n_generate)]
    losses = [2 + 2 * math.exp(-step / 60) + luck.gauss(0, 0.1) for step in range(TRAIN_STEPS)]
    found = Record(
        key=job.key, spec=job.run,
        measurements={"loss_nats": 2.0, "trainable_parameters": 9000, "train_seconds": 60.0, "peak_memory_bytes": 1e9},
        curve={"train_loss_nats": losses} if job.run.budget else {},
        per_example=dict.fromkeys(("rouge1", "rouge2", "rougeL", "bertscore_f1", "loss_nats"), scores)
        | {"exact_match": [0.0] * len(scores), "label_tokens": [5.0] * len(scores)},
    )  # fmt: skip
    studio.records(job.project).save(found, [f"Mix {luck.choice(COLOURS)}." for _ in scores])
    if job.run.budget:
        (studio.folder(job.project) / "adapters" / job.key[:12]).mkdir(parents=True)
    studio.finish(job.id, attempt)


@contextmanager
def studio_in_training() -> Iterator[str]:
    """The address of a studio whose worker trains."""
    home = Path(tempfile.mkdtemp(prefix="peftbook-tabs-"))
    studio = Studio(home)
    project = finished_project(studio)
    real = plan(studio.task(project), Settings(methods=("lora",), tokens=400_000, test_examples=0))[-1]
    studio.submit(project, [real])
    process, address = start(home)
    try:
        while not any(job.phase == "training" for job in studio.jobs()):
            time.sleep(0.2)
        yield address
    finally:
        stop(process)
        for worker in studio.workers():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def seconds_to(page, step: str) -> list[float]:
    """From a click on a tab: until something is seen, until all is there, and until the server's first byte."""
    page.evaluate(CLICKED)
    page.locator(f"nav.steps a[href$='/{step}']").click(no_wait_after=True)
    page.wait_for_url(f"**/{step}")
    page.wait_for_load_state("load")
    while (seen := page.evaluate(SEEN)) is None:
        time.sleep(0.03)
    time.sleep(REST)
    return [one / 1000 for one in seen]


def main() -> None:
    """Round and round; the first round is not counted, in which each page is made for the first time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--address", help="of a studio that runs; its first project is looked at")
    args = parser.parse_args()
    with nullcontext(args.address) if args.address else studio_in_training() as address, browser() as chromium:
        page = chromium.new_context(viewport=DESKTOP).new_page()
        page.goto(address)
        page.locator("a.card").first.click()
        page.wait_for_selector("nav.steps")
        rounds = [
            {step: seconds_to(page, step) for step in [*STEPS][1:] + [*STEPS][:1]} for _ in range(args.rounds + 1)
        ]
    print(f"{'seconds':>9}   seen (most)   whole (most)  first byte")
    for step in STEPS:
        seen, whole, byte = zip(*(one[step] for one in rounds[1:]), strict=True)
        pairs = [f"{statistics.median(ones):.2f} ({max(ones):.2f})" for ones in (seen, whole)]
        print(f"{step:>9}   {pairs[0]}   {pairs[1]}   {statistics.median(byte):.2f}")


if __name__ == "__main__":
    main()
