"""Answers: models asked side by side, and what else assistants compute."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from peftbook.core.errors import InputError
from peftbook.studio.api.context import Here
from peftbook.studio.api.shapes import AnswerShape, Body, Number
from peftbook.studio.playground import Sampling, ask_model, available_models, sampling_of

routes = APIRouter(tags=["answers"])
MOST_MODELS = 4


class ModelShape(BaseModel):
    """A model that can be asked."""

    model: str
    words: str


class TextBody(Body):
    text: str = Field(description="what stands at {input} in the project's prompt")
    models: list[str] = Field(description="which of the project's models; two stand side by side")
    max_new_tokens: Number = Field(Sampling.max_new_tokens, description="at most so many tokens")
    temperature: Number = Field(Sampling.temperature, description="0 takes the likeliest token each time")
    top_p: Number = Field(Sampling.top_p, description="the share of probability that is drawn from")
    seed: Number = Field(Sampling.seed, description="of the draws")


@routes.get("/projects/{project}/models")
def list_models(project: str, here: Here) -> list[ModelShape]:
    """The models that can be asked: as they come, and what was trained."""
    here.studio.project(project)
    return [ModelShape(model=value, words=words) for words, value in available_models(here.studio, project)]


@routes.post("/projects/{project}/answers", status_code=202)
def ask_models(project: str, body: TextBody, here: Here) -> list[AnswerShape]:
    """Ask one or two models for an answer; each grows under its own id."""
    here.studio.project(project)
    if not 1 <= len(body.models) <= MOST_MODELS:
        raise InputError(f"{len(body.models)} models are chosen: choose from 1 to {MOST_MODELS}.")
    how: dict[str, Any] = body.model_dump(exclude={"text", "models"})
    sampling_of(how)
    tasks = [ask_model(here.studio, project, model, body.text, how) for model in body.models]
    return [AnswerShape.about(here.studio.get_task(task)) for task in tasks]


@routes.get("/answers/{answer}")
def show_answer(answer: str, here: Here) -> AnswerShape:
    """What there is of an answer by now."""
    return AnswerShape.about(here.studio.get_task(answer))


@routes.delete("/answers/{answer}", status_code=204)
def stop_answer(answer: str, here: Here) -> None:
    """Cancel it: its process stops, or is killed after two seconds."""
    here.studio.cancel(here.studio.get_task(answer).id)
