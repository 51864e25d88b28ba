"""Downloads of finished jobs: one object a kind of file, which says whether it can be made of a job, and makes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peftbook.core.errors import Conflict, InputError, Unknown
from peftbook.studio.artefacts import adapter_zip, finished, gguf_adapter, gguf_model, merged_zip, outputs_csv, place
from peftbook.studio.jobs import Job
from peftbook.studio.store import Studio, keeps_trained
from peftbook.views.export import PLAIN_STARTS


@dataclass(frozen=True)
class Artefact:
    """A kind of file. title, words: what it is called, and what it is.

    obstacle: why there is none of a job that is done, in a sentence; empty where there is one.  make: writes it.
    at_once: whether it is made when it is fetched; what needs a model, an assistant makes.
    """

    name: str
    title: str
    words: str
    obstacle: Callable[[Studio, Job], str]
    make: Callable[[Studio, Job], Path]
    at_once: bool = False

    def is_ready(self, studio: Studio, job: Job) -> bool:
        return self.at_once or place(studio, job, self.name).is_file()


def no_weights(studio: Studio, job: Job) -> str:
    if job.run.budget is None:
        return "The untuned model has no adapter: it is the base as it comes."
    if not keeps_trained(job.run):
        return "What a trial of a rate trained is not kept: take a run with the rate that was chosen."
    return "" if studio.adapter(job) else f"What job {job.id!r} trained is not at hand any more: retry the job."


def no_adapter(studio: Studio, job: Job) -> str:
    whole = "Full fine-tuning leaves no adapter, it changes every weight: download the merged model."
    return no_weights(studio, job) or (whole if job.run.method.saved == "model" else "")


def no_lora(studio: Studio, job: Job) -> str:
    file = studio.folder(job.project) / "adapters" / job.key[:12] / "adapter_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    factors = config.get("peft_type") == "LORA" and not config.get("use_dora")
    plain = factors and config.get("init_lora_weights", True) in PLAIN_STARTS  # as `check_adapter` asks of peft's own
    other = f"llama.cpp reads no adapter of {job.run.method.label}: download the adapter as peft reads it."
    return no_adapter(studio, job) or ("" if plain else other)


def no_merged(studio: Studio, job: Job) -> str:
    method = job.run.method
    apart = f"What {method.kind!r} trained cannot be merged ({method.unmerged}): download the adapter instead."
    return no_weights(studio, job) or (apart if method.unmerged else "")


def no_outputs(studio: Studio, job: Job) -> str:
    none = f"Job {job.id!r} generated no texts: submit it with test examples to generate."
    return "" if job.run.evaluation.n_generate else none


ARTEFACTS = {
    one.name: one
    for one in (
        Artefact("adapter.zip", "Adapter", "the adapter as peft reads it, with a model card", no_adapter, adapter_zip,
                 at_once=True),
        Artefact("outputs.csv", "Test outputs", "what the model wrote for each test row, with its scores", no_outputs,
                 outputs_csv, at_once=True),
        Artefact("model.zip", "Merged model", "base and adapter as one model, for transformers", no_merged, merged_zip),
        Artefact("adapter.gguf", "Adapter as GGUF", "the adapter alone, for llama.cpp beside its base", no_lora,
                 gguf_adapter),
        Artefact("model.gguf", "Merged model as GGUF", "base and adapter as one model, for llama.cpp", no_merged,
                 gguf_model),
    )
}  # fmt: skip


def offered(studio: Studio, job: Job) -> list[Artefact]:
    """The files that a job can have."""
    return [one for one in ARTEFACTS.values() if job.state == "done" and not one.obstacle(studio, job)]


def artefact_of(studio: Studio, job: Job, name: str) -> Artefact:
    """A file that there can be of this job. Raises Unknown for a name that is none, InputError for any other reason."""
    if name not in ARTEFACTS:
        raise Unknown(f"There is no file {name!r} of a job: ask for one of {', '.join(ARTEFACTS)}.")
    finished(studio, job)
    if why := ARTEFACTS[name].obstacle(studio, job):
        raise InputError(why)
    return ARTEFACTS[name]


def file_of(studio: Studio, job: Job, name: str) -> Path:
    """A file of a job. Raises Conflict for one that must be asked for first, and what `artefact_of` does."""
    one = artefact_of(studio, job, name)
    if not one.is_ready(studio, job):
        raise Conflict(f"{name} has not been made yet: ask for it first.")
    return one.make(studio, job) if one.at_once else place(studio, job, name)


def ask_for(studio: Studio, job: Job, name: str) -> str:
    """Queue the task that makes a file; its id."""
    if artefact_of(studio, job, name).at_once:
        raise Conflict(f"{name} need not be made: fetch it.")
    return studio.enqueue("make", {"project": job.project, "job": job.id, "name": name})


def title_of(studio: Studio, job: Job, name: str) -> str:
    """The file name of a download."""
    return f"{slug(studio.project(job.project).name)}-{slug(job.label)}-{name}"


def slug(text: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "studio"
