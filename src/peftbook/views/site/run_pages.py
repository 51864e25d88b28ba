"""Pages made from the store: one for each run, one for each study, and the list of runs.

Run and study pages are plain HTML in the theme's frame: they skip Sphinx's reading, so hundreds cost little, and one
whose record and frame did not change is not written again. They stand at `book/runs/<key>.html` and
`book/runs/study-<name>.html`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
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
from peftbook.views.html import (
    command_block,
    details,
    fact_table,
    flatten,
    grid,
    joined,
    link,
    piece,
    powers_raised,
    with_unit,
)
from peftbook.views.site.claim_cards import claim_card, scoreboard, seen_from_cuda
from peftbook.views.site.display import counted
from peftbook.views.site.execution import LOCK_FILES

FOLDER = "book/runs"
ANY_NAME, ANY_TITLE, ANY_ARTICLE = "name-of-the-page", "title-of-the-page", "article-of-the-page"  # in the frame
SAMPLE = 10
SHOWN_RUNS = 4  # links in a row
SHOWN_MEASUREMENTS = 6  # of a probe, in a list of runs
SHOWN_VALUES = 12  # of a list that is no curve
SHOWN_SPECS = 3  # of the runs that a probe trains or reads; the raw record holds them all
UNFOLDED = 24  # rows of a table that a reader need not ask for
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


def _quantities(quantities: Mapping[str, studies.Quantity]) -> Markup:
    """A table of quantities; each row is the anchor that measured numbers link to."""
    rows = []
    for name, quantity in quantities.items():
        broken = joined(name.split("_"), "_<wbr>")
        anchor = piece('<span id="{}"><code>{}</code></span>', name, broken)
        n, seeds = (f"{quantity.n:,}" if quantity.n else ""), str(quantity.seeds or "")
        value = powers_raised(results.format_quantity(quantity))
        rows.append([anchor, value, n, seeds, _run_links(quantity.runs)])
    return grid(["Name", "Value [95 % interval]", "n", "Seeds", "Runs"], rows, "quantities")


def _run_links(keys: Iterable[str]) -> Markup:
    keys = list(dict.fromkeys(keys))
    links = joined((link(f"{key[:12]}.html", key[:6], "run-link") for key in keys[:SHOWN_RUNS]), " ")
    return links + (f" + {len(keys) - SHOWN_RUNS}" if len(keys) > SHOWN_RUNS else "")


def _platform(record: Record) -> Markup:
    """A label for what was not made on a CPU: both kinds stand side by side."""
    if record.spec.platform == "cpu":
        return Markup()
    return piece(' <span class="platform" title="{}">{}</span>', record.hardware, record.spec.platform)


def _section(anchor: str, title: str, *parts: object) -> Markup:
    """A heading and what stands below it, a line each."""
    return joined([piece('<h2 id="{}">{}</h2>', anchor, title), *parts], "\n")


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
    used = joined((link(f"study-{study.name}.html", study.title) for study in where), ", ")
    platform = "" if record.spec.platform == "cpu" else f" --platform {record.spec.platform}"
    label = '<p class="run-label">{}{}. Used in: {}.</p>'
    parts = [
        piece("<h1>{}</h1>", title_of(record)),
        piece(label, results.describe(record.spec), _platform(record), used or "no study (yet)"),
    ]
    if record.failure:
        parts.append(piece('<p class="run-failure"><strong>This run failed:</strong> {}</p>', record.failure))
    measurements = [with_unit(*measurement) for measurement in record.measurements.items()]
    table = fact_table((name.replace("_", " "), value) for name, value in measurements)
    if len(measurements) > UNFOLDED:
        table = details(f"{len(measurements)} measurements", table)
    raw = piece(
        '<p><a href="{}.json" download>Download the raw record (JSON)</a>; its full key, <code class="key">{}</code>, '
        "is the SHA-256 of the spec below.</p>", record.short_key, record.key,
    )  # fmt: skip
    command = command_block(f"peftbook run --key {record.short_key}{platform} --again")
    parts += [
        _section("measured", "What was measured", table, *_curves(record)),
        _section("repeat", "Repeat it", command, raw),
        _section("spec", "What defines it", *_spec(record.spec, known)),
        _section("provenance", "Where it was made", fact_table(flatten(record.provenance))),
    ]
    if record.metrics_info:
        parts.append(_section("metrics", "How it was scored", fact_table(flatten(record.metrics_info))))
    if texts:
        count = piece("<p>The first {} of {}.</p>", min(SAMPLE, len(texts)), len(texts))
        shown = joined(texts[:SAMPLE], template="<li><pre>{}</pre></li>")
        parts.append(_section("texts", "What it wrote", count, piece('<ol class="run-texts" start="0">{}</ol>', shown)))
    return joined(parts, "\n")


def _curves(record: Record) -> Iterator[Markup]:
    """Every list of the record's curve: drawn where it was taken along optimiser steps, else folded away as numbers."""
    curve = record.curve
    along = curve.get("step") or curve.get("steps") or []
    lists = []
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
            yield piece("<h3>{}</h3>{}", said[:1].upper() + said[1:], Markup(drawn))
        else:
            lists.append((title, _numbers(values)))
    if lists:
        yield details(f"{counted(len(lists), 'list')} of numbers", fact_table(lists))


def _numbers(values: list[float]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:SHOWN_VALUES])
    return shown + (f", … ({len(values)} in all)" if len(values) > SHOWN_VALUES else "")


def _spec(spec: specs.Run | specs.Probe, known: Collection[str]) -> Iterator[Markup]:
    """The fields of a run or a probe, then each run that a probe trains or reads, folded."""
    fields = json.loads(spec.canonical())
    runs = fields.pop("runs", [])
    yield fact_table(flatten(fields))
    if isinstance(spec, specs.Probe) and runs:
        rows = []
        for run in spec.runs:
            key = run.key[:12]
            page = link(f"{key}.html", key, "run-link")
            name = page if run.key in known else piece('<span class="run-key">{}</span>', key)
            rows.append([name, results.describe(run), "its own record" if run.key in known else "made here"])
        yield Markup("<h3>The runs that it trains or reads</h3>")
        yield grid(["Run", "What", "Record"], rows, "runs")
        for run, settings in zip(spec.runs[:SHOWN_SPECS], runs[:SHOWN_SPECS], strict=True):
            yield details(f"Spec of {run.key[:12]}", fact_table(flatten(settings)))


def study_page(study: studies.Study, store: Store, cuda: Store | None = None) -> Markup:
    """The article of one study: its claim with the verdict, what decided it, its runs, and all its quantities.

    cuda: the same records seen from a GPU, if any was made there.
    """
    claim = results.claim(study.name, store)
    quantities = results.study_quantities(study.name, store)
    deciding = {name: quantities[name] for name in claim.verdict.quantities if name in quantities}
    others = {name: quantity for name, quantity in quantities.items() if name not in deciding}
    records = study.records(store)
    runs = grid(["Run", "What", "Result"], _run_rows(records), "runs")
    if len(records) > UNFOLDED:
        runs = details("Every run, and what it found", runs)
    parts = [piece("<h1>{}</h1>", study.title), claim_card(claim, cuda, home="../", page="")]
    if deciding:
        parts.append(_section("deciding", "What decided", _quantities(deciding)))
    parts += [
        _section("repeat", "Repeat it", command_block(results.run_command(study.name))),
        _section("runs", "Runs", piece("<p>{} cached, {} missing.</p>", len(records), claim.missing), runs),
    ]
    if others:
        parts.append(_section("quantities", f"{'Other' if deciding else 'All'} quantities", _quantities(others)))
    return joined(parts, "\n")


def _run_rows(records: Iterable[Record], prefix: str = "") -> Iterator[list[object]]:
    for record in records:
        yield [
            link(f"{prefix}{record.short_key}.html", record.short_key, "run-link"),
            piece("{}{}", results.describe(record.spec), _platform(record)),
            _headline(record),
        ]


def run_index(store: Store) -> Markup:
    """All runs, each under the first study that uses it, folded."""
    parts: list[Markup] = []
    shown: set[str] = set()
    every = {record.key: record for record in store.all()}
    for study, keys in _keys_by_study(store, seen_from_cuda(store)):
        mine = [every[key] for key in keys if key in every and key not in shown]
        before = sum(key in every and key in shown for key in keys)
        shown |= {record.key for record in mine}
        card = piece("<p>{}</p>", link(f"runs/study-{study.name}.html", "Claim, verdict and quantities"))
        parts.append(_index_entry(study.name, study.title, before, mine, card))
    if rest := [record for record in every.values() if record.key not in shown]:
        parts.append(_index_entry("others", "Runs of no study", 0, rest))
    said = "<p>{} runs are cached, each under the first study that uses it.</p>{}"
    return piece(said, len(every), joined(parts))


def _keys_by_study(store: Store, cuda: Store | None) -> Iterator[tuple[studies.Study, list[str]]]:
    """Each study with the keys of its runs, on a CPU and, if `cuda`, on a GPU."""
    for study in map(studies.get_study, studies.NAMES):
        runs = [seen.spec(run) for seen in (store, cuda) if seen is not None for run in study.runs(seen)]
        yield study, list(dict.fromkeys(run.key for run in runs))


def _index_entry(anchor: str, title: str, before: int, records: list[Record], card: str = "") -> Markup:
    """before: how many of its runs are listed above."""
    listed = [counted(len(records), "run")] if records else []
    count = ", ".join(listed + [f"{before} listed above"] * bool(before)) or "none yet"
    table = grid(["Run", "What", "Result"], _run_rows(records, "runs/"), "runs") if records else ""
    summary = piece('<span class="fold-title">{}</span> <span class="fold-count">{}</span>', title, count)
    return piece('<section id="{}">{}</section>', anchor, details(summary, joined([card, table])))


class StoreDirective(SphinxDirective):
    """Inserts HTML made from the store; its page is read again when anything that it is made from changed."""

    def run(self) -> list[nodes.Node]:
        env: Any = self.env
        env.peftbook_store_pages = {*getattr(env, "peftbook_store_pages", ()), env.docname}
        return [nodes.raw("", str(DIRECTIVES[self.name](default_store())), format="html")]


DIRECTIVES = {"scoreboard": scoreboard, "run-index": run_index}


# ---------------------------------------------------------------------------------------------- the build


def _frame(app: Any) -> str:
    """Hash of what surrounds an article: version, sidebar, templates, this package's site modules, styles."""
    titles = repr(sorted((name, title.astext()) for name, title in app.env.titles.items()))
    sources = [*Path(__file__).parents[1].glob("*.py"), *Path(__file__).parent.glob("*.py")]
    sources += Path(app.srcdir, "book/templates").glob("*.html")
    sources += Path(app.srcdir, "book/assets").glob("*s/*.*s")  # css/*.css, js/*.js
    return inputs_hash(sources, titles, app.config.version, repr(app.config.html_theme_options))


def _inputs(app: Any) -> str:
    """Hash of all that the pages are made from: code and data of this module and of every study, the libraries, and the
    records wherever they lie.
    """
    rules = (__name__, *map(studies.module_of, studies.NAMES))
    files = [*chain.from_iterable(map(dependencies, rules)), *(str(Path(app.srcdir, name)) for name in LOCK_FILES)]
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
