"""Plan: models times methods, what each run will take, and off to the queue."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from peftbook import specs
from peftbook.base_models import model_named
from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.markup import Cell, badge, joined, loading, number, piece, size, span, table
from peftbook.studio.pages.wiring import QUIET, Context, Step, in_place, panel
from peftbook.studio.plan import Check, Settings, plan, presets
from peftbook.studio.requests import Answer

__all__ = ["PLANS", "build_plan", "rates_named"]

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
FIRST = "quick"
FIRST_METHODS = 6  # shown at once; the others on demand


def build_plan(context: Context) -> Step:
    """The tab. `checked` holds the question whose answer is the table, in the browser.

    The fields have no limits of Gradio's, which end in an error without words: the plan says its own.
    """
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
                with gr.Row(equal_height=True):
                    seeds = gr.Number(seeds_first, label="Seeds", info="trainings of each method")
                    tokens = gr.Number(tokens_first, label="Training tokens", info="0: by epochs")
                    epochs = gr.Number(3, label="Epochs", info="where tokens are 0")
                with gr.Row(equal_height=True):
                    rank = gr.Number(0, label="LoRA rank", info="0: the preset's")
                    prompt_length = gr.Number(0, label="Prompt length", info="virtual tokens, 0: usual")
                    prefix_length = gr.Number(0, label="Prefix length", info="virtual tokens, 0: usual")
                with gr.Row(equal_height=True):
                    batch = gr.Number(8, label="Batch size", info="examples a step")
                    length = gr.Number(512, label="Longest example", info="tokens; more is cut")
                    new = gr.Number(64, label="Longest answer", info="tokens generated")
                with gr.Row(equal_height=True):
                    tests = gr.Number(100, label="Test rows", info="answers generated and scored")
                    device = gr.Dropdown(
                        devices(), value=devices()[0][1], label="Runs on", interactive=len(devices()) > 1
                    )
                rates = gr.Textbox(label="Learning rates", lines=3, placeholder="lora = 4e-4", info=rates_in_words())
        with gr.Column(min_width=320):
            offered = [(f"{one.label} — {one.words}", one.name) for one in presets()]
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
        submit = gr.Button("Queue the runs", variant="primary", visible=False, elem_id="submit")
    note = gr.HTML("", elem_classes="in-place")
    shown = panel(elem_id="preflight")
    timer = gr.Timer(0.7, active=False)
    fields: list[Any] = [
        models,
        others,
        methods,
        more,
        seeds,
        tokens,
        epochs,
        rank,
        prompt_length,
        prefix_length,
        batch,
        length,
        new,
        tests,
        device,
        rates,
    ]

    def show(project_id: str) -> dict[Any, Any]:
        return {note: "", shown: "", submit: gr.update(visible=False), checked: "", timer: gr.Timer(active=False)}

    def runs_of(project_id: str, values: Sequence[Any]) -> tuple[specs.Run, ...]:
        """The runs that the form asks for."""
        named, other, chosen, kin, *numbers, platform, said = values
        keys = (
            "seeds",
            "tokens",
            "epochs",
            "rank",
            "prompt_length",
            "prefix_length",
            "batch_size",
            "max_length",
            "max_new_tokens",
            "test_examples",
        )
        whole = {key: number_of(key, value) for key, value in zip(keys, numbers, strict=True)}
        settings = Settings(
            models=tuple(model_named(name) for name in (*(named or ()), *lines(other))),
            methods=(*(chosen or ()), *(kin or ())),
            learning_rates=rates_named(said or ""),
            platform=platform,
            **whole,  # type: ignore[arg-type]
        )
        return plan(context.studio.task(project_id), settings)

    def ask(project_id: str, *values: Any) -> dict[Any, Any]:
        """Have the plan looked at."""
        runs = runs_of(project_id, values)
        request = context.studio.ask("preflight", {"project": project_id, "runs": [run.canonical() for run in runs]})
        words = loading(f"Counting tokens and memory of {len(runs)} runs…")
        return {checked: request, shown: words, submit: gr.update(visible=False), timer: gr.Timer(active=True)}

    def look(request: str) -> dict[Any, Any]:
        """Whether it has been."""
        answer = context.studio.answer(request)
        if not answer.ended:
            return {}
        stop = {timer: gr.Timer(active=False)}
        if answer.state != "done":
            return {shown: markup.trouble(answer.error or "The check was stopped: check again."), **stop}
        found = checks_of(answer)
        fitting = sum(one.fits for one in found)
        words = f"Queue the {fitting} runs" if fitting == len(found) else f"Queue the {fitting} runs that fit"
        return {shown: preflight_table(found), submit: gr.update(value=words, visible=fitting > 0), **stop}

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

    def changed() -> dict[Any, Any]:
        """What was checked is no longer what is asked for."""
        return {submit: gr.update(visible=False), shown: "", checked: "", timer: gr.Timer(active=False)}

    outdated = [submit, shown, checked, timer]
    recipe.input(start_from, recipe, [recipe, methods, more, seeds, tokens], **QUIET)
    check.click(in_place(note, ask), [context.place, *fields], [note, *outdated], **QUIET)
    timer.tick(in_place(note, look), [checked], [note, *outdated], **QUIET)
    submit.click(in_place(note, send), [context.place, checked, *fields], [note, *outdated], **QUIET)
    for one in [recipe, *fields]:
        one.input(changed, None, outdated, **QUIET)
    for one in (methods, more, seeds, tokens):
        one.input(lambda: "own", None, recipe, **QUIET)
    return Step([note, *outdated], show)


# --- what was typed --------------------------------------------------------------------------------------------


def devices() -> list[tuple[str, str]]:
    """Where runs can run: the GPU first if there is one."""
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    cpu = (f"CPU, {os.cpu_count()} cores", "cpu")
    return [("GPU", "cuda"), cpu] if has_gpu else [cpu]


def number_of(name: str, value: Any) -> float | int:
    """A field's number. Raises InputError for an empty one."""
    if value is None:
        raise InputError(f"The field for {name.replace('_', ' ')} is empty: give a number.")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def lines(text: str | None) -> list[str]:
    """Those of a text that are not empty, without the spaces around them."""
    return list(filter(None, map(str.strip, (text or "").splitlines())))


def rates_named(text: str) -> dict[str, float]:
    """Learning rates as `method = rate`, one a line. Raises InputError for another line."""
    known, found = {one.name for one in presets()}, {}
    for line in lines(text):
        name, _, value = (part.strip() for part in line.partition("="))
        try:
            found[name.lower()] = float(value)
        except ValueError:
            raise InputError(f"{line!r} is no learning rate: write `lora = 4e-4`, one a line.") from None
        if name.lower() not in known:
            raise InputError(f"Unknown method {name!r}: choose among {', '.join(sorted(known))}.")
    return found


def rates_in_words() -> str:
    """The presets' rates."""
    said = ", ".join(f"{one.name} {one.learning_rate:g}" for one in presets() if one.learning_rate)
    return f"one a line, in place of what the book's sweeps chose: {said}"


# --- what was found --------------------------------------------------------------------------------------------


def checks_of(answer: Answer) -> tuple[Check, ...]:
    """The checks in an answer."""
    if answer.state != "done":
        raise InputError("The plan has not been checked yet: check it first.")
    names = {one.name for one in dataclasses.fields(Check)}
    return tuple(Check(**{key: value for key, value in one.items() if key in names}) for one in answer.result)


def preflight_table(found: Sequence[Check]) -> Markup:
    """What each run will read, take and need."""
    seconds = [one.seconds for one in found if one.fits]
    total = (
        f"about {span(sum(one or 0 for one in seconds))} in all on this machine"
        if any(seconds)
        else "time unknown until this machine is idle during a check, which then measures how fast it is"
    )
    refused = [one for one in found if not one.fits]
    rows = [
        (
            one.label,
            number(one.rows),
            number(one.tokens),
            Cell(f"{one.epochs:.2g}" if one.epochs else "–", one.epochs),
            piece('<span class="hot">{}</span>', number(one.truncated)) if one.truncated else "0",
            Cell(span(one.seconds), one.seconds or 0),
            Cell(size(one.peak_bytes), one.peak_bytes or 0),
            piece('{} <span class="fine">{}</span>', badge("fits" if one.fits else "refused"), one.words),
        )
        for one in found
    ]
    parts: list[object] = [
        table(
            ["Run", "Rows", "Tokens", "Epochs", "Cut", "Time", "Peak memory", "Verdict"],
            rows,
            kind="preflight",
            caption=f"{len(found)} runs, {total}",
            numeric=range(1, 7),
        )
    ]
    if refused:
        parts.insert(
            0, markup.note(f"{len(refused)} of {len(found)} runs cannot be run here; the table says why.", "warn")
        )
    cut = max((one.truncated for one in found), default=0)
    if cut:
        parts.append(
            markup.note(
                f"{cut:,} rows are longer than the longest example allows and lose the end of their input: "
                "raise it under Advanced.",
                "warn",
            )
        )
    return joined(parts)
