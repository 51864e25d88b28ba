"""Playground: the models that can generate an answer, and the sampling settings, for page, API and assistants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from peftbook.core import specs
from peftbook.core.errors import InputError, Unknown
from peftbook.studio.store import Studio, keeps_trained
from peftbook.tasks import TaskExample

TYPED_CHARS = 20_000
MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Sampling:
    """How an answer is written. temperature: 0 takes the likeliest token each time.  top_p: of the nucleus."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


BOUNDS = {"max_new_tokens": (1, MAX_NEW_TOKENS), "temperature": (0, 5), "top_p": (0.01, 1), "seed": (0, 2**31)}


def sampling_of(given: Mapping[str, Any]) -> Sampling:
    """The sampling settings of a payload. Raises InputError for a value out of bounds."""
    settings: dict[str, Any] = {}
    for name, (least, most) in BOUNDS.items():
        usual = getattr(Sampling, name)
        value = given.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise InputError(f"{name} is {value!r}: give a number from {least:g} to {most:g}.")
        settings[name] = type(usual)(value)
    return Sampling(**settings)


def available_models(studio: Studio, project_id: str) -> list[tuple[str, str]]:
    """(label, value) of every model that can generate: untuned models first, then those of finished jobs."""
    done = [job for job in studio.jobs(project_id) if job.state == "done"]
    found = [(f"{name}, untuned", f"model:{name}") for name in plain_models(studio, project_id)]
    return found + [(job.label, f"job:{job.id}") for job in done if keeps_trained(job.run)]


def plain_models(studio: Studio, project_id: str) -> dict[str, specs.Model]:
    """The models without training, by their names: those of the finished runs, or the embedded one."""
    done = [job for job in studio.jobs(project_id) if job.state == "done"]
    return {job.run.model.name: job.run.model for job in done} or {specs.EMBEDDED_MODEL: specs.Model()}


def ask_model(studio: Studio, project_id: str, value: str, text: str, sampling: Mapping[str, Any]) -> str:
    """Queue the task that generates a text of a model; its id. Raises InputError for an empty text or a long one."""
    if not text.strip():
        raise InputError("The input is empty: type something, or take a test row.")
    if len(text) > TYPED_CHARS:
        raise InputError(f"The input has {len(text):,} characters, the cap is {TYPED_CHARS:,}: shorten it.")
    if value not in [one for _, one in available_models(studio, project_id)]:
        raise Unknown("That model is not at hand (any more): choose another.")
    kind, _, name = value.partition(":")
    whose: dict[str, Any] = {"job": name}
    if kind == "model":
        whose = {"model": plain_models(studio, project_id)[name].model_dump()}
    payload = {"project": project_id, "text": text, **whose, **asdict(sampling_of(sampling))}
    return studio.enqueue("generate", payload)


def row_after(studio: Studio, project_id: str, text: str) -> TaskExample:
    """The test row after the one with this input; the first where there is none."""
    rows = studio.task(project_id).splits["test"]
    at = next((place for place, row in enumerate(rows) if row.input == text), -1)
    return rows[(at + 1) % len(rows)]
