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

Updates = dict[Any, Any]  # component → what it shows from now on

# Every event is one short request and its answer: nothing is queued, nothing is kept between two of them.
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
BUSY = QUIET | {"show_progress": "minimal"}  # of events that take a moment
SCRIPT = "studio.panel(element, trigger, 'act')"
HEAD = '<script src="/studio/page.js"></script>'


@dataclass
class Context:
    """What the pages show. caps: of uploads.  place: a hidden field with the project that is open: the browser keeps
    it, so that the server need not.
    """

    studio: Studio
    drafts: Drafts
    caps: Caps
    place: gr.Textbox = field(init=False)


class Step:
    """One tab. outputs: what `show` fills for a project, when it is opened.  note: where a refusal is said."""

    outputs: Sequence[Any]
    note: gr.HTML

    def show(self, project_id: str) -> Updates:
        raise NotImplementedError


def panel(value: str = "", **options: Any) -> gr.HTML:
    """A piece of the page whose buttons (`markup.button`) fire its `act` event, and whose tables sort and filter."""
    return gr.HTML(value, js_on_load=SCRIPT, head=HEAD, apply_default_css=False, **options)


def unseen(value: str = "", **options: Any) -> gr.Textbox:
    """A field that nobody sees, in which the browser keeps something."""
    return gr.Textbox(value, visible="hidden", elem_classes="unseen", **options)


def place_of_note() -> gr.HTML:
    return gr.HTML("", elem_classes="in-place")


def on(
    event: Callable[..., Any], note: gr.HTML, work: Callable[..., Updates], inputs: Any, outputs: list, **options: Any
) -> None:
    """Run a handler at an event; what it refuses is said in `note`, and nothing else changes."""

    @functools.wraps(work)
    def run(*args: Any) -> Updates:
        try:
            return {note: "", **work(*args)}
        except InputError as error:
            return {note: markup.trouble(error)}

    event(run, inputs, [note, *outputs], **QUIET | options)
