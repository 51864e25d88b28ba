"""Verdicts on claims about rates, variants, scaling and recovery: driven to every outcome with invented records."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.memory import SHAPES
from peftbook.studies import (
    batch_size,
    beyond_lora,
    get_study,
    learning_rate,
    other_tasks,
    qlora_width,
    rank,
    recovery,
    scaling,
    survival,
    two_rates,
    variants,
)
from peftbook.studies.tuned_comparison import decide

TOKENS = 4.0


def save(store: Store, run: specs.Run, loss: float, *, examples: int = 20, failure: str = "", steps=()) -> None:
    """A record with this mean loss; examples differ by amounts that all runs share. examples: of the test split."""
    if run.evaluation.split == "validation":
        examples = run.evaluation.n_loss
    shared = np.random.default_rng(3).normal(0, 0.2, examples)
    noise = np.random.default_rng(int(run.key[:12], 16)).normal(0, 1e-3, examples)
    nats = TOKENS * (loss + shared - shared.mean() + noise)
    store.save(
        Record(
            key=run.key,
            spec=run,
            measurements={"loss_nats": loss, "trainable_parameters": 5},
            per_example={"loss_nats": nats.tolist(), "label_tokens": [TOKENS] * examples},
            curve={"train_loss_nats": list(steps)} if len(steps) else {},
            failure=failure,
        )
    )


def asked_for(store: Store, runs) -> list[specs.Run]:
    """The runs without a record."""
    return [run for run in runs(store) if run not in store]


def complete(store: Store, runs, loss, steps=lambda run: (5.0,), examples: int = 20) -> None:
    """A record for every run that is asked for, until none is. steps: its training loss, from the untrained model's."""
    while missing := asked_for(store, runs):
        for run in missing:
            found = loss(run)
            save(store, run, found if math.isfinite(found) else 9.0, steps=steps(run), examples=examples,
                 failure="" if math.isfinite(found) else "Training diverged")  # fmt: skip


# --- a claim that holds the margin -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "outcome", "told"), [(0.01, "reproduced", True), (0.02, "undecided", True), (0.05, "refuted", False),
                                  (0.0, "reproduced", False), (-0.01, "reproduced", False)]
)  # fmt: skip
def test_a_difference_that_a_claim_allows_by_its_margin_alone_is_told(mean, outcome, told):
    """It is surely against what is claimed, and the rule has no direction for it."""
    one = stats.Interval.of(mean, 0.001, 0.0, 5, 100)
    for sign, claim in ((1, (-math.inf, 0.02)), (-1, (-0.02, math.inf))):
        found = decide(one if sign > 0 else -one, 0.0, claim, "The difference", "it", "nats per token")
        assert found.outcome == outcome
        assert (f"surely {'above' if sign > 0 else 'below'} 0" in found.sentence) == told


# --- the best learning rate ------------------------------------------------------------------------------------


def bowl(optima, apart=lambda rank: 0.05, width=0.05):
    """Loss of a run: a parabola in log rate around the optimum of its arm, `apart` between seeds."""

    def loss(run):
        rank = getattr(run.method, "rank", 0)
        centre = math.log(optima(rank)) + apart(rank) * (run.seed % 3 - 1)
        return 1.5 + width * (math.log(run.budget.learning_rate) - centre) ** 2

    return loss


@pytest.mark.parametrize(
    ("ratio", "apart", "outcome"),
    [(10, 0.05, "reproduced"), (40, 0.05, "refuted"), (2, 0.05, "refuted"), (19, 0.4, "undecided")],
)
def test_the_ratio_of_best_rates_is_found_and_judged(tmp_path, ratio, apart, outcome):
    """From parabolas whose vertices are known; near the border of the claim, with seeds that disagree, it is open.

    Vertices beyond the best rate's neighbours are held there.
    """
    store = Store(tmp_path)
    loss = bowl(lambda rank: 4e-5 * (ratio if rank else 1), lambda rank: apart if rank else 0.05)
    complete(store, learning_rate.short_runs, loss)
    found = learning_rate.log_ratio("r16", "full", store)
    assert math.exp(found.mean) == pytest.approx(ratio, rel=0.15)
    assert learning_rate.ratio_verdict(store).outcome == outcome


def test_rank_fours_rate_is_tried_at_the_other_ranks_however_far_it_lies(tmp_path):
    """So that a large regret is seen, and called what it is."""
    store = Store(tmp_path)
    complete(store, learning_rate.short_runs, bowl(lambda rank: 4e-3 if rank == 4 else 4e-4))
    assert not [run for run in learning_rate.short_runs(store) if run not in store]
    found = learning_rate.regret("r16", store)
    assert found is not None and found.mean == pytest.approx(0.05 * math.log(10) ** 2, rel=0.3)
    assert learning_rate.regret_verdict(store).outcome == "refuted"


def test_equal_best_rates_cost_nothing(tmp_path):
    """On the grid's resolution."""
    store = Store(tmp_path)
    complete(store, learning_rate.short_runs, bowl(lambda rank: 4e-4))
    assert learning_rate.regret_verdict(store).outcome == "reproduced"


def test_a_diverged_replica_leaves_the_fit_and_not_the_verdict(tmp_path):
    """One of several seeds lost at the highest rate of the window; the others carry the parabola."""
    store, plain = Store(tmp_path), bowl(lambda rank: 4e-5 * (10 if rank else 1))

    def loss(run):
        top = run.seed == 11 and run.method.kind == "full" and run.budget.learning_rate > 1e-4
        return math.inf if top else plain(run)

    complete(store, learning_rate.short_runs, loss)
    assert learning_rate.ratio_verdict(store).outcome == "reproduced"


def test_a_collapsed_replica_leaves_the_fit(tmp_path):
    """A run that ended worse than its untrained start would flatten the parabola and move its vertex."""
    store, plain = Store(tmp_path), bowl(lambda rank: 4e-5 * (10 if rank else 1))

    def loss(run):
        top = run.seed == 11 and run.method.kind == "full" and run.budget.learning_rate > 1e-4
        return 8.5 if top else plain(run)

    complete(store, learning_rate.short_runs, loss)
    found = learning_rate.log_ratio("r16", "full", store)
    assert found is not None and math.exp(found.mean) == pytest.approx(10, rel=0.1)


def test_the_ratio_in_the_long_training_is_found(tmp_path):
    """By its own sweeps."""
    store, found = Store(tmp_path), get_study("learning_rate_long")
    complete(store, found.runs, bowl(lambda rank: 4e-5 * (10 if rank else 1)))
    assert found.verdict(store).outcome == "reproduced"
    assert found.quantities(store)["long_ratio"].value == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(("moved", "outcome"), [(1.0, "reproduced"), (2.0, "undecided"), (16.0, "refuted")])
def test_a_rate_from_a_short_training_is_tried_in_the_long_one_however_far_it_lies(tmp_path, moved, outcome):
    """Where the optimum has moved by one step of the grid, by more, or not at all."""
    store = Store(tmp_path)
    plain = {budget: bowl(lambda rank, by=by: 4e-4 / by * (1 if rank else 0.1), width=0.03)
             for budget, by in ((learning_rate.SHORT.tokens, 1.0), (learning_rate.LONG.tokens, moved))}  # fmt: skip

    def loss(run):
        return plain[run.budget.tokens](run)

    for runs in (learning_rate.short_runs, learning_rate.long_runs):
        complete(store, runs, loss)
    assert get_study("short_tuning").verdict(store).outcome == outcome
    cost = learning_rate.cost_of_short("r16", store)
    assert cost.mean == pytest.approx(0.03 * math.log(moved) ** 2, abs=0.004)


# --- the batch -------------------------------------------------------------------------------------------------


def batch_loss(full: float, lora: float, width: float = 0.02, apart: float = 0.0, behind: float = 0.0):
    """Loss of a run: what its arm pays for the largest batch, above a parabola about a best rate that the grid has.

    width: of the parabola.  apart: how far the largest batch's cost to LoRA differs from one seed to the next.
    behind: what few steps cost LoRA beyond what they cost full fine-tuning.
    """

    def loss(run):
        if run.budget is None:
            return 5.0
        kind, size = ("r16" if hasattr(run.method, "rank") else "full"), run.budget.batch_size
        few = run.budget.tokens < batch_size.TOKENS
        best = batch_size.COMPARISONS[size].arm(kind).rates[1]
        paid = (lora if kind == "r16" else full) * math.log2(size / 2) / 4
        paid += apart * (run.seed - 3) * (kind == "r16") * (size == batch_size.LARGEST)
        paid += behind * few * (kind == "r16")
        return 2.0 + 0.9 * few + paid + width * math.log2(run.budget.learning_rate / best) ** 2

    return loss


@pytest.mark.parametrize(
    ("full", "lora", "apart", "outcome"),
    [
        (0.2, 0.3, 0.0, "reproduced"),
        (0.3, 0.2, 0.0, "fails in this regime"),
        (0.3, 0.3, 0.0, "equivalent"),
        (0.2, 0.235, 0.01, "direction only"),
        (0.2, 0.21, 0.05, "undecided"),
        (0.0, 0.0, 0.0, "undecided"),  # nothing to tolerate
        (-0.2, -0.1, 0.0, "undecided"),  # a large batch helps
    ],
)
def test_what_a_large_batch_costs_is_compared_where_it_costs_something(tmp_path, full, lora, apart, outcome):
    """The difference of two costs, paired; where neither arm pays there is nothing to compare."""
    store, study = Store(tmp_path), get_study("batch_size")
    complete(store, batch_size.runs, batch_loss(full, lora, apart=apart))
    found, known = study.verdict(store), study.quantities(store)
    assert found.outcome == outcome, found.sentence
    assert ("nothing to tolerate" in found.sentence) == (max(full, lora) <= 0)
    assert set(found.quantities) <= set(known)
    assert known["full_cost"].value == pytest.approx(full, abs=2e-3)
    assert known["extra_cost"].value == pytest.approx(lora - full, abs=2e-3)
    assert known["few_full_cost"].value == pytest.approx(full - 0.9, abs=2e-3)


@pytest.mark.parametrize(("behind", "outcome"), [(0.05, "reproduced"), (0.3, "undecided")])
def test_a_control_at_equal_steps_that_says_the_opposite_decides(tmp_path, behind, outcome):
    """LoRA pays .1 more for the largest batch; if few steps cost it .3 more, the batch is not to blame."""
    store = Store(tmp_path)
    complete(store, batch_size.runs, batch_loss(0.2, 0.3, behind=behind))
    found = get_study("batch_size").verdict(store)
    assert (found.outcome, bool(found.held)) == (outcome, outcome == "undecided"), found.sentence


@pytest.mark.parametrize(
    ("full", "lora", "outcome"),
    [(-0.8, -0.9, "reproduced"), (-0.8, -0.79, "reproduced"), (-0.8, -0.7, "refuted"), (0.0, -0.01, "undecided")],
)
def test_equal_steps_ask_whether_a_large_batch_sets_lora_further_back(tmp_path, full, lora, outcome):
    """The difference of two changes; where the larger batch is worth nothing to either arm nothing is asked."""
    store, study = Store(tmp_path), get_study("batch_steps")
    few_cost = 0.9
    complete(store, study.runs, batch_loss(few_cost + full, few_cost + lora), examples=200)
    found, known = study.verdict(store), study.quantities(store)
    assert (found.outcome, bool(found.held)) == (outcome, outcome == "undecided"), found.sentence
    assert [known[name].value for name in found.quantities] == pytest.approx([lora - full, full, lora], abs=2e-3)
    budgets = {run.budget.batch_size: run.budget.tokens / run.budget.batch_size for run in study.runs(store)}
    assert budgets[2] == pytest.approx(budgets[32], rel=1e-4), "equal steps"


@settings(max_examples=6, deadline=None)
@given(st.permutations([0.0, 0.001, 0.002, 0.003]))
def test_a_finer_grid_could_not_take_a_difference_of_costs_out_of_its_interval(tmp_path_factory, offsets):
    """Lower any of the four losses by what its grid may have missed: that is inside what choosing adds."""
    store, cells = Store(tmp_path_factory.mktemp("records")), list(itertools.product(batch_size.ARMS, (2, 32)))
    missed = dict(zip(cells, offsets, strict=True))

    def loss(run):
        kind = "r16" if hasattr(run.method, "rank") else "full"
        best = run.budget and batch_size.COMPARISONS[run.budget.batch_size].arm(kind).rates[1]
        off = math.sqrt(missed.get((kind, best and run.budget.batch_size), 0) / 0.02)  # doublings from the best rate
        return 5.0 if run.budget is None else 2.0 + 0.02 * (math.log2(run.budget.learning_rate / best) - off) ** 2

    complete(store, batch_size.runs, loss)
    plans = batch_size.COMPARISONS
    tuned = {cell: plans[cell[1]].tuning(plans[cell[1]].arm(cell[0])) for cell in cells}
    gained = {cell: sweep.choice_error(store.get, 0.0) for cell, sweep in tuned.items()}
    assert gained == pytest.approx(missed, abs=2e-4)
    bias = 1.96 * batch_size.extra(store).choice_se
    for chosen in itertools.product((0, 1), repeat=4):
        low = {cell: -taken * gained[cell] for cell, taken in zip(cells, chosen, strict=True)}
        moved = low["r16", 32] - low["r16", 2] - low["full", 32] + low["full", 2]
        assert abs(moved) <= bias + 1e-12


# --- variants of LoRA ------------------------------------------------------------------------------------------


def is_pissa(run) -> bool:
    return getattr(run.method, "init", "") == "pissa"


def falling(speed: float, floor: float = 1.0):
    """Training loss of 40 steps that falls `speed` times as fast as plain LoRA's."""
    return (floor + 2 * np.exp(-np.arange(40) * speed / 12)).tolist()


@pytest.mark.parametrize(
    ("speed", "floor", "outcome"),
    [(2.0, 1.0, "reproduced"), (1.0, 1.0, "equivalent"), (0.5, 1.0, "refuted"), (1.0, 2.5, "refuted")],
)
def test_a_variant_is_faster_only_if_it_gets_there_earlier(tmp_path, speed, floor, outcome):
    """A variant that never reaches the target (a floor above it) is slower, not as fast."""
    store = Store(tmp_path)
    complete(
        store,
        get_study("pissa").runs,
        lambda run: 1.5 + 0.02 * abs(math.log(run.budget.learning_rate / 4e-4)) + 0.001 * run.seed,
        lambda run: falling(speed, floor) if is_pissa(run) else falling(1.0),
    )
    found = get_study("pissa").verdict(store)
    assert found.outcome == outcome, found.sentence


def test_no_variant_is_judged_before_its_family_is_there(tmp_path):
    """Holm's correction needs all six."""
    store, plan = Store(tmp_path), variants.COMPARISON
    complete(
        store,
        lambda store: [run for run in plan.runs(store) if run.method.kind == "lora"],
        lambda run: 1.5 + 0.02 * abs(math.log(run.budget.learning_rate / 4e-4)),
        lambda run: falling(2.0 if is_pissa(run) else 1.0),
    )
    assert get_study("pissa").verdict(store).outcome == "not yet run"


@pytest.mark.parametrize(("apart", "outcome"), [(0.0, "undecided"), (0.05, "equivalent")])
def test_dora_is_equal_only_where_some_rate_parts_it_from_lora(tmp_path, apart, outcome):
    """Two methods that no rate of the grid can tell apart have not been compared."""
    store = Store(tmp_path)

    def loss(run):
        rate = run.budget.learning_rate
        return 1.5 + 0.02 * abs(math.log(rate / 8e-4)) + apart * (rate == 3.2e-3 and getattr(run.method, "dora", False))

    complete(store, get_study("dora").runs, loss, lambda run: falling(1.0))
    assert get_study("dora").verdict(store).outcome == outcome


# --- beyond LoRA -----------------------------------------------------------------------------------------------


def arm_of(run) -> str:
    """The arm of `beyond_lora` that a run belongs to."""
    return next(arm.name for arm in beyond_lora.COMPARISON.arms if arm.method == run.method)


def tried(tmp_path, gains: dict[str, float], wobble: dict[str, float]) -> Store:
    """Records of every arm, each `gains` below LoRA's loss and `wobble` apart between seeds."""
    store = Store(tmp_path)

    def loss(run):
        name = arm_of(run)
        away = 0.02 * abs(math.log(run.budget.learning_rate / 4e-4))
        return 1.5 + away - gains.get(name, 0.0) + wobble.get(name, 0.0) * (run.seed % 3 - 1)

    complete(store, beyond_lora.COMPARISON.runs, loss)
    return store


@pytest.mark.parametrize(
    ("gains", "wobble", "family", "new", "words"),
    [
        ({}, {}, "reproduced", "reproduced", "Of 7 arms"),
        ({"oft": 0.1}, {}, "refuted", "refuted", "OFT has the lowest"),
        ({"pissa": 0.1}, {}, "refuted", "reproduced", "PiSSA has the lowest"),
        ({"pissa": 0.02}, {"pissa": 0.005}, "undecided", "reproduced", "not decided: PiSSA"),
        ({"miss": -0.2}, {"miss": 0.04}, "undecided", "undecided", "wider than the margin: MiSS"),
        ({"oft": 0.06}, {"oft": 0.0226}, "undecided", "refuted", "not decided: OFT"),
    ],
)
def test_plain_lora_is_enough_only_if_every_arm_was_seen_not_to_gain(tmp_path, gains, wobble, family, new, words):
    """One arm beyond the margin refutes for all, if it stands after Holm; one in doubt, or too noisy, keeps it open."""
    store = tried(tmp_path, gains, wobble)
    found = get_study("beyond_lora").verdict(store)
    assert found.outcome == family and words in found.sentence, found.sentence
    assert get_study("beyond_lora_new").verdict(store).outcome == new
    assert found.quantities[0] in get_study("beyond_lora").quantities(store)


def test_the_arms_that_were_known_have_the_records_of_the_variants(tmp_path):
    """Equal keys: nothing of plain LoRA and its variants is trained twice, and both have the same grid and seeds."""
    store, plan = Store(tmp_path), beyond_lora.COMPARISON
    mine, theirs = ({run.key for run in one.COMPARISON.runs(store)} for one in (beyond_lora, variants))
    new = {run.key for run in plan.runs(store) if arm_of(run) in beyond_lora.NEW}
    assert mine - theirs == new and len(new) == sum(len(plan.arm(name).rates) for name in beyond_lora.NEW)
    assert len({len(arm.rates) for arm in plan.arms}) == 1


@pytest.mark.parametrize(
    ("gains", "wobble", "outcome"),
    [
        (dict.fromkeys(other_tasks.BETTER, 0.02), 0.0, "reproduced"),
        ({"pissa": 0.04, "plus16": 0.0}, 0.0, "refuted"),  # .008 on average over five
        (dict.fromkeys(other_tasks.BETTER, -0.02), 0.0, "refuted"),
        (dict.fromkeys(other_tasks.BETTER, 0.015), 0.02, "undecided"),
    ],
)
def test_the_gain_elsewhere_is_the_mean_over_all_arms_at_their_own_rates(tmp_path, gains, wobble, outcome):
    """Neither the best arm nor the number of those that gain, and full fine-tuning has no part in it."""
    store, plan = Store(tmp_path), other_tasks.COMPARISONS["docstrings"]

    def loss(run):
        name = next(arm.name for arm in plan.arms if arm.method == run.method)
        away = 0.02 * abs(math.log(run.budget.learning_rate / 1e-4))
        return 1.5 + away - gains.get(name, 0.0) + wobble * (run.seed % 3 - 1) * (name in other_tasks.BETTER)

    complete(store, plan.runs, loss, examples=plan.test_examples)
    study = get_study("gain_docstrings")
    assert study.verdict(store).outcome == outcome
    mean = math.fsum(gains.get(name, 0.0) for name in other_tasks.BETTER) / len(other_tasks.BETTER)
    assert study.quantities(store)["docstrings_gain"].value == pytest.approx(-mean, abs=0.01)


def test_the_new_arms_train_about_as_many_numbers_as_lora():
    """Within 4 %, as far as OFT's blocks and MiSS's shards allow."""
    shape = SHAPES["smollm2-135m"]
    counts = {name: beyond_lora.COMPARISON.arm(name).method.parameters(shape) for name in ("lora", *beyond_lora.NEW)}
    assert all(abs(count / counts["lora"] - 1) < 0.04 for count in counts.values()), counts


# --- scaling ---------------------------------------------------------------------------------------------------


def stabilised(run) -> bool:
    return run.method.scaling == "rank_stabilized"


@pytest.mark.parametrize(("gain", "outcome"), [(0.1, "reproduced"), (0.0, "refuted")])
def test_no_gain_of_rank_stabilised_scaling_refutes_both_claims(tmp_path, gain, outcome):
    """The claim is a gain by the margin, at the fixed rate and after tuning."""
    store = Store(tmp_path)
    complete(store, scaling.runs, lambda run: 1.5 + 0.02 * abs(math.log(run.budget.learning_rate / 4e-4))
             - gain * stabilised(run))  # fmt: skip
    assert get_study("scaling").verdict(store).outcome == outcome
    assert get_study("scaling_tuned").verdict(store).outcome == outcome


def test_an_order_that_turns_within_the_grid_decides_nothing_at_a_fixed_rate(tmp_path):
    """α/√r is ahead at low rates and behind at high ones, as a larger step is."""
    store = Store(tmp_path)

    def loss(run):
        best = 2e-4 if stabilised(run) else 8e-4
        return 1.5 + 0.1 * abs(math.log(run.budget.learning_rate / best))

    complete(store, scaling.runs, loss)
    found = get_study("scaling").verdict(store)
    assert found.outcome == "undecided" and "the order turns" in found.held, found.sentence


def test_a_run_that_diverges_at_the_fixed_rate_leaves_the_claim_undecided(tmp_path):
    """It is said, not waited for."""
    store = Store(tmp_path)
    complete(store, scaling.runs, lambda run: 1.5 + 0.02 * abs(math.log(run.budget.learning_rate / 4e-4)))
    pair = scaling.fixed_runs(store)["stabilised256"][0]
    path = store.path(pair.key)
    path.unlink()
    save(store, pair, 9.0, failure="Training diverged")
    assert get_study("scaling").verdict(store).outcome == "undecided"


@pytest.mark.parametrize(
    ("plain", "stabilised", "noise", "outcome"),
    [
        (-0.5, 0.0, 0.01, "reproduced"),
        (0.0, 0.5, 0.01, "refuted"),
        (-0.5, 0.4, 0.01, "refuted"),
        (-0.3, 0.0, 0.2, "undecided"),
    ],
)
def test_the_size_of_the_update_is_a_power_of_the_rank(tmp_path, plain, stabilised, noise, outcome):
    """Sizes that are powers of the rank give their exponents back; both scalings must do what the claim says."""
    store, study = Store(tmp_path), get_study("scaling_size")
    for probe in study.runs(store):
        method = probe.runs[0].method
        power = (plain if method.scaling == "standard" else stabilised) + noise * (probe.seed - 2)
        store.save(Record(key=probe.key, spec=probe, measurements={"median_change": 0.01 * method.rank**power}))
    assert study.verdict(store).outcome == outcome
    assert study.quantities(store)["standard_exponent"].value == pytest.approx(plain)


# --- two learning rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "outcome"), [(0.05, "reproduced"), (0.0, "equivalent"), (-0.05, "refuted")])
def test_a_higher_rate_for_b_is_judged_at_each_ratios_best(tmp_path, gain, outcome):
    """Ratios 1, 4 and 16 are the runs of the variants."""
    store = Store(tmp_path)

    def loss(run):
        method = run.method
        best = 8e-4 / math.sqrt(method.b_rate_ratio)
        away = math.log(run.budget.learning_rate / best)
        return 1.5 + 0.02 * away**2 - gain * (method.b_rate_ratio == 16)

    study = get_study("two_rates")
    complete(store, study.runs, loss)
    found = study.verdict(store)
    assert found.outcome == outcome
    shared = {run.key for run in two_rates.COMPARISON.runs(store) if run.method.b_rate_ratio in (1, 4, 16)}
    assert shared <= {run.key for run in variants.COMPARISON.runs(store)}


# --- recovery --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [(0.004, 0.001, "undecided"), (0.3, 0.01, "reproduced"), (0.3, 0.2, "refuted"), (0.004, 0.2, "refuted")],
)
def test_without_a_gap_there_is_nothing_to_recover(tmp_path, before, after, outcome):
    """Matching 16 bits counts only where NF4 had lost something; being worse counts always."""
    store = Store(tmp_path)

    def loss(run):
        quant = getattr(run.method, "quant", "")
        if run.budget is None:
            return 4.0 + before * bool(quant)
        return 2.0 + 0.02 * abs(math.log(run.budget.learning_rate / 8e-4)) + after * bool(quant)

    complete(store, recovery.COMPARISONS["small"].runs, loss)
    assert get_study("recovery").verdict(store).outcome == outcome


@pytest.mark.parametrize(
    ("after", "corrected", "outcome"),
    [(0.2, 0.1, "reproduced"), (0.0, -0.1, "reproduced"), (0.2, 0.4, "refuted"), (0.0, 0.1, "refuted")],
)
def test_loftqs_start_is_judged_and_what_it_repairs_is_told(tmp_path, after, corrected, outcome):
    """Where the plain start leaves no gap to 16 bit, the sentence says so."""
    store = Store(tmp_path)

    def loss(run):
        if run.budget is None:
            return 4.0
        start, dense = getattr(run.method, "init", ""), not getattr(run.method, "rounded", True)
        worse = 0.0 if run.method.kind == "lora" or dense else corrected if start == "loftq" else after
        return 2.0 + 0.02 * abs(math.log(run.budget.learning_rate / 8e-4)) + worse

    complete(store, recovery.COMPARISONS["small"].runs, loss)
    found = get_study("loftq").verdict(store)
    assert found.outcome == outcome, found.sentence
    assert ("nothing is shown to be repaired" in found.sentence) == (after == 0)
    assert set(found.quantities) <= set(get_study("loftq").quantities(store))


# --- QLoRA at several widths -------------------------------------------------------------------------------------


def width_loss(costs: dict[str, float], control: float, apart: float = 0.0):
    """Loss of a run on docstrings: what NF4 costs at each width, by name, and what two bits cost at all of them.

    apart: how far NF4's cost differs from one seed to the next.
    """
    names = {plan.model.name: name for name, plan in (qlora_width.PLANS | qlora_width.ON_A_GPU).items()}

    def loss(run):
        quant = getattr(run.method, "quant", "") * (run.method.kind != "lora")
        if run.budget is None:
            return 4.0 + {"": 0.0, "nf4": 0.01, "nf2": 0.2}[quant]
        cost = costs.get(names[run.model.name], 0.0) + apart * (run.seed - 3)
        away = math.log2(run.budget.learning_rate / qlora_width.GRID[1])
        return 3.0 + 0.02 * abs(away) + {"": 0.0, "nf4": cost, "nf2": control}[quant]

    return loss


@pytest.mark.parametrize(
    ("costs", "control", "apart", "outcome"),
    [
        ({}, 0.2, 0.0, "reproduced"),
        ({"w64": 0.2}, 0.3, 0.0, "refuted"),  # at one width is enough
        ({"w64": 0.2}, 0.01, 0.0, "refuted"),  # and needs no control
        ({}, 0.01, 0.0, "undecided"),  # nothing could have been seen
        ({}, 0.2, 0.05, "undecided"),
        ({"w256": -0.1}, 0.2, 0.0, "reproduced"),  # ending lower is no loss
    ],
)
def test_qlora_matches_only_where_a_loss_would_have_been_seen(tmp_path, costs, control, apart, outcome):
    """At every width NF4 within the margin, and two bits surely beyond it."""
    store, study = Store(tmp_path), get_study("qlora_width")
    complete(store, study.runs, width_loss(costs, control, apart), examples=qlora_width.EXAMPLES)
    found, known = study.verdict(store), study.quantities(store)
    assert found.outcome == outcome, found.sentence
    assert ("nothing could be seen" in found.sentence) == (control < qlora_width.MARGIN)
    assert set(found.quantities) <= set(known)
    assert known["narrow_minus_wide"].value == pytest.approx(costs.get("w64", 0) - costs.get("w256", 0), abs=3e-3)
    before, added = (known[f"w64_nf4_{name}"].value for name in ("before_minus_before_loss", "added_by_tuning"))
    assert before == pytest.approx(0.01, abs=3e-3)
    assert before + added == pytest.approx(known["w64_nf4_minus_lora_loss"].value, abs=1e-9)


def test_a_gpu_adds_the_published_model_to_the_same_claim(tmp_path):
    """Its runs are asked for there alone, and the small ones are all made again."""
    store, study = Store(tmp_path), get_study("qlora_width")
    there = store.on("cuda")
    more = {run.model.name for run in study.runs(there)} - {run.model.name for run in study.runs(store)}
    assert more == {qlora_width.PUBLISHED.name}
    loss = width_loss({"published": 0.2}, 0.3)
    complete(store, lambda _: [there.spec(run) for run in study.runs(there)], loss, examples=qlora_width.EXAMPLES)
    assert study.verdict(there).outcome == "refuted" and study.verdict(store).outcome == "not yet run"


def test_adapters_hold_the_same_share_of_a_rounding_error_at_every_width():
    """Their rank grows with the width, as four times the rank over the width is that share, and their scale stays."""
    for width, plan in zip(specs.SMALL_LLAMAS, qlora_width.PLANS.values(), strict=True):
        for arm in plan.arms:
            if arm.rates:
                assert arm.method.rank * qlora_width.SHARE == width and arm.method.gamma == 2
                assert arm.rates == qlora_width.GRID


@pytest.mark.parametrize(
    ("by_rank", "outcome"),
    [
        ({1: 0.1}, "reproduced"),
        ({}, "undecided"),  # no rank matters here: nothing says how much is enough
        ({1: 0.1, 64: -0.1, 256: -0.1}, "refuted"),
        ({64: -0.1}, "refuted"),
    ],
)
def test_a_rank_is_enough_only_where_a_lower_one_is_not(tmp_path, by_rank, outcome):
    """Rank 1 is the control: a task that it solves as well decides nothing."""
    store = Store(tmp_path)
    complete(
        store,
        rank.COMPARISON.runs,
        lambda run: 1.5 + 0.02 * abs(math.log(run.budget.learning_rate / 8e-4)) + by_rank.get(run.method.rank, 0.0),
    )
    found = get_study("rank").verdict(store)
    assert found.outcome == outcome, found.sentence
    assert ("cannot tell" in found.sentence) == (1 not in by_rank)


@pytest.mark.parametrize(
    ("lost", "apart", "cost", "outcome"),
    [
        (0.2, 0.0, 0.1, "reproduced"),
        (0.01, 0.0, 0.1, "refuted"),
        (0.05, 0.05, 0.1, "undecided"),
        (0.01, 0.0, 0.003, "undecided"),
        (0.2, 0.0, 0.003, "reproduced"),
    ],
)
def test_what_requantising_loses_is_a_share_of_the_adapters_gain(tmp_path, lost, apart, cost, outcome):
    """The untuned base has 3 nats a token and the merged model 1; requantising gives back a share of these 2.

    Losing less than the margin counts only on a model that NF4 itself costs something; losing more counts always.
    """
    store = Store(tmp_path)

    def loss(run):
        return 2.0 + 0.02 * abs(math.log(run.budget.learning_rate / 8e-4))

    while missing := get_study("requantised").missing(store):
        for run in missing:
            if isinstance(run, specs.Run):
                save(store, run, loss(run))
                continue
            share = lost + apart * (run.seed - 3)  # mean zero over the five seeds of the model that decides
            levels = {"untuned": 3.0, "merged": 1.0, "requantised": 1.0 + 2 * share}
            levels |= {"full": 3.0 - cost} | dict.fromkeys(("unmerged", "merged_16bit", "requantised_16bit"), 1.0)
            nats = {f"{name}_loss_nats": [TOKENS * level] * 20 for name, level in levels.items()}
            store.save(Record(key=run.key, spec=run, per_example={**nats, "label_tokens": [TOKENS] * 20}))
    verdict, found = get_study("requantised").verdict(store), get_study("requantised").quantities(store)
    assert verdict.outcome == outcome and set(verdict.quantities) <= set(found)
    assert ("cannot tell" in verdict.sentence) == (lost == 0.01 and cost < recovery.FLOOR)
    assert found["small_nf4_cost"].value == pytest.approx(cost)
    assert found["small_nf4_requantised_lost"].value == pytest.approx(100 * lost)
    assert found["small_nf4_requantised_lost"].seeds == len(recovery.COMPARISONS["small"].seeds)
    assert found["small_nf4_gain"].value == pytest.approx(2)


# --- what survives ---------------------------------------------------------------------------------------------


def rising(model: str, at: int) -> float:
    """The kept share of an adapter: from nothing to all over the rates of either model."""
    return at / (len(survival.RATES[model]) - 1)


def survive(store: Store, kept=rising, gain=lambda model, at: 1.0, apart: float = 0.0, size: float = 0.05) -> None:
    """Invented records of `survival`: the size is proportional to the rate, κ the kept share without noise.

    kept, gain: of an adapter by model and place of its rate.  apart: between seeds.  size: of the lowest rate.
    """
    for model, rates in survival.RATES.items():
        for at, rate in enumerate(rates):
            for seed in survival.SEEDS:
                probe, share = survival.probe(model, rate, seed), kept(model, at)
                noise = np.random.default_rng(seed + 10 * at).normal(0, 0.01, (2, survival.EXAMPLES))
                untuned = 4.0 + np.random.default_rng(5).normal(0, 0.2, survival.EXAMPLES)
                merged = untuned - gain(model, at) + noise[0]
                left = untuned - (share + apart * (seed - 3) / 2 * (-1) ** at) * (untuned - merged) + 0.1 * noise[1]
                nats = {"untuned": untuned, "merged": merged, "requantised": left}
                per_example = {f"{name}_loss_nats": (TOKENS * values).tolist() for name, values in nats.items()}
                measured = {"size": size * rate / rates[0] * (1 + 0.01 * seed), "kept": share, "error": 1.0}
                per_example["label_tokens"] = [TOKENS] * survival.EXAMPLES
                store.save(Record(key=probe.key, spec=probe, measurements=measured, per_example=per_example))


@pytest.mark.parametrize(
    ("kept", "apart", "outcome"),
    [
        (rising, 0.0, "reproduced"),
        (lambda model, at: 1 - rising(model, at), 0.0, "refuted"),
        (lambda model, at: rising(model, at) if model == "small" else 1 - rising(model, at), 0.0, "refuted"),
        (rising, 0.6, "undecided"),
    ],
)
def test_that_size_tells_what_survives_is_judged_on_each_model(tmp_path, kept, apart, outcome):
    """Rising shares bear the claim out, falling ones on a model refute it, and seeds that disagree leave it open."""
    store = Store(tmp_path)
    survive(store, kept, apart=apart)
    verdict, known = get_study("survival").verdict(store), get_study("survival").quantities(store)
    assert verdict.outcome == outcome and set(verdict.quantities) <= set(known)
    assert {"small_correlation", "smollm2_correlation"} <= set(verdict.quantities)


def test_two_models_must_share_one_scale_of_sizes(tmp_path):
    """Each model's own order is perfect, but one keeps all from a size on at which the other keeps nothing."""
    store = Store(tmp_path)
    last = {model: len(rates) - 1 for model, rates in survival.RATES.items()}
    survive(store, lambda model, at: (0.9 if (model == "smollm2" and at) or at == last[model] else 0.0) + 0.01 * at)
    verdict, known = get_study("survival").verdict(store), get_study("survival").quantities(store)
    assert known["small_correlation"].value == known["smollm2_correlation"].value == pytest.approx(1)
    assert known["both_correlation"].value > 0.7  # which is why it does not judge
    assert verdict.outcome == "refuted" and known["half_size_ratio"].low > survival.SCALE * survival.SCALE_MARGIN
    halves = known["small_half_size"].value, known["smollm2_half_size"].value
    assert known["half_size_ratio"].value == pytest.approx(halves[0] / halves[1], rel=0.01)


def test_the_size_that_keeps_half_is_between_its_neighbours_whatever_their_order():
    """Linear in the logarithm of the size; the first crossing counts, and none is infinite."""
    interval = stats.seed_interval([1.0, 1.0, 1.0])

    def of(size: float, kept: float) -> survival.MergedAdapter:
        table = np.full((3, 3), kept)
        return survival.MergedAdapter("small", 1.0, (), interval, np.full(3, size), np.full(3, kept), table, 9)

    found = [of(4.0, 0.8), of(1.0, 0.2), of(16.0, 0.9)]
    assert survival.half_sizes(found) == pytest.approx(np.full((3, 3), 2.0))
    assert survival.half_sizes([*found, of(0.25, 0.6), of(0.1, 0.4)])[0] == pytest.approx(0.1 * math.sqrt(2.5))
    assert np.isinf(survival.half_sizes(found[::2])).all()


@pytest.mark.parametrize("kept", [lambda model, at: 0.3 + 0.05 * at, lambda model, at: 0.02 * at])
def test_where_adapters_keep_nearly_alike_the_correlation_decides_nothing(tmp_path, kept):
    """However perfect the order is: the positive control asks for one that keeps nothing and one that keeps all."""
    store = Store(tmp_path)
    survive(store, kept)
    verdict = get_study("survival").verdict(store)
    assert verdict.outcome == "undecided" and "none surely keeps" in verdict.sentence
    assert get_study("survival").quantities(store)["both_correlation"].value > 0.9


def test_an_adapter_that_gains_nothing_is_left_out(tmp_path):
    """It has nothing to keep, so that the share that it keeps is noise; with too few left nothing is decided."""
    store = Store(tmp_path)
    survive(store, gain=lambda model, at: 1.0 if at else 0.01)
    verdict, known = get_study("survival").verdict(store), get_study("survival").quantities(store)
    assert "small_1_kept" not in known and "small_2_kept" in known and "small_1_gain" in known
    assert "2 that do not surely gain" in verdict.sentence
    assert known["small_adapters"].value == len(survival.RATES["small"]) - 1
    bare = Store(tmp_path / "bare")
    survive(bare, gain=lambda model, at: 0.01)
    verdict = get_study("survival").verdict(bare)
    assert verdict.outcome == "undecided" and "too few" in verdict.sentence and not verdict.quantities


def test_the_share_of_a_gain_is_a_ratio_of_sums(tmp_path):
    """Of all examples; κ, which is the share here, is at no distance from it."""
    store = Store(tmp_path)
    survive(store)
    known = get_study("survival").quantities(store)
    for at in range(len(survival.RATES["small"])):
        assert known[f"small_{at + 1}_kept"].value == pytest.approx(100 * rising("small", at), abs=0.5)
        assert known[f"small_{at + 1}_rate"].value == survival.RATES["small"][at]
    assert known["both_distance"].value == pytest.approx(0, abs=0.5)
    rates = survival.RATES["small"]
    assert known["small_span"].value == pytest.approx(rates[-1] / rates[0])
    half = 0.05 * (rates[-1] / rates[0]) ** 0.5  # shares rise with the logarithm of the size
    assert known["small_half_size"].value == pytest.approx(half, rel=0.05)
