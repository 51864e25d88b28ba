"""Data: what was uploaded, how it is read, what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from peftbook.core.errors import InputError
from peftbook.studio import report
from peftbook.studio.data_checks import examined, notes_of, project_of_upload, split_of, upload_again
from peftbook.studio.formats import number, size
from peftbook.studio.html import fill, part
from peftbook.studio.pages.site import Live, View, Visit, address, frame, typed_number
from peftbook.studio.settings import Reading
from peftbook.studio.uploads import Upload
from peftbook.tasks.columns import Columns, guess_columns
from peftbook.tasks.files import Split, TableFindings
from peftbook.tasks.table import TextTable

PREVIEWED = 5
FAULTS = 20
NONE = "none"
NAME_CHARS = 120
FORMATS = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "chat": "chats", "parquet": "Parquet"}
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


# --- what is shown ---------------------------------------------------------------------------------------------


def about(found: TextTable, filename: str, length: int | None = None) -> Markup:
    """Name, format and size of the file."""
    pairs = [("File", filename or "pasted text"), ("Read as", FORMATS[found.format])]
    pairs += [("Encoding", found.encoding)] if found.encoding else []
    pairs += [("Delimiter", DELIMITERS.get(found.delimiter, found.delimiter))] if found.delimiter else []
    pairs += [("Rows", number(len(found.rows) + len(found.faults))), ("Columns", number(len(found.columns)))]
    return part("facts", pairs + ([("Size", size(length))] if length is not None else []))


def preview(found: TextTable, columns: Columns | None = None) -> Markup:
    """The first rows; the columns that matter are named by what they are."""
    parts = ("input", "target", "instruction", "group")
    roles = {getattr(columns, part): part for part in parts} if columns else {}
    names = [name for name in found.columns if name in roles] + [name for name in found.columns if name not in roles]
    places = [found.columns.index(name) for name in names[:8]]
    heads = [f"{name} — {roles[name]}" if name in roles else name for name in names[:8]]
    rows = list(zip(found.numbers[:PREVIEWED], found.rows[:PREVIEWED], strict=True))
    more = f", {len(names) - 8} more columns" if len(names) > 8 else ""
    caption = f"The first {len(rows)} of {len(found.rows):,} rows{more}"
    return fill("preview.html", header=["Row", *heads], rows=rows, places=places, caption=caption)


def findings(seen: TableFindings, instruction: str) -> Markup:
    """What was counted, in the order of what it may cost."""
    faults = [(number(one.row), one.column or "whole row", one.problem) for one in seen.faults[:FAULTS]]
    return fill("findings.html", seen=seen, faults=faults, notes=notes_of(seen, instruction))


# --- a new project ---------------------------------------------------------------------------------------------

PARTS = {  # column → what its field is called, and what it is for
    "input": ("Input", "what the model reads"),
    "target": ("Target", "what it should write"),
    "instruction_column": ("Instruction column", "optional: put before the input"),
    "group": ("Group", "optional: never divided by the split"),
}
NEEDED = ("input", "target")
SHARES = {"validation": ("Validation, %", "10"), "test": ("Test, %", "10"), "split_seed": ("Split seed", "0")}
PROMPT = "{input}"
NEAR = {"any": "in any split", "together": "together in one split", "out": "left out, but for the first"}


@dataclass(frozen=True)
class Form:
    """What is asked of an upload: fields by name, as they were typed or as they are guessed, and why so."""

    upload: Upload
    table: TextTable
    fields: dict[str, str]
    why: str

    @classmethod
    def of(cls, visit: Visit) -> Form:
        uploads, typed = visit.context.uploads, visit.typed
        upload = uploads.get(visit.names["upload"])
        whole = uploads.table(upload.id)
        guess, why = guess_columns(whole)
        usual = {
            "name": upload.filename.rpartition(".")[0][:NAME_CHARS] or "Pasted data", "instruction": PROMPT,
            "input": guess.input, "target": guess.target, "instruction_column": guess.instruction or "",
            "group": guess.group or "", "near_copies": "any", **{name: value for name, (_, value) in SHARES.items()},
        }  # fmt: skip
        return cls(upload, whole, {name: typed.get(name, value) for name, value in usual.items()}, why)

    @property
    def columns(self) -> Columns:
        """Raises InputError for one that the file does not have."""
        names = [self.fields[name] or None for name in PARTS]
        if unknown := next((name for name in names if name and name not in self.table.columns), None):
            raise InputError(f"The file has no column {unknown!r}: choose one of its columns.")
        source, target, before, group = names
        if source is None or target is None:
            raise InputError("Choose an input column and a target column.")
        return Columns(source, target, before, group)

    def findings(self) -> TableFindings:
        return examined(self.table, self.columns, self.split)

    @property
    def split(self) -> Split:
        validation, test, seed = (typed_number(self.fields[name]) for name in SHARES)
        return split_of(validation, test, seed, self.fields["near_copies"])


def show_reading(visit: Visit) -> dict[str, Any]:
    """The upload, and what it would be if it were read as the form says."""
    form = Form.of(visit)
    head = about(form.table, form.upload.filename, form.upload.offset)
    try:
        columns, seen = form.columns, form.findings()
        told = seen if visit.form is None else replace(seen, obstacle="")  # which stands on top
        found = findings(told, form.fields["instruction"])
        shown = {"preview": preview(form.table, columns), "findings": found, "ready": not seen.obstacle}
    except InputError as error:
        shown = {"preview": preview(form.table), "error": error if visit.form is None else "", "ready": False}
    body = fill("reading_live.html", **{"error": "", "findings": ""} | shown)
    return {
        "name": form.upload.filename or "Pasted table",
        "about": head,
        "why": form.why,
        "fields": form.fields,
        "parts": parts_of(form.table),
        "shares": SHARES,
        "near": NEAR,
        "live": Live(body),
        "address": visit.path,
    }


def parts_of(found: TextTable) -> dict[str, tuple[str, str, list[tuple[str, str]]]]:
    """Of each column that a task has: what its field is called, what it is for, and what it can be."""
    columns = [(name, name) for name in found.columns]
    return {part: (*words, columns if part in NEEDED else [("", NONE), *columns]) for part, words in PARTS.items()}


def make_project(visit: Visit) -> str:
    """Keep the upload as a project."""
    form = Form.of(visit)
    reading = Reading.of(form.columns, form.split, form.fields["instruction"])
    project = project_of_upload(visit.studio, visit.context.uploads, form.upload.id, form.fields["name"], reading)
    return f"/projects/{project.id}/data"


READING = View("reading.html", show_reading, make_project)


# --- an existing project ---------------------------------------------------------------------------------------


def show_data(visit: Visit) -> dict[str, Any]:
    """What the project's data are. They never change: other columns or another split are another project."""
    project = visit.project
    try:
        whole = visit.studio.table(project.id)
        seen = examined(whole, project.columns, project.split)
    except InputError as error:
        return {**frame(visit), "trouble": error, "about": ""}
    return {
        **frame(visit),
        "about": about(whole, project.filename),
        "settings": part("facts", [pair for pair in report.data(project, {}) if pair[1]]),
        "findings": findings(seen, project.instruction),
        "leaks": seen.near_duplicates,
        "preview": preview(whole, project.columns),
    }


def fields_of(reading: Reading) -> dict[str, str]:
    """The fields of the form for an upload that is read in this way."""
    _, validation, test = (f"{100 * share:g}" for share in reading.fractions)
    fields = {name: getattr(reading, name) or "" for name in (*PARTS, "instruction", "near_copies")}
    return fields | {"validation": validation, "test": test, "split_seed": str(reading.split_seed)}


def act(visit: Visit) -> str:
    """What is done with a project as a whole; its file is read again as another one."""
    project, form = visit.names["project"], visit.typed
    if near := form.get("again"):
        upload = upload_again(visit.studio, visit.context.uploads, project)
        return address(f"/new/{upload.id}", **fields_of(visit.project.reading) | {"near_copies": near})
    if "delete" in form:
        visit.studio.delete_project(project)
        return "/"
    visit.studio.rename(project, form.get("rename", ""))
    return f"/projects/{project}/data"


DATA = View("data.html", show_data, act)
