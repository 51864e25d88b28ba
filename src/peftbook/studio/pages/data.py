"""Data: what was uploaded, how it is read, what is wrong with it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.options import Bound
from peftbook.studio import markup
from peftbook.studio.markup import clipped, facts, joined, number, piece, size, table
from peftbook.studio.pages.wiring import QUIET, Context, Step, in_place, panel
from peftbook.studio.store import Project
from peftbook.tasks.columns import Columns, guess_columns
from peftbook.tasks.files import Findings, Split, examine
from peftbook.tasks.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

PREVIEWED = 5
FAULTS = 20
NONE = "none"
SPLIT_BOUNDS = (
    Bound("A validation share of {} % is chosen", 1, 49, whole=False),
    Bound("A test share of {} % is chosen", 1, 49, whole=False),
    Bound("A split seed of {} is chosen", 0, 2**32 - 1),
)
FORMATS = {
    "csv": "CSV",
    "tsv": "TSV",
    "jsonl": "JSON lines",
    "chat": "chats (JSON lines with messages)",
    "parquet": "Parquet",
}
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
    roles = (
        {}
        if columns is None
        else {
            columns.input: "input",
            columns.target: "target",
            columns.instruction: "instruction",
            columns.group: "group",
        }
    )
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


@functools.lru_cache(8)
def examined(found: Table, columns: Columns, split: Split) -> Findings:
    return examine(found, columns, split)


def findings(seen: Findings) -> Markup:
    """What was counted, in the order of what it may cost."""
    parts: list[object] = []
    if seen.obstacle:
        parts.append(markup.note(seen.obstacle, "trouble"))
    sizes = [("Usable rows", number(seen.usable))]
    sizes += [(name.capitalize(), number(count)) for name, count in seen.splits.items()]
    parts.append(facts(sizes))
    if seen.faults:
        plural = "row is" if len(seen.faults) == 1 else "rows are"
        rows = [(number(one.row), one.column or "whole row", one.problem) for one in seen.faults[:FAULTS]]
        shown = "" if len(seen.faults) <= FAULTS else f" The first {FAULTS} are listed."
        parts.append(markup.note(f"{len(seen.faults):,} {plural} left out.{shown}", "warn"))
        parts.append(table(["Row", "Column", "Problem"], rows, kind="faults", caption="Rows that are left out"))
    if seen.splits:
        test = seen.splits["test"]
        parts += [markup.note(words, kind) for words, kind in warnings_of(seen, test)]
    return joined(parts)


def warnings_of(seen: Findings, test: int) -> list[tuple[str, str]]:
    """Repetition, conflict and leakage, in words."""
    said = []
    if seen.duplicates:
        said.append((f"{seen.duplicates:,} rows repeat another's input and target; they always share a split.", "warn"))
    if seen.conflicting:
        said.append(
            (
                f"{seen.conflicting:,} rows have an input that occurs with another target too: no model can "
                "answer both rightly.",
                "warn",
            )
        )
    if seen.near_duplicates:
        said.append(
            (
                f"Leakage: {seen.near_duplicates:,} of {seen.compared:,} test inputs are nearly those of a training "
                "row, so scores will flatter every method. Choose a group column, or remove near copies.",
                "warn",
            )
        )
    elif seen.compared:
        said.append((f"No leakage found: none of {seen.compared:,} test inputs nearly repeats a training row.", "good"))
    if seen.shared_targets:
        said.append(
            (
                f"{seen.shared_targets:,} of {test:,} test targets also occur in training: right for labels, a "
                "shortcut for free text.",
                "info",
            )
        )
    if test < 50:
        said.append((f"With {test:,} test rows only large differences will show: intervals will be wide.", "info"))
    return said


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


def build_new(context: Context, opened: Callable[[str], dict[Any, Any]], outputs: list[Any]) -> gr.HTML:
    """Upload or paste, then say what is what, then create. opened: updates that show a project; outputs: theirs."""
    upload = panel(uploader(context), elem_id="upload")
    note = gr.HTML("", elem_classes="in-place")
    draft = gr.Textbox("", visible="hidden", elem_classes="unseen", elem_id="draft")
    with gr.Column(visible=False, elem_id="mapping") as form:
        seen = panel()
        with gr.Row():
            name = gr.Textbox(label="Project name", max_length=120, elem_id="new-name")
        why = panel()
        with gr.Row(equal_height=True):
            source = gr.Dropdown(label="Input", info="what the model reads", elem_id="new-input")
            target = gr.Dropdown(label="Target", info="what it should write", elem_id="new-target")
            before = gr.Dropdown(label="Instruction column", info="optional: put before the input")
            group = gr.Dropdown(label="Group", info="optional: never divided by the split")
        instruction = gr.Textbox(
            "{input}",
            label="Prompt",
            info="what the model is told; {input} is where the input goes",
            lines=2,
            elem_id="new-instruction",
        )
        with gr.Row(equal_height=True):
            validation = gr.Number(10, label="Validation, %")
            test = gr.Number(10, label="Test, %")
            seed = gr.Number(0, label="Split seed")
        found = panel(elem_id="findings")
        create = gr.Button("Create the project", variant="primary", elem_id="create")
    fields = [draft, source, target, before, group, validation, test, seed]

    def read(event: gr.EventData) -> dict[Any, Any]:
        """The upload is here: show it, and guess."""
        data = event._data or {}
        if data.get("act") == "refused":
            raise InputError(str(data.get("words"))[:300])
        one = context.drafts.get(str(data.get("draft")))
        try:
            whole = context.drafts.table(one.id)
            columns, reason = guess_columns(whole)
        except InputError:
            context.drafts.drop(one.id)
            raise
        choices, optional = list(whole.columns), [NONE, *whole.columns]
        split = Split()
        return {
            draft: one.id,
            form: gr.update(visible=True),
            seen: about(whole, one.filename, one.path.stat().st_size) + preview(whole, columns),
            why: markup.note(f"{reason} Change them where that is wrong.", "info"),
            name: one.filename.rpartition(".")[0][:120] or "Pasted data",
            source: gr.update(choices=choices, value=columns.input),
            target: gr.update(choices=choices, value=columns.target),
            before: gr.update(choices=optional, value=columns.instruction or NONE),
            group: gr.update(choices=optional, value=columns.group or NONE),
            found: findings(examined(whole, columns, split)),
        }

    def chosen(*values: Any) -> tuple[Table, Columns, Split]:
        """What the form says."""
        draft_id, *names, validation, test, seed = values
        source, target, before, group = (None if one in (NONE, None, "") else str(one) for one in names)
        whole = context.drafts.table(str(draft_id))
        if source is None or target is None:
            raise InputError("Choose an input column and a target column.")
        for bound, value in zip(SPLIT_BOUNDS, (validation or 0, test or 0, seed or 0), strict=True):
            bound.check(value)
        parts = [float(one) / 100 for one in (validation, test)]
        return (
            whole,
            Columns(source, target, before, group),
            Split(int(seed or 0), (1 - sum(parts), parts[0], parts[1])),
        )

    def look_again(*values: Any) -> dict[Any, Any]:
        """Something was changed: count again."""
        whole, columns, split = chosen(*values)
        size_here = context.drafts.get(str(values[0])).path.stat().st_size
        head = about(whole, context.drafts.get(str(values[0])).filename, size_here)
        return {found: findings(examined(whole, columns, split)), seen: head + preview(whole, columns)}

    def make(title: str, prompt: str, *values: Any) -> dict[Any, Any]:
        """Keep it as a project and open it."""
        whole, columns, split = chosen(*values)
        if obstacle := examined(whole, columns, split).obstacle:
            raise InputError(obstacle)
        one = context.drafts.get(str(values[0]))
        project = context.studio.create_project(
            title, one.path.read_bytes(), one.filename, columns, split, prompt, context.caps
        )
        context.drafts.drop(one.id)
        return {form: gr.update(visible=False), draft: "", upload: uploader(context), **opened(project.id)}

    mapped = [draft, form, seen, why, name, source, target, before, group, found]
    upload.act(in_place(note, read), None, [note, *mapped], **QUIET)
    for one in (source, target, before, group):
        one.input(in_place(note, look_again), fields, [note, found, seen], **QUIET)
    for share in (validation, test, seed):
        share.submit(in_place(note, look_again), fields, [note, found, seen], **QUIET)
        share.blur(in_place(note, look_again), fields, [note, found, seen], **QUIET)
    create.click(
        in_place(note, make),
        [name, instruction, *fields],
        [note, form, draft, upload, *outputs],
        **(QUIET | {"show_progress": "minimal"}),
    )
    return upload


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


def build_data(context: Context) -> Step:
    """What the project's data are. They never change: other columns or another split are another project."""
    shown = panel()

    def show(project_id: str) -> dict[Any, Any]:
        try:
            project, whole = context.studio.project(project_id), context.studio.table(project_id)
            seen = examined(whole, project.columns, project.split)
        except InputError as error:
            return {shown: markup.trouble(error)}
        return {
            shown: piece(
                '<div class="two"><section><h3>File</h3>{}</section><section><h3>Read as a task</h3>{}</section></div>'
                "<h3>Findings</h3>{}<h3>Rows</h3>{}"
                '<p class="fine">Data and split of a project never change, so that its runs stay comparable. For other '
                "columns or another split, make another project of the same file.</p>",
                about(whole, project.filename),
                settings_of(project),
                findings(seen),
                preview(whole, project.columns),
            )
        }

    return Step([shown], show)
