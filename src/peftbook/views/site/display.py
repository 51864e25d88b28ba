"""What chapters call to show figures: one HTML figure that follows the page's colour mode and names its runs.

show(learning_curves, store, name="curves", alt="…", caption="…")
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from peftbook.views.html import fill, joined, json_script, link, part, piece, pluralize

if TYPE_CHECKING:
    from peftbook.core.records import Store

UNFOLDED = 3  # verdicts of an amendment that a reader need not ask for
# Of each outcome its sign and what it says.
VERDICTS = {
    "reproduced": ("✓", "The runs bear the claim out: the whole 95 % interval lies inside it."),
    "equivalent": ("=", "The two sides differ by less than the margin that was set beforehand."),
    "refuted": ("✗", "The runs show what was named beforehand as refuting the claim."),
    "fails in this regime": (
        "⊘",
        "Refuted by these runs, but they lie outside the sizes, steps or data that the source itself names.",
    ),
    "direction only": (
        "↗",
        "The interval lies on one side, but not beyond the margin, or it has two seeds or fewer than eight groups.",
    ),
    "undecided": ("?", "The interval is too wide to tell, or its place says neither yes nor no."),
    "measured": ("◆", "A quantity that the other studies rest on; no claim is at stake."),
    "not testable here": ("–", "The runs that are possible cannot answer the claim; the card says why."),
    "not yet run": ("○", "Runs are missing; the card names the command that makes them."),
}


class Shown:
    """A figure ready to be displayed by Jupyter: HTML for the page, the caption where there is only text."""

    def __init__(self, html: str, text: str):
        self.html, self.text = str(html), text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def with_numbers(self, numbers: object, attribute: str, script: str) -> Shown:
        """The same figure with an attribute, and with numbers for a script of the page."""
        html = self.html.replace("<figure ", f"<figure {attribute} ", 1)
        html = html.replace("<figcaption>", f"{json_script(numbers)}<figcaption>", 1)
        return Shown(f"{html}<script {script}></script>", self.text)


def show(figure: Callable[..., Any], *args: Any, name: str, alt: str, caption: str, **options: Any) -> Shown:
    """Draw `figure(*args, **options)` for light and dark pages, with one caption.

    name: the figure's anchor (`#fig-name`), what {fig}`name` refers to.   alt: what a reader who cannot see it needs.
    caption: what it shows, in HTML; numbers come from `measured`. Links to the runs that it is seen to read follow.
    Raises ValueError if the name is not lower-case words joined by hyphens, or the alternative text is empty.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"A figure's name is lower-case words joined by hyphens, not {name!r}.")
    if not alt.strip():
        raise ValueError(f"Figure {name!r} needs alternative text: what does it show?")
    from peftbook.core.tracking import track_reads
    from peftbook.views import figures
    from peftbook.views.figures.style import render_modes

    with track_reads() as seen:
        drawn = render_modes(figure, *args, **options)
    images = [(mode, *_size(svg), base64.b64encode(svg).decode()) for mode, svg in drawn.items()]
    drawing, keys = figures.registered_name(figure, *args, **options), list(seen)
    made = {"keys": keys, "facts": run_facts(keys)}
    html = fill("figure.html", name=name, images=images, alt=alt, caption=Markup(caption), drawing=drawing, **made)
    return Shown(html, re.sub(r"<[^>]+>", "", caption))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Shown:
    """An HTML table of cells that are HTML themselves; the first cell of each row is its heading."""
    head, body = joined(map(Markup, header), template='<th scope="col">{}</th>'), Markup()
    for first, *rest in ([Markup(cell) for cell in row] for row in rows):
        body += piece('<tr><th scope="row">{}</th>{}</tr>', first, joined(rest, template="<td>{}</td>"))
    text = "\n".join(" | ".join(re.sub(r"<[^>]+>", "", str(cell)) for cell in row) for row in (header, *rows))
    return Shown(piece('<table class="table"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>', head, body), text)


def evidence(which: str, *, alt: str, caption: str, name: str = "") -> Shown | None:
    """A figure by the name of its function, with the runs behind it; nothing while runs are missing.

    name: its anchor (default: the function's name with hyphens).
    """
    from peftbook.core.records import Missing, default_store
    from peftbook.views import figures

    try:
        anchor = name or which.replace("_", "-")
        return show(figures.draw, which, default_store(), name=anchor, alt=alt, caption=caption)
    except Missing:
        return None


def verdicts(*names: str) -> Shown:
    """The claims of studies and what the runs say about each; where runs are missing, the command that makes them."""
    from peftbook.core.records import default_store
    from peftbook.evidence import results
    from peftbook.studies import get_study

    store, rows = default_store(), []
    for name in names:
        study, verdict = get_study(name), results.study_verdict(name, store)
        command = piece(" <code>{}</code>", results.run_command(name)) if verdict.outcome == "not yet run" else ""
        claim = link(f"runs/study-{name}.html", study.claim)
        rows.append([claim, piece("{}<br>{}{}", badge(verdict.outcome, study.regime), verdict.sentence, command)])
    return table(["Claim", "What the runs say"], rows)


def waiting() -> Shown:
    """The studies that miss runs: how many, about how long by the records at hand, and the command; some share runs."""
    from peftbook.core.progress import duration
    from peftbook.core.records import default_store
    from peftbook.evidence import results
    from peftbook.runtime.durations import Estimates
    from peftbook.studies import NAMES, get_study

    store, known, rows = default_store(), Estimates(), []
    for record in store.all():
        if record.wall_seconds is not None:
            known.note(record.spec, record.wall_seconds)
    for name in NAMES:
        if missing := get_study(name).missing(store):
            claim = link(f"runs/study-{name}.html", get_study(name).title)
            hours = duration(sum(known.of(run) or 0.0 for run in missing))
            rows.append([claim, len(missing), hours, piece("<code>{}</code>", results.run_command(name))])
    return table(["Study", "Runs", "About", "Command"], rows)


def amendments() -> Shown:
    """The ledger: each change of the rule of uncertainty or of studies that had records, and its verdicts."""
    from peftbook.evidence import ledger

    rows: list[tuple[str, ...]] = []
    for change in ledger.amendments():
        what = "The rule of uncertainty of all studies."
        after = piece("after <code>{}</code><br>rule now <code>{}</code>", change.commit, change.rule)
        rows.append((change.date, after, part("change", what, change), "yes", _moves(change.verdicts)))
    for claim in ledger.claim_amendments():
        names, counts = list(claim.studies), [fate.records for fate in claim.studies.values()]
        whose = ", ".join(names).replace("_", " ") if len(names) <= UNFOLDED else f"{len(names)} studies"
        what = f"Of {whose}: {ledger.KINDS[claim.kind][0]}."
        records = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else str(counts[0])
        code = piece("<code>{}</code>", claim.commit)
        rows.append((claim.date, code, part("change", what, claim), f"yes: {records}", _moves(claim.verdicts)))
    rows.sort(key=lambda row: row[0])
    head = ["Date, commit", "What changed, and why", "Records then", "Verdicts, before → now"]
    return table(head, [(piece("{}<br>{}", date, commit), *cells) for date, commit, *cells in rows])


def _moves(verdicts: Mapping[str, tuple[str, str]]) -> Markup:
    """The outcomes of each study before and now, those that moved first; folded where they are many."""
    items = sorted(verdicts.items(), key=lambda item: item[1][0] == item[1][1])
    moved = sum(old != new for old, new in verdicts.values()) if len(verdicts) > UNFOLDED else None
    return part("moves", [(study, *map(badge, outcomes)) for study, outcomes in items], moved)


def _size(svg: bytes) -> list[int]:
    """Width and height of a drawing in CSS pixels."""
    return [round(float(points) * 4 / 3) for points in re.findall(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]]


def run_facts(keys: Sequence[str]) -> str:
    """Seeds and hardware of the runs behind a figure; empty if there are none."""
    from peftbook.core.records import default_store, load_record

    store = default_store()
    records = [load_record(path) for key in keys if (path := store.path(key))]
    if not records:
        return ""
    if len(records) < len(keys):
        raise ValueError(f"{len(keys) - len(records)} run(s) behind a figure have no record: see `peftbook status`.")
    hardware = sorted({text for record in records if (text := record.hardware)})
    return "; ".join([pluralize(len({record.spec.seed for record in records}), "seed"), *hardware])


def measured(name: str, form: str = "", store: Store | None = None) -> str:
    """A study's quantity as HTML, for captions: the same text and link as the {measured} role."""
    from peftbook.views.site.numbers import printed

    text, title = printed(name, form, store)
    study, _, short = name.partition(".")
    return str(piece('<a class="measured" href="runs/study-{}.html#{}" title="{}">{}</a>', study, short, title, text))


def badge(outcome: str, regime: str = "") -> Markup:
    """A verdict as HTML, by colour, sign and word; where it holds for a regime only, with what that is."""
    where = f": {regime.partition(';')[0]}" if outcome == "fails in this regime" and regime else ""
    return piece('<span class="verdict verdict-{}">{} {}</span>', slug(outcome), sign(outcome), outcome + where)


def sign(outcome: str) -> Markup:
    """A verdict's sign as HTML, which screen readers skip."""
    return piece('<span aria-hidden="true">{}</span>', VERDICTS[outcome][0] if outcome in VERDICTS else "·")


def slug(outcome: str) -> str:
    """A verdict's name in class names and anchors: "not yet run" → "not-yet-run"."""
    return "".join(letter if letter.isalnum() else "-" for letter in outcome)
