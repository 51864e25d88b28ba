"""The studio's page: projects, and for each its steps from data to files. Thin: it asks the store and shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import gradio as gr
from markupsafe import Markup

from peftbook.errors import InputError
from peftbook.studio import markup
from peftbook.studio.drafts import Drafts
from peftbook.studio.markup import button, joined, loading, piece
from peftbook.studio.pages.data import DataStep, NewProject
from peftbook.studio.pages.decide import DecideStep
from peftbook.studio.pages.files import FilesStep
from peftbook.studio.pages.plan import PlanStep
from peftbook.studio.pages.projects import listing
from peftbook.studio.pages.runs import RunsStep
from peftbook.studio.pages.tryout import TryStep
from peftbook.studio.pages.wiring import BUSY, QUIET, Context, Step, Updates, on, panel, place_of_note, unseen
from peftbook.studio.store import Studio
from peftbook.tasks.table import Caps

STEPS: dict[str, tuple[str, Callable[[Context], Step]]] = {
    "data": ("Data", DataStep),
    "plan": ("Plan", PlanStep),
    "runs": ("Runs", RunsStep),
    "decide": ("Decision", DecideStep),
    "try": ("Try it", TryStep),
    "files": ("Files", FilesStep),
}
FAST_SECONDS, SLOW_SECONDS = 1.0, 4.0


def build_pages(studio: Studio, drafts: Drafts, caps: Caps, *, with_login: bool = False) -> gr.Blocks:
    """All of it, wired."""
    with gr.Blocks(title="peftbook studio", analytics_enabled=False, fill_width=True) as page:
        Frame(Context(studio, drafts, caps), with_login).wire(page)
    return page


class Frame:
    """What is around the steps: the list of projects, or one of them by its name. steps, tabs: by their keys."""

    def __init__(self, context: Context, with_login: bool) -> None:
        self.context, self.studio = context, context.studio
        self.place = context.place = unseen(elem_id="place")
        self.step, self.seen = unseen("data", elem_id="step"), unseen()
        panel(header(with_login), elem_id="top")
        self.status = panel(elem_id="status")
        with gr.Column(elem_id="home") as self.home:
            panel(
                '<h1>Your data, several methods, one decision</h1><p class="lead">Upload a table, train methods '
                "side by side on this machine, and choose by ROUGE and BERTScore with intervals.</p>"
            )
            self.projects = panel(loading("Loading projects…"), elem_id="projects")
            panel("<h2>New project</h2>")
            self.fresh = gr.Column()
        with gr.Column(visible=False, elem_id="project") as self.whole:
            self.lay_out_project()
        self.timer = gr.Timer(SLOW_SECONDS)
        self.everything = [self.place, self.step, self.seen, self.home, self.whole, self.title, self.tabs, self.timer]
        self.everything += [self.renaming, self.deleting, self.projects]
        self.everything += [output for step in self.steps.values() for output in step.outputs]

    def lay_out_project(self) -> None:
        """A project: its name, what is asked before it is renamed or deleted, and its steps."""
        self.title = panel(elem_id="title")
        self.note = place_of_note()
        with gr.Row(visible=False, elem_classes="ask") as self.renaming:
            self.name = gr.Textbox(label="New name", max_length=120, elem_id="rename-name")
            self.rename = gr.Button("Rename", variant="primary")
            self.keep_name = gr.Button("Keep the old one")
        with gr.Column(visible=False, elem_classes="ask") as self.deleting:
            self.warning = panel()
            with gr.Row():
                self.delete = gr.Button("Delete for good", variant="stop", elem_id="delete-for-good")
                self.keep = gr.Button("Keep it")
        self.steps: dict[str, Step] = {}
        self.places: dict[str, gr.Tab] = {}
        with gr.Tabs(selected="data", elem_id="steps") as self.tabs:
            for key, (words, build) in STEPS.items():
                with gr.Tab(words, id=key, elem_id=f"step-{key}") as self.places[key]:
                    self.steps[key] = build(self.context)

    def wire(self, page: gr.Blocks) -> None:
        """What happens at which event."""
        note, everything = self.note, self.everything
        with self.fresh:
            NewProject(self.context, self.opened, [note, *everything])
        self.projects.act(self.act_on_list, None, [note, *everything], **QUIET)
        on(self.title.act, note, self.act_on_title, [self.place], [*everything, self.name, self.warning])
        for event in (self.rename.click, self.name.submit):
            on(event, note, self.rename_it, [self.place, self.name], [self.title, self.renaming])
        on(self.delete.click, note, self.delete_it, [self.place], everything)
        for keep, asked in ((self.keep_name, self.renaming), (self.keep, self.deleting)):
            keep.click(lambda: gr.update(visible=False), None, asked, **QUIET)
        for key in STEPS:
            self.fill_when_opened(key)
        outputs = [self.status, self.steps["runs"].outputs[0], self.projects, self.seen]
        self.timer.tick(self.tick, [self.place, self.step, self.seen], outputs, **QUIET)
        self.place.change(None, [self.place], None, js="(id) => { studio.at(id) }", **QUIET)
        page.load(self.opened, [self.place, self.step], [note, *everything], js="() => studio.where()", **QUIET)
        page.load(lambda: worker_line(self.studio), None, self.status, **QUIET)

    def fill_when_opened(self, key: str) -> None:
        """Opening a tab fills it."""

        def fill(project_id: str) -> Updates:
            shown = self.steps[key].show(project_id) if project_id else {}
            return {self.step: key, self.seen: "", self.timer: timer_for(key), **shown}

        outputs = [self.step, self.timer, self.seen, *self.steps[key].outputs]
        js = f"(id) => {{ studio.step({key!r}); return id }}"
        self.places[key].select(fill, [self.place], outputs, js=js, **BUSY)

    def asking(self, which: gr.Row | gr.Column | None = None) -> Updates:
        """Ask for a new name, or whether to delete; nothing else is asked then."""
        return {asked: gr.update(visible=asked is which) for asked in (self.renaming, self.deleting)}

    def opened(self, project_id: str, key: str = "data") -> Updates:
        """Show a project at a step; the list where there is no such project."""
        try:
            project = self.studio.project(project_id)
        except InputError as error:
            said = joined([markup.trouble(error) if project_id else "", listing(self.studio)])
            shown = {self.home: gr.update(visible=True), self.whole: gr.update(visible=False), self.projects: said}
            return {self.place: "", self.seen: "", self.timer: timer_for(""), **shown}
        key = key if key in STEPS else "data"
        return {
            self.place: project.id,
            self.step: key,
            self.seen: "",
            self.home: gr.update(visible=False),
            self.whole: gr.update(visible=True),
            self.title: heading(project.name),
            self.note: "",
            self.tabs: gr.Tabs(selected=key),
            self.timer: timer_for(key),
            **self.asking(),
            **self.steps[key].show(project.id),
        }

    def act_on_list(self, event: gr.EventData) -> Updates:
        """Open a project."""
        data = event._data or {}
        return self.opened(str(data.get("id"))) if data.get("act") == "open" else {self.note: ""}

    def act_on_title(self, project_id: str, event: gr.EventData) -> Updates:
        """Home, rename, delete."""
        what = (event._data or {}).get("act")
        if what == "home":
            return self.opened("")
        project = self.studio.project(project_id)
        if what == "rename":
            return {**self.asking(self.renaming), self.name: project.name}
        if what == "delete":
            return {**self.asking(self.deleting), self.warning: farewell(self.studio, project_id)}
        return {}

    def rename_it(self, project_id: str, new: str) -> Updates:
        self.studio.rename(project_id, new)
        return {self.title: heading(self.studio.project(project_id).name), self.renaming: gr.update(visible=False)}

    def delete_it(self, project_id: str) -> Updates:
        self.studio.delete_project(project_id)
        return self.opened("")

    def tick(self, project_id: str, key: str, before: str) -> Updates:
        """What changes by itself: the worker's state, and the queue or the list that is open."""
        shown: Updates = {self.status: worker_line(self.studio)}
        if project_id and key == "runs":
            shown |= self.steps["runs"].show(project_id)
        elif not project_id:
            shown[self.projects] = listing(self.studio)
        now = hashlib.blake2b("".join(map(str, shown.values())).encode(), digest_size=8).hexdigest()
        return {self.seen: now} if now == before else {**shown, self.seen: now}


def timer_for(key: str) -> gr.Timer:
    """Whether there is news is asked more often where runs are watched."""
    return gr.Timer(FAST_SECONDS if key == "runs" else SLOW_SECONDS)


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
        f"Delete {project.name!r}? Its data, its {len(jobs)} runs with their records, adapters and downloads go with "
        "it, and what runs is stopped. This cannot be undone.",
        "warn",
    )


def worker_line(studio: Studio) -> Markup:
    """Whether somebody works, and on what."""
    workers = [worker for worker in studio.workers() if worker.alive]
    waiting = sum(job.state == "queued" for job in studio.jobs())
    if not workers:
        kind, sign, words = " status-off", "○", "No worker is running: runs wait until one starts"
    elif not (jobs := [studio.job(worker.job) for worker in workers if worker.job]):
        kind, sign, words = "", "●", "Worker ready"
    else:
        told = [f"{job.label}: {job.doing.words()[0]}" for job in jobs]
        kind, sign, words = " status-busy", "▸", "; ".join(told)
    more = f" · {waiting} waiting" if waiting else ""
    return piece(
        '<p class="status{}" role="status"><span aria-hidden="true">{}</span> {}{}</p>', kind, sign, words, more
    )
