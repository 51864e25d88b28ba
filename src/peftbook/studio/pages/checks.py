"""What a check of a plan has found, as the plan's page shows it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from peftbook.core.progress import duration
from peftbook.studio.html import fill
from peftbook.studio.preflight import Check, coverage_words
from peftbook.studio.smaller_plan import LONG_SECONDS, SmallerPlan, plan_seconds


def long_plan(found: Sequence[Check], less: SmallerPlan | None) -> str:
    """What to do about a plan of more than an hour; empty for a shorter one."""
    if (seconds := plan_seconds(found)) <= LONG_SECONDS:
        return ""
    words = f"The whole plan takes about {duration(seconds)}"
    if less is None:
        return f"{words}: choose fewer methods or a smaller model for a shorter one."
    return f"{words}. With {less.words} it takes about {duration(less.seconds)}."


def preflight_table(found: Sequence[Check]) -> Markup:
    """What each run will read, take and need."""
    total = "time unknown until this machine is idle during a check, which then measures how fast it is"
    if seconds := plan_seconds([one for one in found if one.seconds is not None]):
        beside = min(len(found), max(one.beside for one in found))
        at_once = f", {beside} at once" if beside > 1 else ""
        total = f"about {duration(seconds)} in all on this machine{at_once}"
    return fill(
        "checks.html", checks=found, caption=f"{len(found)} runs, {total}", short=coverage_words(found),
        refused=sum(not one.fits for one in found), cut=max((one.truncated for one in found), default=0),
    )  # fmt: skip
