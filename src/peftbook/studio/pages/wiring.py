"""What the pages share: the studio they show, and how a handler's bad input becomes a sentence in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.drafts import Drafts
from peftbook.studio.store import Studio
from peftbook.tasks.table import Caps

# Every event is one short request and its answer: nothing is queued, nothing is kept between two of them.
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SCRIPT = "studio.panel(element, trigger, 'act')"
HEAD = '<script src="/studio/page.js"></script>'


@dataclass
class Context:
    """What the pages show. caps: of uploads.  place, request: hidden fields with the project that is open and with
    the questions that wait for an answer: the browser keeps them, so that the server need not.
    """

    studio: Studio
    drafts: Drafts
    caps: Caps
    place: gr.Textbox = field(init=False)


@dataclass
class Step:
    """One tab. show: its outputs for a project, when it is opened."""

    outputs: Sequence[Any]
    show: Callable[[str], dict[Any, Any]]


def panel(value: str = "", **options: Any) -> gr.HTML:
    """A piece of the page whose buttons (`markup.button`) fire its `act` event, and whose tables sort and filter."""
    return gr.HTML(value, js_on_load=SCRIPT, head=HEAD, apply_default_css=False, **options)


def in_place(note: gr.HTML, work: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """Run a handler; what it refuses is said in `note`, and nothing else changes."""

    @functools.wraps(work)
    def run(*args: Any) -> dict[Any, Any]:
        try:
            return {note: "", **work(*args)}
        except InputError as error:
            return {note: markup.trouble(error)}

    return run
