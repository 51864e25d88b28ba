"""Tuned comparisons: the protocol is followed whatever the numbers are."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store, Unusable
from peftbook.evidence import stats
from peftbook.evidence.sweep import FINEST, Sweep, grid, middle_first, neighbours, shortfall
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.studies.learning_rate import vertex
from peftbook.studies.tuned_comparison import FURTHER, Arm, TunedComparison

LOSSES = st.lists(st.floats(0.5, 5), min_size=12, max_size=12)


def comparison(**changes) -> TunedComparison:
    """Two LoRA arms on E2E and an untuned one."""
    fields = {
        "task": "e2e",
        "tokens": 1000,
        "arms": (
            Arm("untuned", "Untuned", Untuned()),
            Arm("a", "A", LoRA(rank=2), grid(1e-4, 2, 3), 2e-4),
            Arm("b", "B", LoRA(rank=4), grid(1e-4, 2, 3)),
        ),
        "seeds": (1, 2),
    }
    return TunedComparison(**(fields | changes))


def save(store: Store, run: specs.Run, loss: float, examples: int = 6, failure: str = "") -> None:
    """A record of this run whose examples have losses around `loss`."""
    rng = np.random.default_rng(run.seed)
    nats = [loss * 4 + value for value in rng.normal(0, 0.01, examples)]
    store.save(
        Record(
            key=run.key,
            spec=run,
            measurements={"loss_nats": loss, "trainable_parameters": 5},
            per_example={"loss_nats": nats, "label_tokens": [4.0] * examples},
            failure=failure,
        )
    )


def complete(store: Store, plan: TunedComparison, loss) -> int:
    """Give every run that the plan asks for a record, until it asks for no more; returns how many there were."""
    made = 0
    while missing := [run for run in plan.runs(store) if run not in store]:
        for run in missing:
            rate = run.budget.learning_rate if run.budget else 0.0
            save(store, run, loss(run.method, rate))
            made += 1
    return made


@settings(max_examples=5, deadline=None)
@given(optimum=st.floats(-9, 0), spread=st.floats(0.5, 3))
def test_a_grid_is_extended_until_its_best_rate_lies_inside(tmp_path_factory, optimum, spread):
    """Wherever the minimum of a convex loss lies, both neighbours of the chosen rate have been tried."""
    store, plan = Store(tmp_path_factory.mktemp("records")), comparison()
    complete(store, plan, lambda method, rate: 1 + abs(math.log(rate) - optimum) / spread if rate else 2.0)
    arm = plan.arm("a")
    best, rates = plan.tuning(arm).best(store.get), plan.tuning(arm).rates(store.get)
    assert rates[0] < best < rates[-1]
    assert abs(math.log(best) - optimum) <= math.log(2) + 1e-2
    assert all(later / earlier == pytest.approx(2, rel=0.02) for earlier, later in itertools.pairwise(rates))


@settings(max_examples=10, deadline=None)
@given(optimum=st.floats(-8, -4), curvature=st.floats(0.005, 0.2))
def test_a_grid_that_is_too_coarse_is_refined(tmp_path_factory, optimum, curvature):
    """Of a parabola in log rate the law holds: the chosen rate costs no more than what is bearable, or is FINEST."""
    store = Store(tmp_path_factory.mktemp("records"))
    arms = tuple(Arm(name, name, LoRA(rank=rank), grid(1e-4, 4, 3)) for name, rank in (("a", 2), ("b", 4)))
    plan = comparison(arms=arms, factor=4, bearable=0.01)
    complete(store, plan, lambda method, rate: 1 + curvature * (math.log(rate) - optimum) ** 2)
    for arm in arms:
        losses = plan.tuning(arm).losses(store.get)
        best, rates = plan.tuning(arm).best(store.get), sorted(losses)
        at = rates.index(best)
        close = max(rates[at + 1] / best, best / rates[at - 1]) < FINEST
        assert shortfall(losses, best) <= 0.01 or close
        assert losses[best] - 1 <= 0.0101 or close
    coarse = comparison(arms=arms, factor=4)
    assert len(coarse.tuning(arms[0]).rates(store.get)) <= len(plan.tuning(arms[0]).rates(store.get))


@settings(max_examples=20, deadline=None)
@given(losses=st.dictionaries(st.tuples(st.integers(0, 40), st.sampled_from([0, 10, 11])), st.floats(0, 1)))
def test_the_best_rate_and_its_neighbours_have_the_further_seeds(losses):
    """Whatever the losses are: the chosen rate has the lowest loss of all, over three seeds, and lies inside."""
    exponents: dict[str, tuple[int, int]] = {}

    def lookup(run: specs.Run) -> Record:
        exponent, seed = exponents[run.key]
        loss = losses.get((exponent, seed), 1 + abs(exponent - 20) / 9)
        return Record(key=run.key, spec=run, measurements={"loss_nats": loss})

    def runs(*seeds: int):
        def make(exponent: float) -> list[specs.Run]:
            made = [plan.sweep_run(plan.arm("a"), 1e-6 * 1.1**exponent, seed) for seed in seeds]
            exponents.update({run.key: (int(exponent), run.seed) for run in made})
            return made

        return make

    def grow(found):
        best, last = min(found, key=found.get), [*found][-1]
        return [*found, last + 1] if best == last < 40 else [*found]

    plan = comparison()
    sweep = Sweep(runs(0), (18, 19, 20), grow, further=runs(10, 11))
    trials, found = sweep.plan(lookup), sweep.losses(lookup)
    best = sweep.best(lookup)
    assert found[best] == min(found.values())
    assert {len(trials[near]) for near in neighbours(found)} == {3}
    assert {len(trial) for trial in trials.values()} <= {1, 3} and all(trial[0].seed == 0 for trial in trials.values())


@settings(max_examples=10, deadline=None)
@given(centre=st.floats(-0.4, 0.4))
def test_the_best_rate_of_all_is_inside_what_the_choice_adds(tmp_path_factory, centre):
    """Of a parabola without noise the error is the vertex's gain; with noise it is more. Scores have none."""
    store = Store(tmp_path_factory.mktemp("records"))
    arms = tuple(Arm(name, name, LoRA(rank=rank), grid(1e-4, 4, 3)) for name, rank in (("a", 2), ("b", 4)))
    plan = comparison(arms=arms, factor=4)
    optimum = math.log(4e-4) + centre * math.log(4)
    complete(store, plan, lambda method, rate: 1 + 0.1 * (math.log(rate) - optimum) ** 2)
    sweep, gain = plan.tuning(arms[0]), 0.1 * (centre * math.log(4)) ** 2
    assert sweep.choice_error(store.get, 0.0) == pytest.approx(gain, rel=0.02, abs=1e-5)
    assert sweep.choice_error(store.get, 0.02) > sweep.choice_error(store.get, 0.01) > gain * 0.98
    found = plan.difference("a", "b", "loss_nats", store)
    errors = [plan.choice_error(name, store) for name in "ab"]
    assert found.choice_se == pytest.approx(math.hypot(*errors)) and min(errors) >= gain * 0.98 - 1e-9
    plain = stats.half_width(0.05, found.seed_se, found.example_se, found.seeds - 1, found.freedom)
    assert found.half95 == pytest.approx(math.hypot(plain, 1.959964 * found.choice_se))
    assert plan.paired("a", "b", store)["a_minus_b_loss"].high == found.high


def test_further_seeds_make_the_error_of_a_choice_smaller(tmp_path):
    """Each rate's loss being the same with any seed, a sweep with three has less noise; none of them is a final one."""
    store, plan = Store(tmp_path), comparison(further=FURTHER)
    complete(store, plan, lambda method, rate: 1 + 0.1 * math.log((rate or 1) / 2e-4) ** 2)
    swept = {run.seed for run in plan.runs(store) if run.evaluation.split == "validation"}
    assert swept == {*plan.sweep_seeds, *FURTHER} and not swept & {*plan.seeds}
    for run in plan.final_runs(plan.arm("a"), store):
        save(store, run, 1 + 0.1 * run.seed)
    assert plan.choice_error("a", store) < replace(plan, further=()).choice_error("a", store)
    told = plan.quantities(store)
    assert told["a_best_rate"].seeds == 3 and told["a_sweep_runs"].value == 9


@pytest.mark.parametrize("distances", [(1.0, 1.0), (1.0, 0.5)])
def test_the_gain_of_the_best_rate_is_the_mean_over_what_noise_could_have_made(distances):
    """Three losses drawn about those seen: the root mean square of b²/4a, a held."""
    rises, noise = np.array([0.03, 0.012]), 0.01
    losses = np.random.default_rng(0).normal([[0.03, 0, 0.012]], noise / math.sqrt(2), (200_000, 3))
    left, right = distances
    slope = np.polyfit([-left, 0, right], losses.T, 2)[1]
    bend = np.polyfit([-left, 0, right], [0.03, 0, 0.012], 2)[0]
    found = stats.gain_of_best(np.array(distances), rises, noise)
    assert found == pytest.approx(math.sqrt(np.mean((slope**2 / (4 * bend)) ** 2)), rel=0.01)
    cliff = stats.gain_of_best(np.array(distances), np.array([5.0, 0.012]), noise)
    assert cliff == stats.gain_of_best(np.array(distances), np.array([9 * 0.022, 0.012]), noise)
    assert stats.gain_of_best(np.array(distances), np.zeros(2), 0.0) == 0


def test_the_test_split_is_seen_only_at_the_chosen_rate_and_on_fresh_seeds(tmp_path):
    """Sweeps read validation; the sweep's seed never returns in a final run."""
    store, plan = Store(tmp_path), comparison()
    complete(store, plan, lambda method, rate: 1 + abs(math.log(rate or 1) - math.log(2e-4)))
    for run in plan.runs(store):
        if run.evaluation.split == "test" and run.budget is not None:
            assert run.budget.learning_rate == 2e-4 and run.seed in plan.seeds
        elif run.budget is not None:
            assert run.seed in plan.sweep_seeds and run.evaluation.n_generate == 0
    assert not set(plan.seeds) & set(plan.sweep_seeds)


def test_arms_share_seeds_budget_and_examples(tmp_path):
    """So that their differences are paired."""
    store, plan = Store(tmp_path), comparison()
    complete(store, plan, lambda method, rate: 1 + abs(math.log(rate or 1) - math.log(2e-4)))
    one, two = (plan.final_runs(plan.arm(name), store) for name in "ab")
    for first, second in zip(one, two, strict=True):
        assert first.seed == second.seed and first.budget == second.budget and first.evaluation == second.evaluation


def test_nothing_is_chosen_before_the_grid_is_complete(tmp_path):
    """One missing point, and there is no best rate, no final run and no quantity of the finals."""
    store, plan = Store(tmp_path), comparison()
    arm = plan.arm("a")
    for rate in arm.rates[:-1]:
        save(store, plan.sweep_run(arm, rate, 0), 2.0)
    with pytest.raises(Missing):
        plan.tuning(arm).best(store.get)
    with pytest.raises(Missing):
        plan.final_runs(arm, store)
    with pytest.raises(Missing):
        plan.difference("a", "b", "loss_nats", store)
    assert not any(name.startswith("a_loss") for name in plan.quantities(store))


def test_a_diverged_rate_is_never_chosen(tmp_path):
    """Its loss counts as infinite."""
    store, plan = Store(tmp_path), comparison()
    arm = plan.arm("a")
    for at, rate in enumerate(arm.rates):
        save(store, plan.sweep_run(arm, rate, 0), 1.0 + at * 0.1, failure="Training diverged" if at == 0 else "")
    assert plan.tuning(arm).best(store.get) == arm.rates[1]


def test_an_untuned_arm_has_one_run(tmp_path):
    """Which is set against every seed of the other."""
    store, plan = Store(tmp_path), comparison()
    complete(store, plan, lambda method, rate: 1 + abs(math.log(rate or 1) - math.log(2e-4)))
    assert len(plan.finals("untuned", store)) == 1
    against = plan.difference("untuned", "a", "loss_nats", store)
    assert against.mean > 0 and against.seeds == len(plan.seeds)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=9, unique=True))
def test_the_middle_comes_first_and_nothing_is_lost(rates):
    """A queue that is cut short has the points around the likely optimum."""
    ordered = middle_first(sorted(rates))
    assert sorted(ordered) == sorted(rates)
    distance = [abs(sorted(rates).index(rate) - (len(rates) - 1) / 2) for rate in ordered]
    assert distance == sorted(distance)


@given(centre=st.floats(-9, -2), width=st.floats(0.1, 3), height=st.floats(0.5, 4))
def test_the_vertex_of_an_exact_parabola_is_found(centre, width, height):
    """In the logarithm of the rate."""
    rates = [math.exp(centre + step) for step in (-1.5, -0.5, 0.2, 1.1)]
    losses = {rate: height + width * (math.log(rate) - centre) ** 2 for rate in rates}
    assert vertex(losses) == pytest.approx(math.exp(centre), rel=1e-4)
    assert vertex({rate: -loss for rate, loss in losses.items()}) is None
    assert vertex(dict(list(losses.items())[:2])) is None


@given(centre=st.floats(-0.4, 0.4), width=st.floats(0.1, 3), factor=st.sampled_from([2, 4]))
def test_the_shortfall_of_a_parabola_is_what_its_vertex_would_gain(centre, width, factor):
    """On a grid whose middle is the best; none where a neighbour is missing or diverged."""
    rates = [1e-4 / factor, 1e-4, 1e-4 * factor]
    losses = {rate: 2 + width * (math.log(rate / 1e-4) / math.log(factor) - centre) ** 2 for rate in rates}
    assert shortfall(losses, 1e-4) == pytest.approx(width * centre**2, abs=1e-6)
    assert shortfall({rate: losses[rate] for rate in rates[:2]}, 1e-4) == 0
    assert shortfall(losses | {rates[2]: math.inf}, 1e-4) == 0


def test_a_diverged_final_run_is_said_and_decides_nothing(tmp_path):
    """Before it is there the verdict waits; when it is, the arm's instability is the result."""
    store, plan = Store(tmp_path), comparison()
    for name in "ab":
        for rate in plan.arm(name).rates:
            save(store, plan.sweep_run(plan.arm(name), rate, 0), 1 + abs(math.log(rate / 2e-4)))
    claim = (0.0, (-math.inf, 0.05), "A minus B", store)
    with pytest.raises(Missing):
        plan.verdict("a", "b", *claim)
    for name in "ab":
        for run in plan.final_runs(plan.arm(name), store):
            lost = name == "b" and run.seed == 2
            save(store, run, 2.0, failure="Training diverged" if lost else "")
    with pytest.raises(Unusable, match="B with seed 2"):
        plan.verdict("a", "b", *claim)


def test_short_texts_are_told_beside_their_bleu():
    """BLEU is the geometric mean of its precisions times exp(1 − 1/ratio) of the lengths, Papineni et al. 2002."""
    plan, length = comparison(), np.array([9.0, 12.0, 10.0, 13.0])
    run = plan.final_run(plan.arm("a"), 1e-4, 1)
    columns = {"bleu_length": length, "bleu_reference_length": 2 * length, "loss_nats": length, "label_tokens": length}
    for n in range(1, 5):
        columns |= {f"bleu_total_{n}": length - n + 1, f"bleu_matched_{n}": length - n}
    per_example = {name: values.tolist() for name, values in columns.items()}
    record = Record(key=run.key, spec=run, measurements={"trainable_parameters": 5}, per_example=per_example)
    found = plan.final_quantities("a", [record])
    precisions = [columns[f"bleu_matched_{n}"].sum() / columns[f"bleu_total_{n}"].sum() for n in range(1, 5)]
    assert found["a_length_ratio"].value == 0.5
    assert found["a_bleu"].value == pytest.approx(100 * math.exp(1 - 1 / 0.5) * math.prod(precisions) ** 0.25)
