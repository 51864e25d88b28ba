"""Claims on runs of others, on invented outcomes: the rule finds what is there and no more; what was seen is apart."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from peftbook.core.records import Store
from peftbook.evidence import stats
from peftbook.evidence.public_runs import PUBLIC_RUNS, TEST_ROWS, Outcome, public_runs
from peftbook.studies import NAMES, get_study, memory_public, public_arms
from peftbook.studies import public_runs as claims
from peftbook.studies.public_arms import BATCHES, MARGIN, SEEN, SEEN_MEMORY, difference

LORA, RERUN = claims.LORA, 1.2  # points
FOUR = BATCHES[:4]
STUDIES = [name for name in NAMES if get_study(name).others]


def table(truth: dict[str, float], seed: int = 0, sd: float = RERUN, drift: float = 3.0) -> dict[str, dict[str, float]]:
    """Accuracies of arms in four batches: truth, a drift that all share, and reruns."""
    draw = np.random.default_rng(seed)
    moved = dict(zip(FOUR, draw.normal(0, drift, len(FOUR)), strict=True))
    return {name: {day: mean + moved[day] + draw.normal(0, sd) for day in FOUR} for name, mean in truth.items()}


@pytest.fixture
def invented(monkeypatch):
    """A function that gives every run outcomes: points more by configuration, peaks as predicted times a factor."""
    peaks = {key: one.predicted for one in memory_public.predictions() for key in one.ids}

    def invent(more: dict[str, float], sd: float = RERUN, factor: float = 1.0) -> None:
        draw = np.random.default_rng(1)
        found = {}
        for run in public_runs():
            points = 45 + more.get(run.configuration, 0.0) + draw.normal(0, sd)
            seconds, peak = 1000 * math.exp(draw.normal(0, 0.01)), round(factor * peaks[run.id])
            found[run.id] = Outcome(run.id, run.status, points / 100, train_seconds=seconds, peak_reserved_bytes=peak)
        for module in (public_arms, memory_public):
            monkeypatch.setattr(module, "outcomes", lambda: found)

    return invent


def outcome(name: str) -> str:
    """The verdict, whose named quantities are all there. No record of ours is needed."""
    store = Store()
    verdict, found = get_study(name).verdict(store), get_study(name).quantities(store)
    assert set(verdict.quantities) <= found.keys() and not get_study(name).runs(store)
    return verdict.outcome


# --- the rule ---------------------------------------------------------------------------------------------------


def test_a_planted_difference_is_found_whatever_the_versions_do():
    """What a version does to both arms falls out, also where an arm missed batches in which the other ran."""
    values = table({"a": 50.0, "b": 45.0}, sd=0.0)
    del values["b"][FOUR[1]], values["b"][FOUR[3]]
    values["c"] = {FOUR[0]: 45.0, FOUR[2]: 45.2}
    assert difference(values, "a", "b").mean == pytest.approx(5.0)
    with pytest.raises(ValueError, match="never ran with the same versions"):
        difference(values | {"d": {BATCHES[8]: 40.0}}, "a", "d")


def test_two_equal_arms_are_told_apart_in_fewer_than_seven_of_a_hundred_tables():
    """With the two errors of the rule: reruns, and questions, which are the same in all runs of an arm."""
    draw, apart, tables = np.random.default_rng(0), 0, 400
    for seed in range(tables):
        shares = draw.binomial(TEST_ROWS, 0.45, 30) / TEST_ROWS
        values = table({str(at): 100 * share for at, share in enumerate(shares)}, seed, drift=0.0)
        found = difference(values, "0", "1")
        apart += not found.low <= 0 <= found.high
    assert apart <= 0.07 * tables


def test_more_reruns_leave_the_error_of_the_questions():
    """1,319 questions bound what any number of reruns can say."""
    values = table({str(at): 50.0 for at in range(30)}, drift=0.0)
    single, every = difference(values, "0", "1", only=FOUR[0]), difference(values, "0", "1")
    least = 100 * math.sqrt(2 * 0.25 / TEST_ROWS)
    assert least < every.standard_error < single.standard_error and every.half95 > 1.9 * least
    assert public_arms.here(values, "0", "1").half95 < MARGIN < every.half95


def test_of_a_family_the_one_that_is_better_is_found():
    """Holm's procedure around the margin: the planted arm, and no other."""
    values = table({str(at): 45.0 for at in range(30)} | {"best": 45 + MARGIN + 12})
    found = {name: difference(values, name, "0") for name in values if name != "0"}
    assert [name for name, sure in stats.surely_above(found, MARGIN).items() if sure] == ["best"]
    assert public_arms.any_above(found, MARGIN) == "reproduced"
    del found["best"]
    assert public_arms.any_above(found, MARGIN) == "undecided"
    assert public_arms.any_above(found, 20) == "refuted"


def test_neighbours_turn_as_often_as_they_do():
    """All of them in a ranking upside down, none in a ranking of its own."""
    before, after, same = BATCHES[0], BATCHES[1], BATCHES[2]
    values = {str(at): {before: at, after: -at, same: at} for at in map(float, range(10))}
    assert public_arms.turned(values, before, after) == [1.0] * 9
    assert public_arms.turned(values, before, same) == [0.0] * 9


# --- arms and what was seen -------------------------------------------------------------------------------------


def test_an_arm_has_one_run_a_batch_and_the_same_settings_in_all_of_them():
    """What joined the files later has its default there; anything else that differs is a change that has a name."""
    joined = {"ensure_weight_tying": False, "qalora_group_size": 16, "use_gc": False, "use_qalora": False,
              "random_seed": 0}  # fmt: skip
    arms: dict[str, list] = {}
    for run in public_runs():
        arms.setdefault(public_arms.arm(run), []).append(run)
    for name, runs in arms.items():
        days = [public_arms.batch(run) for run in runs]
        assert len(set(days)) == len(days), name
        for one, other in itertools.combinations(runs, 2):
            for first, second in ((one.train_config, other.train_config), (one.peft_config, other.peft_config)):
                first, second = joined | dict(first or {}), joined | dict(second or {})
                assert first == second, name
    assert {*SEEN, *SEEN_MEMORY, *claims.BOTH.values()} <= arms.keys()
    assert {end for pair in (claims.PAIRS | claims.TIMES).values() for end in (pair.first, pair.second)} <= arms.keys()


def test_what_was_seen_is_in_no_family_that_predicts_and_judges_no_memory(invented):
    """The family of other methods, and the rows on which `fit` is judged."""
    invented({})
    family = claims.others(public_arms.accuracies())
    assert len(family) > 40 and not {*SEEN} & {*family} and not any(" before " in name for name in family)
    judged = {row.prediction.arm for row in memory_public.rows("judged")}
    assert judged and not judged & {*SEEN_MEMORY}
    assert {row.prediction.arm for row in memory_public.rows("seen")} <= {*SEEN_MEMORY}


def test_each_card_says_what_was_seen_before():
    """And that the runs are others'."""
    for name in STUDIES:
        study = get_study(name)
        assert study.title.startswith("At 3B, public runs: ")
        assert "Seen before: " in study.does_not_show or name == "memory_public"
    assert {"public_reruns", "memory_public", *claims.PAIRS, *claims.FAMILIES, *claims.TIMES} < {*STUDIES}
    assert claims.AT_135M.keys() <= {*STUDIES} and not {*claims.AT_135M.values()} & {*STUDIES}


# --- verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arm", "points", "expected"),
    [
        ("public_dora", "lora--rank32-dora", 12, "reproduced"),
        ("public_dora", "lora--rank32-dora", 0, "undecided"),
        ("public_dora", "lora--rank32-dora", -12, "refuted"),
        ("public_methods", LORA, 12, "reproduced"),
        ("public_methods", LORA, -12, "refuted"),
        ("public_rank", "lora--rank64", 12, "refuted"),
        ("public_vera", "vera--default", -12, "refuted"),
        ("public_others", "boft--default", 20, "reproduced"),
        ("public_others", LORA, 20, "refuted"),
        ("public_oft_miss", "oft--rank32", -12, "refuted"),
        ("public_ia3", "ia3--default", 12, "reproduced"),
        ("public_ia3", LORA, 20, "fails in this regime"),
        ("public_prompt", LORA, 20, "reproduced"),
        ("public_prefix", "prefixtuning--lr_0.001", 12, "refuted"),
        ("public_neighbours", LORA, 0, "reproduced"),
    ],
)
def test_a_claim_is_decided_by_what_is_planted(invented, name, arm, points, expected):
    """Either way, by differences that its interval can tell."""
    invented({arm: points})
    assert outcome(name) == expected


def test_arms_far_apart_keep_their_order(invented):
    """Then one run does order neighbours: the claim that it does not can fail."""
    names = sorted({run.configuration for run in public_runs()})
    invented({name: 1.2 * (at - len(names) / 2) for at, name in enumerate(names)}, sd=0.1)
    assert outcome("public_neighbours") == "refuted"


def test_the_margin_and_the_promise_decide_on_memory(invented):
    """Within a tenth of every figure, beyond it, and above what `fit` calls enough."""
    for factor, expected in ((1.05, "undecided"), (0.85, "refuted"), (1.15, "refuted"), (1.5, "refuted")):
        invented({}, factor=factor)
        assert outcome("memory_public") == expected, factor


@pytest.mark.parametrize(
    ("ratios", "promised", "expected"),
    [
        ([1.0] * 3 + [0.8], 2, "undecided"),
        ([1.0] * 60 + [0.8], 2, "reproduced"),
        ([1.0] * 30 + [0.8] * 10, 2, "refuted"),
        ([1.0] * 40, 0.99, "refuted"),
    ],
)
def test_a_share_of_rows_is_tested_and_a_promise_is_not(monkeypatch, ratios, promised, expected):
    """One miss among four tells nothing of nine in ten; one memory that was called enough and was not decides."""
    bytes_of = [(round(1000 * ratio), round(1000 * promised)) for ratio in ratios]
    found = [memory_public.Row(memory_public.Prediction("arm", ("id",), "fit", *each), 1000) for each in bytes_of]
    monkeypatch.setattr(memory_public, "rows", lambda part: iter(found))
    assert outcome("memory_public") == expected


def test_every_run_has_one_prediction_or_a_reason_why_not():
    """And the file names the package that predicted."""
    header, *rows = map(json.loads, (PUBLIC_RUNS / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    assert len(header["package_commit"]) == 40
    counts = Counter(key for row in rows for key in row["ids"])
    assert set(counts.values()) == {1} and counts.keys() == {run.id for run in public_runs()}
    for row in rows:
        assert row["kind"] in ("fit", "stand-in", "none") and ("reason" in row) == (row["kind"] != "fit")
        if row["kind"] != "none":
            assert header["generating_bytes"] < row["low_bytes"] < row["predicted_bytes"] < row["promised_bytes"]
