"""What a build does, for whoever waits: which chapter of how many is executed or read, and how long is left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from peftbook.training.phases import Phases, waited_for

__all__ = ["phases_of"]

FIRST, LAST = 0, 1000  # priorities: before and after all else that listens
EVENTS = {"builder-inited": "looking for what has changed", "env-updated": "resolving references"}


class Progress:
    """A build's phases, told from the start of this extension to the build's end."""

    def __init__(self) -> None:
        self.told = ExitStack()
        self.phases: Phases = self.told.enter_context(waited_for("Site", "starting"))
        self.pages, self.count = 0, 0

    def begin(self, app: Any, env: Any, pages: Sequence[str]) -> None:
        """Chapters will be read."""
        self.pages, self.count = len(pages), 0

    def read(self, app: Any, page: str, source: list[str]) -> None:
        """One of them is."""
        self.phases("reading the chapters", self.count, self.pages, page)
        self.count += 1

    def written(self, app: Any, page: str, *_: Any) -> None:
        """A page of the site is made: of a chapter, of a run, or an index."""
        self.phases("writing the pages", detail=page)

    def ending(self, app: Any, error: Exception | None) -> None:
        """The pages are there, or there was an error."""
        self.phases("finishing style sheets and what can be taken away")

    def end(self, app: Any, error: Exception | None) -> None:
        """Nobody waits any more."""
        self.told.close()


def phases_of(app: Any) -> Phases:
    """What is told of a build under way."""
    return app.peftbook_progress.phases


def setup(app: Any) -> None:
    """Listen to the build."""
    progress = app.peftbook_progress = Progress()
    for event, words in EVENTS.items():
        app.connect(event, lambda *_, words=words: progress.phases(words), priority=FIRST)
    app.connect("env-before-read-docs", progress.begin, priority=FIRST)
    app.connect("source-read", progress.read)
    app.connect("html-page-context", progress.written, priority=FIRST)
    app.connect("build-finished", progress.ending, priority=FIRST)
    app.connect("build-finished", progress.end, priority=LAST)
