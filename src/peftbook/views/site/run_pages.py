"""Pages made from the store: one for each run, one for each study, and the list of runs.

Run and study pages are plain HTML in the theme's frame: they skip Sphinx's reading, so hundreds cost little, and one
whose record and frame did not change is not written again. They stand at `book/runs/<key>.html` and
`book/runs/study-<name>.html`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from docutils import nodes
from markupsafe import Markup, escape
from sphinx.util.docutils import SphinxDirective

from peftbook import studies
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.imports import dependencies
from peftbook.core.records import Record, Store, default_store
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.evidence import results
from peftbook.evidence.cache import records_hash
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.svg import Frame, svg
from peftbook.views.html import TEMPLATES, fill, powers_raised, with_unit
from peftbook.views.site.claim_cards import checks, claim_card, scoreboard, seen_from_cuda
from peftbook.views.site.execution import LOCK_FILES
from peftbook.views.site.machines import machines_table

FOLDER = "book/runs"
ANY_NAME, ANY_TITLE, ANY_ARTICLE = "name-of-the-page", "title-of-the-page", "article-of-the-page"  # in the frame
OTHERS = "others"  # the anchor of runs of no study
SHOWN_MEASUREMENTS = 6  # of a probe, in a list of runs
SHOWN_VALUES = 12  # of a list that is no curve
UNITS = ("nats", "seconds", "bytes", "bits")  # last words of measurements' names
HEADLINES = {"quality": ("loss_nats", "rougeL", "bleu"), "timing": ("median_step_seconds", "peak_memory_bytes")}
AXES = ("step", "steps", "tokens")  # lists of a curve that say where the others were taken
EVERY_STEP = "train_"  # a probe's list that is so named has a value for each step; those of a run all have


def _headline(record: Record) -> str:
    """What a run found: the measurements that studies look at first; of a probe two, or how many there are."""
    if record.failure:
        return f"failed: {record.failure[:60]}"
    measured = record.measurements
    names: Iterable[str] = HEADLINES[record.spec.purpose]
    if isinstance(record.spec, specs.Probe):
        names = [name for name, value in measured.items() if isinstance(value, float)]
        if len(names) > SHOWN_MEASUREMENTS:
            return f"{len(names)} measurements"
        names = names[:2]
    rows = [with_unit(name, measured[name]) for name in names if measured.get(name) is not None]
    return "; ".join(f"{name} {value}" for name, value in rows).replace("_", " ")


# ---------------------------------------------------------------------------------------------- the pages


def title_of(record: Record) -> str:
    """`Run 0123456789ab`; a probe is called after what it measures."""
    spec = record.spec
    name = "Run" if isinstance(spec, specs.Run) else spec.measure.rpartition(".")[2].replace("_", " ").capitalize()
    return f"{name} {record.short_key}"


def run_page(record: Record, texts: list[str], where: list[studies.Study], known: Collection[str] = ()) -> Markup:
    """The article of one run or probe: verdict-free facts, enough to judge it and to repeat it.

    where: the studies that use it.   known: the keys of the runs that have a page.
    """
    measured = (with_unit(*measurement) for measurement in record.measurements.items())
    curves, lists = _curves(record)
    fields = json.loads(record.spec.canonical())
    settings = fields.pop("runs", [])
    runs = record.spec.runs if isinstance(record.spec, specs.Probe) else ()
    return fill(
        "run.html",
        record=record,
        title=title_of(record),
        where=where,
        known=known,
        measurements=[(name.replace("_", " "), value) for name, value in measured],
        curves=curves,
        lists=lists,
        fields=fields,
        runs=runs,
        settings=settings,
        texts=texts,
        describe=results.describe,
    )


def _curves(record: Record) -> tuple[list[tuple[str, Markup]], list[tuple[str, str]]]:
    """Every list of the record's curve: drawn where it was taken along optimiser steps, else as numbers."""
    curve = record.curve
    along = curve.get("step") or curve.get("steps") or []
    curves, lists = [], []
    for name, values in sorted(curve.items(), key=lambda item: not item[0].endswith("_nats")):  # losses first
        if not values or name in AXES:
            continue
        stem, _, unit = name.rpartition("_")
        title = f"{stem} ({unit})".replace("_", " ") if unit in UNITS else name.replace("_", " ")
        steps = along if len(along) == len(values) else [float(step + 1) for step in range(len(values))]
        taken = steps is along or isinstance(record.spec, specs.Run) or name.startswith(EVERY_STEP)
        said = f"{title} by optimiser step"
        chart = Chart([Series(title, values, x=steps, marks=False)], "optimiser step", "", alt=said)
        if taken and (drawn := svg(chart, Frame(640, 260), "run-curve")):
            curves.append((said, Markup(drawn)))
        else:
            lists.append((title, _numbers(values)))
    return curves, lists


def _numbers(values: list[float]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:SHOWN_VALUES])
    return shown + (f", … ({len(values)} in all)" if len(values) > SHOWN_VALUES else "")


def study_page(study: studies.Study, store: Store, cuda: Store | None = None) -> Markup:
    """The article of one study: its claim with the verdict, what decided it, its runs, and all its quantities.

    cuda: the same records seen from a GPU, if any was made there.
    """
    claim = results.claim(study.name, store)
    quantities = results.study_quantities(study.name, store)
    deciding = {name: quantities[name] for name in claim.verdict.quantities if name in quantities}
    return fill(
        "study.html",
        study=study,
        card=claim_card(claim, cuda, home="../", page=""),
        deciding=deciding,
        others={name: quantity for name, quantity in quantities.items() if name not in deciding},
        command=results.run_command(study.name),
        missing=claim.missing,
        entries=_entries(study.records(store)),
        printed=lambda quantity: powers_raised(results.format_quantity(quantity)),
    )


def _entries(records: Iterable[Record]) -> list[tuple[Record, str, str]]:
    """Runs, what each is, and what it found."""
    return [(record, results.describe(record.spec), _headline(record)) for record in records]


def run_index(store: Store) -> Markup:
    """All runs, each under the first study that uses it, folded."""
    groups = []
    shown: set[str] = set()
    every = {record.key: record for record in store.all()}
    for study, keys in _keys_by_study(store, seen_from_cuda(store)):
        mine = [every[key] for key in keys if key in every and key not in shown]
        before = sum(key in every and key in shown for key in keys)
        shown |= {record.key for record in mine}
        groups.append((study.name, study.title, before, _entries(mine)))
    if rest := [record for record in every.values() if record.key not in shown]:
        groups.append((OTHERS, "Runs of no study", 0, _entries(rest)))
    return fill("run_index.html", total=len(every), groups=groups, others=OTHERS)


def _keys_by_study(store: Store, cuda: Store | None) -> Iterator[tuple[studies.Study, list[str]]]:
    """Each study with the keys of its runs, on a CPU and, if `cuda`, on a GPU."""
    for study in map(studies.get_study, studies.NAMES):
        runs = [seen.spec(run) for seen in (store, cuda) if seen is not None for run in study.runs(seen)]
        yield study, list(dict.fromkeys(run.key for run in runs))


class StoreDirective(SphinxDirective):
    """Inserts HTML made from the store or the data; its page is read again when what it is made from changed."""

    def run(self) -> list[nodes.Node]:
        env: Any = self.env
        env.peftbook_store_pages = {*getattr(env, "peftbook_store_pages", ()), env.docname}
        return [nodes.raw("", str(DIRECTIVES[self.name](default_store())), format="html")]


DIRECTIVES = {
    "scoreboard": scoreboard, "tool-checks": checks, "run-index": run_index, "machines": lambda _: machines_table(),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- the build


def _frame(app: Any) -> str:
    """Hash of what surrounds an article: version, sidebar, templates, this package's site modules, styles."""
    titles = repr(sorted((name, title.astext()) for name, title in app.env.titles.items()))
    sources = [*Path(__file__).parents[1].glob("*.py"), *Path(__file__).parent.glob("*.py")]
    sources += Path(app.srcdir, "book/templates").glob("*.html")
    sources += Path(app.srcdir, "book/assets").glob("*s/*.*s")  # css/*.css, js/*.js
    return inputs_hash(sources, titles, app.config.version, repr(app.config.html_theme_options))


def _inputs(app: Any) -> str:
    """Hash of all that the pages are made from: code and data of this module and of every study, the templates, the
    libraries, and the records wherever they lie.
    """
    rules = (__name__, *map(studies.module_of, studies.NAMES))
    files = [*chain.from_iterable(map(dependencies, rules)), *map(str, TEMPLATES.glob("*.html"))]
    files += [str(Path(app.srcdir, name)) for name in LOCK_FILES]
    return inputs_hash(files, records_hash(*default_store().folders))


def _stamp(app: Any, name: str) -> Path:
    return Path(app.outdir) / FOLDER / f".{name}.stamp"


def collect_pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield what surrounds every page, and put each article into it whose content or frame changed.

    Sphinx draws the frame once, since it is the same around all of them but for name and title.
    """
    if app.builder.name != "html":
        return
    inputs = inputs_hash((), app.peftbook_inputs, _frame(app))
    out = Path(app.outdir) / FOLDER
    if is_fresh(_stamp(app, "frame"), inputs):
        return
    out.mkdir(parents=True, exist_ok=True)
    yield f"{FOLDER}/{ANY_NAME}", {"title": ANY_TITLE, "article": ANY_ARTICLE, "pagetitle": ANY_TITLE}, "run.html"
    drawn = out / f"{ANY_NAME}.html"
    above, below = drawn.read_text(encoding="utf-8").split(ANY_ARTICLE)
    drawn.unlink()
    written = set()
    for name, title, article in _articles(default_store(), out):
        written.add(name)
        page, ends = out / f"{name}.html", (above, below)
        text = article.join(end.replace(ANY_NAME, name).replace(ANY_TITLE, escape(title)) for end in ends)
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for path in [*out.glob("*.html"), *out.glob("[!.]*.json")]:
        if path.stem not in written:  # its record is gone
            path.unlink()
    write_stamp(_stamp(app, "frame"), inputs)
    write_stamp(_stamp(app, "records"), app.peftbook_inputs)


def _articles(store: Store, out: Path) -> Iterator[tuple[str, str, str]]:
    """Name, title and article of every page; each record's raw file is copied beside its page."""
    where: dict[str, list[studies.Study]] = {}
    cuda = seen_from_cuda(store)
    for study, keys in _keys_by_study(store, cuda):
        for key in keys:
            where.setdefault(key, []).append(study)
        yield f"study-{study.name}", study.title, str(study_page(study, store, cuda))
    records = list(store.all())  # after the studies: a run that ends meanwhile has the page that they link to
    known = {record.key for record in records}
    for record in records:
        path = store.path(record.key)
        if path is None:
            raise InputError(f"Record {record.short_key} disappeared while the site was built: build again.")
        copy_if_changed(path, out / f"{record.short_key}.json")
        article = run_page(record, store.texts(record), where.get(record.key, []), known)
        yield record.short_key, title_of(record), str(article)


def copy_if_changed(source: Path, target: Path) -> None:
    """Copy a file unless the copy has its size and is not older."""
    if target.is_file():
        old, new = target.stat(), source.stat()
        if old.st_size == new.st_size and old.st_mtime >= new.st_mtime:
            return
    shutil.copyfile(source, target)


def _outdated(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """The pages with a store's directive, unless the last whole build was made from the same."""
    app.peftbook_inputs = _inputs(app)  # once, before anything is read: what comes meanwhile is for the next build
    if is_fresh(_stamp(app, "records"), app.peftbook_inputs):
        return []
    return [page for page in getattr(env, "peftbook_store_pages", ()) if page in env.all_docs]


def setup(app: Any) -> None:
    """Register the directives and the pages."""
    for name in DIRECTIVES:
        app.add_directive(name, StoreDirective)
    app.add_css_file("css/evidence.css", priority=901)
    app.connect("env-get-outdated", _outdated)
    app.connect("html-collect-pages", collect_pages)
