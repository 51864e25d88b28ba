"""Downloads of finished jobs: one object a kind of file, which says whether it can be made of a job, and makes it.

A file is written in a temporary folder of the project's `downloads` and renamed.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from peftbook.core.base_models import SMALL_FOLDERS
from peftbook.core.errors import Conflict, InputError, Unknown
from peftbook.core.exchange import ZIP_DATE, files_of, receive_record
from peftbook.core.records import Record, Store
from peftbook.studio.model_card import base_named, described
from peftbook.studio.store import AGAIN, Job, Studio, keeps_trained
from peftbook.studio.tabular import escape_cell
from peftbook.views.export import PLAIN_STARTS


@dataclass(frozen=True)
class Artefact:
    """A kind of file. title, words: what it is called, and what it is.

    obstacle: why there is none of a job that is done, in a sentence; empty where there is one.
    write: makes it at a path in an empty folder.  at_once: whether it is made whenever it is fetched; what needs a
    model, an assistant makes once.
    """

    name: str
    title: str
    words: str
    obstacle: Callable[[Studio, Job], str]
    write: Callable[[Studio, Job, Path], object]
    at_once: bool = False

    @property
    def noun(self) -> str:
        """The title within a sentence."""
        return self.title[0].lower() + self.title[1:]

    def path(self, studio: Studio, job: Job) -> Path:
        """Where the file of a job is, in an existing folder."""
        what, _, ending = self.name.partition(".")
        return studio.downloads(job.project) / f"{what}-{job.key[:12]}.{ending}"

    def is_ready(self, studio: Studio, job: Job) -> bool:
        return self.at_once or self.path(studio, job).is_file()

    def make(self, studio: Studio, job: Job) -> Path:
        """The file, made unless it is there."""
        path = self.path(studio, job)
        if self.at_once or not path.is_file():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
                self.write(studio, job, made := Path(folder) / path.name)
                with made.open("rb") as stream:
                    os.fsync(stream.fileno())
                made.replace(path)
        return path


def no_weights(studio: Studio, job: Job) -> str:
    if job.run.budget is None:
        return "The untuned model has no adapter: it is the base as it comes."
    if not keeps_trained(job.run):
        return "What a trial of a rate trained is not kept: take a run with the rate that was chosen."
    return "" if studio.has_adapter(job) else f"What job {job.id!r} trained is not at hand any more: {AGAIN}."


def no_adapter(studio: Studio, job: Job) -> str:
    whole = "Full fine-tuning leaves no adapter, it changes every weight: download the merged model."
    return no_weights(studio, job) or (whole if job.run.method.saved == "model" else "")


def no_lora(studio: Studio, job: Job) -> str:
    if why := no_adapter(studio, job):
        return why
    try:
        file = studio.adapter(job) / "adapter_config.json"
    except InputError:
        return ""  # which is said to whoever asks for it
    config = json.loads(file.read_text()) if file.is_file() else {}
    factors = config.get("peft_type") == "LORA" and not config.get("use_dora")
    plain = factors and config.get("init_lora_weights", True) in PLAIN_STARTS  # as `check_adapter` asks of peft's own
    other = f"llama.cpp reads no adapter of {job.run.method.label}: download the adapter as peft reads it."
    return "" if plain else other


def no_merged(studio: Studio, job: Job) -> str:
    method = job.run.method
    apart = f"What {method.kind!r} trained cannot be merged ({method.unmerged}): download the adapter instead."
    return no_weights(studio, job) or (apart if method.unmerged else "")


def no_outputs(studio: Studio, job: Job) -> str:
    none = f"Job {job.id!r} generated no texts: submit it with test examples to generate."
    return "" if job.run.evaluation.n_generate else none


def write_adapter_zip(studio: Studio, job: Job, path: Path) -> None:
    """The adapter as peft reads it (`adapter_config.json`, `adapter_model.safetensors`) with a model card and the run.

    For methods that peft has no format for: the trained tensors by name.
    """
    record, folder = finished(studio, job), studio.adapter(job)
    texts = described(studio, job, record) | base_named(job.run.model, folder)
    pack(path, [file for file in sorted(folder.iterdir()) if file.name not in texts], texts)


def write_merged_zip(studio: Studio, job: Job, path: Path) -> None:
    """The whole model with what was trained in its weights, float32 safetensors, its tokenizer and a model card."""
    from peftbook.studio.trained_model import merge

    record, merged = finished(studio, job), merge(studio, job)
    merged.model.save_pretrained(work := path.parent / "model")
    merged.tokenizer.save_pretrained(work)
    files = sorted(file for file in work.iterdir() if file.name != "README.md")
    pack(path, files, described(studio, job, record, merged=True))


def write_gguf_adapter(studio: Studio, job: Job, path: Path) -> None:
    """The adapter alone as a GGUF file in float16."""
    from peftbook.views.export.gguf_adapter import write_adapter

    write_adapter(studio.adapter(job), path, "fp16", job.run.model)


def write_gguf_model(studio: Studio, job: Job, path: Path) -> None:
    """The whole model with what was trained in its weights, as a GGUF file in float16."""
    from peftbook.studio.trained_model import merge
    from peftbook.views.export.gguf_model import write_model

    write_model(merge(studio, job), path, "fp16", job.run.model)


def write_outputs(studio: Studio, job: Job, path: Path) -> None:
    """What the model wrote for each test example, beside input and target, with each example's scores.

    A cell that a spreadsheet would read as a formula starts with an apostrophe.
    """
    rows = list(output_rows(studio, job, finished(studio, job)))
    with path.open("w", encoding="utf-8-sig", newline="") as stream:  # with a mark, or Excel reads it as Latin-1
        writer = csv.writer(stream)
        writer.writerow(rows[0])
        writer.writerows(
            [escape_cell(cell) if isinstance(cell, str) else cell for cell in row.values()] for row in rows
        )


ARTEFACTS = {
    one.name: one
    for one in (
        Artefact("adapter.zip", "Adapter", "the adapter as peft reads it, with a model card", no_adapter,
                 write_adapter_zip, at_once=True),
        Artefact("outputs.csv", "Test outputs", "what the model wrote for each test row, with its scores", no_outputs,
                 write_outputs, at_once=True),
        Artefact("model.zip", "Merged model", "base and adapter as one model, for transformers", no_merged,
                 write_merged_zip),
        Artefact("adapter.gguf", "Adapter as GGUF", "the adapter alone, for llama.cpp beside its base", no_lora,
                 write_gguf_adapter),
        Artefact("model.gguf", "Merged model as GGUF", "base and adapter as one model, for llama.cpp", no_merged,
                 write_gguf_model),
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
    return one.make(studio, job)


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


def finished(studio: Studio, job: Job) -> Record:
    """The record of a job that is done. Raises InputError for every other one."""
    record = studio.records(job.project).get(job.run)
    if job.state != "done" or record is None:
        raise Conflict(f"Job {job.id!r} is {job.state}: there is something to download when it is done.")
    return record


def fill_folder(studio: Studio, job: Job, work: Path) -> None:
    """Fill a folder that peft, transformers and vLLM load as it is: what was trained, the tokenizer with its chat
    template, a model card, `outputs.jsonl` where there are texts, and the record.
    """
    from peftbook.training.preflight import load_parts

    record = finished(studio, job)
    load_parts(job.run.model)[0].save_pretrained(work)
    local = SMALL_FOLDERS.get(job.run.model.name)
    texts = described(studio, job, record, merged=job.run.method.saved == "model", local=local)
    if job.run.budget is not None:
        shutil.copytree(studio.adapter(job), work, dirs_exist_ok=True)
        texts |= base_named(job.run.model, work, local)
    if rows := list(output_rows(studio, job, record)):
        texts["outputs.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    task = studio.task(job.project)
    if task.instruction != "{input}":
        texts["instruction.txt"] = task.instruction
    if task.system:
        texts["system.txt"] = task.system
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")
    receive_record(Store(work / "record"), job.key, files_of(studio.records(job.project), job.key))


def output_rows(studio: Studio, job: Job, record: Record) -> Iterator[dict[str, str | float]]:
    """Of each test example that was answered: row, input, target, output, and its scores by name."""
    texts = studio.records(job.project).texts(record) or []
    how = job.run.evaluation
    examples = how.chosen(studio.task(job.project).splits[how.split], len(texts))
    names = [name for name, values in record.per_example.items() if len(values) == len(texts)]
    for at, (text, example) in enumerate(zip(texts, examples, strict=True)):
        scores = {name: record.per_example[name][at] for name in names}
        yield {"row": example.id, "input": example.input, "target": example.target, "output": text, **scores}


def pack(path: Path, files: Iterable[Path], texts: Mapping[str, str]) -> None:
    """Write files and texts into one zip file; equal contents give equal files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.name, ZIP_DATE)
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as into:
                shutil.copyfileobj(source, into, 1 << 20)
        for title, text in texts.items():
            archive.writestr(zipfile.ZipInfo(title, ZIP_DATE), text)
