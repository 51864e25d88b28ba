"""The claims scoreboard: every claim as a card with its verdict, what decided it and what it does not show."""

from __future__ import annotations

import math

from markupsafe import Markup

from peftbook import studies
from peftbook.core.records import Store
from peftbook.evidence import results
from peftbook.evidence.decidable import bound
from peftbook.evidence.ledger import KINDS, claim_amendments
from peftbook.views.html import fill, piece, powers_raised
from peftbook.views.site.bibliography import BIBLIOGRAPHY, short_name
from peftbook.views.site.display import VERDICTS, badge, pluralize, sign, slug

# What a reader may bet on before the verdict shows, and the outcomes that make the bet right.
SIDES = {
    "holds": ("reproduced", "equivalent"),
    "fails": ("refuted", "fails in this regime"),
    "open": ("direction only", "undecided"),
}


def scoreboard(store: Store) -> Markup:
    """Every claim as a card, in order of worth, behind a row of counts that filters them.

    Its script lets a reader guess each verdict of a paper's claim before it shows.
    """
    claims, cuda = results.claims(store), seen_from_cuda(store)
    counts, others = results.count_verdicts(claims), sum(claim.study.others for claim in claims)
    own = sum(claim.study.own and not claim.study.others for claim in claims)
    choices: list[tuple[str, object, int]] = [("all", "all", len(claims))]
    choices += [(slug(name), piece("{} {}", sign(name), name), count) for name, count in counts.items()]
    choices += [("own", "our own claims and tools", own)] if own else []
    choices += [("others", "public runs of others", others)] if others else []
    meanings = [(badge(outcome), VERDICTS[outcome][1]) for outcome in counts if outcome in VERDICTS]
    cards = [claim_card(claim, cuda, home="", page=f"runs/study-{claim.study.name}.html") for claim in claims]
    return fill("claims.html", choices=choices, meanings=meanings, cards=cards)


def claim_card(claim: results.Claim, cuda: Store | None, *, home: str, page: str) -> Markup:
    """One claim as a card: verdict, source, effect, what would have refuted it and what it does not show.

    home: the way to the book's pages.   page: the way to the study's page, empty on that page itself.
    """
    study, outcome = claim.study, claim.verdict.outcome
    elsewhere = None if cuda is None else results.study_verdict(study.name, cuda)
    changes: dict[str, list[str]] = {}
    for change in claim_amendments(study.name):
        changes.setdefault(change.date, []).append(KINDS[change.kind])
    work, comma, rest = study.source.partition(",")
    chapter = study.chapter.removeprefix("book/").removesuffix(".md")
    return fill(
        "claim_card.html",
        claim=claim,
        home=home,
        page=page,
        bound=bound(claim),
        command=results.run_command(study.name),
        side=next((name for name, outcomes in SIDES.items() if outcome in outcomes), "") if bettable(study) else "",
        cuda=elsewhere if elsewhere and elsewhere.outcome != "not yet run" else None,
        changes=changes,
        work=work.strip() if short_name(work.strip()) else "",
        where=comma + rest,
        chapter=chapter if chapter and BIBLIOGRAPHY.with_name(f"{chapter}.md").is_file() else "",
        badge=badge,
        pluralize=pluralize,
        short_name=short_name,
        slug=slug,
        **_effect(claim.effect),
    )


def bettable(study: studies.Study) -> bool:
    """Whether readers may guess its verdict: on papers' claims that the book's own runs decide."""
    return not (study.own or study.others)


def _effect(effect: studies.Quantity | None) -> dict[str, object]:
    """The deciding number as it is printed: its value, the finite ends of its interval, and the unit beside it."""
    if effect is None:
        return {}
    inside, beside = (effect.unit, "") if effect.unit in ("bytes", "%") else ("", effect.unit)
    ends = [end for end in (effect.low, effect.high) if end is not None and math.isfinite(end)]
    printed = [powers_raised(results.format_value(one, effect.digits, inside)) for one in (effect.value, *ends)]
    return {"value": printed[0], "ends": printed[1:], "unit": beside}


def seen_from_cuda(store: Store) -> Store | None:
    """The same records seen from a GPU, if any was made there."""
    return store.on("cuda") if any(record.spec.platform == "cuda" for record in store.all()) else None
