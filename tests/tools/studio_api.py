"""The studio's API as the tests ask it: a client without a network, and what stands in for worker and assistants."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from studio_examples import EXAMPLES, ROWS, Example
from studio_home import SMALL

from peftbook.core import specs
from peftbook.core.records import Record
from peftbook.studio import access
from peftbook.studio.api import build_api
from peftbook.studio.api.context import Context
from peftbook.studio.app import LOOPBACK, listen
from peftbook.studio.connections import LimitedProtocol
from peftbook.studio.downloads import ARTEFACTS
from peftbook.studio.plan import plan
from peftbook.studio.preflight import Check
from peftbook.studio.sessions import SessionStore
from peftbook.studio.settings import Reading, Settings
from peftbook.studio.store import Job, Project, Studio
from peftbook.studio.uploads import UploadStore
from peftbook.tasks.table import Caps

HOST = "http://127.0.0.1:7861"


class Client:
    """Asks an ASGI application, one request after the other, and keeps its cookies."""

    def __init__(self, served: Any, headers: Mapping[str, str] | None = None):
        self.served, self.headers, self.cookies = served, dict(headers or {}), httpx.Cookies()
        self.files = {"questions.csv": ROWS.encode()}  # in the folder of the shell

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.served, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=HOST, cookies=self.cookies) as client:
                headers = self.headers | options.pop("headers", {})
                answer = await client.request(method, path, headers=headers, **options)
                self.cookies = client.cookies
                return answer

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self("POST", path, **options)

    def send(self, example: Example, known: Mapping[str, str]) -> httpx.Response:
        """An example's request, with what is known by now."""
        path, body = filled(f"/api/v1{example.path}", known), filled(example.body, known)
        if example.file and body is None:
            return self(example.method, path, content=self.files[example.file])
        body = body | {"bytes": len(self.files[example.file])} if example.file else body
        return self(example.method, path, **({} if body is None else {"json": body}))


def filled(value: Any, known: Mapping[str, str]) -> Any:
    """A tree of texts with what is known in its places."""
    if isinstance(value, str):
        for name, one in known.items():
            value = value.replace(f"{{{name}}}", one)
        return value
    if isinstance(value, dict):
        return {name: filled(one, known) for name, one in value.items()}
    return [filled(one, known) for one in value] if isinstance(value, list) else value


def served(studio: Studio, keys: SessionStore | None = None, caps: Caps | None = None) -> Client:
    """The API behind the access middleware."""
    app = FastAPI()
    app.mount("/api/v1", build_api(Context(studio, UploadStore(studio.home, caps or Caps()))))
    return Client(access.AccessMiddleware(app, LOOPBACK, keys))


@contextlib.contextmanager
def on_a_port(app: Any) -> Iterator[tuple[int, threading.Thread]]:
    """The port of an ASGI application that is served by a thread of this process, and the thread."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off", http=LimitedProtocol))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1], thread
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def found_at(answer: Any, place: str) -> str:
    """`1.id` of a list of objects."""
    for part in place.split("."):
        answer = answer[int(part) if part.isdigit() else part]
    return answer


def play(client: Client, studio: Studio, stop: str = "") -> dict[str, str]:
    """The examples in their order up to a route, with stand-ins where an answer is waited for; what was kept."""
    known: dict[str, str] = {}
    studio.beat("stand-in", os.getpid())
    for example in EXAMPLES:
        if example.route == stop:
            break
        if example.until:
            work(studio)
        answer = client.send(example, known)
        assert answer.status_code == example.status, (example, answer.text)
        if example.until:
            assert answer.json()["state"] == example.until, (example, answer.text)
        known |= {name: found_at(answer.json(), place) for name, place in example.keep.items()}
    return known


# --- stand-ins -------------------------------------------------------------------------------------------------


def work(studio: Studio, texts: Sequence[str] = ("8",)) -> None:
    """Answer what is asked and finish what is queued; the models write these texts, over and over."""
    while (task := studio.take("stand-in", os.getpid())) is not None:
        text, result = "", None
        if task.kind == "check":
            runs = [specs.Run.model_validate_json(one) for one in task.payload["runs"]]
            result = [dataclasses.asdict(check_of(run)) for run in runs]
        elif task.kind == "generate":
            text = "8"
        else:
            ARTEFACTS[task.payload["name"]].path(studio, studio.job(task.payload["job"])).write_bytes(b"PK")
        studio.complete(task.id, task.attempt, text=text, result=result)
    while (job := studio.claim("stand-in", os.getpid())) is not None:
        finish(studio, job, texts=[texts[at % len(texts)] for at in range(job.run.evaluation.n_generate)])


def project_of(studio: Studio) -> Project:
    """A project of the examples' rows with two runs that wait."""
    project = studio.create_project("Questions", ROWS.encode(), "questions.csv", Reading("question", "answer"))
    settings = Settings(models=(SMALL,), methods=("lora",), seeds=1, tokens=300, max_new_tokens=4)
    studio.submit(project.id, plan(studio.task(project.id), settings))
    return project


def check_of(run: specs.Run) -> Check:
    return Check(run.key, run.method.label, 32, 500, 0, 3.0, 1e9, True)


def loss_of(run: specs.Run) -> float:
    """The lower the further the rate is above 0.001, up to 0.002."""
    return abs(run.budget.learning_rate - 0.002) if run.budget else 3.0


def finish(studio: Studio, job: Job, score: float = 0.5, texts: list[str] | None = None) -> None:
    """A job is done, with an invented record, texts and adapter."""
    rows = job.run.evaluation.n_generate
    values = [score + 0.01 * (at % 5) for at in range(rows)]
    scores = dict.fromkeys(("rouge1", "rougeL", "bertscore_f1", "loss_nats"), values)
    others = {"exact_match": [0.0] * rows, "label_tokens": [5.0] * rows}
    record = Record(
        key=job.key, spec=job.run,
        measurements={"trainable_parameters": 10, "train_seconds": 1.0, "loss_nats": loss_of(job.run)},
        per_example={**scores, **others}, provenance={"cpu": "an invented processor", "cores": 2},
        curve={"train_loss_nats": [3.0, 2.0, float("nan")]},
    )  # fmt: skip
    if job.run.budget is not None:
        folder = studio.folder(job.project) / "adapters" / job.key[:12]
        work = folder.with_name(f".{folder.name}")  # whole before it is there, as the worker's
        work.mkdir(parents=True, exist_ok=True)
        (work / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        (work / "adapter_model.safetensors").write_bytes(b"")
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was cut off before its record
        work.replace(folder)
    studio.adopt(job.id, job.attempt, os.getpid())
    studio.records(job.project).save(record, texts or ["8"] * rows)
    assert studio.finish(job.id, job.attempt)
