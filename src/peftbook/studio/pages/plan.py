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
from peftbook.studio.pages.checks import checks_of, long_plan, preflight_table
from peftbook.studio.pages.wiring import QUIET, Context, Step, in_place, panel
from peftbook.studio.plan import plan
from peftbook.studio.preflight import Check
from peftbook.studio.settings import Settings, rates_named
from peftbook.studio.smaller import Smaller, smaller_plan

EMBEDDED = {
    specs.EMBEDDED_MODEL: "SmolLM2 135M Instruct — the embedded model, Apache-2.0; minutes a run on two cores.",
    specs.SMALL_MODEL: "Small Llama, 5M — trained for this book on plain prose; seconds a run, to try the studio out.",
}
# name → (what it is for, methods, seeds, tokens)
PLANS: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "quick": ("Quick look — LoRA against the untuned model, one seed, 10,000 tokens.", ("untuned", "lora"), 1, 10_000),
    "compare": (
        "Side by side — LoRA, QLoRA, prompt tuning and full fine-tuning, one seed, 50,000 tokens.",
        ("untuned", "lora", "qlora", "prompt", "full"),
        1,
        50_000,
    ),
    "decide": (
        "To decide — the same with three seeds, so that the intervals cover the luck of training.",
        ("untuned", "lora", "qlora", "prompt", "full"),
        3,
        50_000,
    ),
    "own": ("As chosen below.", (), 0, 0),
}
DTYPE_CHOICES = [("the fastest here", "auto"), ("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")]
ASKED = options_of(Settings)
FIRST = "quick"
FIRST_METHODS = 6  # shown at once; the others on demand


def build_plan(context: Context) -> Step:
    """The tab. `checked` holds the question whose answer is the table, in the browser."""
    _, methods_first, seeds_first, tokens_first = PLANS[FIRST]
    checked = gr.Textbox("", visible="hidden", elem_classes="unseen")
    with gr.Row(elem_classes="columns"):
        with gr.Column(min_width=320):
            recipe = gr.Radio(
                [(words, name) for name, (words, *_) in PLANS.items()],
                value=FIRST,
                label="Start from",
                elem_classes="stacked",
                elem_id="recipe",
            )
            models = gr.CheckboxGroup(
                [(words, name) for name, words in EMBEDDED.items()],
                value=[specs.EMBEDDED_MODEL],
                label="Models",
                elem_classes="stacked",
                elem_id="models",
            )
            others = gr.Textbox(
                label="Other models",
                lines=1,
                max_lines=4,
                placeholder="/path/to/a/folder, or owner/name",
                info="one a line: a folder with safetensors, or a hub id (with @revision) if the hub can be reached",
            )
            with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                numbers = number_fields({"seeds": seeds_first, "tokens": tokens_first})
                with gr.Row(equal_height=True):
                    device = gr.Dropdown(
                        devices(), value=devices()[0][1], label=ASKED["platform"].label, interactive=len(devices()) > 1
                    )
                    dtype = gr.Dropdown(
                        DTYPE_CHOICES, value=Settings.dtype, label=ASKED["dtype"].label, info=ASKED["dtype"].help
                    )
                asked_rates = ASKED["learning_rates"]
                rates = gr.Textbox(
                    label=asked_rates.label, lines=3, placeholder="lora = 4e-4",
                    info=f"{asked_rates.help}, one a line: {rates_in_words()}",
                )  # fmt: skip
        with gr.Column(min_width=320):
            offered = [(f"{one.method.label} — {one.words}", one.name) for one in presets()]
            methods = gr.CheckboxGroup(
                offered[:FIRST_METHODS],
                value=list(methods_first),
                label="Methods",
                elem_classes="stacked",
                elem_id="methods",
            )
            with gr.Accordion("More methods", open=False, elem_id="more-methods"):
                more = gr.CheckboxGroup(offered[FIRST_METHODS:], value=[], show_label=False, elem_classes="stacked")
    with gr.Row(elem_classes="buttons"):
        check = gr.Button("Check the plan", variant="primary", elem_id="check")
        cancel = gr.Button("Cancel", visible=False, elem_id="cancel-check")
        submit = gr.Button("Queue the runs", variant="primary", visible=False, elem_id="submit")
    note = gr.HTML("", elem_classes="in-place")
    shown = panel(elem_id="preflight")
    with gr.Accordion("This machine", open=False, elem_id="machine"):
        machine = panel()
    timer = gr.Timer(0.7, active=False)
    seeds, tokens, tests = (numbers[name] for name in ("seeds", "tokens", "test_examples"))
    fields: list[Any] = [models, others, methods, more, *numbers.values(), device, dtype, rates]

    waits_no_more = {cancel: gr.update(visible=False), timer: gr.Timer(active=False)}
    nothing = {submit: gr.update(visible=False), shown: "", checked: "", **waits_no_more}

    def show(project_id: str) -> dict[Any, Any]:
        said = piece('<pre class="machine">{}</pre>', machine_words())
        return {note: "", machine: said, **nothing}

    def settings_of(values: Sequence[Any]) -> Settings:
        """What the form says."""
        named, other, chosen, kin, *typed, platform, computes_in, said = values
        return Settings(
            models=tuple(model_named(name) for name in (*(named or ()), *lines(other))),
            methods=(*(chosen or ()), *(kin or ())),
            learning_rates=rates_named(lines(said)),
            platform=platform,
            dtype=computes_in,
            **{name: number_of(name, value) for name, value in zip(numbers, typed, strict=True)},
        )

    def runs_of(project_id: str, values: Sequence[Any]) -> tuple[specs.Run, ...]:
        """The runs that the form asks for."""
        return plan(context.studio.task(project_id), settings_of(values))

    def ask(project_id: str, before: str, *values: Any) -> dict[Any, Any]:
        """Have the plan looked at; nobody waits for what was asked before."""
        context.studio.withdraw(before)
        try:
            runs = runs_of(project_id, values)
        except InputError as error:
            return {note: markup.trouble(error), **nothing}
        asked = {"project": project_id, "runs": [run.canonical() for run in runs]}
        request = context.studio.ask("preflight", asked, watched=True)
        words = loading(f"Counting tokens and memory of {len(runs)} runs…", timed=True)
        waits = {cancel: gr.update(visible=True), timer: gr.Timer(active=True)}
        return {note: "", checked: request, shown: words, submit: gr.update(visible=False), **waits}

    def look(project_id: str, request: str, *values: Any) -> dict[Any, Any]:
        """Whether it has been. Of one that was withdrawn here, whoever withdrew it has said what comes next."""
        try:
            answer = context.studio.watch(request)
            if not answer.ended or (answer.state == "withdrawn" and not answer.error):
                return {}
            if answer.state != "done":
                raise InputError(answer.error)
            found = checks_of(answer)
            less = smaller(project_id, found, values)
        except InputError as error:
            return {note: markup.trouble(error), **nothing}
        fitting = sum(one.fits for one in found)
        words = f"Queue the {fitting} runs" if fitting == len(found) else f"Queue the {fitting} runs that fit"
        said = joined([long_plan(found, less), preflight_table(found)])
        return {shown: said, submit: gr.update(value=words, visible=fitting > 0), **waits_no_more}

    def smaller(project_id: str, found: Sequence[Check], values: Sequence[Any]) -> Smaller | None:
        """A smaller plan than the form's, which was checked."""
        runs = {run.key: run for run in runs_of(project_id, values)}
        if set(runs) != {one.key for one in found}:
            raise InputError("The settings were changed after the check: check the plan again.")
        return smaller_plan(settings_of(values), [runs[one.key] for one in found], found)

    def act(project_id: str, request: str, *values: Any) -> dict[Any, Any]:
        """Take the smaller plan into the form, and have it checked."""
        less = smaller(project_id, checks_of(context.studio.answer(request)), values)
        if less is None:
            return {}
        new = {
            field: less.changes[name]
            for name, field in (("tokens", tokens), ("seeds", seeds), ("test_examples", tests))
            if name in less.changes
        }
        changed_values = [new.get(field, value) for field, value in zip(fields, values, strict=True)]
        return {recipe: "own", **new, **ask(project_id, request, *changed_values)}

    def stop(request: str) -> dict[Any, Any]:
        """Nobody waits any more."""
        context.studio.withdraw(request)
        return {note: "", **nothing}

    def send(project_id: str, request: str, *values: Any) -> dict[Any, Any]:
        """Queue what was checked, as it was checked."""
        fitting = {one.key: one.label for one in checks_of(context.studio.answer(request)) if one.fits}
        runs = [run for run in runs_of(project_id, values) if run.key in fitting]
        if not runs:
            raise InputError("The settings were changed after the check: check the plan again.")
        number_before = len(context.studio.plans(project_id))
        context.studio.submit(project_id, runs, f"Plan {number_before + 1}", labels=fitting)
        words = piece("{} runs are queued as plan {}. Their progress is under Runs.", len(runs), number_before + 1)
        return {shown: markup.note(str(words), "good"), submit: gr.update(visible=False)}

    def start_from(name: str) -> dict[Any, Any]:
        """Fill the form from a recipe."""
        if name == "own":
            return {recipe: name}
        _, chosen, count, budget = PLANS[name]
        return {recipe: name, methods: list(chosen), more: [], seeds: count, tokens: budget}

    outdated = [submit, shown, checked, cancel, timer]
    asked = [context.place, checked, *fields]
    recipe.input(start_from, recipe, [recipe, methods, more, seeds, tokens], **QUIET)
    check.click(in_place(note, ask), asked, [note, *outdated], **QUIET)
    cancel.click(in_place(note, stop), [checked], [note, *outdated], **QUIET)
    timer.tick(in_place(note, look), asked, [note, *outdated], **QUIET)
    shown.act(in_place(note, act), asked, [note, recipe, seeds, tokens, tests, *outdated], **QUIET)
    submit.click(in_place(note, send), asked, [note, *outdated], **QUIET)
    for one in [recipe, *fields]:  # what was checked is no longer what is asked for
        one.input(in_place(note, stop), [checked], [note, *outdated], **QUIET)
    for one in (methods, more, seeds, tokens):
        one.input(lambda: "own", None, recipe, **QUIET)
    return Step([note, machine, *outdated], show)


# --- what was typed --------------------------------------------------------------------------------------------


def devices() -> list[tuple[str, str]]:
    """Where runs can run: the GPU first if there is one."""
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    cpu = (f"CPU, {os.cpu_count()} cores", "cpu")
    return [("GPU", "cuda"), cpu] if has_gpu else [cpu]


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


def rates_in_words() -> str:
    """The presets' rates."""
    return ", ".join(f"{one.name} {learning_rate_for(one.name):g}" for one in presets() if one.method.trains)
