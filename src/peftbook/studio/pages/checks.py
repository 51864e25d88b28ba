"""What a check of a plan has found, as the plan's page shows it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from peftbook.studio import markup
from peftbook.studio.markup import Cell, badge, button, joined, number, piece, size, span, table
from peftbook.studio.preflight import Check, coverage_words
from peftbook.studio.smaller_plan import LONG_SECONDS, SmallerPlan, plan_seconds


def long_plan(found: Sequence[Check], less: SmallerPlan | None, request: str) -> Markup:
    """What to do about a plan of more than an hour; nothing about another. request: the check of it."""
    if (seconds := plan_seconds(found)) <= LONG_SECONDS:
        return Markup("")
    words = f"The whole plan takes about {span(seconds)}"
    if less is None:
        return markup.note(f"{words}: choose fewer methods or a smaller model for a shorter one.", "warn")
    words += f". With {less.words} it takes about {span(less.seconds)}."
    return joined([markup.note(words, "warn"), button("Take the smaller plan", "smaller", request, form="plan")])


def preflight_table(found: Sequence[Check]) -> Markup:
    """What each run will read, take and need."""
    total = "time unknown until this machine is idle during a check, which then measures how fast it is"
    if seconds := plan_seconds([one for one in found if one.seconds is not None]):
        beside = min(len(found), max(one.beside for one in found))
        at_once = f", {beside} at once" if beside > 1 else ""
        total = f"about {span(seconds)} in all on this machine{at_once}"
    rows = [
        (
            one.label,
            number(one.rows),
            number(one.tokens),
            Cell(number(one.epochs, 0 if one.epochs >= 10 else -2) if one.epochs else "–", one.epochs),
            piece('<span class="hot">{}</span>', number(one.truncated)) if one.truncated else "0",
            Cell(span(one.seconds), one.seconds or 0),
            Cell(size(one.peak_bytes), one.peak_bytes or 0),
            piece('{} <span class="fine">{}</span>', badge("fits" if one.fits else "refused"), one.words),
        )
        for one in found
    ]
    parts = []
    if refused := sum(not one.fits for one in found):
        parts.append(markup.note(f"{refused} of {len(found)} runs cannot be run here; the table says why.", "warn"))
    heads = ["Run", "Rows", "Tokens", "Epochs", "Cut", "Time", "Peak memory", "Verdict"]
    parts.append(table(heads, rows, kind="preflight", caption=f"{len(found)} runs, {total}", numeric=range(1, 7)))
    if cut := max((one.truncated for one in found), default=0):
        words = f"{cut:,} rows are longer than the longest example allows and lose the end of their input"
        parts.append(markup.note(f"{words}: raise it under Advanced.", "warn"))
    if short := coverage_words(found):
        parts.append(markup.note(short, "warn"))
    return joined(parts)
