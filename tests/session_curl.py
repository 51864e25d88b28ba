"""One session with the studio's API by curl alone: the commands that its page shows, in their order, against a server.

    python tests/session_curl.py

Starts a studio with its worker on an empty home, reads the page, and runs each command in a shell as it stands there;
what a remark says is kept is kept, what is waited for is asked for again. Not collected by pytest: it trains a small
model. Prints what each command took and ends with 1 at the first that is not answered.
"""

from __future__ import annotations

import contextlib
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
from pathlib import Path

import httpx
from studio_api import found_at

from peftbook.studio.api.examples import BEFORE
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


def play(lines: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Each line in its turn."""
    _, function, rows = lines[: len(BEFORE)]  # the first is what this script sets itself
    run(rows, folder, environment)
    for line in lines[len(BEFORE) :]:
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
        print(f"{time.monotonic() - began:8.2f} s  {command}", flush=True)


def started(home: Path) -> tuple[subprocess.Popen[str], str, str]:
    """A studio as people start it: its process, address and token."""
    command = [sys.executable, "-m", "peftbook", "studio", "--home", str(home), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    address, _, token = process.stdout.readline().split()[4].partition("?token=")
    return process, address, token


def main() -> None:
    """A studio, its page, and the session."""
    home, folder = Path(tempfile.mkdtemp(prefix="peftbook-curl-")), Path(tempfile.mkdtemp())
    process, address, token = started(home)
    try:
        while not Studio(home).workers():  # which the readiness route asks for
            time.sleep(0.5)
        environment = os.environ | {"STUDIO": f"{address}api/v1", "TOKEN": token}
        play(script(address, token), folder, environment)
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
