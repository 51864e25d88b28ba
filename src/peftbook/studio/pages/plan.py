"""Plan: models times methods, what each run will take, and off to the queue."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from peftbook import specs
from peftbook.base_models import model_named
from peftbook.errors import InputError
from peftbook.methods import presets
from peftbook.options import options_of
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.studio import markup
from peftbook.studio.machine import machine_words
from peftbook.studio.markup import joined, loading, piece
from peftbook.studio.pages.checks import long_plan, preflight_table
from peftbook.studio.pages.wiring import QUIET, Context, Step, Updates, on, panel, place_of_note, unseen
from peftbook.studio.planning import CHANGED, ask_check, checks_of, planned, queue_checked
from peftbook.studio.preflight import Check
from peftbook.studio.settings import Settings, rates_named
from peftbook.studio.smaller import Smaller, smaller_plan
from peftbook.studio.tuning import Tuning

EMBEDDED = {
    specs.EMBEDDED_MODEL: "SmolLM2 135M Instruct — the embedded model, Apache-2.0; minutes a run on two cores.",
    specs.SMALL_MODEL: "Small Llama, 5M — trained for this book on plain prose; seconds a run, to try the studio out.",
}
ALL = ("untuned", "lora", "qlora", "prompt", "full")
# name → (what it is for, methods, seeds, tokens)
PLANS: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "quick": ("Quick look — LoRA against the untuned model, one seed, 10,000 tokens.", ("untuned", "lora"), 1, 10_000),
    "compare": (
        "Side by side — LoRA, QLoRA, prompt tuning and full fine-tuning, one seed, 50,000 tokens.",
        ALL,
        1,
        50_000,
    ),
    "decide": (
        "To decide — the same with three seeds, so that the intervals cover the luck of training.",
        ALL,
        3,
        50_000,
    ),
    "own": ("As chosen below.", (), 0, 0),
}
DTYPE_CHOICES = [("the fastest here", "auto"), ("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")]
ASKED = options_of(Settings)
FIRST = "quick"
FIRST_METHODS = 6  # shown at once; the others on demand


class PlanForm:
    """What is asked of a plan. fields: in the order in which `settings` reads them."""

    def __init__(self) -> None:
        _, methods, seeds, tokens = PLANS[FIRST]
        offered = [(f"{one.method.label} — {one.words}", one.name) for one in presets()]
        stacked: dict[str, Any] = {"elem_classes": "stacked"}
        with gr.Row(elem_classes="columns"):
            with gr.Column(min_width=320):
                recipes = [(words, name) for name, (words, *_) in PLANS.items()]
                self.recipe = gr.Radio(recipes, value=FIRST, label="Start from", elem_id="recipe", **stacked)
                models = [(words, name) for name, words in EMBEDDED.items()]
                self.models = gr.CheckboxGroup(
                    models, value=[specs.EMBEDDED_MODEL], label="Models", elem_id="models", **stacked
                )
                info = "one a line: a folder with safetensors, or a hub id (with @revision) if the hub can be reached"
                example = "/path/to/a/folder, or owner/name"
                self.others = gr.Textbox(label="Other models", lines=1, max_lines=4, placeholder=example, info=info)
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    self.advanced({"seeds": seeds, "tokens": tokens})
            with gr.Column(min_width=320):
                self.methods = gr.CheckboxGroup(
                    offered[:FIRST_METHODS], value=list(methods), label="Methods", elem_id="methods", **stacked
                )
                with gr.Accordion("More methods", open=False, elem_id="more-methods"):
                    self.more = gr.CheckboxGroup(offered[FIRST_METHODS:], value=[], show_label=False, **stacked)
        self.seeds, self.tokens, self.tests = (self.numbers[name] for name in ("seeds", "tokens", "test_examples"))
        self.fields: list[Any] = [self.models, self.others, self.methods, self.more, *self.numbers.values()]
        self.fields += [self.device, self.dtype, self.weights, self.checkpointing, self.tune, self.rates]

    def advanced(self, first: Mapping[str, float]) -> None:
        """Numbers, device, type and rates; first: what some of the numbers begin with."""
        self.numbers = number_fields(first)
        platform, dtype, rates, here = ASKED["platform"], ASKED["dtype"], ASKED["learning_rates"], devices()
        with gr.Row(equal_height=True):
            self.device = gr.Dropdown(here, value=here[0][1], label=platform.label, interactive=len(here) > 1)
            self.dtype = gr.Dropdown(DTYPE_CHOICES, value=Settings.dtype, label=dtype.label, info=dtype.help)
        weights, checkpointing = ASKED["weights"], ASKED["checkpointing"]
        with gr.Row(equal_height=True):
            kinds = [choice for choice in DTYPE_CHOICES if choice[1] in (weights.choices or ())]
            self.weights = gr.Dropdown(kinds, value=Settings.weights, label=weights.label, info=weights.help)
            self.checkpointing = gr.Checkbox(False, label=checkpointing.label, info=checkpointing.help)
        self.tune = gr.Checkbox(False, label=ASKED["tune"].label, info=ASKED["tune"].help, elem_id="tune")
        usual = ", ".join(f"{one.name} {learning_rate_for(one.name):g}" for one in presets() if one.method.trains)
        info = f"{rates.help}, one a line: {usual}"
        self.rates = gr.Textbox(label=rates.label, lines=3, placeholder="lora = 4e-4", info=info)

    def settings(self, values: Sequence[Any]) -> Settings:
        """What the fields say. Raises InputError for what stands for no setting."""
        named, other, chosen, kin, *typed, platform, dtype, weights, checkpointing, tune, said = values
        return Settings(
            models=tuple(model_named(name) for name in (*(named or ()), *lines(other))),
            methods=(*(chosen or ()), *(kin or ())),
            learning_rates=rates_named(lines(said)),
            platform=platform,
            dtype=dtype,
            weights=weights,
            checkpointing=bool(checkpointing),
            tune=bool(tune),
            **{name: number_of(name, value) for name, value in zip(self.numbers, typed, strict=True)},
        )

    def start_from(self, name: str) -> Updates:
        """Fill the form from a recipe."""
        if name == "own":
            return {self.recipe: name}
        _, chosen, seeds, tokens = PLANS[name]
        return {self.recipe: name, self.methods: list(chosen), self.more: [], self.seeds: seeds, self.tokens: tokens}


class PlanStep(Step):
    """The tab. `checked` holds the question whose answer is the table, in the browser."""

    def __init__(self, context: Context) -> None:
        self.context, self.studio = context, context.studio
        self.checked = unseen()
        self.form = PlanForm()
        with gr.Row(elem_classes="buttons"):
            self.check = gr.Button("Check the plan", variant="primary", elem_id="check")
            self.cancel = gr.Button("Cancel", visible=False, elem_id="cancel-check")
            self.submit = gr.Button("Queue the runs", variant="primary", visible=False, elem_id="submit")
        self.note = place_of_note()
        self.shown = panel(elem_id="preflight")
        with gr.Accordion("This machine", open=False, elem_id="machine"):
            self.machine = panel()
        self.timer = gr.Timer(0.7, active=False)
        self.wire()

    def wire(self) -> None:
        """What happens at which event."""
        form, note = self.form, self.note
        outdated = [self.submit, self.shown, self.checked, self.cancel, self.timer]
        asked = [self.context.place, self.checked, *form.fields]
        form.recipe.input(
            form.start_from, form.recipe, [form.recipe, form.methods, form.more, form.seeds, form.tokens], **QUIET
        )
        on(self.check.click, note, self.ask, asked, outdated)
        on(self.cancel.click, note, self.stop, [self.checked], outdated)
        on(self.timer.tick, note, self.look, asked, outdated)
        on(self.shown.act, note, self.act, asked, [form.recipe, form.seeds, form.tokens, form.tests, *outdated])
        on(self.submit.click, note, self.send, asked, outdated)
        for field in [form.recipe, *form.fields]:  # what was checked is no longer what is asked for
            on(field.input, note, self.stop, [self.checked], outdated)
        for field in (form.methods, form.more, form.seeds, form.tokens):
            field.input(lambda: "own", None, form.recipe, **QUIET)
        self.outputs = [note, self.machine, *outdated]

    def waits(self, yes: bool) -> Updates:
        """Whether an answer is waited for."""
        return {self.cancel: gr.update(visible=yes), self.timer: gr.Timer(active=yes)}

    def nothing(self, note: str = "") -> Updates:
        """No plan is checked, and why not."""
        empty = {self.submit: gr.update(visible=False), self.shown: "", self.checked: ""}
        return {self.note: note, **empty, **self.waits(False)}

    def show(self, project_id: str) -> Updates:
        return {self.machine: piece('<pre class="machine">{}</pre>', machine_words()), **self.nothing()}

    def runs(self, project_id: str, values: Sequence[Any]) -> tuple[list[specs.Run], Tuning | None]:
        """The runs that the form asks for."""
        return planned(self.studio.task(project_id), self.form.settings(values))

    def ask(self, project_id: str, before: str, *values: Any) -> Updates:
        """Have the plan looked at; nobody waits for what was asked before."""
        self.studio.withdraw(before)
        try:
            runs, tuning = self.runs(project_id, values)
        except InputError as error:
            return self.nothing(markup.trouble(error))
        request = ask_check(self.studio, project_id, runs, tuning, watched=True)
        words = loading(f"Counting tokens and memory of {len(runs)} runs…", timed=True)
        hidden = gr.update(visible=False)
        return {self.note: "", self.checked: request, self.shown: words, self.submit: hidden, **self.waits(True)}

    def look(self, project_id: str, request: str, *values: Any) -> Updates:
        """Whether it has been. Of one that was withdrawn here, whoever withdrew it has said what comes next."""
        try:
            answer = self.studio.watch(request)
            if not answer.ended or (answer.state == "withdrawn" and not answer.error):
                return {}
            checks = checks_of(answer)
            less = self.smaller(project_id, checks, values)
        except InputError as error:
            return self.nothing(markup.trouble(error))
        fitting = sum(check.fits for check in checks)
        words = f"Queue the {fitting} runs{' that fit' * (fitting < len(checks))}"
        said = joined([long_plan(checks, less), preflight_table(checks)])
        return {self.shown: said, self.submit: gr.update(value=words, visible=fitting > 0), **self.waits(False)}

    def smaller(self, project_id: str, checks: Sequence[Check], values: Sequence[Any]) -> Smaller | None:
        """A smaller plan than the form's, which was checked."""
        runs = {run.key: run for run in self.runs(project_id, values)[0]}
        if set(runs) != {check.key for check in checks}:
            raise InputError(CHANGED)
        return smaller_plan(self.form.settings(values), [runs[check.key] for check in checks], checks)

    def act(self, project_id: str, request: str, *values: Any) -> Updates:
        """Take the smaller plan into the form, and have it checked."""
        less = self.smaller(project_id, checks_of(self.studio.answer(request)), values)
        if less is None:
            return {}
        new = {self.form.numbers[name]: value for name, value in less.changes.items()}
        changed_values = [new.get(field, value) for field, value in zip(self.form.fields, values, strict=True)]
        return {self.form.recipe: "own", **new, **self.ask(project_id, request, *changed_values)}

    def stop(self, request: str) -> Updates:
        """Nobody waits any more."""
        self.studio.withdraw(request)
        return self.nothing()

    def send(self, project_id: str, request: str, *values: Any) -> Updates:
        """Queue what was checked, as it was checked."""
        asked = {run.key for run in self.runs(project_id, values)[0]}
        plan_id, count = queue_checked(self.studio, project_id, request, asked)
        place = [one.id for one in self.studio.plans(project_id)].index(plan_id) + 1
        words = f"{count} runs are queued as plan {place}. Their progress is under Runs."
        return {self.shown: markup.note(words, "good"), self.submit: gr.update(visible=False)}


# --- what was typed --------------------------------------------------------------------------------------------


def devices() -> list[tuple[str, str]]:
    """Where runs can run: the GPU first if there is one."""
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    return [("GPU", "cuda")] * has_gpu + [(f"CPU, {os.cpu_count()} cores", "cpu")]


def number_fields(first: Mapping[str, float]) -> dict[str, gr.Number]:
    """A field for each number of the settings by its name, three in a row; first: what some of them begin with.

    They have no limits of Gradio's, which end in an error without words. Gradio shows a number that is not there as 0.
    """
    names = [name for name, option in ASKED.items() if option.bound]
    made = {}
    for place in range(0, len(names), 3):
        with gr.Row(equal_height=True):
            for name in names[place : place + 3]:
                usual, words = getattr(Settings, name), ASKED[name].help
                info = f"{words}, else 0" if usual is None else words
                made[name] = gr.Number(first.get(name, usual or 0), label=ASKED[name].label, info=info)
    return made


def number_of(name: str, value: Any) -> Any:
    """A field's number; None for 0, or nothing, where none is usual. Raises InputError for another that is empty."""
    if not value and getattr(Settings, name) is None:
        return None
    if value is None:
        raise InputError(f"The field for {name.replace('_', ' ')} is empty: give a number.")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def lines(text: str | None) -> list[str]:
    """Those of a text that are not empty, without the spaces around them."""
    return list(filter(None, map(str.strip, (text or "").splitlines())))
