"""The frame of a project: its name, what can be done with it as a whole, and the way to its steps."""

from __future__ import annotations

from typing import Any

from peftbook.studio.pages.site import Visit

STEPS = {"data": "Data", "plan": "Plan", "runs": "Runs", "decision": "Decision", "try": "Try it", "files": "Files"}


def frame(visit: Visit) -> dict[str, Any]:
    """What the template of every step wants."""
    project, step = visit.project, visit.path.rpartition("/")[2]
    typed = None if visit.form is None else visit.form.get("rename")
    return {
        "project": project, "steps": STEPS, "step": step, "new_name": typed, "jobs": len(visit.studio.jobs(project.id)),
        "address": visit.path, "here": lambda name: visit.to(f"/projects/{project.id}/{name}"),
    }  # fmt: skip
