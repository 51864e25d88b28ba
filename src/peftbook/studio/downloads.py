"""Downloads of finished jobs: names and paths of their files, and which of them are made on request.

What needs a model, the assistant makes: a merged model, GGUF files for llama.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

from peftbook.core.errors import Conflict, Unknown
from peftbook.studio.artefacts import adapter_zip, finished, merged_zip, outputs_csv, place
from peftbook.studio.jobs import Job
from peftbook.studio.requests import Request
from peftbook.studio.store import Studio, keeps_trained

WORDS = {
    "adapter.zip": "the adapter as peft reads it, with a model card",
    "outputs.csv": "what the model wrote for each test row, with its scores",
    "model.zip": "base and adapter as one model, for transformers",
    "adapter.gguf": "the adapter alone, for llama.cpp beside its base",
    "model.gguf": "base and adapter as one model, for llama.cpp",
}
AT_ONCE = {"adapter.zip": adapter_zip, "outputs.csv": outputs_csv}


def offered(studio: Studio, job: Job) -> dict[str, str]:
    """The names of the files that a job can have, each with a description."""
    trained = job.state == "done" and keeps_trained(job.run)
    kept = trained and job.run.method.saved != "model" and studio.adapter(job) is not None
    lora = kept and (studio.folder(job.project) / "adapters" / job.key[:12] / "adapter_config.json").is_file()
    there = {
        "adapter.zip": kept,
        "outputs.csv": job.state == "done" and job.run.evaluation.n_generate > 0,
        "model.zip": trained,
        "adapter.gguf": lora,
        "model.gguf": trained,
    }
    return {name: WORDS[name] for name, is_there in there.items() if is_there}


def check_name(studio: Studio, job: Job, name: str) -> None:
    """Raises Unknown for a file that there cannot be of this job, and why."""
    if name not in WORDS:
        raise Unknown(f"There is no file {name!r} of a job: ask for one of {', '.join(WORDS)}.")
    finished(studio, job)
    if name in AT_ONCE and name not in offered(studio, job):
        AT_ONCE[name](studio, job)  # says why not
    if name not in offered(studio, job):
        raise Unknown(f"There is no {name} of job {job.id!r}: there is {', '.join(offered(studio, job)) or 'nothing'}.")


def is_ready(studio: Studio, job: Job, name: str) -> bool:
    return name in AT_ONCE or place(studio, job, name).is_file()


def file_of(studio: Studio, job: Job, name: str) -> Path:
    """A file of a job. Raises Unknown for one that there cannot be, Conflict for one that must be asked for first."""
    check_name(studio, job, name)
    if name in AT_ONCE:
        return AT_ONCE[name](studio, job)
    if not (path := place(studio, job, name)).is_file():
        raise Conflict(f"{name} has not been made yet: ask for it first.")
    return path


def title_of(studio: Studio, job: Job, name: str) -> str:
    """The file name of a download."""
    return f"{slug(studio.project(job.project).name)}-{slug(job.label)}-{name}"


def slug(text: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "studio"


# --- what the assistant makes ----------------------------------------------------------------------------------


def ask_for(studio: Studio, job: Job, name: str) -> str:
    """Request that the assistant makes a file; the request's id."""
    check_name(studio, job, name)
    if name in AT_ONCE:
        raise Conflict(f"{name} need not be made: fetch it.")
    asked = {"project": job.project, "job": job.id}
    return studio.ask("merge", asked) if name == "model.zip" else studio.ask("gguf", asked | {"name": name})


def made(studio: Studio, request: Request) -> Path:
    """Make the file of a request. Loads models: for the assistant's process."""
    job = studio.job(request.payload["job"])
    return merged_zip(studio, job) if request.kind == "merge" else gguf_file(studio, job, request.payload["name"])


def gguf_file(studio: Studio, job: Job, name: str) -> Path:
    """The adapter alone, or merged into its base, as a GGUF file in float16."""
    from peftbook.studio.trained_model import merge
    from peftbook.views.export import gguf_adapter, gguf_model

    check_name(studio, job, name)
    target, trained = place(studio, job, name), studio.adapter(job)
    if not target.is_file() and name == "model.gguf":
        gguf_model.write_model(merge(studio, job), target, "fp16", job.run.model)
    elif not target.is_file() and trained is not None:
        gguf_adapter.write_adapter(trained, target, "fp16", job.run.model)
    return target
