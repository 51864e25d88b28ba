"""Model card: README.md of a trained model, the files that go with it, and the command that repeats its run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from peftbook.core import specs
from peftbook.core.base_models import SMALL_FOLDERS, in_folder, pinned
from peftbook.core.options import words_of
from peftbook.core.progress import duration
from peftbook.core.records import Record
from peftbook.decision import MEASURES, Row, compare
from peftbook.methods.untuned import Untuned
from peftbook.studio.formats import number, size
from peftbook.studio.html import fill
from peftbook.studio.settings import Reading
from peftbook.studio.store import Job, Studio
from peftbook.studio.tabular import digits, ends

LICENCES = {
    specs.EMBEDDED_MODEL: ("apache-2.0", "SmolLM2-135M-Instruct, Apache-2.0, from a file in 4 bits (Q4_1)"),
    **dict.fromkeys(SMALL_FOLDERS, ("mit", "the small Llama of peftbook, MIT")),
}
ROUNDED = """\
the adapter was trained beside those of that file, which are rounded to 4 bits. Those that a loader fetches by the \
base's name are not, and with them it scores a little otherwise; the merged model has those of the file"""
MERGED = "A whole model: `AutoModelForCausalLM.from_pretrained(FOLDER)` loads it."


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


def command_line(studio: Studio, job: Job) -> str:
    """The command that repeats a job on the same file, to the same key."""
    project = studio.project(job.project)
    name = project.filename or "data.csv"
    words = ["peftbook", "compare", f"./{name}" if name.startswith("-") else name, *words_of(Reading, project.reading)]
    return shlex.join([*words, "--run", job.run.canonical()])


def model_card(studio: Studio, job: Job, record: Record, *, merged: bool = False, local: Path | None = None) -> str:
    """README.md: base and its licence, method, data by hash, split, scores with their encoder, how to repeat it.

    No text of the data is in it.
    """
    project, run = studio.project(job.project), job.run
    short, licence = LICENCES.get(run.model.name, ("other", f"that of {run.model.name!r}: see where it came from"))
    trained = record.provenance.get("trained_sha256", {})
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
        trained=", ".join(sha256 for name, sha256 in trained.items() if name.endswith(".safetensors")),
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
