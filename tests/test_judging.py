"""Judging: no rater can tell whose answer is whose, and what they say is a score under the rule of all others."""

from __future__ import annotations

import numpy as np

from peftbook.decision.judging import Judgement, drawn, first_is_left, preferences, say_raters

PAIR = ("a", "b")
IDS = [f"row {n}" for n in range(400)]


def said(example: str, preferred: float, rater: str = "ann") -> Judgement:
    return Judgement(*PAIR, example, rater, preferred)


def test_sides_are_drawn_for_each_row_and_rater():
    """Half of the rows each, unrelated between raters, and the same whenever it is looked at."""
    ann, bob = ([first_is_left(PAIR, one, who) for one in IDS] for who in ("ann", "bob"))
    assert ann == [first_is_left(PAIR, one, "ann") for one in IDS]
    for share in (np.mean(ann), np.mean(bob), np.mean(np.equal(ann, bob))):
        assert abs(share - 0.5) < 3.3 * 0.5 / len(IDS) ** 0.5
    assert sorted(order := drawn(PAIR, IDS)) == sorted(IDS) and order != IDS == sorted(IDS, key=IDS.index)
    assert drawn(("a", "c"), IDS) != order


def test_a_part_of_the_rows_is_a_sample_of_all():
    """Equal answers count as ties only as far as a rater has come: wherever one stops, the mean is that of all rows."""
    generator = np.random.default_rng(0)
    same = {one for one in IDS if generator.random() < 0.4}
    truth = {one: 0.5 if one in same else generator.choice([0.0, 0.5, 1.0], p=[0.1, 0.2, 0.7]) for one in IDS}
    means = []
    for at in range(200):
        pair = (f"a{at}", "b")
        order = drawn(pair, IDS)
        asked = [one for one in order if one not in same][:60]
        scores = preferences(order, same, [Judgement(*pair, one, "ann", truth[one]) for one in asked])
        assert 60 < len(scores) < 160
        means.append(np.mean([*scores.values()]))
    assert abs(np.mean(means) - np.mean([*truth.values()])) < 4 * np.std(means) / len(means) ** 0.5


def test_a_row_is_worth_the_mean_of_its_raters():
    order = drawn(PAIR, IDS)
    found = preferences(order, set(), [said(order[0], 1.0), said(order[0], 0.5, "bob"), said(order[1], 0.0)])
    assert found == {order[0]: 0.75, order[1]: 0.0}
    assert preferences(order, set(IDS), []) == {}


def test_agreement_is_cohens_kappa():
    """Against scikit-learn's definition on a table that is known: 20 of 30 the same, and what chance would give."""
    table = {(1.0, 1.0): 12, (1.0, 0.0): 4, (0.0, 1.0): 3, (0.0, 0.0): 6, (0.5, 0.5): 2, (0.5, 1.0): 3}
    pairs = [one for one, count in table.items() for _ in range(count)]
    judged = [
        said(f"row {at}", value, who) for at, both in enumerate(pairs) for who, value in zip("xy", both, strict=True)
    ]
    ours, theirs = (np.array([one[at] for one in pairs]) for at in (0, 1))
    agreed = np.mean(ours == theirs)
    chance = sum(np.mean(ours == value) * np.mean(theirs == value) for value in (0.0, 0.5, 1.0))
    words = say_raters(judged)
    assert f"kappa {(agreed - chance) / (1 - chance):.2f}" in words and "67 % of 30 common rows" in words
    assert "another person may prefer otherwise" in say_raters([said("row 0", 1.0)])
