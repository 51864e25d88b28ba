"""Files of a finished job: adapter, merged model, test outputs; and the command that repeats it.

Each file is written to a temporary name in the project's `downloads` folder and renamed. Which of them can be made of a
job is said in `downloads`, which also makes them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from peftbook.core import specs
from peftbook.core.base_models import SMALL_FOLDERS, in_folder, pinned
from peftbook.core.errors import Conflict
from peftbook.core.exchange import ZIP_DATE, files_of, receive_record
from peftbook.core.options import words_of
from peftbook.core.progress import duration
from peftbook.core.records import Record, Store, write_atomically
from peftbook.decision import MEASURES, Row, compare
from peftbook.methods.untuned import Untuned
from peftbook.studio.formats import number, size
from peftbook.studio.html import fill
from peftbook.studio.settings import Reading
from peftbook.studio.store import Job, Studio
from peftbook.studio.tabular import digits, ends, escape_cell

LICENCES = {
    specs.EMBEDDED_MODEL: ("apache-2.0", "SmolLM2-135M-Instruct, Apache-2.0, from a file in 4 bits (Q4_1)"),
    **dict.fromkeys(SMALL_FOLDERS, ("mit", "the small Llama of peftbook, MIT")),
}
ROUNDED = """\
the adapter was trained beside those of that file, which are rounded to 4 bits. Those that a loader fetches by the \
base's name are not, and with them it scores a little otherwise; the merged model has those of the file"""
MERGED = "A whole model: `AutoModelForCausalLM.from_pretrained(FOLDER)` loads it."


def adapter_zip(studio: Studio, job: Job) -> Path:
    """The adapter as peft reads it (`adapter_config.json`, `adapter_model.safetensors`) with a model card and the run.

    For methods that peft has no format for: the trained tensors by name.
    """
    record, folder = finished(studio, job), studio.adapter(job)
    assert folder is not None
    texts = described(studio, job, record) | base_named(job.run.model, folder)
    files = [file for file in sorted(folder.iterdir()) if file.name not in texts]
    return pack(place(studio, job, "adapter.zip"), files, texts)


def merged_zip(studio: Studio, job: Job) -> Path:
    """The whole model with what was trained in its weights, float32 safetensors, its tokenizer and a model card.

    Loads the model: for an assistant's process.
    """
    from peftbook.studio.trained_model import merge

    record, target = finished(studio, job), place(studio, job, "model.zip")
    merged = merge(studio, job)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".merging-") as work:
        merged.model.save_pretrained(work)
        merged.tokenizer.save_pretrained(work)
        files = sorted(path for path in Path(work).iterdir() if path.name != "README.md")
        return pack(target, files, described(studio, job, record, merged=True))


def gguf_adapter(studio: Studio, job: Job) -> Path:
    """The adapter alone as a GGUF file in float16."""
    from peftbook.views.export.gguf_adapter import write_adapter

    target, trained = place(studio, job, "adapter.gguf"), studio.adapter(job)
    assert trained is not None
    if not target.is_file():
        write_adapter(trained, target, "fp16", job.run.model)
    return target


def gguf_model(studio: Studio, job: Job) -> Path:
    """The whole model with what was trained in its weights, as a GGUF file in float16."""
    from peftbook.studio.trained_model import merge
    from peftbook.views.export.gguf_model import write_model

    target = place(studio, job, "model.gguf")
    if not target.is_file():
        write_model(merge(studio, job), target, "fp16", job.run.model)
    return target


def fill_folder(studio: Studio, job: Job, work: Path) -> None:
    """Fill a folder that peft, transformers and vLLM load as it is: what was trained, the tokenizer with its chat
    template, a model card, `outputs.jsonl` where there are texts, and the record.
    """
    from peftbook.training.preflight import load_parts

    record, trained = finished(studio, job), studio.adapter(job)
    load_parts(job.run.model)[0].save_pretrained(work)
    local = SMALL_FOLDERS.get(job.run.model.name)
    texts = described(studio, job, record, merged=job.run.method.saved == "model", local=local)
    if trained is not None:
        shutil.copytree(trained, work, dirs_exist_ok=True)
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


def described(
    studio: Studio, job: Job, record: Record, *, merged: bool = False, local: Path | None = None
) -> dict[str, str]:
    """The model card and the run, by the names of their files."""
    card = model_card(studio, job, record, merged=merged, local=local)
    return {"README.md": card, "run.json": job.run.canonical() + "\n"}


def base_named(model: specs.Model, folder: Path, local: Path | None = None) -> dict[str, str]:
    """peft's configuration of an adapter with the base by its id and revision, not by the folder of the cache that it
    was loaded from; nothing for a method that peft has no format for.

    local: the base's folder on this machine, named instead: of a small Llama, which no hub has.
    """
    if not (config := folder / "adapter_config.json").is_file():
        return {}
    name = str(local or base_id(model))
    base = {"base_model_name_or_path": name, "revision": hub_revision(model)}
    return {config.name: json.dumps(json.loads(config.read_text()) | base, indent=2, sort_keys=True) + "\n"}


def hub_revision(model: specs.Model) -> str | None:
    """The commit of a hub model, that of the cache where none was asked for; None for other models."""
    if in_folder(model) or model.name in LICENCES:
        return None
    if model.revision:
        return model.revision
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.name, "config.json")
    return Path(cached).parent.name if isinstance(cached, str) else None


def outputs_csv(studio: Studio, job: Job) -> Path:
    """What the model wrote for each test example, beside input and target, with each example's scores.

    A cell that a spreadsheet would read as a formula starts with an apostrophe.
    """
    rows = list(output_rows(studio, job, finished(studio, job)))
    body = io.StringIO(newline="")
    writer = csv.writer(body)
    writer.writerow(rows[0])
    writer.writerows([escape_cell(cell) if isinstance(cell, str) else cell for cell in row.values()] for row in rows)
    path = place(studio, job, "outputs.csv")
    write_atomically(path, body.getvalue().encode("utf-8-sig"))  # with a byte order mark, or Excel reads it as Latin-1
    return path


def output_rows(studio: Studio, job: Job, record: Record) -> Iterator[dict[str, str | float]]:
    """Of each test example that was answered: row, input, target, output, and its scores by name."""
    texts = studio.records(job.project).texts(record) or []
    examples = studio.task(job.project).splits[job.run.evaluation.split]
    names = [name for name, values in record.per_example.items() if len(values) == len(texts)]
    for at, (text, example) in enumerate(zip(texts, examples, strict=False)):
        scores = {name: record.per_example[name][at] for name in names}
        yield {"row": example.id, "input": example.input, "target": example.target, "output": text, **scores}


def command_line(studio: Studio, job: Job) -> str:
    """The command that repeats a job on the same file, to the same key."""
    project = studio.project(job.project)
    name = project.filename or "data.csv"
    words = ["peftbook", "compare", f"./{name}" if name.startswith("-") else name, *words_of(Reading, project.reading)]
    return shlex.join([*words, "--run", job.run.canonical()])


def finished(studio: Studio, job: Job) -> Record:
    """The record of a job that is done. Raises InputError for every other one."""
    record = studio.records(job.project).get(job.run)
    if job.state != "done" or record is None:
        raise Conflict(f"Job {job.id!r} is {job.state}: there is something to download when it is done.")
    return record


def place(studio: Studio, job: Job, name: str) -> Path:
    """The path of a download of a job, in an existing folder."""
    what, _, ending = name.partition(".")
    return studio.downloads(job.project) / f"{what}-{job.key[:12]}.{ending}"


def pack(target: Path, files: Iterable[Path], texts: Mapping[str, str]) -> Path:
    """One zip file of files and texts, whole or not at all; equal contents give equal files."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as work:
        aside = Path(work) / target.name
        with aside.open("wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for file in files:
                    entry = zipfile.ZipInfo(file.name, ZIP_DATE)
                    with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as into:
                        shutil.copyfileobj(source, into, 1 << 20)
                for title, text in texts.items():
                    archive.writestr(zipfile.ZipInfo(title, ZIP_DATE), text)
            stream.flush()
            os.fsync(stream.fileno())
        return aside.replace(target)


def model_card(studio: Studio, job: Job, record: Record, *, merged: bool = False, local: Path | None = None) -> str:
    """README.md: base and its licence, method, data by hash, split, scores with their encoder, how to repeat it.

    No text of the data is in it.
    """
    project, run = studio.project(job.project), job.run
    short, licence = LICENCES.get(run.model.name, ("other", f"that of {run.model.name!r}: see where it came from"))
    sizes = {name: len(rows) for name, rows in studio.task(job.project).splits.items()}
    card = fill(
        "model_card.md",
        short=short,
        licence=licence,
        base=json.dumps(base_id(run.model)),
        merged=merged,
        run=run,
        title=inline(project.name),
        loading=MERGED if merged else run.method.loading,
        pinned=pinned(run.model),
        local=local,
        rounded=ROUNDED if run.model.name == specs.EMBEDDED_MODEL and not merged else "",
        project=project,
        sizes=", ".join(f"{count:,} {name}" for name, count in sizes.items()),
        measured=measured(record, *scores_of(studio, job, record)),
        command=command_line(studio, job),
    )
    return f"{card}\n"


def base_id(model: specs.Model) -> str:
    """What a model card names as its base."""
    return "HuggingFaceTB/SmolLM2-135M-Instruct" if model.name == specs.EMBEDDED_MODEL else model.name


def inline(text: str) -> str:
    """A user's name as text of a heading: nothing in it is markup."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()#+-.!|<>&" else sign for sign in text)


def scores_of(studio: Studio, job: Job, record: Record) -> tuple[Row, Row | None]:
    """A job's scores with their intervals, and those of the untuned model that was scored alike, if there is one."""
    store, run = studio.records(job.project), job.run
    alike = [
        one.run
        for one in studio.jobs(job.project)
        if (one.run.method, one.run.model, one.run.evaluation) == (Untuned(), run.model, run.evaluation)
    ]
    plain = [found for one in alike if one != run and (found := store.get(one)) is not None][:1]
    examples = studio.task(job.project).splits[run.evaluation.split]
    measure = next((one.name for one in MEASURES.values() if one.column in record.per_example), "perplexity")
    rows = compare([record, *plain], {}, examples, measure=measure).rows
    own = next(row for row in rows if record.key in row.runs)
    return own, next((row for row in rows if row is not own), None)


def measured(record: Record, row: Row, plain: Row | None) -> list[str]:
    """The record's scores with intervals, the untuned model's, and costs, one a line, with what each depends on."""
    found, encoder = record.measurements, record.metrics_info.get("bertscore", {})
    evaluation = row.run.evaluation
    count = found.get("generated_examples", 0)
    lines = [f"On the {evaluation.split} split, {count} texts generated greedily; with 95 % intervals:", ""]
    notes = {"perplexity": f" ({found.get('loss_examples')} examples, label tokens)"}
    if encoder:
        notes["bertscore_f1"] = f" (encoder {encoder.get('name')}, layer {encoder.get('layer')}, not rescaled)"
    for name, score in row.scores.items():
        untuned = f"; untuned {digits(plain.scores.get(name), name)}" if plain is not None else ""
        lines.append(f"- {name}: {digits(score, name)} ({ends(score, name)}){untuned}{notes.get(name, '')}")
    if (converted := found.get("as_lora_loss_nats")) is not None:
        lines.append(f"- as_lora_loss_nats: {converted:.4g}")
    costs = row.trainable_parameters, row.train_seconds, row.peak_memory_bytes
    said = number(costs[0]), duration(costs[1]), size(costs[2])
    names = ("trained parameters", "training", "peak memory")
    return [
        *lines,
        *(f"- {name}: {text}" for name, text, cost in zip(names, said, costs, strict=True) if cost),
        f"- on {record.hardware}",
    ]
