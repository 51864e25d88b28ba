"""A bet before the verdict: nothing gives it away, a guess opens its card alone, and the browser keeps the score."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from peftbook.core.records import default_store
from peftbook.evidence import results
from peftbook.views.site import claim_cards

ASSETS = Path(__file__).resolve().parents[1] / "book/assets"
FRAME = """<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Claims</title>
<link rel="stylesheet" href="../_static/css/book.css"><link rel="stylesheet" href="../_static/css/evidence.css"></head>
<body><main class="bd-content"><article class="bd-article">{}</article></main></body></html>"""


@pytest.fixture(scope="module")
def board() -> str:
    """The scoreboard of the shipped records."""
    return claim_cards.scoreboard(default_store())


def test_every_decided_claim_of_a_paper_can_be_bet_on(board):
    """And nothing else: no check of our own tools, no claim on runs of others, none whose runs are missing."""
    sides = {one["id"]: one.get("data-side") for one in BeautifulSoup(board, "html.parser").select("article.claim")}
    for claim in results.claims(default_store()):
        outcome, side = claim.verdict.outcome, sides.get(f"claim-{claim.study.name}")
        apart = claim.study.own or claim.study.others
        decided = not apart and outcome not in ("not yet run", "measured", "not testable here")
        assert side == (
            next(name for name, known in claim_cards.SIDES.items() if outcome in known) if decided else None
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory, board) -> str:
    """The address of a page that has the scoreboard, its style and its script."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("css", "fonts", "js"):
        shutil.copytree(ASSETS / name, folder / "_static" / name)
    (folder / "book").mkdir()
    (folder / "book/claims.html").write_text(FRAME.format(board), encoding="utf-8")
    return (folder / "book/claims.html").as_uri()


def guess(page, card, side: str) -> None:
    """Bet on a side."""
    card.locator(f"button[data-side={side}]").press("Enter")


@pytest.mark.browser
@pytest.mark.slow
def test_a_guess_opens_its_card_and_is_kept(place, browser):
    """The same with the page opened again; started again, all is covered; on a phone nothing is cut off."""
    with browser.new_page(viewport={"width": 360, "height": 740}) as page:
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(place)
        start, cards = page.get_by_role("button", name="Guess before you look"), page.locator(".claim[data-side]")
        start.press("Enter")
        told = ".verdict, .claim-evidence, .claim-marks, .decisions td"
        assert page.locator("article").locator(told).locator("visible=true").count() == 0
        assert page.locator(".claim:visible").count() == cards.count()
        sides = [cards.nth(at).get_attribute("data-side") for at in range(3)]
        bets = [sides[0], "fails" if sides[1] == "holds" else "holds", sides[2]]
        for at, side in enumerate(bets):
            guess(page, cards.nth(at), side)
            assert cards.nth(at).locator(".verdict").is_visible() and cards.nth(at + 1).locator(".verdict").is_hidden()
        assert page.get_by_role("status").inner_text().startswith(f"2 of 3 right, {cards.count() - 3} to go.")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.reload()
        assert cards.nth(5).locator(".verdict").is_visible()  # who does not play sees everything
        start.press("Enter")
        assert page.get_by_role("status").inner_text().startswith("2 of 3 right")
        other = cards.nth(1).locator(f"button[data-side={sides[1]}]")
        assert other.is_disabled()  # a bet is not changed once its verdict is known
        page.get_by_role("button", name="Start again").press("Enter")
        assert page.locator(".claim:visible .verdict:visible").count() == 0
        page.get_by_role("button", name="Show all verdicts").press("Enter")
        assert cards.nth(0).locator(".verdict").is_visible() and page.locator(".claim-filter").is_visible()
        assert not troubles
