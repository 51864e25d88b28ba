"""Try it: two models side by side on one input. An assistant generates; this page shows what there is.

The address names the tasks; the values of the form are read from them.
"""

from __future__ import annotations

from typing import Any

from peftbook.core.errors import InputError, Unknown
from peftbook.studio.html import fill, part
from peftbook.studio.pages.site import Live, View, Visit, address, frame, typed_number
from peftbook.studio.playground import TYPED_CHARS, ask_model, available_models, row_after, sampling_of
from peftbook.studio.tasks import Task

SIDES = ("left", "right")
HOW = {  # a number of the sampling → what its field is called, its usual text, what it means
    "max_new_tokens": ("At most so many tokens", "128", ""),
    "temperature": ("Temperature", "0", "0 takes the likeliest token each time"),
    "seed": ("Seed", "0", "of the draws"),
}
EVERY_SECONDS = 0.4
WAITS = "Nothing generated yet", "Type an input or take a test row, then generate with both models."


def show(visit: Visit) -> dict[str, Any]:
    """The form as it was sent, the target of a test row, and both answers as far as they are."""
    models = available_models(visit.studio, visit.project.id)
    task_ids = visit.query.getlist("answer")[:2]
    usual = {"left": models[0][1], "right": models[-1][1], "text": "", **{name: one[1] for name, one in HOW.items()}}
    usual |= {name: value for name, value in visit.query.items() if name in usual}
    row = visit.query.get("row", "")
    example = next((one for one in visit.studio.task(visit.project.id).splits["test"] if one.id == row), None)
    if example is not None:
        usual["text"] = example.input[:TYPED_CHARS]
    live = Live(part("empty", *WAITS))
    if task_ids:
        usual |= form_values(visit, task_ids)
        answers = [answer_of(visit, task_id) for task_id in task_ids]
        names = {value: words for words, value in models}
        live = side_by_side(answers, task_ids, [names.get(usual[side], "") for side in SIDES])
    if visit.form is not None:
        usual |= {name: visit.form.get(name, value) for name, value in usual.items()}
    if example is not None and usual["text"] != example.input[:TYPED_CHARS]:
        example = None
    return {
        **frame(visit),
        "models": [(value, words) for words, value in models],
        "fields": usual,
        "how": HOW,
        "reference": example,
        "live": live,
        "most": TYPED_CHARS,
        "row": row,
        "answers": task_ids,
        "changed": any(usual[name] != one[1] for name, one in HOW.items()),
    }


def form_values(visit: Visit, task_ids: list[str]) -> dict[str, str]:
    """The values of the form from which these answers come; nothing of one that is gone."""
    values: dict[str, str] = {}
    for side, task_id in zip(SIDES, task_ids, strict=False):
        try:
            task = visit.studio.get_task(task_id)
        except InputError:
            continue
        payload = task.payload
        if task.kind != "generate" or task.project != visit.project.id:
            raise Unknown(f"There is no answer {task_id!r} in this project: ask for one.")
        values[side] = f"job:{payload['job']}" if "job" in payload else f"model:{payload['model']['name']}"
        values |= {"text": payload["text"], **{name: f"{payload[name]:g}" for name in HOW}}
    return values


def side_by_side(answers: list[Task], task_ids: list[str], names: list[str]) -> Live:
    """Both texts under the names of their models, and a button while they grow."""
    goes_on = not all(one.ended for one in answers)
    sides = list(zip(SIDES, names, answers, strict=False))
    body = fill("try_live.html", sides=sides, stop=" ".join(task_ids) if goes_on else "")
    return Live(body, EVERY_SECONDS if goes_on else 0.0)


def act(visit: Visit) -> str:
    """Stop, take a test row, or put the question to both."""
    project, form = visit.project.id, visit.typed
    at = f"/projects/{project}/try"
    chosen = {name: form.get(name, "") for name in (*SIDES, *HOW)}
    if stopped := form.get("stop"):
        for task_id in stopped.split():
            if not answer_of(visit, task_id).ended:
                visit.studio.cancel(task_id)
        return address(at, row=visit.query.get("row"), answer=stopped.split())
    if "row" in form:
        return address(at, **chosen, row=row_after(visit.studio, project, typed_text(form.get("text", ""))).id)
    sampling = {name: typed_number(chosen[name]) for name in HOW}
    sampling_of(sampling)
    text = typed_text(form.get("text", ""))
    task_ids = [ask_model(visit.studio, project, chosen[side], text, sampling) for side in SIDES]
    return address(at, row=visit.query.get("row"), answer=task_ids)


def typed_text(text: str) -> str:
    """As it was typed: a form sends every end of a line as two signs."""
    return text.replace("\r\n", "\n")


def answer_of(visit: Visit, task_id: str) -> Task:
    """An answer, or that it is gone."""
    try:
        return visit.studio.get_task(task_id)
    except InputError as error:
        return Task(task_id, "generate", visit.project.id, {}, "failed", error=str(error))


TRY = View("try.html", show, act)
