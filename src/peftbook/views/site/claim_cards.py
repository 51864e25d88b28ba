"""The claims scoreboard: every claim as a card with its verdict, what decided it and what it does not show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from markupsafe import Markup

from peftbook import studies
from peftbook.core.records import Store
from peftbook.evidence import results
from peftbook.evidence.ledger import KINDS, claim_amendments
from peftbook.views.html import details, joined, link, piece, powers_raised
from peftbook.views.site.bibliography import BIBLIOGRAPHY, short_name
from peftbook.views.site.display import VERDICTS, badge, counted, sign, slug

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
    counts, own = results.count_verdicts(claims), sum(claim.study.own for claim in claims)
    cards = joined(claim_card(claim, cuda, home="", page=f"runs/study-{claim.study.name}.html") for claim in claims)
    template = '<div class="claims">{}{}{}</div><script defer src="../_static/js/bets.js"></script>'
    return piece(template, _filter(counts, own, len(claims)), _meanings(counts), cards)


def _filter(counts: Mapping[str, int], own: int, total: int) -> Markup:
    """Counts as radio buttons, which the style sheet reads: no script. A browser without :has() shows every card."""
    choices: list[tuple[str, object, int, str]] = [("all", "all", total, " checked")]
    choices += [(slug(name), piece("{} {}", sign(name), name), count, "") for name, count in counts.items()]
    choices += [("own", "our own claims and tools", own, "")] if own else []
    template = (
        '<input type="radio" name="verdict" id="show-{0}"{3}>'
        '<label for="show-{0}" class="choice verdict-{0}">{1} <b>{2}</b></label>'
    )
    buttons = joined(piece(template, *choice) for choice in choices)
    return piece('<fieldset class="claim-filter"><legend>Show claims by verdict</legend>{}</fieldset>', buttons)


def _meanings(outcomes: Iterable[str]) -> Markup:
    """What each verdict says, folded."""
    known = [(badge(outcome), VERDICTS[outcome][1]) for outcome in outcomes if outcome in VERDICTS]
    entries = joined(piece("<div><dt>{}</dt><dd>{}</dd></div>", *entry) for entry in known)
    return details("What the verdicts mean", piece('<dl class="meanings">{}</dl>', entries))


def claim_card(claim: results.Claim, cuda: Store | None, *, home: str, page: str) -> Markup:
    """One claim as a card: verdict, source, effect, what would have refuted it and what it does not show.

    home: the way to the book's pages.   page: the way to the study's page, empty on that page itself.
    """
    study, verdict = claim.study, claim.verdict
    evidence = joined((verdict.sentence, *_on_cuda(study, cuda)), template='<p class="claim-evidence">{}</p>')
    rows = [("What this does not show", study.does_not_show)]
    if verdict.outcome == "fails in this regime" and study.regime:
        rows.insert(0, ("Regime", f"{study.regime}."))
    told = joined(piece('<div class="claim-told"><dt>{}</dt><dd>{}</dd></div>', *row) for row in rows)
    terms = piece("<dl><div><dt>Refuted if</dt><dd>{}</dd></div>{}</dl>", study.refuted_if, told)
    if page and verdict.outcome == "not yet run":
        terms = details("What would refute it, and what this will not show", terms)
    chapter = _chapter_link(study, home)
    links = [
        piece("Study: {}", link(page, study.title)) if page else link("../claims.html", "All claims"),
        piece("Chapter: {}", chapter) if chapter else "",
        link(f"{page}#runs", f"{claim.runs - claim.missing} of {claim.runs} runs"),
    ]
    side = next((name for name, outcomes in SIDES.items() if verdict.outcome in outcomes and not study.own), "")
    return piece(
        '<article class="claim is-{}" id="claim-{}"{}><header>{}<span class="claim-source">Source: {}</span></header>'
        '<h2>{}</h2>{}{}{}{}<p class="claim-links">{}</p></article>',
        "own" if study.own else slug(verdict.outcome), study.name, piece(' data-side="{}"', side) if side else "",
        badge(verdict.outcome, study.regime), _source_link(study.source, home), study.claim, _effect(claim, page),
        evidence, terms, _amended(study, home), joined(filter(None, links), " · "),
    )  # fmt: skip


def _amended(study: studies.Study, home: str) -> Markup:
    """One line that says when a study was changed after it had records, and links to the ledger; empty if never."""
    kinds: dict[str, list[str]] = {}
    for change in claim_amendments(study.name):
        kinds.setdefault(change.date, []).append(KINDS[change.kind])
    if not kinds:
        return Markup()
    said = "; ".join(f"{date} ({', '.join(dict.fromkeys(what))})" for date, what in kinds.items())
    ledger = link(f"{home}trials.html#amendments", "Changed after records existed")
    return piece('<p class="claim-amended">{}: {}.</p>', ledger, said)


def _on_cuda(study: studies.Study, cuda: Store | None) -> Iterator[Markup]:
    """What the GPU records say about a study, if there are any."""
    if cuda is not None:
        verdict = results.study_verdict(study.name, cuda)
        if verdict.outcome != "not yet run":
            yield piece('<span class="platform">cuda</span> {} {}', badge(verdict.outcome), verdict.sentence)


def _effect(claim: results.Claim, page: str) -> Markup:
    """The deciding number with its interval, or the command that makes it."""
    if (effect := claim.effect) is None:
        if claim.verdict.outcome != "not yet run" and not claim.missing:
            return Markup()
        more = f"{claim.missing_runs}: " if claim.missing else "Run "
        return piece('<p class="claim-effect">{}<code>{}</code></p>', more, results.run_command(claim.study.name))
    inside, beside = (effect.unit, "") if effect.unit in ("bytes", "%") else ("", effect.unit)
    value = powers_raised(results.format_value(effect.value, effect.digits, inside))
    unit = piece(' <span class="unit">{}</span>', beside) if beside else ""
    interval: str = ""
    ends = [end for end in (effect.low, effect.high) if end is not None and math.isfinite(end)]
    if len(ends) == 2:
        low, high = (powers_raised(results.format_value(end, effect.digits, inside)) for end in ends)
        interval = piece(' <span class="interval">{}: {} to {}</span>', effect.note or "95 % interval", low, high)
    facts = [counted(effect.seeds, "seed")] if effect.seeds else []
    facts += [f"n = {effect.n:,}"] if effect.n else []
    facts.insert(0, link(f"{page}#{claim.name}", claim.name.replace("_", " ")))
    template = '<p class="claim-effect"><strong>{}</strong>{}{}<span class="claim-facts">{}</span></p>'
    return piece(template, value, unit, interval, joined(facts, ", "))


def _source_link(source: str, prefix: str = "") -> str:
    """A study's source as a link into the bibliography where it starts with a key, else as it stands."""
    key, _, rest = source.partition(",")
    name = short_name(key.strip())
    if name is None:
        return source
    return piece("{}{}", link(f"{prefix}bibliography.html#ref-{key.strip()}", name), f",{rest}" if rest else "")


def _chapter_link(study: studies.Study, prefix: str = "") -> str:
    """A link to the study's chapter, empty where the book has none yet."""
    page = study.chapter.removeprefix("book/").removesuffix(".md")
    if not page or not BIBLIOGRAPHY.with_name(f"{page}.md").is_file():
        return ""
    return link(f"{prefix}{page}.html", page.replace("-", " "))


def seen_from_cuda(store: Store) -> Store | None:
    """The same records seen from a GPU, if any was made there."""
    return store.on("cuda") if any(record.spec.platform == "cuda" for record in store.all()) else None
