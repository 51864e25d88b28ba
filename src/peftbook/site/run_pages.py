"""Pages made from the store: one for each run, one for each study, the list of runs and the claims scoreboard.

Run and study pages are plain HTML in the theme's frame: they skip Sphinx's reading, so hundreds cost little, and one
whose record and frame did not change is not written again. They stand at `book/runs/<key>.html` and
`book/runs/study-<name>.html`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from peftbook import studies
from peftbook.errors import InputError
from peftbook.records import Record, Store, default_store
from peftbook.site.bibliography import short_name
from peftbook.site.curves import curve_svg

__all__ = ["run_page", "scoreboard", "setup", "study_page"]

LOGGER = logging.getLogger(__name__)
FOLDER = "book/runs"
SAMPLE = 10
SECONDS_PER_MINUTE, BYTES_PER_MEGABYTE = 60, 1e6
HEADLINES = {"quality": ("loss_nats", "rougeL"), "timing": ("median_step_seconds", "peak_memory_bytes")}
VERDICT_MARKS = {"reproduced": "✓", "equivalent": "=", "refuted": "✗", "undecided": "?"}


# ---------------------------------------------------------------------------------------------- pieces of HTML


def _table(rows: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<div class="table-scroll" tabindex="0"><table class="table {kind}"><tbody>{body}</tbody></table></div>'


def _grid(heads: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    heads, rows = list(heads), [list(row) for row in rows]
    if not rows:
        return '<p class="nothing">None yet.</p>'
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    # The head's words again on each cell: on a phone the rows are shown as cards.
    cells = (
        "".join(f'<td data-head="{name}">{cell}</td>' for name, cell in zip(heads, row, strict=True)) for row in rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    table = f'<table class="table {kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="table-scroll" tabindex="0">{table}</div>'


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as rows with dotted names."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, item)) if isinstance(item, list | tuple) else str(item)
            yield escape(prefix + name), escape(text)


def with_unit(name: str, value: float | int | None) -> tuple[str, str]:
    """A measurement for people, its unit beside the value: ("train_seconds", 130) → ("train_time", "2.2 min")."""
    if value is None:
        return name, "—"
    stem, _, unit = name.rpartition("_")
    if unit == "bytes":
        return stem, f"{value / BYTES_PER_MEGABYTE:,.1f} MB"
    if unit == "seconds":
        return (
            f"{stem}_time",
            f"{value / SECONDS_PER_MINUTE:,.1f} min" if value >= 2 * SECONDS_PER_MINUTE else f"{value:,.2f} s",
        )
    if unit == "nats":
        return stem, f"{value:.4f} nats"
    if name.endswith("_per_second"):
        return name, f"{value:,.1f}"
    return name, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _label(record: Record) -> str:
    """What a run is, in a few words."""
    spec = record.spec
    method: Any = spec.method
    details = [f"rank {method.rank}"] if hasattr(method, "rank") else []
    details += [f"{method.length} tokens"] if hasattr(method, "length") else []
    details += [f"{method.shots} examples"] if getattr(method, "shots", 0) else []
    details += [f"rate {spec.budget.learning_rate:g}"] if spec.budget else []
    details += [f"seed {spec.seed}", spec.evaluation.split if spec.purpose == "quality" else "timing"]
    return ", ".join([f"{method.kind} on {spec.task.name}", *details])


def _headline(record: Record) -> str:
    if record.failure:
        return f"failed: {escape(record.failure[:60])}"
    measured = record.measurements
    found = [(name, measured[name]) for name in HEADLINES[record.spec.purpose] if measured.get(name) is not None]
    return "; ".join(f"{name} {value}" for name, value in (with_unit(*one) for one in found)).replace("_", " ")


def _quantity_rows(study: studies.Study, store: Store) -> Iterator[list[str]]:
    from peftbook.results import format_quantity

    for name, quantity in study.quantities(store).items():
        links = " ".join(_run_link(key) for key in quantity.runs[:8])
        more = f" and {len(quantity.runs) - 8} more" if len(quantity.runs) > 8 else ""
        yield [
            f'<span id="{escape(name)}"><code>{escape(name)}</code></span>',
            escape(format_quantity(quantity)),
            f"{quantity.n:,}" if quantity.n else "—",
            str(quantity.seeds or "—"),
            links + more,
        ]


def _run_link(key: str) -> str:
    return f'<a class="run-link" href="{key[:12]}.html">{key[:6]}</a>'


# ---------------------------------------------------------------------------------------------- the pages


def run_page(record: Record, texts: list[str], where: list[studies.Study]) -> str:
    """The article of one run: verdict-free facts, enough to judge it and to repeat it."""
    spec = json.loads(record.spec.canonical())
    used = (
        ", ".join(f'<a href="study-{study.name}.html">{escape(study.title)}</a>' for study in where) or "no study (yet)"
    )
    parts = [
        f"<h1>Run {record.short_key}</h1>",
        f'<p class="run-label">{escape(_label(record))}. Used in: {used}.</p>',
    ]
    if record.failure:
        parts.append(f'<p class="run-failure"><strong>This run failed:</strong> {escape(record.failure)}</p>')
    parts += [
        '<h2 id="repeat">Repeat it</h2>',
        f'<div class="highlight"><pre tabindex="0"><span></span>peftbook run --key {record.short_key}</pre></div>',
        f'<p><a href="{record.short_key}.json" download>Download the raw record (JSON)</a>; its full key, '
        f'<code class="key">{record.key}</code>, is the SHA-256 of the spec below.</p>',
    ]
    measurements = [
        (escape(n.replace("_", " ")), escape(v)) for n, v in (with_unit(*m) for m in record.measurements.items())
    ]
    parts += ['<h2 id="measured">What was measured</h2>', _table(measurements)]
    for name, losses in record.curve.items():
        if name not in ("step", "steps") and losses:
            steps = record.curve.get("step") or record.curve.get("steps") or list(range(1, len(losses) + 1))
            if len(steps) == len(losses):
                title = f"{name.replace('_', ' ')} by optimiser step"
                parts.append(f"<h3>{escape(title.capitalize())}</h3>{curve_svg(steps, losses, escape(title))}")
    parts += ['<h2 id="spec">What defines it</h2>', _table(_flatten(spec))]
    parts += ['<h2 id="provenance">Where it was made</h2>', _table(_flatten(record.provenance))]
    if record.metrics_info:
        parts += ['<h2 id="metrics">How it was scored</h2>', _table(_flatten(record.metrics_info))]
    if texts:
        shown = "".join(f"<li><pre>{escape(text)}</pre></li>" for text in texts[:SAMPLE])
        parts += [f'<h2 id="texts">What it wrote</h2><p>The first {min(SAMPLE, len(texts))} of {len(texts)}.</p>']
        parts.append(f'<ol class="run-texts" start="0">{shown}</ol>')
    return "\n".join(parts)


def study_page(study: studies.Study, store: Store) -> str:
    """The article of one study: its claim, the verdict, its quantities and its runs."""
    verdict = study.verdict(store)
    records = study.records(store)
    missing = len(study.missing(store))
    parts = [
        f"<h1>{escape(study.title)}</h1>",
        _table(
            [
                ("Claim", escape(study.claim)),
                ("Source", _source_link(study.source, "../")),
                ("Refuted if", escape(study.refuted_if)),
                ("Verdict", f"{_badge(verdict.outcome)} {escape(verdict.sentence)}"),
                ("Does not show", escape(study.does_not_show)),
                ("Chapter", _chapter_link(study)),
                ("Repeat it", f"<code>peftbook run {escape(study.name)}</code>"),
            ],
            kind="facts study",
        ),
        '<h2 id="quantities">Quantities</h2>',
        _grid(["Name", "Value, 95 % interval", "n", "Seeds", "Runs"], _quantity_rows(study, store)),
        f'<h2 id="runs">Runs</h2><p>{len(records)} cached, {missing} missing.</p>',
        _grid(["Run", "What", "Result"], _run_rows(records)),
    ]
    return "\n".join(parts)


def _run_rows(records: Iterable[Record], prefix: str = "") -> Iterator[list[str]]:
    for record in records:
        yield [
            f'<a class="run-link" href="{prefix}{record.short_key}.html">{record.short_key}</a>',
            escape(_label(record)),
            _headline(record),
        ]


def _source_link(source: str, prefix: str = "") -> str:
    """A study's source as a link into the bibliography where it starts with a key, else as it stands."""
    key, _, rest = source.partition(",")
    name = short_name(key.strip())
    if name is None:
        return escape(source)
    where = f",{escape(rest)}" if rest else ""
    return f'<a href="{prefix}bibliography.html#ref-{key.strip()}">{escape(name)}</a>{where}'


def _chapter_link(study: studies.Study) -> str:
    page = study.chapter.removeprefix("book/").removesuffix(".md")
    return f'<a href="../{escape(page)}.html">{escape(page.replace("-", " "))}</a>' if page else "—"


def _badge(outcome: str) -> str:
    mark = VERDICT_MARKS.get(outcome, "·")
    kind = f"verdict verdict-{outcome.replace(' ', '-')}"
    return f'<span class="{kind}"><span aria-hidden="true">{mark}</span> {escape(outcome)}</span>'


def _known_studies() -> list[studies.Study]:
    """The studies whose modules are there."""
    found = []
    for name in studies.NAMES:
        try:
            found.append(studies.get_study(name))
        except ModuleNotFoundError as error:
            if error.name != f"peftbook.studies.{name}":
                raise
            LOGGER.info("study %s is named but has no module yet", name)
    return found


def scoreboard(store: Store) -> str:
    """Every claim with its verdict, as one table."""
    rows = []
    for study in _known_studies():
        verdict = study.verdict(store)
        link = f'<a href="runs/study-{study.name}.html">{escape(study.title)}</a>'
        claim = f'{escape(study.claim)} <span class="source">{_source_link(study.source)}</span>'
        rows.append(
            [link, claim, f"{_badge(verdict.outcome)}<br>{escape(verdict.sentence)}", escape(study.does_not_show)]
        )
    return _grid(["Study", "Claim and source", "Verdict", "Does not show"], rows, kind="scoreboard")


def run_index(store: Store) -> str:
    """All runs, by study."""
    parts, shown = [], set()
    for study in _known_studies():
        records = study.records(store)
        shown |= {record.key for record in records}
        title = f'<h2 id="{study.name}"><a href="runs/study-{study.name}.html">{escape(study.title)}</a></h2>'
        parts.append(title + _grid(["Run", "What", "Result"], _run_rows(records, "runs/")))
    rest = [record for record in _all_records() if record.key not in shown]
    if rest:
        parts.append(
            '<h2 id="others">Runs of no study</h2>' + _grid(["Run", "What", "Result"], _run_rows(rest, "runs/"))
        )
    return "\n".join(parts) or "<p>No run is cached yet.</p>"


class _StoreDirective(SphinxDirective):
    """Inserts HTML made from the store; its page is read again by every build."""

    make: Any = None

    def run(self) -> list[nodes.Node]:
        env: Any = self.env
        env.peftbook_store_pages = {*getattr(env, "peftbook_store_pages", ()), env.docname}
        return [nodes.raw("", type(self).make(default_store()), format="html")]


class Scoreboard(_StoreDirective):
    """The directive `{scoreboard}`."""

    make = staticmethod(scoreboard)


class RunIndex(_StoreDirective):
    """The directive `{run-index}`."""

    make = staticmethod(run_index)


# ---------------------------------------------------------------------------------------------- the build


@lru_cache(1)
def _all_records() -> list[Record]:
    return list(default_store().all())


def _frame(app: Any) -> str:
    """Hash of what surrounds an article: version, sidebar, templates, this package's site modules, styles."""
    digest = hashlib.sha256(repr(sorted((name, title.astext()) for name, title in app.env.titles.items())).encode())
    digest.update(f"{app.config.version}{app.config.html_theme_options}".encode())
    sources = [*Path(__file__).parent.glob("*.py"), *Path(app.srcdir, "book/templates").glob("*.html")]
    for path in sorted([*sources, *Path(app.srcdir, "book/assets").glob("*s/book.*")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def collect_pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the pages whose content or frame changed since they were written."""
    if app.builder.name != "html":
        return
    store, frame = default_store(), _frame(app)
    out = Path(app.outdir) / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    memory = out / ".written.json"
    before = json.loads(memory.read_text()) if memory.is_file() else {}
    written: dict[str, str] = {}
    for name, title, article in _articles(store, out):
        digest = hashlib.sha256(f"{frame}{article}".encode()).hexdigest()
        written[name] = digest
        if before.get(name) != digest or not (out / f"{name}.html").is_file():
            yield f"{FOLDER}/{name}", {"title": title, "article": article, "pagetitle": title}, "run.html"
    for path in [*out.glob("*.html"), *out.glob("[!.]*.json")]:
        if path.stem not in written:  # its record is gone
            path.unlink()
    memory.write_text(json.dumps(written))


def _articles(store: Store, out: Path) -> Iterator[tuple[str, str, str]]:
    where: dict[str, list[studies.Study]] = {}
    for study in _known_studies():
        for record in study.records(store):
            where.setdefault(record.key, []).append(study)
        yield f"study-{study.name}", study.title, study_page(study, store)
    for record in _all_records():
        path = store.path(record.key)
        if path is None:
            raise InputError(f"Record {record.short_key} disappeared while the site was built: build again.")
        shutil.copyfile(path, out / f"{record.short_key}.json")
        yield (
            record.short_key,
            f"Run {record.short_key}",
            run_page(record, store.texts(record), where.get(record.key, [])),
        )


def _outdated(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    return [page for page in getattr(env, "peftbook_store_pages", ()) if page in env.all_docs]


def setup(app: Any) -> None:
    """Register the directives and the pages."""
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("run-index", RunIndex)
    app.connect("builder-inited", lambda app: _all_records.cache_clear())
    app.connect("env-get-outdated", _outdated)
    app.connect("html-collect-pages", collect_pages)
