"""Verdicts on claims about rates, variants, scaling and recovery: driven to every outcome with invented records."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftbook import specs
from peftbook.records import Record, Store
from peftbook.studies import get_study, learning_rate, recovery, scaling, variants

TOKENS = 4.0


def save(store: Store, run: specs.Run, loss: float, *, examples: int = 20, failure: str = "", steps=()) -> None:
    """A record with this mean loss; examples differ by amounts that all runs share."""
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


def complete(store: Store, runs, loss, steps=lambda run: (5.0,)) -> None:
    """A record for every run that is asked for, until none is. steps: its training loss, from the untrained model's."""
    while missing := [run for run in runs(store) if run not in store]:
        for run in missing:
            found = loss(run)
            save(store, run, found if math.isfinite(found) else 9.0, steps=steps(run),
                 failure="" if math.isfinite(found) else "Training diverged")  # fmt: skip


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
    """From parabolas whose vertices are known; near the border of the claim, with seeds that disagree, it is open."""
    store = Store(tmp_path)
    loss = bowl(lambda rank: 4e-5 * (ratio if rank else 1), lambda rank: apart if rank else 0.05)
    complete(store, learning_rate.short_runs, loss)
    found = learning_rate.log_ratio("r16", "full", store)
    assert math.exp(found.mean) == pytest.approx(ratio, rel=0.1)
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


def test_missing_sweeps_are_not_yet_run(tmp_path):
    """And with one seed after a long training nothing is decided."""
    store = Store(tmp_path)
    for study in map(get_study, ("learning_rate", "learning_rate_by_rank", "learning_rate_long")):
        assert study.verdict(store).outcome == "not yet run"
    complete(store, get_study("learning_rate_long").runs, bowl(lambda rank: 4e-5 * (10 if rank else 1)))
    found = get_study("learning_rate_long")
    assert found.verdict(store).outcome == "measured"
    assert found.quantities(store)["long_ratio"].value == pytest.approx(10, rel=0.1)


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
        variants.COMPARISON.runs,
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
    assert study.verdict(store).outcome == "not yet run" and not study.quantities(store)
    for probe in study.runs(store):
        method = probe.runs[0].method
        power = (plain if method.scaling == "standard" else stabilised) + noise * (probe.seed - 2)
        store.save(Record(key=probe.key, spec=probe, measurements={"median_change": 0.01 * method.rank**power}))
    assert study.verdict(store).outcome == outcome
    assert study.quantities(store)["standard_exponent"].value == pytest.approx(plain)


# --- two learning rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "outcome"), [(0.05, "reproduced"), (0.0, "equivalent"), (-0.05, "refuted")])
def test_a_higher_rate_for_b_is_judged_at_each_ratios_best(tmp_path, gain, outcome):
    """The lowest point of the map is named; ratios 1, 4 and 16 are the runs of the variants."""
    store = Store(tmp_path)

    def loss(run):
        method = run.method
        best = 8e-4 / math.sqrt(method.b_rate_ratio)
        away = math.log(run.budget.learning_rate / best)
        return 1.5 + 0.02 * away**2 - gain * (method.b_rate_ratio == 16) - 0.5 * (method.b_rate_ratio == 64)

    study = get_study("two_rates")
    complete(store, study.runs, loss)
    found = study.verdict(store)
    assert found.outcome == outcome and "at a ratio of 64" in found.sentence
    shared = {run.key for run in study.runs(store) if run.method.b_rate_ratio in (1, 4, 16)}
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
    assert get_study("requantised").verdict(store).outcome == "not yet run"

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
