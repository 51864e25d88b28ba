"""The form of a plan: its fields by name, as they are typed, and the settings that they stand for."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import QueryParams

from peftbook.core import specs
from peftbook.core.base_models import model_named
from peftbook.core.errors import InputError
from peftbook.core.options import options_of
from peftbook.methods import presets
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.studio.decisions import FIRST_MEASURE
from peftbook.studio.pages.site import lines, typed_number
from peftbook.studio.settings import Settings, rates_named

Fields = dict[str, Any]  # name → text, or list of texts

EMBEDDED = {
    specs.EMBEDDED_MODEL: "SmolLM2 135M Instruct — the embedded model, Apache-2.0; minutes a run on two cores.",
    specs.SMALL_MODEL: "Small Llama, 5M — trained for this book on plain prose; seconds a run, to try the studio out.",
}
ALL = ("untuned", "fewshot", "lora", "qlora", "prompt", "full")
# name → (what it is called, what it is, methods, seeds, tokens)
PLANS: dict[str, tuple[str, str, tuple[str, ...], str, str]] = {
    "quick": ("Quick look", "LoRA against the untuned model, with and without five examples, one seed, 10,000 tokens",
              ("untuned", "fewshot", "lora"), "1", "10000"),
    "compare": ("Side by side", "LoRA, QLoRA, prompt tuning, full fine-tuning and five examples, one seed, "
                "50,000 tokens", ALL, "1", "50000"),
    "decide": ("To decide", "the same with three seeds, so that the intervals cover the luck of training", ALL, "3",
               "50000"),
}  # fmt: skip
DTYPES = {"auto": "the fastest here", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ASKED = options_of(Settings)
NUMBERS = tuple(name for name, option in ASKED.items() if option.bound)
LISTS, SWITCHES = ("models", "methods"), ("checkpointing", "tune")
FIRST = "quick"
FIRST_METHODS = 6  # shown at once; the others on demand


def usual_fields() -> Fields:
    """What an empty form says."""
    _, _, methods, seeds, tokens = PLANS[FIRST]
    usual: Fields = {name: text_of(getattr(Settings, name)) for name in NUMBERS}
    usual |= {"models": [specs.EMBEDDED_MODEL], "other_models": "", "methods": list(methods), "own_methods": ""}
    usual |= {"platform": next(iter(devices())), "dtype": Settings.dtype, "weights": Settings.weights}
    usual["measure"] = FIRST_MEASURE
    return usual | dict.fromkeys(SWITCHES, "") | {"learning_rates": "", "seeds": seeds, "tokens": tokens}


def text_of(value: float | None) -> str:
    """A number as one types it."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def fields_of(typed: QueryParams) -> Fields:
    """What the form says; of an address that has none of it, the usual. What is not ticked is not sent."""
    fields, whole = usual_fields(), "seeds" in typed
    for name, usual in fields.items():
        if name in LISTS:
            fields[name] = typed.getlist(name) if whole or name in typed else usual
        elif name in SWITCHES:
            fields[name] = typed.get(name, "")
        else:
            fields[name] = typed.get(name, usual)
    if (start := typed.get("start", "")) in PLANS:
        _, _, methods, fields["seeds"], fields["tokens"] = PLANS[start]
        fields["methods"], fields["own_methods"] = list(methods), ""
    return fields


def plan_named(fields: Fields) -> str:
    """The recipe that a form is, or nothing."""
    said = {*fields["methods"], *lines(fields["own_methods"])}
    return next(
        (
            name
            for name, (_, _, methods, seeds, tokens) in PLANS.items()
            if (said, fields["seeds"], fields["tokens"]) == ({*methods}, seeds, tokens)
        ),
        "",
    )


def settings_of(fields: Fields) -> Settings:
    """What the fields say. Raises InputError for what stands for no setting."""
    words: Any = {name: fields[name] for name in ("platform", "dtype", "weights")}
    for name, value in words.items():
        if value not in (offered := ASKED[name].choices or ()):
            raise InputError(f"{value!r} is nothing to choose for {name}: choose one of {', '.join(offered)}.")
    return Settings(
        models=tuple(model_named(name) for name in (*fields["models"], *lines(fields["other_models"]))),
        methods=(*fields["methods"], *lines(fields["own_methods"])),
        learning_rates=rates_named(lines(fields["learning_rates"])),
        **{name: bool(fields[name]) for name in SWITCHES},  # type: ignore[arg-type]
        **words,
        **{name: number_of(name, fields[name]) for name in NUMBERS},
    )


def number_of(name: str, text: str) -> Any:
    """A field's number; None for an empty one where none is usual. Raises InputError for another that is empty."""
    if text.strip():
        return typed_number(text)
    if getattr(Settings, name) is None:
        return None
    raise InputError(f"The field for {name.replace('_', ' ')} is empty: give a number.")


def devices() -> dict[str, str]:
    """Where runs can run: the GPU first if there is one."""
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    return ({"cuda": "GPU"} if has_gpu else {}) | {"cpu": f"CPU, {os.cpu_count()} cores"}


@functools.cache
def usual_rates() -> str:
    """What each method trains at if nothing is said, by the records that this program came with."""
    return ", ".join(f"{one.name} {learning_rate_for(one.name):g}" for one in presets() if one.method.trains)


def shown_fields(fields: Fields) -> Mapping[str, Any]:
    """What the template is filled with."""
    offered = [(one.name, f"{one.method.label} — {one.words}") for one in presets()]
    weights = {name: DTYPES[name] for name in ASKED["weights"].choices or ()}
    usual = usual_fields()
    apart = {"models", "other_models", "methods", "own_methods", "seeds", "tokens", "measure"}
    return {
        "fields": fields,
        "plans": PLANS,
        "plan_named": plan_named(fields),
        "models": EMBEDDED,
        "methods": offered[:FIRST_METHODS],
        "more_methods": offered[FIRST_METHODS:],
        "numbers": NUMBERS,
        "switches": SWITCHES,
        "asked": ASKED,
        "choices": {"platform": devices(), "dtype": DTYPES, "weights": weights},
        "usual_rates": usual_rates(),
        "advanced": any(fields[name] != value for name, value in usual.items() if name not in apart),
    }
