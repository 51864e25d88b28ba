"""Data: what was uploaded, how it is read, what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.drafts import Draft
from peftbook.studio.findings import examined, notes_of, project_of_draft, split_of
from peftbook.studio.markup import clipped, facts, joined, number, piece, size, table
from peftbook.studio.pages.wiring import BUSY, Context, Step, Updates, on, panel, place_of_note, unseen
from peftbook.studio.store import Project
from peftbook.tasks.columns import Columns, guess_columns
from peftbook.tasks.files import Findings, Split
from peftbook.tasks.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

PREVIEWED = 5
FAULTS = 20
NONE = "none"
CHATS = "chats (JSON lines with messages)"
FORMATS = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "chat": CHATS, "parquet": "Parquet"}
DATA = (
    '<div class="two"><section><h3>File</h3>{}</section><section><h3>Read as a task</h3>{}</section></div>'
    "<h3>Findings</h3>{}<h3>Rows</h3>{}"
    '<p class="fine">Data and split of a project never change, so that its runs stay comparable. For other '
    "columns or another split, make another project of the same file.</p>"
)
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


# --- what is shown ---------------------------------------------------------------------------------------------


def about(found: Table, filename: str, length: int | None = None) -> Markup:
    """What the file turned out to be."""
    rows: list[tuple[str, object]] = [("File", filename or "pasted text"), ("Read as", FORMATS[found.format])]
    if found.encoding:
        rows.append(("Encoding", found.encoding))
    if found.delimiter:
        rows.append(("Delimiter", DELIMITERS.get(found.delimiter, found.delimiter)))
    rows.append(("Rows", number(len(found.rows) + len(found.faults))))
    rows.append(("Columns", number(len(found.columns))))
    if length is not None:
        rows.append(("Size", size(length)))
    return facts(rows)


def preview(found: Table, columns: Columns | None = None) -> Markup:
    """The first rows; the columns that matter are named by what they are."""
    parts = ("input", "target", "instruction", "group")
    roles = {getattr(columns, part): part for part in parts} if columns else {}
    names = [name for name in found.columns if name in roles] + [name for name in found.columns if name not in roles]
    places = [found.columns.index(name) for name in names[:8]]
    heads = [f"{name} — {roles[name]}" if name in roles else name for name in names[:8]]
    rows = [
        [number(row_number), *(piece('<div class="cell">{}</div>', clipped(row[place])) for place in places)]
        for row_number, row in zip(found.numbers[:PREVIEWED], found.rows[:PREVIEWED], strict=True)
    ]
    more = f", {len(names) - 8} more columns" if len(names) > 8 else ""
    caption = f"The first {len(rows)} of {len(found.rows):,} rows{more}"
    return table(["Row", *heads], rows, kind="preview", caption=caption)


def findings(seen: Findings) -> Markup:
    """What was counted, in the order of what it may cost."""
    parts = [markup.trouble(seen.obstacle)] if seen.obstacle else []
    sizes = [("Usable rows", number(seen.usable))]
    sizes += [(name.capitalize(), number(count)) for name, count in seen.splits.items()]
    parts.append(facts(sizes))
    if seen.faults:
        plural = "row is" if len(seen.faults) == 1 else "rows are"
        rows = [(number(one.row), one.column or "whole row", one.problem) for one in seen.faults[:FAULTS]]
        shown = "" if len(seen.faults) <= FAULTS else f" The first {FAULTS} are listed."
        parts.append(markup.note(f"{len(seen.faults):,} {plural} left out.{shown}", "warn"))
        parts.append(table(["Row", "Column", "Problem"], rows, kind="faults", caption="Rows that are left out"))
    parts += [markup.note(words, kind) for words, kind in notes_of(seen)]
    return joined(parts)


def settings_of(project: Project) -> Markup:
    """How the project reads its file."""
    train, validation, test = (f"{100 * part:g} %" for part in project.split.fractions)
    return facts(
        [
            ("Input", project.columns.input),
            ("Target", project.columns.target),
            ("Instruction column", project.columns.instruction or NONE),
            ("Group", project.columns.group or NONE),
            ("Prompt", project.instruction),
            ("Split", f"{train} train, {validation} validation, {test} test"),
            ("Split seed", str(project.split.seed)),
            ("SHA-256", piece("<code>{}…</code>", project.sha256[:16])),
        ]
    )


# --- a new project ---------------------------------------------------------------------------------------------


class NewProject:
    """Upload or paste, then say what is what, then create. opened: updates that show a project; outputs: theirs."""

    def __init__(self, context: Context, opened: Callable[[str], Updates], outputs: list[Any]) -> None:
        self.context, self.drafts, self.opened = context, context.drafts, opened
        self.upload = panel(uploader(context), elem_id="upload")
        self.note, self.draft = place_of_note(), unseen(elem_id="draft")
        with gr.Column(visible=False, elem_id="mapping") as self.form:
            self.lay_out()
        mapped = [self.draft, self.form, self.seen, self.why, self.name, *self.columns, self.found, self.create]
        fields = [self.draft, *self.columns, *self.shares]
        on(self.upload.act, self.note, self.read, None, mapped)
        changed = [column.input for column in self.columns]
        changed += [event for share in self.shares for event in (share.submit, share.blur)]
        for event in changed:
            on(event, self.note, self.look_again, fields, [self.found, self.seen, self.create])
        made = [self.form, self.draft, self.upload, *outputs]
        on(self.create.click, self.note, self.make, [self.name, self.instruction, *fields], made, **BUSY)

    def lay_out(self) -> None:
        """What is asked once the upload is here."""
        self.seen = panel()
        with gr.Row():
            self.name = gr.Textbox(label="Project name", max_length=120, elem_id="new-name")
        self.why = panel()
        with gr.Row(equal_height=True):
            self.columns = [
                gr.Dropdown(label="Input", info="what the model reads", elem_id="new-input"),
                gr.Dropdown(label="Target", info="what it should write", elem_id="new-target"),
                gr.Dropdown(label="Instruction column", info="optional: put before the input"),
                gr.Dropdown(label="Group", info="optional: never divided by the split"),
            ]
        info = "what the model is told; {input} is where the input goes"
        self.instruction = gr.Textbox("{input}", label="Prompt", info=info, lines=2, elem_id="new-instruction")
        with gr.Row(equal_height=True):
            shares = {"Validation, %": 10, "Test, %": 10, "Split seed": 0}
            self.shares = [gr.Number(usual, label=label) for label, usual in shares.items()]
        self.found = panel(elem_id="findings")
        self.create = gr.Button("Create the project", variant="primary", elem_id="create")

    def read(self, event: gr.EventData) -> Updates:
        """The upload is here: show it, and guess."""
        data = event._data or {}
        if data.get("act") == "refused":
            raise InputError(str(data.get("words"))[:300])
        draft = self.drafts.get(str(data.get("draft")))
        try:
            whole = self.drafts.table(draft.id)
            columns, reason = guess_columns(whole)
        except InputError:
            self.drafts.drop(draft.id)
            raise
        choices, optional = list(whole.columns), [NONE, *whole.columns]
        guesses = [(choices, columns.input), (choices, columns.target)]
        guesses += [(optional, columns.instruction or NONE), (optional, columns.group or NONE)]
        return {
            self.draft: draft.id,
            self.form: gr.update(visible=True),
            self.why: markup.note(f"{reason} Change them where that is wrong.", "info"),
            self.name: draft.filename.rpartition(".")[0][:120] or "Pasted data",
            **{
                field: gr.update(choices=names, value=value)
                for field, (names, value) in zip(self.columns, guesses, strict=True)
            },
            **self.counted(draft, whole, columns, Split()),
        }

    def counted(self, draft: Draft, whole: Table, columns: Columns, split: Split) -> Updates:
        """What is in the upload, and what was found in it; what cannot be a project says why once, there."""
        head, seen = about(whole, draft.filename, draft.offset), examined(whole, columns, split)
        create = gr.update(interactive=not seen.obstacle)
        return {self.seen: head + preview(whole, columns), self.found: findings(seen), self.create: create}

    def chosen(self, *values: Any) -> tuple[Draft, Table, Columns, Split]:
        """What the form says."""
        draft_id, *names, validation, test, seed = values
        source, target, before, group = (None if name in (NONE, None, "") else str(name) for name in names)
        whole = self.drafts.table(str(draft_id))
        if source is None or target is None:
            raise InputError("Choose an input column and a target column.")
        split = split_of(validation or 0, test or 0, seed or 0)
        return self.drafts.get(str(draft_id)), whole, Columns(source, target, before, group), split

    def look_again(self, *values: Any) -> Updates:
        """Something was changed: count again."""
        return self.counted(*self.chosen(*values))

    def make(self, title: str, prompt: str, *values: Any) -> Updates:
        """Keep it as a project and open it."""
        draft, _, columns, split = self.chosen(*values)
        project = project_of_draft(self.context.studio, self.drafts, draft.id, title, columns, split, prompt)
        empty = {self.form: gr.update(visible=False), self.draft: "", self.upload: uploader(self.context)}
        return {**empty, **self.opened(project.id)}


def uploader(context: Context) -> Markup:
    """Drop, choose or paste. The browser sends the bytes to a route of its own, which counts them."""
    return piece(
        '<div class="drop" data-max="{bytes}" data-said="{said}">'
        '<p><label class="pick" for="file">Choose a file</label> <span class="or">or drop it here, or '
        '<button type="button" class="act act-quiet" data-paste>paste a table</button></span></p>'
        '<input id="file" type="file" accept=".csv,.tsv,.tab,.txt,.jsonl,.ndjson,.json,.parquet">'
        '<p class="fine">CSV, TSV, JSON lines (flat or chats with <code>messages</code>) or Parquet, up to {said} and '
        "{rows} rows. It stays on this machine.</p>"
        '<div class="paste" hidden><label for="pasted">Rows with a header, as CSV, TSV or JSON lines</label>'
        '<textarea id="pasted" rows="8" spellcheck="false"></textarea>'
        '<button type="button" class="act act-main" data-send>Read the pasted table</button></div>'
        '<div class="bar" hidden role="progressbar" aria-label="Upload" aria-valuemin="0" aria-valuemax="100">'
        '<div style="width:0"></div></div></div>',
        bytes=context.caps.bytes,
        said=size(context.caps.bytes),
        rows=number(context.caps.rows),
    )


# --- the tab of an existing project ----------------------------------------------------------------------------


class DataStep(Step):
    """What the project's data are. They never change: other columns or another split are another project."""

    def __init__(self, context: Context) -> None:
        self.studio, self.shown = context.studio, panel()
        self.outputs = [self.shown]

    def show(self, project_id: str) -> Updates:
        try:
            project, whole = self.studio.project(project_id), self.studio.table(project_id)
            seen = examined(whole, project.columns, project.split)
        except InputError as error:
            return {self.shown: markup.trouble(error)}
        parts = about(whole, project.filename), settings_of(project), findings(seen), preview(whole, project.columns)
        return {self.shown: piece(DATA, *parts)}
