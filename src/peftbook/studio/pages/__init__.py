"""The studio's page: projects, and for each its steps from data to files. Thin: it asks the store and shows."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.drafts import Drafts
from peftbook.studio.markup import button, loading, piece
from peftbook.studio.pages.data import build_data, build_new
from peftbook.studio.pages.decide import build_decide
from peftbook.studio.pages.files import build_files
from peftbook.studio.pages.plan import build_plan
from peftbook.studio.pages.projects import listing
from peftbook.studio.pages.runs import build_runs, digest
from peftbook.studio.pages.tryout import build_tryout
from peftbook.studio.pages.wiring import QUIET, Context, Step, in_place, panel
from peftbook.studio.store import Studio
from peftbook.tasks.table import Caps

STEPS = {"data": "Data", "plan": "Plan", "runs": "Runs", "decide": "Decision", "try": "Try it", "files": "Files"}
FAST_SECONDS, SLOW_SECONDS = 1.0, 4.0


def build_pages(studio: Studio, drafts: Drafts, caps: Caps, *, with_login: bool = False) -> gr.Blocks:
    """All of it, wired."""
    context = Context(studio, drafts, caps)
    with gr.Blocks(title="peftbook studio", analytics_enabled=False, fill_width=True) as page:
        context.place = gr.Textbox("", visible="hidden", elem_classes="unseen", elem_id="place")
        step = gr.Textbox("data", visible="hidden", elem_classes="unseen", elem_id="step")
        seen = gr.Textbox("", visible="hidden", elem_classes="unseen")
        panel(header(with_login), elem_id="top")
        status = panel(elem_id="status")
        with gr.Column(elem_id="home") as home:
            panel(
                '<h1>Your data, several methods, one decision</h1><p class="lead">Upload a table, train methods '
                "side by "
                "side on this machine, and choose by ROUGE and BERTScore with intervals.</p>"
            )
            projects = panel(loading("Loading projects…"), elem_id="projects")
            panel("<h2>New project</h2>")
            fresh = gr.Column()
        with gr.Column(visible=False, elem_id="project") as whole:
            title = panel(elem_id="title")
            note = gr.HTML("", elem_classes="in-place")
            with gr.Row(visible=False, elem_classes="ask") as renaming:
                name = gr.Textbox(label="New name", max_length=120, elem_id="rename-name")
                rename = gr.Button("Rename", variant="primary")
                keep_name = gr.Button("Keep the old one")
            with gr.Column(visible=False, elem_classes="ask") as deleting:
                warning = panel()
                with gr.Row():
                    delete = gr.Button("Delete for good", variant="stop", elem_id="delete-for-good")
                    keep = gr.Button("Keep it")
            with gr.Tabs(selected="data", elem_id="steps") as tabs:
                steps, places = {}, {}
                for key, words in STEPS.items():
                    with gr.Tab(words, id=key, elem_id=f"step-{key}") as places[key]:
                        steps[key] = build_step(key, context)
        timer = gr.Timer(SLOW_SECONDS)
        queue_step, queue_panel, queue_now = steps["runs"]
        steps["runs"] = queue_step

        frame = [context.place, step, seen, home, whole, title, tabs, timer, note, renaming, deleting, projects]
        everything = [*frame, *(one for each in steps.values() for one in each.outputs)]

        def opened(project_id: str, key: str = "data") -> dict[Any, Any]:
            """Show a project at a step; the list where there is no such project."""
            try:
                project = studio.project(project_id)
            except InputError as error:
                said = joined_listing(studio, error if project_id else None)
                return {
                    context.place: "",
                    home: gr.update(visible=True),
                    whole: gr.update(visible=False),
                    projects: said,
                    timer: gr.Timer(SLOW_SECONDS),
                    seen: "",
                }
            key = key if key in STEPS else "data"
            return {
                context.place: project.id,
                step: key,
                seen: "",
                home: gr.update(visible=False),
                whole: gr.update(visible=True),
                title: heading(project.name),
                note: "",
                renaming: gr.update(visible=False),
                deleting: gr.update(visible=False),
                tabs: gr.Tabs(selected=key),
                timer: gr.Timer(FAST_SECONDS if key == "runs" else SLOW_SECONDS),
                **steps[key].show(project.id),
            }

        def act_on_list(event: gr.EventData) -> dict[Any, Any]:
            data = event._data or {}
            return opened(str(data.get("id"))) if data.get("act") == "open" else {note: ""}

        def act_on_title(project_id: str, event: gr.EventData) -> dict[Any, Any]:
            """Home, rename, delete."""
            what = (event._data or {}).get("act")
            if what == "home":
                return opened("")
            project = studio.project(project_id)
            if what == "rename":
                return {renaming: gr.update(visible=True), deleting: gr.update(visible=False), name: project.name}
            if what == "delete":
                return {
                    deleting: gr.update(visible=True),
                    renaming: gr.update(visible=False),
                    warning: farewell(studio, project_id),
                }
            return {}

        def rename_it(project_id: str, new: str) -> dict[Any, Any]:
            studio.rename(project_id, new)
            return {title: heading(studio.project(project_id).name), renaming: gr.update(visible=False)}

        def delete_it(project_id: str) -> dict[Any, Any]:
            studio.delete_project(project_id)
            return opened("")

        def tick(project_id: str, key: str, before: str) -> dict[Any, Any]:
            """What changes by itself: the worker's state, and the queue or the list that is open."""
            found: dict[Any, Any] = {status: worker_line(studio)}
            if project_id and key == "runs":
                found[queue_panel] = queue_now(project_id)
            elif not project_id:
                found[projects] = joined_listing(studio)
            now = digest("".join(map(str, found.values())))
            return {seen: now} if now == before else {**found, seen: now}

        with fresh:
            build_new(context, opened, everything)
        projects.act(act_on_list, None, everything, **QUIET)
        title.act(in_place(note, act_on_title), [context.place], [*everything, name, warning], **QUIET)
        rename.click(in_place(note, rename_it), [context.place, name], [note, title, renaming], **QUIET)
        name.submit(in_place(note, rename_it), [context.place, name], [note, title, renaming], **QUIET)
        delete.click(in_place(note, delete_it), [context.place], everything, **QUIET)
        keep_name.click(lambda: gr.update(visible=False), None, renaming, **QUIET)
        keep.click(lambda: gr.update(visible=False), None, deleting, **QUIET)
        for key, tab in places.items():
            select_step(tab, key, steps[key], context, [step, timer, seen])
        timer.tick(tick, [context.place, step, seen], [status, queue_panel, projects, seen], **QUIET)
        context.place.change(None, [context.place], None, js="(id) => { studio.at(id) }", **QUIET)
        page.load(opened, [context.place, step], everything, js="() => studio.where()", **QUIET)
        page.load(lambda: worker_line(studio), None, status, **QUIET)
    return page


def build_step(key: str, context: Context) -> Any:
    """The content of one tab."""
    builders = {
        "data": build_data,
        "plan": build_plan,
        "runs": build_runs,
        "decide": build_decide,
        "try": build_tryout,
        "files": build_files,
    }
    return builders[key](context)


def select_step(tab: gr.Tab, key: str, step: Step, context: Context, frame: list[Any]) -> None:
    """Opening a tab fills it."""
    box, timer, seen = frame

    def fill(project_id: str) -> dict[Any, Any]:
        seconds = FAST_SECONDS if key == "runs" else SLOW_SECONDS
        found = step.show(project_id) if project_id else {}
        return {box: key, seen: "", timer: gr.Timer(seconds), **found}

    tab.select(
        fill,
        [context.place],
        [*frame, *step.outputs],
        js=f"(id) => {{ studio.step({key!r}); return id }}",
        **(QUIET | {"show_progress": "minimal"}),
    )


# --- the frame -------------------------------------------------------------------------------------------------


def header(with_login: bool) -> Markup:
    """The bar on top."""
    leave = Markup('<form method="post" action="/studio/logout"><button class="act act-quiet">Log out</button></form>')
    return piece(
        '<header class="top"><a class="brand" href="/"><img src="/studio/icon.svg" alt="" width="26" height="26">'
        "<span>peftbook <em>studio</em></span></a><nav>{}"
        '<button type="button" class="act act-quiet" data-theme aria-label="Switch between light and dark">'
        '<span aria-hidden="true">◐</span></button></nav></header>',
        leave if with_login else "",
    )


def heading(name: str) -> Markup:
    """A project's name, and what can be done with it as a whole."""
    return piece(
        '<div class="heading"><a class="back" href="/" data-act="home"><span aria-hidden="true">←</span> Projects</a>'
        '<h1>{}</h1><span class="acts">{} {}</span></div>',
        name,
        button("Rename", "rename"),
        button("Delete", "delete"),
    )


def farewell(studio: Studio, project_id: str) -> Markup:
    """What deleting takes with it."""
    project, jobs = studio.project(project_id), studio.jobs(project_id)
    return markup.note(
        f"Delete {project.name!r}? Its data, its {len(jobs)} runs with their records, adapters and "
        f"downloads go with it, "
        "and what runs is stopped. This cannot be undone.",
        "warn",
    )


def joined_listing(studio: Studio, error: InputError | None = None) -> Markup:
    """The projects, under what went wrong."""
    return piece("{}{}", markup.trouble(error) if error else "", listing(studio))


def worker_line(studio: Studio) -> Markup:
    """Whether somebody works, and on what."""
    workers = [one for one in studio.workers() if one.alive]
    waiting = sum(job.state == "queued" for job in studio.jobs())
    more = f" · {waiting} waiting" if waiting else ""
    if not workers:
        return piece(
            '<p class="status status-off" role="status"><span aria-hidden="true">○</span> No worker is running: '
            "runs wait until one starts{}</p>",
            more,
        )
    if not workers[0].job:
        return piece('<p class="status" role="status"><span aria-hidden="true">●</span> Worker ready{}</p>', more)
    job = studio.job(workers[0].job)
    return piece(
        '<p class="status status-busy" role="status"><span aria-hidden="true">▸</span> {}: {}{}</p>',
        job.label,
        job.doing.words()[0],
        more,
    )
