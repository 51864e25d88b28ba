"""Pages made from the store: one for each run, one for each study, and the list of runs.

Run and study pages are plain HTML in the theme's frame: they skip Sphinx's reading, so hundreds cost little, and one
whose record and frame did not change is not written again. They stand at `book/runs/<key>.html` and
`book/runs/study-<name>.html`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from peftbook import results, specs, studies
from peftbook.core.imports import dependencies
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.errors import InputError
from peftbook.evidence.cache import records_hash
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.svg import Frame, svg
from peftbook.records import Record, Store, default_store
from peftbook.site.claim_cards import claim_card, scoreboard, seen_from_cuda
from peftbook.site.display import counted
from peftbook.site.execution import LOCK_FILES
from peftbook.site.tables import command_block, details, fact_table, flatten, grid, powers_raised, with_unit

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
        return f"failed: {escape(record.failure[:60])}"
    measured = record.measurements
    names: Iterable[str] = HEADLINES[record.spec.purpose]
    if isinstance(record.spec, specs.Probe):
        names = [name for name, value in measured.items() if isinstance(value, float)]
        if len(names) > SHOWN_MEASUREMENTS:
            return f"{len(names)} measurements"
        names = names[:2]
    rows = [with_unit(name, measured[name]) for name in names if measured.get(name) is not None]
    return escape("; ".join(f"{name} {value}" for name, value in rows).replace("_", " "))


def _quantities(quantities: Mapping[str, studies.Quantity]) -> str:
    """A table of quantities; each row is the anchor that measured numbers link to."""
    rows = []
    for name, quantity in quantities.items():
        anchor = f'<span id="{escape(name)}"><code>{escape(name).replace("_", "_<wbr>")}</code></span>'
        n, seeds = (f"{quantity.n:,}" if quantity.n else ""), str(quantity.seeds or "")
        value = powers_raised(results.format_quantity(quantity))
        rows.append([anchor, value, n, seeds, _run_links(quantity.runs)])
    return grid(["Name", "Value [95 % interval]", "n", "Seeds", "Runs"], rows, "quantities")


def _run_links(keys: Iterable[str]) -> str:
    keys = list(dict.fromkeys(keys))
    links = " ".join(f'<a class="run-link" href="{key[:12]}.html">{key[:6]}</a>' for key in keys[:SHOWN_RUNS])
    return links + (f" + {len(keys) - SHOWN_RUNS}" if len(keys) > SHOWN_RUNS else "")


def _platform(record: Record) -> str:
    """A label for what was not made on a CPU: both kinds stand side by side."""
    if record.spec.platform == "cpu":
        return ""
    return f' <span class="platform" title="{escape(record.hardware)}">{escape(record.spec.platform)}</span>'


# ---------------------------------------------------------------------------------------------- the pages


def title_of(record: Record) -> str:
    """`Run 0123456789ab`; a probe is called after what it measures."""
    spec = record.spec
    name = "Run" if isinstance(spec, specs.Run) else spec.measure.rpartition(".")[2].replace("_", " ").capitalize()
    return f"{name} {record.short_key}"


def run_page(record: Record, texts: list[str], where: list[studies.Study], known: Collection[str] = ()) -> str:
    """The article of one run or probe: verdict-free facts, enough to judge it and to repeat it.

    where: the studies that use it.   known: the keys of the runs that have a page.
    """
    spec = json.loads(record.spec.canonical())
    used = ", ".join(f'<a href="study-{study.name}.html">{escape(study.title)}</a>' for study in where)
    platform = "" if record.spec.platform == "cpu" else f" --platform {record.spec.platform}"
    parts = [
        f"<h1>{escape(title_of(record))}</h1>",
        f'<p class="run-label">{escape(results.describe(record.spec))}{_platform(record)}. Used in: '
        f"{used or 'no study (yet)'}.</p>",
    ]
    if record.failure:
        parts.append(f'<p class="run-failure"><strong>This run failed:</strong> {escape(record.failure)}</p>')
    measurements = [with_unit(*measurement) for measurement in record.measurements.items()]
    table = fact_table((escape(name.replace("_", " ")), escape(value)) for name, value in measurements)
    if len(measurements) > UNFOLDED:
        table = details(f"{len(measurements)} measurements", table)
    parts += ['<h2 id="measured">What was measured</h2>', table, *_curves(record)]
    parts += [
        '<h2 id="repeat">Repeat it</h2>',
        command_block(f"peftbook run --key {record.short_key}{platform} --again"),
        f'<p><a href="{record.short_key}.json" download>Download the raw record (JSON)</a>; its full key, '
        f'<code class="key">{record.key}</code>, is the SHA-256 of the spec below.</p>',
    ]
    parts.append('<h2 id="spec">What defines it</h2>')
    if isinstance(record.spec, specs.Probe):
        parts += _probe_spec(record.spec, spec, known)
    else:
        parts.append(fact_table(flatten(spec)))
    parts += ['<h2 id="provenance">Where it was made</h2>', fact_table(flatten(record.provenance))]
    if record.metrics_info:
        parts += ['<h2 id="metrics">How it was scored</h2>', fact_table(flatten(record.metrics_info))]
    if texts:
        shown = "".join(f"<li><pre>{escape(text)}</pre></li>" for text in texts[:SAMPLE])
        parts += [f'<h2 id="texts">What it wrote</h2><p>The first {min(SAMPLE, len(texts))} of {len(texts)}.</p>']
        parts.append(f'<ol class="run-texts" start="0">{shown}</ol>')
    return "\n".join(parts)


def _curves(record: Record) -> Iterator[str]:
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
            yield f"<h3>{escape(said[:1].upper() + said[1:])}</h3>{drawn}"
        else:
            lists.append((escape(title), escape(_numbers(values))))
    if lists:
        yield details(f"{counted(len(lists), 'list')} of numbers", fact_table(lists))


def _numbers(values: list[float]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:SHOWN_VALUES])
    return shown + (f", … ({len(values)} in all)" if len(values) > SHOWN_VALUES else "")


def _probe_spec(probe: specs.Probe, spec: dict[str, Any], known: Collection[str]) -> Iterator[str]:
    """A probe's own fields, then each run that it trains or reads, folded."""
    runs = spec.pop("runs", [])
    yield fact_table(flatten(spec))
    if runs:
        rows = []
        for run in probe.runs:
            key = run.key[:12]
            link = f'<a class="run-link" href="{key}.html">{key}</a>'
            name = link if run.key in known else f'<span class="run-key">{key}</span>'
            rows.append([name, escape(results.describe(run)), "its own record" if run.key in known else "made here"])
        yield "<h3>The runs that it trains or reads</h3>"
        yield grid(["Run", "What", "Record"], rows, "runs")
        for run, settings in zip(probe.runs[:SHOWN_SPECS], runs[:SHOWN_SPECS], strict=True):
            yield details(f"Spec of {run.key[:12]}", fact_table(flatten(settings)))


def study_page(study: studies.Study, store: Store, cuda: Store | None = None) -> str:
    """The article of one study: its claim with the verdict, what decided it, its runs, and all its quantities.

    cuda: the same records seen from a GPU, if any was made there.
    """
    claim = results.claim(study.name, store)
    quantities = results.study_quantities(study.name, store)
    deciding = {name: quantities[name] for name in claim.verdict.quantities if name in quantities}
    others = {name: quantity for name, quantity in quantities.items() if name not in deciding}
    records = study.records(store)
    runs = grid(["Run", "What", "Result"], _run_rows(records), "runs")
    parts = [f"<h1>{escape(study.title)}</h1>", claim_card(claim, cuda, home="../", page="")]
    if deciding:
        parts += ['<h2 id="deciding">What decided</h2>', _quantities(deciding)]
    parts += [
        '<h2 id="repeat">Repeat it</h2>',
        command_block(results.run_command(study.name)),
        f'<h2 id="runs">Runs</h2><p>{len(records)} cached, {claim.missing} missing.</p>',
        details("Every run, and what it found", runs) if len(records) > UNFOLDED else runs,
    ]
    if others:
        parts += [f'<h2 id="quantities">{"Other" if deciding else "All"} quantities</h2>', _quantities(others)]
    return "\n".join(parts)


def _run_rows(records: Iterable[Record], prefix: str = "") -> Iterator[list[str]]:
    for record in records:
        yield [
            f'<a class="run-link" href="{prefix}{record.short_key}.html">{record.short_key}</a>',
            escape(results.describe(record.spec)) + _platform(record),
            _headline(record),
        ]


def run_index(store: Store) -> str:
    """All runs, each under the first study that uses it, folded."""
    parts: list[str] = []
    shown: set[str] = set()
    every = {record.key: record for record in store.all()}
    for study, keys in _keys_by_study(store, seen_from_cuda(store)):
        mine = [every[key] for key in keys if key in every and key not in shown]
        before = sum(key in every and key in shown for key in keys)
        shown |= {record.key for record in mine}
        link = f'<p><a href="runs/study-{study.name}.html">Claim, verdict and quantities</a></p>'
        parts.append(_index_entry(study.name, study.title, before, mine, link))
    if rest := [record for record in every.values() if record.key not in shown]:
        parts.append(_index_entry("others", "Runs of no study", 0, rest))
    return f"<p>{len(every)} runs are cached, each under the first study that uses it.</p>{''.join(parts)}"


def _keys_by_study(store: Store, cuda: Store | None) -> Iterator[tuple[studies.Study, list[str]]]:
    """Each study with the keys of its runs, on a CPU and, if `cuda`, on a GPU."""
    for study in map(studies.get_study, studies.NAMES):
        runs = [seen.spec(run) for seen in (store, cuda) if seen is not None for run in study.runs(seen)]
        yield study, list(dict.fromkeys(run.key for run in runs))


def _index_entry(anchor: str, title: str, before: int, records: list[Record], link: str = "") -> str:
    """before: how many of its runs are listed above."""
    listed = [counted(len(records), "run")] if records else []
    count = ", ".join(listed + [f"{before} listed above"] * bool(before)) or "none yet"
    table = grid(["Run", "What", "Result"], _run_rows(records, "runs/"), "runs") if records else ""
    summary = f'<span class="fold-title">{escape(title)}</span> <span class="fold-count">{count}</span>'
    return f'<section id="{anchor}">{details(summary, link + table)}</section>'


class StoreDirective(SphinxDirective):
    """Inserts HTML made from the store; its page is read again when anything that it is made from changed."""

    def run(self) -> list[nodes.Node]:
        env: Any = self.env
        env.peftbook_store_pages = {*getattr(env, "peftbook_store_pages", ()), env.docname}
        return [nodes.raw("", DIRECTIVES[self.name](default_store()), format="html")]


DIRECTIVES = {"scoreboard": scoreboard, "run-index": run_index}


# ---------------------------------------------------------------------------------------------- the build


def _frame(app: Any) -> str:
    """Hash of what surrounds an article: version, sidebar, templates, this package's site modules, styles."""
    titles = repr(sorted((name, title.astext()) for name, title in app.env.titles.items()))
    sources = [*Path(__file__).parent.glob("*.py"), *Path(app.srcdir, "book/templates").glob("*.html")]
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
        yield f"study-{study.name}", study.title, study_page(study, store, cuda)
    records = list(store.all())  # after the studies: a run that ends meanwhile has the page that they link to
    known = {record.key for record in records}
    for record in records:
        path = store.path(record.key)
        if path is None:
            raise InputError(f"Record {record.short_key} disappeared while the site was built: build again.")
        copy_if_changed(path, out / f"{record.short_key}.json")
        article = run_page(record, store.texts(record), where.get(record.key, []), known)
        yield record.short_key, title_of(record), article


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
