"""The list of projects, and a new one."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from peftbook.studio.markup import ago, badge, empty, joined, piece
from peftbook.studio.store import Studio

STATES = ("running", "queued", "done", "failed", "cancelled")


def listing(studio: Studio) -> Markup:
    """All projects, the newest first, with what their jobs do."""
    projects = studio.projects()
    if not projects:
        return empty(
            "No project yet",
            "A project is one file of yours: rows with something to read and something to write. Upload it "
            "below, train "
            "several methods on it side by side, and see which one is worth its cost, with intervals.",
        )
    states: dict[str, Counter[str]] = {}
    for job in studio.jobs():
        states.setdefault(job.project, Counter())[job.state] += 1
    cards = []
    for one in reversed(projects):
        counts = states.get(one.id, Counter())
        jobs = joined((badge(state, f"{counts[state]} {state}") for state in STATES if counts[state]), " ") or piece(
            '<span class="fine">no runs yet</span>'
        )
        cards.append(
            piece(
                '<li><a class="card" href="?project={id}" data-act="open" data-id="{id}"><strong>{name}</strong>'
                '<span class="fine">{file} · {source} → {target} · {when}</span><span class="states">{jobs}</span>'
                "</a></li>",
                id=one.id,
                name=one.name,
                file=one.filename or "pasted",
                source=one.columns.input,
                target=one.columns.target,
                when=ago(one.created),
                jobs=jobs,
            )
        )
    return piece('<ul class="cards">{}</ul>', joined(cards))
