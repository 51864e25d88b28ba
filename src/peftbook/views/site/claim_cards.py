"""The pages of claims: the decisions that they serve, then every claim as a card with its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from peftbook import studies
from peftbook.core.records import Store
from peftbook.evidence import results
from peftbook.evidence.decidable import bound
from peftbook.evidence.ledger import MARKS, marks
from peftbook.views.html import fill, piece, powers_raised
from peftbook.views.site.bibliography import BIBLIOGRAPHY, short_name
from peftbook.views.site.decisions import decisions, limits, tools, with_numbers
from peftbook.views.site.display import VERDICTS, badge, sign, slug

# What a reader may bet on before the verdict shows, and the outcomes that make the bet right.
SIDES = {
    "holds": ("reproduced", "equivalent"),
    "fails": ("refuted", "fails in this regime"),
    "open": ("direction only", "undecided"),
}


def scoreboard(store: Store) -> Markup:
    """The decisions, then the claims behind them as cards, behind a row of counts that filters them.

    Its script lets a reader guess each verdict of a paper's claim before it shows.
    """
    claims = [one for one in results.claims(store) if not (one.study.measures or one.study.name in tools())]
    counts, others = results.count_verdicts(claims), sum(claim.study.others for claim in claims)
    own = sum(claim.study.own and not claim.study.others for claim in claims)
    choices: list[tuple[str, object, int]] = [("all", "all", len(claims))]
    choices += [(slug(name), piece("{} {}", sign(name), name), count) for name, count in counts.items()]
    choices += [("own", "our own claims", own)] if own else []
    choices += [("others", "public runs of others", others)] if others else []
    return fill(
        "claims.html",
        decisions=decisions(),
        with_numbers=lambda text: with_numbers(text, store),
        limits=limits(store),
        choices=choices,
        meanings=[(badge(outcome), VERDICTS[outcome][1]) for outcome in counts if outcome in VERDICTS],
        groups=_groups(claims, seen_from_cuda(store)),
    )


def _groups(claims: Sequence[results.Claim], cuda: Store | None) -> Iterator[dict[str, object]]:
    """The cards by decision, those of public runs of others apart; last the ones that are under none."""
    cards = {one.study.name: (one.study.others, board_card(one, cuda)) for one in claims}
    groups = [(one.name, one.title, one.claims) for one in decisions()]
    under = {name for _, _, names in groups for name in names}
    groups.append(("other", "Other claims", tuple(name for name in cards if name not in under)))
    for name, title, names in groups:
        found = [cards[one] for one in names if one in cards]
        mine, theirs = ([card for others, card in found if others == apart] for apart in (False, True))
        yield {"name": name, "title": title, "ours": mine, "others": theirs}


def checks(store: Store) -> Markup:
    """The claims about tools of the book, and the studies that measure what others rest on."""
    claims, cuda = results.claims(store), seen_from_cuda(store)
    judged = [one for one in claims if one.study.name in tools() and not one.study.measures]
    return fill(
        "checks.html",
        cards=[board_card(one, cuda) for one in judged],
        measurements=[board_card(one, cuda) for one in claims if one.study.measures],
    )


def board_card(claim: results.Claim, cuda: Store | None) -> Markup:
    """A claim as a card of these pages, which links to the study's page for the rest."""
    return claim_card(claim, cuda, home="", page=f"runs/study-{claim.study.name}.html")


def claim_card(claim: results.Claim, cuda: Store | None, *, home: str, page: str) -> Markup:
    """One claim as a card: verdict, source, what decided it, and how it was changed after its records existed.

    home: the way to the book's pages.   page: the way to the study's page; empty on that page itself, where the card
    has the effect, what would have refuted the claim and what it does not show too.
    """
    study, outcome = claim.study, claim.verdict.outcome
    elsewhere = None if cuda is None else results.study_verdict(study.name, cuda)
    work, comma, rest = study.source.partition(",")
    chapter = study.chapter.removeprefix("book/").removesuffix(".md")
    return fill(
        "claim_card.html",
        claim=claim,
        home=home,
        page=page,
        bound=bound(claim),
        command=results.run_command(study.name),
        side="" if study.own or study.others else next((side for side, known in SIDES.items() if outcome in known), ""),
        cuda=elsewhere if elsewhere and elsewhere.outcome != "not yet run" else None,
        marks=[(mark, MARKS[mark], dates) for mark, dates in marks(study.name).items()],
        work=work.strip() if short_name(work.strip()) else "",
        where=comma + rest,
        chapter=chapter if chapter and BIBLIOGRAPHY.with_name(f"{chapter}.md").is_file() else "",
        badge=badge,
        short_name=short_name,
        slug=slug,
        **_effect(claim.effect),
    )


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
