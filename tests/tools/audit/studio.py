"""Serves every view of a studio with something on it, for the audit; prints their addresses as one line of JSON.

28 finished runs, a checked plan, two answers, an upload that is no project yet. It ends when its input does.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from starlette.datastructures import QueryParams
from studio_api import work
from studio_home import SMALL, colours_csv
from tabs_studio import finished_project
from test_studio import start, stop

from peftbook.studio.pages.form import fields_of, settings_of
from peftbook.studio.pages.plan import form_at
from peftbook.studio.pages.site import address
from peftbook.studio.plan_checks import ask_check, planned
from peftbook.studio.playground import ask_model, row_after
from peftbook.studio.store import Studio
from peftbook.studio.uploads import UploadStore
from peftbook.tasks.table import Caps


def views(studio: Studio) -> dict[str, str]:
    """Every view by its name, with what it shows in its address."""
    project = finished_project(studio)
    uploads = UploadStore(studio.home, Caps())
    draft = uploads.new("colours.csv").id
    with uploads.receiving(draft) as write:
        write(colours_csv())
    uploads.end(draft)
    fields = fields_of(QueryParams({"models": SMALL.name}))
    check = ask_check(studio, project, *planned(studio.task(project), settings_of(fields)))
    row = row_after(studio, project, "")
    asked = [ask_model(studio, project, f"job:{job.id}", row.input, {}) for job in studio.jobs(project)[1:3]]
    work(studio)
    at = f"/projects/{project}"
    steps = {name: f"{at}/{name}" for name in ("data", "runs", "decision", "files")}
    return {
        "home": "/", "reading": f"/new/{draft}", **steps, "plan": form_at(project, fields, check=check),
        "try": address(f"{at}/try", row=row.id, answer=asked), "nothing": "/projects/0/data", "api": "/api/v1/",
    }  # fmt: skip


def main() -> None:
    """A studio that is open to everybody on this machine."""
    home = Path(tempfile.mkdtemp(prefix="peftbook-audit-"))
    shown = views(Studio(home))
    opened, there = start(home, 0, "--no-worker")
    print(json.dumps({name: there + path[1:] for name, path in shown.items()}), flush=True)
    sys.stdin.read()
    stop(opened)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
