"""The list of projects, and a new one."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from peftbook.studio.markup import ago, badge, empty, joined, piece
from peftbook.studio.store import Studio

CARD = (
    '<li><a class="card" href="?project={project.id}" data-act="open" data-id="{project.id}">'
    '<strong>{project.name}</strong><span class="fine">{file} · {project.columns.input} → {project.columns.target} · '
    '{when}</span><span class="states">{jobs}</span></a></li>'
)
STATES = ("running", "queued", "done", "failed", "cancelled")


def listing(studio: Studio) -> Markup:
    """All projects, the newest first, with what their jobs do."""
    projects = studio.projects()
    if not projects:
        return empty(
            "No project yet",
            "A project is one file of yours: rows with something to read and something to write. Upload it below, "
            "train several methods on it side by side, and see which one is worth its cost, with intervals.",
        )
    states: dict[str, Counter[str]] = {}
    for job in studio.jobs():
        states.setdefault(job.project, Counter())[job.state] += 1
    cards = []
    for project in reversed(projects):
        counts = states.get(project.id, Counter())
        jobs = joined((badge(state, f"{counts[state]} {state}") for state in STATES if counts[state]), " ")
        cards.append(piece(CARD, project=project, file=project.filename or "pasted", when=ago(project.created),
                           jobs=jobs or Markup('<span class="fine">no runs yet</span>')))  # fmt: skip
    return piece('<ul class="cards">{}</ul>', joined(cards))
