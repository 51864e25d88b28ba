"""The decisions on top of the page of claims: each rests on claims that there are, and its numbers on their records."""

from __future__ import annotations

import math
import re

import pytest
from bs4 import BeautifulSoup

from peftbook.core.records import Store, default_store
from peftbook.evidence import results
from peftbook.studies import NAMES, Quantity, get_study
from peftbook.studies.public_runs import AT_135M
from peftbook.views.site import claim_cards
from peftbook.views.site.decisions import decisions, limits, tools

QUANTITY = re.compile(r"\{([a-z0-9_]+)\.([a-z0-9_]+);bound\}")


@pytest.fixture(scope="module")
def board():
    """The page of claims on the shipped records."""
    return BeautifulSoup(claim_cards.scoreboard(default_store()), "html.parser")


def test_every_claim_stands_under_one_decision_at_most():
    """No decision names a study that there is not, and no claim of a paper is filed as a tool of ours."""
    named = [name for one in decisions() for name in one.claims] + [*tools()]
    assert len(named) == len({*named}) and {*named} <= {*NAMES}
    assert 5 <= len(decisions()) <= 8
    assert all(get_study(name).own for name in tools())
    assert not any(get_study(name).measures for name in named)


def test_a_question_asked_at_3b_stands_under_the_decision_that_it_has_at_135m():
    """So that a reader finds both side by side."""
    under = {name: one.name for one in decisions() for name in one.claims}
    assert all(under[large] == under[small] for large, small in AT_135M.items())


def test_every_bound_is_that_of_a_claim_behind_the_decision(board):
    """One quantity a decision, of one of its claims, printed by the records at hand with both ends of its interval."""
    rows = board.select("table.decisions tbody tr")
    for one, row in zip(decisions(), rows, strict=True):
        ((study, name),) = QUANTITY.findall(one.bound)
        assert study in one.claims
        quantity = results.quantity(f"{study}.{name}")
        link = row.td.select_one("a.measured")
        assert link.text == results.format_bound(quantity) and link["href"] == f"runs/study-{study}.html#{name}"
        assert row.th.a["href"] == f"#{board.find(id=f'decision-{one.name}')['id']}"
        assert row.select("td")[1].b.text == ("Yes." if one.trust else "No.")
        assert not re.search(r"\d[.,]\d", re.sub(r"\{[^}]*\}", "", one.do + one.bound + one.because)), "a typed number"


def test_the_cards_of_a_decision_are_its_claims(board):
    """In the decision's order, ours before those of others; a claim under none stands at the end."""
    for one in decisions():
        cards = [card["id"].removeprefix("claim-") for card in board.find(id=f"decision-{one.name}").select("article")]
        assert cards == sorted(one.claims, key=lambda name: get_study(name).others)
    assert {"claim-rouge_settings"} <= {card["id"] for card in board.find(id="decision-other").select("article")}


def test_a_bound_is_said_in_nats_and_in_perplexity():
    """exp(nats) − 1; a sign where the ends differ in it; a count has no interval."""
    nats = Quantity(0.03, "nats per token", (), 0.02, 0.06, digits=3)
    assert results.format_bound(nats) == "0.020 to 0.060 nats (2.0 to 6.2 % perplexity)"
    wide = Quantity(math.log(1.5), "nats per token", (), -math.log(2), math.log(3), digits=1)
    assert results.format_bound(wide) == "−0.7 to +1.1 nats (−50 to +200 % perplexity)"
    assert results.format_bound(Quantity(10, "×", (), 9.1, 12.4, digits=1)) == "9.1 to 12.4 times"
    assert results.format_bound(Quantity(0.368, "×", (), digits=2)) == "0.37 times"


def test_limits_are_counted_and_a_bound_without_records_names_its_command(tmp_path):
    """An empty store has no limits to tell, and every bound on runs of ours waits for its command."""
    assert limits(Store(tmp_path)) == ""
    empty = BeautifulSoup(claim_cards.scoreboard(Store(tmp_path)), "html.parser")
    assert all("peftbook run " in row.td.text for row in empty.select("table.decisions tbody tr"))
    said = limits(default_store())
    assert re.match(r"[0-9,]+ trainings of [0-9]+ models of 0\.[0-9]M to 135M parameters; [0-9]+ % of them on", said)
