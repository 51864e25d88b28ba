"""Try it: two models side by side on one input. The assistant's process generates; this page shows what there is."""

from __future__ import annotations

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.markup import empty, loading, piece
from peftbook.studio.pages.wiring import Context, Step, Updates, on, panel, place_of_note, unseen
from peftbook.studio.requests import Answer
from peftbook.studio.trying import TYPED_CHARS, ask_model, models_at_hand, row_after

BETWEEN = " "


class TryStep(Step):
    """The tab. `asked` holds the two questions that wait, in the browser."""

    def __init__(self, context: Context) -> None:
        self.context, self.studio = context, context.studio
        self.note, self.asked = place_of_note(), unseen()
        with gr.Row(equal_height=True):
            self.models = [gr.Dropdown(label=side, elem_id=f"try-{side.lower()}") for side in ("Left", "Right")]
        self.typed = gr.Textbox(
            label="Input", info="what stands at {input} in the project's prompt", lines=4, max_lines=16,
            max_length=TYPED_CHARS, elem_id="try-input",
        )  # fmt: skip
        with gr.Row(elem_classes="buttons"):
            go = gr.Button("Generate", variant="primary", elem_id="try-go")
            stop = gr.Button("Stop", elem_id="try-stop")
            another = gr.Button("Take a test row", elem_id="try-row")
        with gr.Accordion("How to generate", open=False), gr.Row(equal_height=True):
            tokens = gr.Slider(8, 512, value=128, step=8, label="At most so many tokens")
            info = "0 takes the likeliest token each time"
            heat = gr.Slider(0, 1.5, value=0, step=0.05, label="Temperature", info=info)
            seed = gr.Number(0, label="Seed", precision=0)
        self.reference = panel()
        with gr.Row(equal_height=True, elem_classes="side-by-side"):
            self.texts = [panel(elem_id=f"said-{side}") for side in ("left", "right")]
        self.timer = gr.Timer(0.4, active=False)
        self.outputs = [*self.models, self.asked, self.reference, self.note, *self.texts]
        fields = [context.place, *self.models, self.typed, tokens, heat, seed]
        for event in (go.click, self.typed.submit):
            on(event, self.note, self.ask, fields, [self.asked, self.timer, *self.texts])
        on(self.timer.tick, self.note, self.look, [self.asked], [self.timer, *self.texts])
        on(stop.click, self.note, self.halt, [self.asked], [])
        on(another.click, self.note, self.take, [context.place, self.typed], [self.typed, self.reference])

    def show(self, project_id: str) -> Updates:
        choices = models_at_hand(self.studio, project_id)
        waits = empty("Nothing generated yet", "Type an input or take a test row, then generate with both models.")
        ends = zip(self.models, (choices[0], choices[-1]), strict=True)
        chosen = {model: gr.update(choices=choices, value=value) for model, (_, value) in ends}
        left, right = self.texts
        return {**chosen, left: waits, right: "", self.reference: "", self.asked: "", self.note: ""}

    def ask(
        self, project_id: str, first: str, second: str, text: str, most: float, heat: float, seed: float
    ) -> Updates:
        """Put the question to both."""
        more = {"max_new_tokens": int(most), "temperature": float(heat), "seed": int(seed or 0)}
        ids = [ask_model(self.studio, project_id, value, text or "", more) for value in (first, second)]
        waits = dict.fromkeys(self.texts, loading("Waiting for the model…"))
        return {self.asked: BETWEEN.join(ids), self.timer: gr.Timer(active=True), **waits}

    def look(self, ids: str) -> Updates:
        """What there is by now."""
        answers = [answer_of(self.context, request) for request in (ids or "").split(BETWEEN)[:2]]
        shown = {text: said(answer) for text, answer in zip(self.texts, answers, strict=False)}
        return {**shown, self.timer: gr.Timer(active=not all(answer.ended for answer in answers))}

    def halt(self, ids: str) -> Updates:
        """Nobody waits any more."""
        for request in filter(None, (ids or "").split(BETWEEN)):
            self.studio.withdraw(request)
        return {}

    def take(self, project_id: str, now: str) -> Updates:
        """The next test row after the one that stands there."""
        row = row_after(self.studio, project_id, now)
        words = piece(
            '<p class="fine">Test {}, whose target is</p><div class="said said-target">{}</div>', row.id, row.target
        )
        return {self.typed: row.input[:TYPED_CHARS], self.reference: words}


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
