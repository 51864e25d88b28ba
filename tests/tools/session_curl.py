"""One session with the studio's API by curl alone: the commands that its page shows, in their order, against a server.

    PYTHONPATH=tests python tests/tools/session_curl.py [--rows 600]

Starts a studio with its worker on an empty home, reads the page, and runs each command in a shell as it stands there,
with questions of the package's own SQL set in place of the page's file; what a remark says is kept is kept, what is
waited for is asked for again. At the end peft loads the adapter that came. Not collected by pytest: it trains a small
model. Prints what each command took and ends with 1 at the first that is not answered.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import httpx
from studio_api import found_at

from peftbook.core import specs
from peftbook.core.base_models import SMALL_FOLDERS
from peftbook.core.folders import DATA
from peftbook.studio.store import Studio

LONGEST = 3600.0  # seconds, for a training beside other work
KEPT = re.compile(r"([A-Z]+) is ([\w.]+) of the answer")


def script(address: str, token: str) -> list[str]:
    """The lines of the page's session."""
    page = httpx.get(f"{address}api/v1/", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    found = re.search(r"<pre[^>]*>(.*?)</pre>", page.text, re.DOTALL)
    assert found is not None
    return html.unescape(found[1]).splitlines()


def run(line: str, folder: Path, environment: dict[str, str]) -> str:
    """What a command answers; it fails with what the server said."""
    command = ["bash", "-c", line.replace("curl ", "curl --fail-with-body ", 1)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{line}\n{done.stdout.decode('utf-8', 'replace')}{done.stderr.decode()}")
    return done.stdout.decode("utf-8", "replace")


def write_rows(path: Path, count: int) -> None:
    """Questions and their SQL, of those with a number, under the names that the page's file has."""
    import pyarrow.parquet as pq

    rows = pq.read_table(DATA / "sql.parquet", columns=["question", "sql"]).to_pylist()
    rows = [row for row in rows if re.search(r"\d", row["sql"])][:count]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("question", "answer"), *((row["question"], row["sql"]) for row in rows)])


def play(lines: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Each line in its turn; the first is what this script sets itself, the second a function that they call."""
    function = lines[1]
    for line in lines[2:]:
        command, _, remark = line.partition("  # ")
        began, whole = time.monotonic(), f"{function}\n{command}"
        answer = run(whole, folder, environment)
        while (wanted := re.search(r"state is (\w+)", remark)) and json.loads(answer)["state"] != wanted[1]:
            if json.loads(answer)["state"] in ("failed", "cancelled") or time.monotonic() - began > LONGEST:
                raise SystemExit(f"{command}\n{answer}")
            time.sleep(0.5)
            answer = run(whole, folder, environment)
        for name, place in KEPT.findall(remark):
            environment[name] = found_at(json.loads(answer), place)
        if "decision.txt" in command:
            print(answer, end="")
        print(f"{time.monotonic() - began:8.2f} s  {command}", flush=True)


def check_adapter(folder: Path) -> str:
    """Load the adapter that came with peft, and say what it changes. Raises SystemExit where it changes nothing."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (packed,) = folder.glob("*-adapter.zip")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "adapter")
    base = AutoModelForCausalLM.from_pretrained(SMALL_FOLDERS[specs.SMALL_MODEL]).eval()
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, folder / "adapter").eval()(ids).logits
    if not (change := (after - before).abs().max().item()) > 0:
        raise SystemExit("The adapter changes no logit.")
    return f"{packed.name}, {packed.stat().st_size:,} bytes: peft loads it, and it moves logits by up to {change:.3g}"


def started(home: Path, *more: str) -> tuple[subprocess.Popen[str], str, str]:
    """A studio as people start it: its process, address and token."""
    command = [sys.executable, "-m", "peftbook", "studio", "--home", str(home), "--port", "0", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    address, _, token = process.stdout.readline().split()[4].partition("?token=")
    return process, address, token


def main() -> None:
    """A studio, its page, the session, and what it leaves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600)
    rows = parser.parse_args().rows
    home, folder = Path(tempfile.mkdtemp(prefix="peftbook-curl-")), Path(tempfile.mkdtemp())
    process, address, token = started(home)
    try:
        while not Studio(home).workers():  # which the readiness route asks for
            time.sleep(0.5)
        write_rows(folder / "questions.csv", rows)
        environment, began = os.environ | {"STUDIO": f"{address}api/v1", "TOKEN": token}, time.monotonic()
        lines = script(address, token)
        play(lines, folder, environment)
        print(f"{time.monotonic() - began:8.2f} s  in all: {len(lines) - 2} commands, {rows} rows")
        print(check_adapter(folder))
    finally:
        process.kill()
        process.wait(30)
        for worker in Studio(home).workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        for made in (home, folder):
            shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
