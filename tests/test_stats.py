"""The rule of uncertainty: closed forms, oracles of scipy, laws of its parts, simulated coverage."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

import peftbook
from peftbook.core.errors import InputError
from peftbook.evidence import stats
from peftbook.evidence.planning import found_with, settle
from peftbook.evidence.resampling import replicates, statistic_interval
from peftbook.evidence.stats import (
    Interval,
    example_interval,
    judge,
    mean_interval,
    p_value,
    paired_interval,
    score_interval,
)
from peftbook.training.probes.coverage import draw, half_widths

# ---- the interval


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_without_spread_over_examples_the_interval_is_students(seeds):
    """Every example alike: the examples' term vanishes and t(n−1) · s/√n is left, as scipy gives it."""
    means = np.random.default_rng(seeds).normal(0.3, 0.02, seeds)
    interval = mean_interval(np.repeat(means[:, None], 40, axis=1))
    low, high = oracle.t.interval(0.95, seeds - 1, loc=means.mean(), scale=oracle.sem(means))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    low90, high90 = oracle.t.interval(0.90, seeds - 1, loc=means.mean(), scale=oracle.sem(means))
    assert interval.half90 == pytest.approx((high90 - low90) / 2)
    assert interval.example_se == pytest.approx(0, abs=1e-12)
    assert (interval.seeds, interval.examples) == (seeds, 40)


@given(st.integers(2, 5), st.integers(2, 30), st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_weights_give_the_loss_per_label_token(seeds, examples, seed):
    """Σ nats / Σ label tokens, which is not the mean of the examples' means; equal weights only rescale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 20, examples).astype(float)
    nats = rng.gamma(2.0, size=(seeds, examples)) * labels
    interval = mean_interval(nats, labels)
    assert interval.mean == pytest.approx((nats.sum(axis=1) / labels.sum()).mean())
    plain, scaled = mean_interval(nats), mean_interval(nats * 3, np.full(examples, 3.0))
    assert (scaled.mean, scaled.half95) == (pytest.approx(plain.mean), pytest.approx(plain.half95))


@given(st.integers(0, 999), st.floats(-5, 5), st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_intervals_move_with_the_scores(seed, shift, scale):
    """Adding a constant moves the mean alone; a change of unit rescales everything; the same data, the same bits."""
    scores = np.random.default_rng(seed).normal(size=(3, 20))
    base, moved = mean_interval(scores), mean_interval(scores * scale + shift)
    assert moved.mean == pytest.approx(base.mean * scale + shift)
    assert moved.half95 == pytest.approx(base.half95 * scale)
    assert base == mean_interval(scores)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """400 simulated studies with seed, example and residual effects: at least 95 % cover, within 3 binomial SDs."""
    rng = np.random.default_rng(7)
    repetitions, seeds, examples, truth = 400, 4, 60, 0.4
    covered = 0
    for _ in range(repetitions):
        scores = (
            truth
            + rng.normal(0, 0.03, (seeds, 1))
            + rng.normal(0, 0.2, (1, examples))
            + rng.normal(0, 0.1, (seeds, examples))
        )
        interval = mean_interval(scores)
        covered += interval.low <= truth <= interval.high
    assert covered / repetitions >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repetitions)


def test_one_seed_decides_nothing():
    """Without a second seed there is no spread over seeds: infinite half-widths and no verdict on a bounded claim."""
    interval = mean_interval([[0.1, 0.2, 0.3]])
    assert interval.half95 == interval.half90 == interval.seed_se == math.inf
    assert interval.mean == pytest.approx(0.2) and interval.example_se > 0
    assert judge(interval, 0.1, (0.0, math.inf)) == "undecided"


def test_identical_arms_differ_by_nothing():
    """Zero, with an interval of zero width: pairing removes what the arms share."""
    scores = np.random.default_rng(0).normal(size=(3, 25))
    difference = paired_interval(scores, scores)
    assert (difference.mean, difference.half95, difference.half90) == (0, 0, 0)
    assert judge(difference, 0.01, (0.5, math.inf)) == "refuted"
    assert judge(difference, 0.5, (0.2, math.inf)) == "equivalent"


@given(st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_exchanging_the_arms_changes_the_sign(seed):
    """And nothing else; a shared effect of the examples does not widen the interval."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(2, 3, 20))
    there, back = paired_interval(one, two), paired_interval(two, one)
    assert there.mean == pytest.approx(-back.mean) and there.half95 == pytest.approx(back.half95)
    hard = 100 * rng.normal(size=20)
    assert paired_interval(one + hard, two + hard).half95 == pytest.approx(there.half95)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([]),
        lambda: mean_interval([[]]),
        lambda: mean_interval([1.0, 2.0]),
        lambda: mean_interval([[1.0, 2.0]], [1.0, 1.0, 1.0]),
        lambda: mean_interval([[1.0, 2.0]], [1.0]),
        lambda: paired_interval([[1.0, 2.0]], [[1.0]]),
        lambda: paired_interval([[1.0], [2.0]], [[1.0]]),
        lambda: score_interval([[1.0, 2.0]], None, ["a"]),
    ],
)
def test_tables_of_another_shape_are_refused(call):
    """NumPy would broadcast some of them into a number."""
    with pytest.raises(InputError, match=r"give|compare"):
        call()


def difference(mean: float, half95: float) -> Interval:
    return Interval(mean, half95, 0.8 * half95, 0.0, 0.0, 3, 100)


@pytest.mark.parametrize(
    ("mean", "half95", "claim", "verdict"),
    [  # margin 0.5 throughout
        (2.0, 1.0, (0, math.inf), "reproduced"),
        (1.5, 1.0, (0, math.inf), "reproduced"),  # touching the margin is beyond it
        (1.0, 0.9, (0, math.inf), "direction only"),  # inside, but not by the margin
        (0.0, 0.2, (-1.0, 1.0), "reproduced"),
        (0.0, 0.7, (-1.0, 1.0), "direction only"),
        (0.9, 1.0, (0, math.inf), "undecided"),
        (-2.0, 1.0, (0, math.inf), "refuted"),
        (-1.4, 1.0, (0, math.inf), "direction only"),  # outside, but not beyond the margin
        (-0.9, 1.0, (0, math.inf), "undecided"),
        (2.0, 0.5, (-math.inf, 0), "refuted"),
        (0.9, 0.5, (-math.inf, 0), "direction only"),
        (0.1, 0.4, (0.2, math.inf), "equivalent"),  # 90 % half-width 0.32 fits in ±0.5
        (0.3, 0.4, (0.2, math.inf), "undecided"),
        (-0.2, 0.3, (0, math.inf), "equivalent"),
        (0.0, math.inf, (0, math.inf), "undecided"),
    ],
)
def test_the_one_rule(mean, half95, claim, verdict):
    """science.md, section 6, case by case."""
    assert judge(difference(mean, half95), 0.5, claim) == verdict


@given(st.floats(-3, 3), st.floats(0, 3), st.floats(0, 1), st.floats(-2, 2))
def test_a_claim_and_its_opposite_are_never_both_reproduced(mean, half95, margin, edge):
    """The rule is symmetric: what refutes a claim beyond the margin reproduces its opposite, and what does not, not."""
    found = difference(mean, half95)
    up, down = judge(found, margin, (edge, math.inf)), judge(found, margin, (-math.inf, edge))
    assert not (up == down == "reproduced") or (found.low == found.high == edge == edge + margin)
    assert up != "refuted" or down == "reproduced"
    beyond = found.low > edge + margin
    assert not beyond or (up == "reproduced" and down == "refuted")


def test_an_interval_over_examples_alone_is_that_of_seeds_alike():
    """A run that nothing but the examples can change has Student's interval over them."""
    scores = np.random.default_rng(0).normal(size=60).tolist()
    alone, seeded = example_interval(scores), mean_interval([scores, scores, scores])
    assert alone.example_se == pytest.approx(seeded.example_se) and seeded.seed_se == pytest.approx(0, abs=1e-12)
    low, high = oracle.t.interval(0.95, 59, loc=np.mean(scores), scale=oracle.sem(scores))
    assert (alone.low, alone.high) == (pytest.approx(low), pytest.approx(high))


# ---- the parts of the rule


@given(st.integers(2, 6), st.integers(3, 40), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_the_two_errors_are_those_of_a_two_way_analysis_of_variance(seeds, examples, seed):
    """seed_se² + example_se² = (MS_s + MS_e − MS_se) / (seeds · examples), cut off at the examples' own part."""
    d = np.random.default_rng(seed).normal(size=(seeds, examples))
    d += np.random.default_rng(seed + 1).normal(size=(seeds, 1))
    rows, columns, mean = d.mean(axis=1), d.mean(axis=0), d.mean()
    ms_seeds = examples * rows.var(ddof=1)
    ms_examples = seeds * columns.var(ddof=1)
    rest = d - rows[:, None] - columns[None] + mean
    ms_rest = (rest**2).sum() / ((seeds - 1) * (examples - 1))
    found = score_interval(d)
    assert found.example_se**2 == pytest.approx(ms_examples / (seeds * examples))
    assert found.seed_se**2 == pytest.approx(max(0.0, ms_seeds - ms_rest) / (seeds * examples), abs=1e-12)


@given(st.integers(2, 9), st.integers(0, 999), st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_jackknife_is_what_leaving_each_unit_out_gives(units, seed, weighted):
    """Σ scores / Σ weights without a unit, minus that with all."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, units))
    weights = rng.uniform(1, 5, units) if weighted else np.ones(units)
    deviations, scale = stats.jackknife(scores, weights)
    whole = scores.sum(axis=1) / weights.sum()
    for at in range(units):
        kept = np.arange(units) != at
        assert deviations[at] == pytest.approx(scores[:, kept].sum(axis=1) / weights[kept].sum() - whole)
    assert scale == pytest.approx((units - 1) / units)


@pytest.mark.parametrize("level", [0.5, 0.1, 0.05, 1e-3, 1e-9])
@pytest.mark.parametrize("freedom", [1, 2, 4.6, 30, math.inf])
def test_quantiles_are_students(level, freedom):
    """Also far in the tail, and the normal's where the degrees of freedom have no end."""
    expected = oracle.norm.isf(level / 2) if math.isinf(freedom) else oracle.t.isf(level / 2, freedom)
    assert float(stats.quantile(level, freedom)) == pytest.approx(expected, rel=1e-6)


@given(st.floats(0, 3), st.floats(0, 3), st.integers(2, 9), st.floats(1, 300))
def test_the_half_width_lies_between_those_of_each_error_alone_and_their_sum(seed_se, example_se, seeds, freedom):
    """Neither error can make the other smaller, and a half-width grows as the level falls."""
    both, own, others = (
        [float(stats.half_width(level, a, b, seeds - 1, freedom)) for level in (0.1, 0.05)]
        for a, b in ((seed_se, example_se), (seed_se, 0.0), (0.0, example_se))
    )
    for at in range(2):
        assert max(own[at], others[at]) <= both[at] * (1 + 1e-12) + 1e-12
        assert both[at] <= own[at] + others[at] + 1e-12
    assert both[0] <= both[1]


@given(st.floats(-4, 4), st.floats(0, 1), st.floats(0.01, 1), st.integers(1, 5))
@settings(deadline=None)
def test_p_is_the_level_at_which_the_interval_touches_zero(mean, seed_se, example_se, seeds):
    """So p ≤ 0.05 exactly where the 95 % interval leaves out zero: there is one p-value for one difference."""
    one = Interval.of(mean, seed_se if seeds > 1 else 0.0, example_se, seeds, 100)
    p = p_value(one)
    assert 0 <= p <= 1
    if p > 1e-11 and mean:
        assert one.half(p) == pytest.approx(abs(mean), rel=1e-6, abs=1e-8)  # a p near 1 is known to its rounding
    if abs(one.half95 - abs(mean)) > 1e-9:
        assert (p <= 0.05) == (abs(mean) >= one.half95)


def test_p_without_any_error():
    """A difference without spread is zero or is not; one whose error is unknown says nothing."""
    assert p_value(Interval(0.0, 0, 0, 0.0, 0.0, 3, 10)) == 1 and p_value(Interval(0.2, 0, 0, 0.0, 0.0, 3, 10)) == 0
    assert p_value(mean_interval([[0.1, 0.2]])) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7, unique=True))
def test_holm_rejects_between_bonferroni_and_no_correction(p):
    """And whenever it rejects one hypothesis, all with a smaller p."""
    named = {str(at): value for at, value in enumerate(p)}
    found = stats.holm(named)
    for name, value in named.items():
        assert found[name] or value > 0.05 / len(p)
        assert not found[name] or value <= 0.05
        assert all(found[other] for other in named if named[other] < value) or not found[name]


# ---- groups


def test_groups_of_one_are_no_groups():
    """Every example its own group, by name or by none, gives the interval without groups."""
    scores = np.random.default_rng(0).normal(size=(3, 12))
    plain = score_interval(scores)
    for groups in ([f"g{at}" for at in range(12)], [""] * 12):
        assert score_interval(scores, None, groups) == plain


def test_copies_of_examples_carry_no_more_than_the_examples():
    """Each of twelve examples three times, with the copies as groups: the errors of the twelve."""
    scores = np.random.default_rng(1).normal(size=(3, 12))
    copies, groups = np.repeat(scores, 3, axis=1), np.repeat(np.arange(12), 3).tolist()
    plain, grouped = score_interval(scores), score_interval(copies, None, groups)
    assert (grouped.example_se, grouped.half95) == (pytest.approx(plain.example_se), pytest.approx(plain.half95))
    assert grouped.groups == 12 and grouped.by_example is not None
    naive = score_interval(copies)
    assert grouped.by_example == (naive.low, naive.high) and naive.half95 < grouped.half95


@given(st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_the_order_of_examples_and_the_names_of_groups_do_not_matter(seed):
    """A permutation of the columns, and other names, leave the interval."""
    rng = np.random.default_rng(seed)
    scores, weights, groups = rng.normal(size=(3, 30)), rng.uniform(1, 5, 30), rng.integers(9, size=30)
    order = rng.permutation(30)
    one = score_interval(scores, weights, [f"g{group}" for group in groups])
    two = score_interval(scores[:, order], weights[order], groups[order].tolist())
    assert (one.mean, one.half95, one.groups) == (pytest.approx(two.mean), pytest.approx(two.half95), two.groups)


def test_uneven_groups_count_as_fewer():
    """One group of half the examples beside many small ones leaves few degrees of freedom."""
    assert stats.freedom_of(np.ones(9)) == pytest.approx(8)
    assert stats.freedom_of(np.array([20.0, *[1.0] * 20])) < 4


@pytest.mark.parametrize(("seeds", "groups", "decides"), [(2, 12, False), (3, 7, False), (3, 8, True), (1, 8, True)])
def test_two_seeds_or_few_groups_show_a_direction_only(seeds, groups, decides):
    """However clear the interval is; an interval that decides nothing anyway stays undecided."""
    rng = np.random.default_rng(0)
    scores = 1 + 0.001 * rng.normal(size=(seeds, 5 * groups))
    found = score_interval(scores, None, np.repeat(np.arange(groups), 5).tolist())
    assert found.decides == decides
    assert judge(found, 0.1, (0.5, math.inf)) == ("reproduced" if decides else "direction only")
    assert judge(found, 0.1, (1.0, math.inf)) == "undecided"


def test_a_single_group_decides_nothing():
    """Its error is not known: the interval is that over examples, and says a direction."""
    scores = np.random.default_rng(0).normal(1, 0.01, size=(3, 20))
    found = score_interval(scores, None, ["all"] * 20)
    assert found.half95 == score_interval(scores).half95 and found.groups == 1 and not found.decides


# ---- other statistics


@pytest.mark.parametrize("groups", [(), tuple(np.repeat(np.arange(10), 6).tolist())])
def test_a_mean_taken_as_any_statistic_has_the_interval_of_a_mean(groups):
    """Leaving groups out is exact; the bootstrap of examples has its own error, 1/√(2 · 2000) = 1.6 %."""
    scores = np.random.default_rng(3).normal(size=(3, 60)) + np.random.default_rng(4).normal(size=(3, 1))
    counts = replicates(60, groups)
    found = statistic_interval(counts @ scores.T / counts.sum(axis=1, keepdims=True), 60, groups)
    expected = score_interval(scores, None, groups)
    close = {"rel": 1e-9} if groups else {"rel": 0.08}
    assert found.mean == pytest.approx(expected.mean) and found.groups == expected.groups
    assert found.example_se == pytest.approx(expected.example_se, **close)
    assert found.half95 == pytest.approx(expected.half95, **close)


# ---- second looks


@pytest.mark.parametrize("share", [0.3, 0.5, 0.6, 0.9])
def test_two_looks_together_err_as_often_as_the_level_says(share):
    """Paths of a standard normal mean at two sizes: with spending 5 % cross one bar, with two plain bars more."""
    first, more = np.random.default_rng(1).normal(size=(2, 400_000))
    last = math.sqrt(share) * first + math.sqrt(1 - share) * more
    bars = (
        float(stats.quantile(0.05, math.inf)) / math.sqrt(share),
        float(stats.quantile(stats.final_level(0.05, share), math.inf)),
    )
    assert np.mean((abs(first) > bars[0]) | (abs(last) > bars[1])) == pytest.approx(0.05, abs=0.0015)
    assert np.mean((abs(first) > 1.96) | (abs(last) > 1.96)) > 0.06
    assert stats.final_level(0.05, share) < 0.05


def test_a_second_look_is_wider_and_says_where():
    """Half-widths are those at the last level; the errors and the mean stay."""
    once = score_interval(np.random.default_rng(0).normal(size=(5, 80)))
    twice = stats.second_look(once, 3 / 5)
    assert twice.half95 == pytest.approx(once.half(stats.final_level(0.05, 0.6))) and twice.half95 > once.half95
    assert twice.half90 > once.half90 and (twice.mean, twice.standard_error) == (once.mean, once.standard_error)


def test_a_bias_widens_both_ends_by_itself():
    """In either direction, whatever its sign."""
    plain = score_interval(np.random.default_rng(0).normal(size=(3, 40)))
    for bias in (0.3, -0.3):
        found = stats.with_bias(plain, bias)
        assert (found.low, found.high) == (pytest.approx(plain.low - 0.3), pytest.approx(plain.high + 0.3))
        assert found.half90 == pytest.approx(plain.half90 + 0.3)
        assert found.half(0.05) == pytest.approx(found.half95) and p_value(found) >= p_value(plain)
    assert p_value(stats.with_bias(plain, 2 * abs(plain.mean))) == 1


# ---- plans


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_plan_finds_the_difference_that_matters_four_times_in_five(seeds):
    """New seeds and a fresh test set of the size that is asked for, with the spread that was measured."""
    rng = np.random.default_rng(11)
    margin, seed_sd, example_sd = 0.02, 0.01 if seeds > 1 else 0.0, 0.14
    rows = rng.normal(0.5, seed_sd, (seeds, 1)) + rng.normal(0, example_sd, (1, 60)) + np.zeros((seeds, 60))
    examples, wanted = settle(score_interval(rows), margin, 0.025)
    assert examples > 60 and wanted >= seeds and (wanted == 1) == (seeds == 1)
    spread = float(score_interval(rows).example_se * math.sqrt(60)), float(rows.mean(axis=1).std(ddof=seeds > 1))
    found = 0
    for _ in range(400):
        fresh = margin + rng.normal(0, spread[1], (wanted, 1)) + rng.normal(0, spread[0], (1, examples))
        found += p_value(score_interval(fresh + np.zeros((wanted, examples)))) <= 0.05
    assert found / 400 >= 0.74


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("share", "least"), [(1.0, 0.78), (0.5, 0.77), (0.1, 0.73)])
def test_the_difference_that_is_said_to_be_found_is_found_so_often(seeds, share, least):
    """Simulated studies whose mean has variance 1, a share of it from seeds; at least what `found_with` says."""
    count, studies = 60, 8000
    parts, sizes = [share, 0.75 * (1 - share), 0.25 * (1 - share)], np.ones(count, dtype=int)
    scores = draw(np.random.default_rng(seeds), studies, seeds, sizes, parts, "normal")
    spread = stats.Interval.of(0.0, math.sqrt(share), math.sqrt(1 - share), seeds, count)
    difference = found_with(spread, count, seeds, 0.025)
    found = np.mean(scores.mean(axis=(1, 2)) + difference > half_widths(scores, sizes)["own_quantiles"])
    assert least <= found <= 0.82


def test_a_plan_does_not_look_at_the_difference():
    """Only at its spread: a difference that happened to be large would ask for too little."""
    scores = np.random.default_rng(0).normal(0, 0.1, (3, 50))
    assert settle(score_interval(scores), 0.02, 0.025) == settle(score_interval(scores + 5), 0.02, 0.025)


def test_three_seeds_alike_see_what_one_run_sees():
    """More seeds are no penalty: where they agree, p is that of the examples alone."""
    row = np.random.default_rng(5).normal(0.02, 0.05, 80)
    assert p_value(score_interval([row] * 3)) == pytest.approx(p_value(score_interval([row])), rel=1e-6)


# ---- one place


def test_only_the_rule_and_its_resampling_know_a_quantile():
    """No other module of the package takes a quantile of Student's t or of the normal for an interval."""
    quantile = re.compile(r"\.(stdtrit|nanquantile)\b|\b(t|norm)\.ppf\b")
    files = Path(peftbook.__file__).parent.rglob("*.py")
    known = {path.name for path in files if quantile.search(path.read_text(encoding="utf-8"))}
    assert known == {"stats.py", "resampling.py"}


# ---- what is not known, and what is no score


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_single_example_leaves_the_second_error_unknown(seeds):
    """However alike the seeds are: other examples were never seen. So no verdict, p is 1, and no plan is made."""
    found = score_interval([[0.4]] * seeds)
    assert found.example_se == found.half95 == math.inf and found.mean == pytest.approx(0.4)
    assert p_value(found) == 1 and judge(found, 0.1, (0.0, 1.0)) == "undecided"
    with pytest.raises(InputError, match="not known: measure two of each"):
        settle(found, 0.02, 0.025)


def test_a_plan_from_one_seed_of_several_is_refused():
    """What other seeds would change is not known: no number of examples makes up for it."""
    with pytest.raises(InputError, match="1 seed and 3 test examples"):
        settle(mean_interval([[0.1, 0.2, 0.3]]), 0.02, 0.025)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_an_interval_over_seeds_alone_is_students(values):
    """Nothing else is random; of a single seed it is infinite."""
    found = stats.seed_interval(values)
    half = float(oracle.t.ppf(0.975, len(values) - 1) * oracle.sem(values))
    assert (found.mean, found.half95) == (pytest.approx(np.mean(values)), pytest.approx(half, abs=1e-12))
    assert found.example_se == 0 and stats.seed_interval(values[:1]).half95 == math.inf


@pytest.mark.parametrize("groups", [[], ["a", "a", "b", "b", "c", "c", "none"]])
def test_an_example_that_weighs_nothing_is_none(groups):
    """A text without label tokens neither adds an example, nor a group to the eight, nor a degree of freedom."""
    scores, weights = np.random.default_rng(0).normal(size=(3, 6)), np.arange(1.0, 7.0)
    padded = np.hstack([scores, np.zeros((3, 1))])
    assert score_interval(padded, [*weights, 0.0], groups) == score_interval(scores, weights, groups[:6])


@pytest.mark.parametrize(
    ("scores", "weights", "said"),
    [
        ([[0.1, 0.2], [0.3, math.nan]], None, "Score 2 of seed 2 is nan"),
        ([[0.1, math.inf]], None, "Score 2 of seed 1 is inf"),
        ([[0.1, 0.2]], [0.0, 0.0], "Weights"),
        ([[0.1, 0.2]], [1.0, -1.0], "Weights"),
        ([[0.1, 0.2]], [1.0, math.nan], "Weights"),
    ],
)
def test_what_is_no_score_and_no_weight_is_refused(scores, weights, said):
    """A NaN that went in would come out as an interval that looks like one."""
    with pytest.raises(InputError, match=said):
        score_interval(scores, weights)


def test_a_statistic_that_cannot_do_without_a_group_has_no_known_error():
    """Dropping the replicate that fails would make the interval narrower for it; so would a single group."""
    groups = tuple(np.repeat(np.arange(10), 3).tolist())
    values = np.random.default_rng(0).normal(size=(11, 3))
    assert math.isfinite(statistic_interval(values, 30, groups).half95)
    values[4, 1] = math.nan
    assert statistic_interval(values, 30, groups).example_se == math.inf
    assert statistic_interval(np.ones((2, 3)), 30, ("all",) * 30).example_se == math.inf


def test_a_statistic_of_a_single_example_or_of_few_samples_has_no_known_error():
    """A bootstrap of one example only repeats it; one that mostly fails says nothing."""
    assert statistic_interval(np.ones((2001, 3)), 1).example_se == math.inf
    values = np.random.default_rng(0).normal(size=(2001, 3))
    values[1:1500] = math.nan
    assert statistic_interval(values, 30).example_se == math.inf


@given(st.lists(st.sampled_from(["reproduced", "refuted", "undecided", "equivalent", "direction only"]), min_size=1))
def test_a_claim_of_several_parts_falls_with_one_and_needs_all(outcomes):
    """One refuted part refutes the whole; anything short of all reproduced leaves it undecided."""
    whole = stats.together(outcomes)
    assert (whole == "refuted") == ("refuted" in outcomes)
    assert (whole == "reproduced") == all(outcome == "reproduced" for outcome in outcomes)
    assert whole in ("refuted", "reproduced", "undecided")


def test_an_unknown_error_rejects_nothing():
    """A p of 0 would call certain what is no number."""
    broken = Interval(math.nan, math.nan, math.nan, math.nan, math.nan, 3, 10)
    assert stats.p_value(broken) == 1 and stats.holm({"broken": stats.p_value(broken)}) == {"broken": False}
