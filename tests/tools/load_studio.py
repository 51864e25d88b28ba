"""The studio under load: 20 clients poll beside one browser while one job trains. Run it alone on a quiet machine.

    PYTHONPATH=tests python tests/tools/load_studio.py [--clients 20] [--tokens 15000]

The same run is trained four times in one studio: without the load, twice with it, and without it again, so that a
machine that grows slower counts against both; each with a seed of its own. Prints by how much training slowed (by its
own tokens per second) and the 95th percentile of the answers' time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx
from test_studio import start, stop, table

from peftbook.core import specs
from peftbook.studio.plan import plan
from peftbook.studio.settings import Reading, Settings
from peftbook.studio.store import Studio


def train(studio: Studio, project: str, run: specs.Run) -> float:
    """Queue one run and wait; returns tokens per second of its training, by its record."""
    plan_id = studio.submit(project, [run])
    while (job := studio.jobs(plan=plan_id)[0]).state not in ("done", "failed", "cancelled"):
        time.sleep(0.2)
    assert job.state == "done", job.error
    record = studio.records(project).get(run)
    assert record is not None
    return record.measurements["train_tokens_per_second"]


def poll(address: str, project: str, until: threading.Event, seconds: list[float]) -> None:
    """One client that asks once a second, as the page does."""
    with httpx.Client(base_url=address, timeout=30) as client:
        seen = ""
        while not until.is_set():
            began = time.monotonic()
            answer = client.get(f"/projects/{project}/runs?part=live", headers={"if-none-match": seen})
            seconds.append(time.monotonic() - began)
            if answer.status_code != 304:
                seen = answer.raise_for_status().headers["etag"]
            until.wait(max(0.0, 1 - (time.monotonic() - began)))


def main() -> None:
    """The trainings, and what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=15_000)
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="peftbook-load-"))
    process, address = start(home)
    studio = Studio(home)
    try:
        rows = table().rpartition("ragged")[0].encode()
        project = studio.create_project("load", rows, "load.csv", Reading("question", "answer")).id
        settings = Settings(methods=("lora",), tokens=args.tokens, test_examples=0, seeds=5)
        _, warm, first, *under_load, last = plan(studio.task(project), settings)
        train(studio, project, warm)  # the first loads what the others find in memory
        alone, loaded, seconds = [train(studio, project, first)], [], []
        until = threading.Event()
        clients = [
            threading.Thread(target=poll, args=(address, project, until, seconds), daemon=True)
            for _ in range(args.clients)
        ]
        with browser() as chromium:
            chromium.new_page().goto(f"{address}projects/{project}/runs")
            for client in clients:
                client.start()
            loaded += [train(studio, project, run) for run in under_load]
            until.set()
            for client in clients:
                client.join(30)
        alone.append(train(studio, project, last))
        before, under = statistics.harmonic_mean(alone), statistics.harmonic_mean(loaded)
        p95 = statistics.quantiles(seconds, n=20)[-1]
        for words, found in (("alone", alone), ("under load", loaded)):
            print(f"training {words}: {', '.join(f'{one:.1f}' for one in found)} tokens/s")
        print(f"training takes {100 * (before / under - 1):+.1f} % time under load")
        print(
            f"{len(seconds)} answers to {args.clients} clients: median {statistics.median(seconds):.3f} s, "
            f"p95 {p95:.3f} s"
        )
    finally:
        stop(process)
        for worker in studio.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def browser():
    """A Chromium, without a test to start it for."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("PEFTBOOK_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.chromium.launch(executable_path=found, args=options) as browser:
            yield browser


if __name__ == "__main__":
    main()
