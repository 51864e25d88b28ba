"""A Sphinx extension that shows a build's progress: chapters executed and read, pages written, the time left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any

from peftbook.core.progress import Phases, show_progress

FIRST, LAST = 0, 1000  # priorities: before and after all other listeners
EVENTS = {
    "builder-inited": "looking for what has changed",
    "env-updated": "resolving references",
    "build-finished": "finishing style sheets and what can be taken away",
}


def phases_of(app: Any) -> Phases:
    """What reports the phases of the present build."""
    return app.peftbook_phases


def setup(app: Any) -> None:
    """Show progress from here to the end of the build."""
    shown = ExitStack()
    phases = app.peftbook_phases = shown.enter_context(show_progress("Site", "starting"))

    def begin(app: Any, env: Any, pages: Sequence[str]) -> None:
        done = count()
        app.connect("source-read", lambda _, page, source: phases("reading the chapters", next(done), len(pages), page))

    for event, words in EVENTS.items():
        app.connect(event, lambda *_, words=words: phases(words), priority=FIRST)
    app.connect("env-before-read-docs", begin, priority=FIRST)
    app.connect("html-page-context", lambda _, page, *rest: phases("writing the pages", detail=page), priority=FIRST)
    app.connect("build-finished", lambda *_: shown.close(), priority=LAST)
