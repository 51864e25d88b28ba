"""Try it: two models side by side on one input. The assistant's process generates; this page shows what there is."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from peftbook import specs
from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.markup import empty, loading, piece
from peftbook.studio.pages.wiring import QUIET, Context, Step, in_place, panel
from peftbook.studio.requests import Answer

TYPED_CHARS = 20_000
BETWEEN = " "


def models_at_hand(context: Context, project_id: str) -> list[tuple[str, str]]:
    """(what it is called, its value) of every model that can be tried: as they come, then what was trained."""
    done = [job for job in context.studio.jobs(project_id) if job.state == "done"]
    plain = {job.run.model.name: job.run.model for job in done} or {specs.EMBEDDED_MODEL: specs.Model()}
    found = [(f"{name}, untuned", f"model:{model.model_dump_json()}") for name, model in plain.items()]
    return found + [(job.label, f"job:{job.id}") for job in done if job.run.budget is not None]


def build_tryout(context: Context) -> Step:
    """The tab. `asked` holds the two questions that wait, in the browser."""
    note = gr.HTML("", elem_classes="in-place")
    asked = gr.Textbox("", visible="hidden", elem_classes="unseen")
    with gr.Row(equal_height=True):
        left = gr.Dropdown(label="Left", elem_id="try-left")
        right = gr.Dropdown(label="Right", elem_id="try-right")
    typed = gr.Textbox(
        label="Input",
        info="what stands at {input} in the project's prompt",
        lines=4,
        max_lines=16,
        max_length=TYPED_CHARS,
        elem_id="try-input",
    )
    with gr.Row(elem_classes="buttons"):
        go = gr.Button("Generate", variant="primary", elem_id="try-go")
        stop = gr.Button("Stop", elem_id="try-stop")
        another = gr.Button("Take a test row", elem_id="try-row")
    with gr.Accordion("How to generate", open=False), gr.Row(equal_height=True):
        tokens = gr.Slider(8, 512, value=128, step=8, label="At most so many tokens")
        heat = gr.Slider(0, 1.5, value=0, step=0.05, label="Temperature", info="0 takes the likeliest token each time")
        seed = gr.Number(0, label="Seed", precision=0)
    reference = panel()
    with gr.Row(equal_height=True, elem_classes="side-by-side"):
        outputs = (panel(elem_id="said-left"), panel(elem_id="said-right"))
    timer = gr.Timer(0.4, active=False)

    def show(project_id: str) -> dict[Any, Any]:
        choices = models_at_hand(context, project_id)
        waits = empty("Nothing generated yet", "Type an input or take a test row, then generate with both models.")
        return {
            left: gr.update(choices=choices, value=choices[0][1]),
            right: gr.update(choices=choices, value=choices[-1][1]),
            outputs[0]: waits,
            outputs[1]: "",
            reference: "",
            asked: "",
            note: "",
        }

    def ask(
        project_id: str, first: str, second: str, text: str, most: float, heat: float, seed: float
    ) -> dict[Any, Any]:
        """Put the question to both."""
        if not (text or "").strip():
            raise InputError("The input is empty: type something, or take a test row.")
        more = {"max_new_tokens": int(most), "temperature": float(heat), "seed": int(seed or 0)}
        allowed = {value for _, value in models_at_hand(context, project_id)}
        ids = []
        for value in (first, second):
            if value not in allowed:
                raise InputError("That model is not at hand (any more): choose another.")
            kind, _, what = value.partition(":")
            whose = {"job": what} if kind == "job" else {"model": specs.Model.model_validate_json(what).model_dump()}
            ids.append(context.studio.ask("generate", {"project": project_id, "text": text, **whose, **more}))
        return {
            asked: BETWEEN.join(ids),
            timer: gr.Timer(active=True),
            outputs[0]: loading("Waiting for the model…"),
            outputs[1]: loading("Waiting for the model…"),
        }

    def look(ids: str) -> dict[Any, Any]:
        """What there is by now."""
        found = [answer_of(context, one) for one in (ids or "").split(BETWEEN)[:2]]
        shown = {output: said(answer) for output, answer in zip(outputs, found, strict=False)}
        return {**shown, timer: gr.Timer(active=not all(answer.ended for answer in found))}

    def halt(ids: str) -> dict[Any, Any]:
        """Nobody waits any more."""
        for one in filter(None, (ids or "").split(BETWEEN)):
            context.studio.withdraw(one)
        return {}

    def take(project_id: str, now: str) -> dict[Any, Any]:
        """The next test row after the one that stands there."""
        rows = context.studio.task(project_id).splits["test"]
        at = next((place for place, row in enumerate(rows) if row.input == now), -1)
        row = rows[(at + 1) % len(rows)]
        words = piece(
            '<p class="fine">Test {}, whose target is</p><div class="said said-target">{}</div>', row.id, row.target
        )
        return {typed: row.input[:TYPED_CHARS], reference: words}

    fields = [context.place, left, right, typed, tokens, heat, seed]
    go.click(in_place(note, ask), fields, [note, asked, timer, *outputs], **QUIET)
    typed.submit(in_place(note, ask), fields, [note, asked, timer, *outputs], **QUIET)
    timer.tick(in_place(note, look), [asked], [note, timer, *outputs], **QUIET)
    stop.click(in_place(note, halt), [asked], [note], **QUIET)
    another.click(in_place(note, take), [context.place, typed], [note, typed, reference], **QUIET)
    return Step([left, right, asked, reference, note, *outputs], show)


def answer_of(context: Context, request_id: str) -> Answer:
    """An answer, or that it is gone."""
    try:
        return context.studio.answer(request_id)
    except InputError as error:
        return Answer("failed", error=str(error))


def said(answer: Answer) -> Markup:
    """A text as it grows."""
    if answer.state == "failed":
        return markup.trouble(answer.error)
    if answer.state == "waiting" or (answer.state == "working" and not answer.text):
        return loading("Waiting for the model…" if answer.state == "waiting" else "Loading the model…")
    ends = {"done": "", "working": piece('<span class="caret" aria-hidden="true"></span>')}.get(answer.state, "")
    foot = piece('<p class="fine">stopped</p>') if answer.state == "withdrawn" else Markup("")
    if answer.state == "done" and not answer.text.strip():
        foot = piece('<p class="fine">It ended at once, without a word.</p>')
    return piece('<div class="said" aria-live="polite">{}{}</div>{}', answer.text, ends, foot)
