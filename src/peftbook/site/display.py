"""What chapters call to show figures: one HTML figure that follows the page's colour mode and names its runs.

show(learning_curves, store, name="curves", alt="…", caption="…")
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Sequence
from html import escape
from typing import Any, Literal

# Of each outcome its sign and what it says.
VERDICTS = {
    "reproduced": ("✓", "The runs bear the claim out: the whole 95 % interval lies inside it."),
    "equivalent": ("=", "The two sides differ by less than the margin that was set beforehand."),
    "refuted": ("✗", "The runs show what was named beforehand as refuting the claim."),
    "direction only": ("↗", "The interval would decide, but it rests on two seeds, or on fewer than eight groups."),
    "undecided": ("?", "The interval is too wide to tell, or its place says neither yes nor no."),
    "measured": ("◆", "A quantity that the other studies rest on; no claim is at stake."),
    "not testable here": ("–", "The runs that are possible cannot answer the claim; the card says why."),
    "not yet run": ("○", "Runs are missing; the card names the command that makes them."),
}


class Shown:
    """A figure ready to be displayed by Jupyter: HTML for the page, the caption where there is only text."""

    def __init__(self, html: str, text: str):
        self.html, self.text = html, text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


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
    from peftbook.figures.style import render_svg
    from peftbook.records import watch

    modes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    with watch() as seen:
        images = "".join(_image(render_svg(figure, *args, mode=mode, **options), mode, alt) for mode in modes)
    facts = run_facts(seen)
    html = (
        f'<figure class="book-figure" id="fig-{name}">{images}'
        f'<figcaption><span class="figure-number" data-figure="{name}">Figure</span> '
        f'<span class="figure-caption">{caption}</span>{facts}</figcaption></figure>'
    )
    return Shown(html, re.sub(r"<[^>]+>", "", caption))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Shown:
    """An HTML table of cells that are HTML themselves; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    text = "\n".join(" | ".join(re.sub(r"<[^>]+>", "", str(cell)) for cell in row) for row in (header, *rows))
    return Shown(f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>', text)


def evidence(which: str, *, alt: str, caption: str, name: str = "") -> Shown | None:
    """A figure by the name of its function, with the runs behind it; nothing while runs are missing.

    name: its anchor (default: the function's name with hyphens).
    """
    from peftbook import figures
    from peftbook.records import Missing, default_store

    try:
        anchor = name or which.replace("_", "-")
        return show(figures.draw, which, default_store(), name=anchor, alt=alt, caption=caption)
    except Missing:
        return None


def verdicts(*names: str) -> Shown:
    """The claims of studies and what the runs say about each; where runs are missing, the command that makes them."""
    from peftbook import results
    from peftbook.records import default_store
    from peftbook.studies import get_study

    store, rows = default_store(), []
    for name in names:
        study, verdict = get_study(name), results.study_verdict(name, store)
        words = escape(verdict.sentence)
        if verdict.outcome == "not yet run":
            words += f" <code>{escape(results.run_command(name))}</code>"
        claim = f'<a href="runs/study-{name}.html">{escape(study.claim)}</a>'
        rows.append([claim, f"{badge(verdict.outcome)}<br>{words}"])
    return table(["Claim", "What the runs say"], rows)


def amendments() -> Shown:
    """The ledger of the rule of uncertainty: each change with its reason and what became of every verdict."""
    from peftbook.evidence.ledger import amendments as ledger

    rows: list[tuple[str, str]] = []
    for one in ledger():
        count = f"{len(one.changed)} of {len(one.verdicts)} verdicts changed"
        moves = "".join(
            f'<li><a href="runs/study-{study}.html">{study.replace("_", " ")}</a>: {badge(old)} → {badge(new)}</li>'
            for study, (old, new) in sorted(one.verdicts.items(), key=lambda item: item[0] not in one.changed)
        )
        rows += [
            ("Date", one.date),
            ("Rule before", escape(one.before)),
            ("Rule now", escape(one.now)),
            ("Why", escape(one.why)),
            ("Last commit under the rule before", f"<code>{one.commit}</code>"),
            ("Hash of the rule now", f"<code>{one.rule}</code>"),
            ("Verdicts, before → now", f"<details><summary>{count}</summary><ul>{moves}</ul></details>"),
        ]
    return table(["Amendment", ""], rows)


def _image(svg: bytes, mode: str, alt: str) -> str:
    """An image that its page shows in one colour mode; a data address, so that a notebook holds it too."""
    box, size = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg), ""
    if box:
        width, height = (round(float(points) * 4 / 3) for points in box.groups())  # CSS pixels
        size = f' width="{width}" height="{height}"'
    data = base64.b64encode(svg).decode()
    # Only one of the two is displayed, so only one alternative text is read.
    return f'<img class="figure-{mode}" alt="{escape(alt)}"{size} src="data:image/svg+xml;base64,{data}">'


def run_facts(keys: Collection[str]) -> str:
    """One line under a figure: how many runs and seeds, on what, with a link to each."""
    from peftbook.records import default_store, load_record

    store = default_store()
    records = [load_record(path) for key in keys if (path := store.path(key))]
    if not records:
        return ""
    if len(records) < len(keys):
        raise ValueError(f"{len(keys) - len(records)} run(s) behind a figure have no record: see `peftbook status`.")
    seeds = {record.spec.seed for record in records}
    hardware = sorted({text for record in records if (text := record.hardware)})
    facts = [counted(len(records), "run"), counted(len(seeds), "seed"), *hardware]
    links = " ".join(f'<a class="run-link" href="runs/{key[:12]}.html">{key[:6]}</a>' for key in list(keys)[:12])
    more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
    return f'<span class="run-facts">{escape("; ".join(facts))}. Runs: {links}{more}</span>'


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def measured(name: str, form: str = "") -> str:
    """A study's quantity as HTML, for captions: the same text and link as the {measured} role."""
    from peftbook.site.numbers import printed

    text, title = printed(name, form)
    study, _, short = name.partition(".")
    return f'<a class="measured" href="runs/study-{study}.html#{short}" title="{escape(title)}">{escape(text)}</a>'


def badge(outcome: str) -> str:
    """A verdict as HTML, by colour, sign and word."""
    return f'<span class="verdict verdict-{slug(outcome)}">{sign(outcome)} {escape(outcome)}</span>'


def sign(outcome: str) -> str:
    """A verdict's sign as HTML, which screen readers skip."""
    return f'<span aria-hidden="true">{VERDICTS[outcome][0] if outcome in VERDICTS else "·"}</span>'


def slug(outcome: str) -> str:
    """A verdict's name in class names and anchors: "not yet run" → "not-yet-run"."""
    return "".join(letter if letter.isalnum() else "-" for letter in outcome)
