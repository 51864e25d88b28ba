"""Running a studio: probes under load, a unit that systemd takes, a backup that outlives original and server."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import studio_api
from hostile_studio import Request, serving
from session_curl import started

from peftbook import cli
from peftbook.studio.sessions import SessionStore
from peftbook.studio.store import Studio

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of threads that have ended

MANY = 60  # requests that wait, more than there are threads for them
JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """Somebody else's transaction that goes on."""
    with contextlib.closing(sqlite3.connect(home / "studio.sqlite", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


@pytest.mark.slow
def test_probes_are_answered_while_all_other_requests_wait(tmp_path):
    """Alive while every thread waits for a transaction; not ready, with the reason; ready again after it, and all that
    waited was done.
    """
    with serving(tmp_path / "home") as there:
        bearer = {
            "Authorization": f"Bearer {SessionStore(there.studio.home).create('probe')}"
        }  # its first use is noted
        label = Request("PATCH", f"/api/v1/projects/{there.known['project']}", JSON, b'{"name": "x"}', (200,))
        asking = [threading.Thread(target=there.send, args=(label,)) for _ in range(MANY)]
        with held(there.studio.home):
            for thread in asking:
                thread.start()
            time.sleep(1)
            began = time.monotonic()
            assert there.send(Request("GET", "/api/v1/health")).status == 200
            assert there.send(Request("GET", "/api/v1/openapi.json", bearer)).status == 200
            ready = there.send(Request("GET", "/api/v1/ready"))
            assert ready.status == 503 and "database is locked" in ready.tree()["missing"][0]
            assert time.monotonic() - began < 25 and all(thread.is_alive() for thread in asking)
        for thread in asking:
            thread.join(120)
        assert there.counts[200] > MANY and there.broken == [] and there.errors == []
        there.studio.beat("stand-in", os.getpid())
        assert there.send(Request("GET", "/api/v1/ready")).status == 200


@pytest.mark.slow
def test_a_backup_outlives_the_original_and_its_server(tmp_path):
    """Taken while it is served; then the server is killed and its home destroyed. What was restored is served under the
    same tokens, with the same project, plans, jobs, decision, texts and adapter. Only its owner reads it.
    """
    home, backup = tmp_path / "home", tmp_path / "backup.zip"
    studio = Studio(home)
    project = studio_api.project_of(studio)
    studio_api.work(studio)
    paths = ["projects", *(f"projects/{project.id}/{part}" for part in ("jobs", "plans", "findings", "decision"))]
    paths += [f"jobs/{studio.jobs()[1].id}/artefacts/{name}" for name in ("adapter.zip", "outputs.csv")]
    studio.close()
    seen: list[list[bytes]] = []
    secret = ""
    for _ in range(2):
        process, address, token = started(home, "--no-worker")
        try:
            with httpx.Client(base_url=f"{address}api/v1/", timeout=120) as client:
                client.headers["authorization"] = f"Bearer {secret or token}"
                if not secret:
                    secret = SessionStore(home).create("laptop")
                    assert cli.main(["studio", "--home", str(home), "--backup", str(backup)]) == 0
                seen.append([client.get(path).raise_for_status().content for path in paths])
        finally:
            process.kill()
            process.communicate()
        if len(seen) == 1:
            shutil.rmtree(home)
            assert cli.main(["studio", "--home", str(home), "--restore", str(backup)]) == 0
    assert seen[0] == seen[1] and stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.systemd
def test_systemd_takes_the_unit(tmp_path, capsys):
    """Every line of it, for a home whose name needs quotes."""
    assert cli.main(["studio", "--unit", "--home", str(tmp_path / "100 % mine $HOME"), "--port", "8000"]) == 0
    unit = tmp_path / "peftbook-studio.service"
    unit.write_text(capsys.readouterr().out)
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
