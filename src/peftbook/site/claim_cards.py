"""The claims scoreboard: every claim as a card with its verdict, what decided it and what it does not show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape

from peftbook import results, studies
from peftbook.evidence.ledger import KINDS, claim_amendments
from peftbook.records import Store
from peftbook.site.bibliography import BIBLIOGRAPHY, short_name
from peftbook.site.display import VERDICTS, badge, counted, sign, slug
from peftbook.site.tables import details, powers_raised

# What a reader may bet on before the verdict shows, and the outcomes that make the bet right.
SIDES = {
    "holds": ("reproduced", "equivalent"),
    "fails": ("refuted", "fails in this regime"),
    "open": ("direction only", "undecided"),
}


def scoreboard(store: Store) -> str:
    """Every claim as a card, in order of worth, behind a row of counts that filters them.

    Its script lets a reader guess each verdict of a paper's claim before it shows.
    """
    claims, cuda = results.claims(store), seen_from_cuda(store)
    counts, own = results.count_verdicts(claims), sum(claim.study.own for claim in claims)
    cards = "".join(claim_card(claim, cuda, home="", page=f"runs/study-{claim.study.name}.html") for claim in claims)
    board = f'<div class="claims">{_filter(counts, own, len(claims))}{_meanings(counts)}{cards}</div>'
    return f'{board}<script defer src="../_static/js/bets.js"></script>'


def _filter(counts: Mapping[str, int], own: int, total: int) -> str:
    """Counts as radio buttons, which the style sheet reads: no script. A browser without :has() shows every card."""
    choices = [("all", "all", total)]
    choices += [(slug(name), f"{sign(name)} {escape(name)}", count) for name, count in counts.items()]
    choices += [("own", "our own claims and tools", own)] if own else []
    buttons = "".join(
        f'<input type="radio" name="verdict" id="show-{name}"{" checked" if name == "all" else ""}>'
        f'<label for="show-{name}" class="choice verdict-{name}">{text} <b>{count}</b></label>'
        for name, text, count in choices
    )
    return f'<fieldset class="claim-filter"><legend>Show claims by verdict</legend>{buttons}</fieldset>'


def _meanings(outcomes: Iterable[str]) -> str:
    """What each verdict says, folded."""
    meanings = {outcome: VERDICTS[outcome][1] for outcome in outcomes if outcome in VERDICTS}
    entries = "".join(f"<div><dt>{badge(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in meanings.items())
    return details("What the verdicts mean", f'<dl class="meanings">{entries}</dl>')


def claim_card(claim: results.Claim, cuda: Store | None, *, home: str, page: str) -> str:
    """One claim as a card: verdict, source, effect, what would have refuted it and what it does not show.

    home: the way to the book's pages.   page: the way to the study's page, empty on that page itself.
    """
    study, verdict = claim.study, claim.verdict
    evidence = (f'<p class="claim-evidence">{text}</p>' for text in (escape(verdict.sentence), *_on_cuda(study, cuda)))
    regime = study.regime if verdict.outcome == "fails in this regime" else ""
    terms = (
        f"<dl><div><dt>Refuted if</dt><dd>{escape(study.refuted_if)}</dd></div>"
        + (f'<div class="claim-told"><dt>Regime</dt><dd>{escape(regime)}.</dd></div>' if regime else "")
        + f'<div class="claim-told"><dt>What this does not show</dt><dd>{escape(study.does_not_show)}</dd></div></dl>'
    )
    if page and verdict.outcome == "not yet run":
        terms = details("What would refute it, and what this will not show", terms)
    chapter = _chapter_link(study, home)
    links = [
        f'Study: <a href="{page}">{escape(study.title)}</a>' if page else '<a href="../claims.html">All claims</a>',
        f"Chapter: {chapter}" if chapter else "",
        f'<a href="{page}#runs">{claim.runs - claim.missing} of {claim.runs} runs</a>',
    ]
    side = next((f' data-side="{name}"' for name, outcomes in SIDES.items() if verdict.outcome in outcomes), "")
    return (
        f'<article class="claim is-{"own" if study.own else slug(verdict.outcome)}" id="claim-{study.name}"'
        f"{'' if study.own else side}>"
        f"<header>{badge(verdict.outcome, study.regime)}"
        f'<span class="claim-source">Source: {_source_link(study.source, home)}</span>'
        f"</header><h2>{escape(study.claim)}</h2>{_effect(claim, page)}{''.join(evidence)}"
        f'{terms}{_amended(study, home)}<p class="claim-links">{" · ".join(filter(None, links))}</p></article>'
    )


def _amended(study: studies.Study, home: str) -> str:
    """One line that says when a study was changed after it had records, and links to the ledger; empty if never."""
    kinds: dict[str, list[str]] = {}
    for change in claim_amendments(study.name):
        kinds.setdefault(change.date, []).append(KINDS[change.kind])
    if not kinds:
        return ""
    said = "; ".join(f"{date} ({', '.join(dict.fromkeys(what))})" for date, what in kinds.items())
    ledger = f'<a href="{home}trials.html#amendments">Changed after records existed</a>'
    return f'<p class="claim-amended">{ledger}: {said}.</p>'


def _on_cuda(study: studies.Study, cuda: Store | None) -> Iterator[str]:
    """What the GPU records say about a study, if there are any."""
    if cuda is not None:
        verdict = results.study_verdict(study.name, cuda)
        if verdict.outcome != "not yet run":
            yield f'<span class="platform">cuda</span> {badge(verdict.outcome)} {escape(verdict.sentence)}'


def _effect(claim: results.Claim, page: str) -> str:
    """The deciding number with its interval, or the command that makes it."""
    if (effect := claim.effect) is None:
        if claim.verdict.outcome != "not yet run" and not claim.missing:
            return ""
        more = f"{claim.missing_runs}: " if claim.missing else "Run "
        return f'<p class="claim-effect">{more}<code>{escape(results.run_command(claim.study.name))}</code></p>'
    inside, beside = (effect.unit, "") if effect.unit in ("bytes", "%") else ("", effect.unit)
    value = powers_raised(results.format_value(effect.value, effect.digits, inside))
    unit = f' <span class="unit">{escape(beside)}</span>' if beside else ""
    interval = ""
    ends = [end for end in (effect.low, effect.high) if end is not None and math.isfinite(end)]
    if len(ends) == 2:
        low, high = (powers_raised(results.format_value(end, effect.digits, inside)) for end in ends)
        interval = f' <span class="interval">{escape(effect.note or "95 % interval")}: {low} to {high}</span>'
    facts = [counted(effect.seeds, "seed")] if effect.seeds else []
    facts += [f"n = {effect.n:,}"] if effect.n else []
    behind = f'<a href="{page}#{escape(claim.name)}">{escape(claim.name.replace("_", " "))}</a>'
    return (
        f'<p class="claim-effect"><strong>{value}</strong>{unit}{interval}'
        f'<span class="claim-facts">{", ".join([behind, *facts])}</span></p>'
    )


def _source_link(source: str, prefix: str = "") -> str:
    """A study's source as a link into the bibliography where it starts with a key, else as it stands."""
    key, _, rest = source.partition(",")
    name = short_name(key.strip())
    if name is None:
        return escape(source)
    where = f",{escape(rest)}" if rest else ""
    return f'<a href="{prefix}bibliography.html#ref-{key.strip()}">{escape(name)}</a>{where}'


def _chapter_link(study: studies.Study, prefix: str = "") -> str:
    """A link to the study's chapter, empty where the book has none yet."""
    page = study.chapter.removeprefix("book/").removesuffix(".md")
    if not page or not BIBLIOGRAPHY.with_name(f"{page}.md").is_file():
        return ""
    return f'<a href="{prefix}{escape(page)}.html">{escape(page.replace("-", " "))}</a>'


def seen_from_cuda(store: Store) -> Store | None:
    """The same records seen from a GPU, if any was made there."""
    return store.on("cuda") if any(record.spec.platform == "cuda" for record in store.all()) else None
