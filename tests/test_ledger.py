"""The ledger of amendments: no rule and no claim changes without a line in it, and pages show every line."""

from __future__ import annotations

import inspect
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from claim_hashes import claim_hash, rule_hash, wordings

from peftbook.core.records import Store
from peftbook.evidence import ledger, results, stats
from peftbook.studies import NAMES, get_study
from peftbook.views.site import claim_cards, display

ROOT = Path(__file__).parents[1]

# ---- the rule


def test_a_changed_rule_needs_a_line_in_the_ledger():
    """The last amendment has the hash of the rule as it is: change the rule, and say so with every verdict."""
    assert ledger.amendments()[-1].rule == rule_hash()


def test_the_hash_sees_code_and_not_words():
    """Every function that makes the rule is watched; a docstring is none of it."""
    names = {function.__name__ for function in stats.RULE}
    assert {"standard_errors", "half_width", "jackknife", "freedom_of", "p_value", "judge", "holm", "decides"} <= names
    assert all(inspect.getdoc(function) for function in stats.RULE) and len(rule_hash()) == 12


def test_the_ledger_names_every_verdict():
    """Old and new for every study there was, not only for those that moved."""
    for amendment in ledger.amendments():
        assert amendment.before and amendment.now and amendment.why and amendment.date and amendment.commit
        assert len(amendment.verdicts) >= len(NAMES) // 2


# ---- the claims


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_claim_needs_a_line_in_the_ledger(name):
    """The hash of what a study claims, what refutes it and the numbers that decide is the ledger's."""
    known, current = wordings()[name].hash, claim_hash(get_study(name))
    assert known == current, (
        f"What {name} claims, what refutes it or a number that decides has changed. In evidence/ledger.toml, if the "
        "study has records, add a [[claim]] that says what, why, and what became of its verdict; then renew its line "
        "in [claims] with `python tests/tools/claim_hashes.py --write`."
    )


def test_the_table_has_every_study_and_no_other():
    """A new study is entered, and one that is gone is taken out."""
    assert set(wordings()) == set(NAMES)


def test_a_wording_that_came_after_records_is_told_by_an_amendment():
    """Of the date since when a study claims what it claims, unless it had no record then."""
    told = {(study, change.date) for change in ledger.claim_amendments() for study in change.studies}
    late = {(study, wording.date) for study, wording in wordings().items() if wording.records}
    assert late <= told


def test_amendments_name_studies_commits_and_outcomes_that_exist():
    """Each is whole, in the order of time, of studies that had records; its commit is in the checkout's history."""
    outcomes = {*results.OUTCOMES, "no claim", "unknown"}
    changes = ledger.claim_amendments()
    assert [change.date for change in changes] == sorted(change.date for change in changes)
    for change in changes:
        assert change.kind in ledger.KINDS and change.before and change.now and change.why and change.studies
        assert set(change.studies) <= set(NAMES)
        assert all(fate.records > 0 for fate in change.studies.values()), change.commit
        assert {outcome for pair in change.verdicts.values() for outcome in pair} <= outcomes
    commits = {change.commit for change in [*changes, *ledger.amendments()]}
    assert all(re.fullmatch("[0-9a-f]{7,40}", commit) for commit in commits)
    assert not missing_commits(commits)


def missing_commits(commits):
    """Those that this checkout's history has not; none where there is no whole history."""
    shallow = git("rev-parse", "--is-shallow-repository")
    if shallow.returncode or shallow.stdout.strip() != "false":
        return set()
    return {commit for commit in commits if git("cat-file", "-e", f"{commit}^{{commit}}").returncode}


def git(*words):
    """A git command in the checkout."""
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)


def test_words_margins_grids_and_seeds_are_hashed_and_limits_are_not(monkeypatch):
    """What decides: another margin, another grid, another number of seeds is another hash; what is not shown is not."""
    study = get_study("targets")
    module = inspect.getmodule(study.judge)

    def hashed(**words):
        named = {name: getattr(study, name) for name in ("claim", "refuted_if", "does_not_show", "judge")}
        return claim_hash(SimpleNamespace(**named | words))

    plain = claim_hash(study)
    assert hashed() == hashed(does_not_show="Nothing.") == plain
    hashes = [plain, hashed(claim="Another."), hashed(refuted_if="Never.")]
    monkeypatch.setattr(module, "MARGIN", 0.03)
    hashes.append(hashed())
    comparison, one_arm = module.COMPARISON, module.COMPARISON.arms[:1]
    for changed in ({"seeds": (1, 2, 3)}, {"bearable": 0.01}, {"arms": one_arm}):
        monkeypatch.setattr(module, "COMPARISON", replace(comparison, **changed))
        hashes.append(hashed())
    assert len(set(hashes)) == len(hashes)


# ---- what a reader sees


def test_the_page_shows_every_amendment_of_both_kinds_in_the_order_of_time():
    """A row each, with date, commit, what changed, why, whether records existed, and every verdict before and after."""
    page = BeautifulSoup(display.amendments().html, "html.parser")
    rows, changes = page.tbody.find_all("tr"), [*ledger.claim_amendments(), *ledger.amendments()]
    dates = [row.th.text[:10] for row in rows]
    assert len(rows) == len(changes) and dates == sorted(dates) == sorted(change.date for change in changes)
    for change in changes:
        (row,) = (row for row in rows if all(part in row.text for part in (change.before, change.now, change.why)))
        assert change.commit in row.th.text and change.date in row.th.text and "yes" in row.text
        links = {link["href"] for link in row.find_all("a")}
        assert links == {f"runs/study-{study}.html" for study in change.verdicts}
        assert len(row.select(".verdict")) == 2 * len(change.verdicts)
        assert bool(row.details) == (len(change.verdicts) > display.UNFOLDED)


def test_a_kind_says_what_a_change_did_to_a_claim():
    """A new claim is no change; what changes words, or nothing, leaves every verdict that there was."""
    assert {mark for _, mark in ledger.KINDS.values()} == {*ledger.MARKS}
    for change in ledger.claim_amendments():
        fates = change.studies.values()
        if change.kind == "claim":
            assert {fate.before for fate in fates} == {"no claim"}, f"{change.commit}: a changed claim is another kind"
        if ledger.KINDS[change.kind][1] in ("wording", "nothing"):
            changed = {before for before, now in change.verdicts.values() if before != now}
            assert changed <= {"no claim", "not yet run"}, change.commit


def test_a_card_says_what_was_changed_after_records_existed(tmp_path):
    """By four marks, or that it was stated then, each with its dates; a study that never was says nothing."""
    unchanged = next(name for name in NAMES if not ledger.claim_amendments(name))
    assert ledger.claim_amendments("targets") and ledger.claim_amendments("costs")
    for name, home in (("targets", ""), ("costs", "../"), (unchanged, "")):
        card = BeautifulSoup(
            claim_cards.claim_card(results.claim(name, Store(tmp_path)), None, home=home, page=""), "html.parser"
        )
        line, marks = card.select_one(".claim-marks"), ledger.marks(name)
        assert (line is None) == (not marks)
        dates = {one.date for one in ledger.claim_amendments(name)}
        assert {date for found in marks.values() for date in found} == dates
        if line:
            shown = {span.text: span["title"].split(", ") for span in line.select("span")}
            assert shown == {ledger.MARKS[mark]: dates for mark, dates in marks.items()}
            assert line.a["href"] == f"{home}trials.html#amendments"
    assert {*ledger.marks("targets")} == {"rule"} and {*ledger.marks("costs")} == {"threshold", "rule", "nothing"}
