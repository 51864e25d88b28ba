"""Sorting learned from a reward: the probe's parts against their plain forms, and the verdict from invented records."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from peftbook.core.records import Record, Store
from peftbook.core.specs import Probe
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.scratch.policy_gradient import sample_answers
from peftbook.studies import get_study, reward_rank
from peftbook.training.probes import measure, reward
from peftbook.training.probes.synthetic import small_llama

# --- the probe -------------------------------------------------------------------------------------------------


def test_no_set_of_values_is_in_two_splits_or_in_training():
    """The same numbers in another order would leak the answer; what is held does not depend on a run's seed."""
    values, length = reward_rank.SETTINGS["values"], reward_rank.SETTINGS["length"]
    held = reward.held_lists(values, length)
    assert held == reward.held_lists(values, length)
    assert {split: len(lists) for split, lists in held.items()} == reward.HELD
    sets = [frozenset(numbers) for lists in held.values() for numbers in lists]
    assert len(set(sets)) == len(sets) and all(len(one) == length for one in sets)
    lists = reward.new_lists(np.random.default_rng(0), values, length, set(sets))
    drawn = list(itertools.islice(lists, 2000))
    assert not {frozenset(numbers) for numbers in drawn} & set(sets)
    assert set(itertools.chain(*drawn)) == set(range(values))


def test_a_sorted_answer_is_rewarded_and_no_other():
    """Every order of three values: one of six is right."""
    for numbers in ((2, 0, 1), (0, 1, 2)):
        question = reward.sorting(numbers, 3)
        assert question.ids[: question.start] == (*numbers, 3)
        rows = [(*numbers, 3, *answer) for answer in itertools.permutations(range(3))]
        rewards = reward.rewards_of(torch.tensor(rows), 3).tolist()
        assert sum(rewards) == 1 and rows[rewards.index(1)] == question.ids


def test_drawing_with_a_cache_draws_the_same():
    """Against the plain sampler of `scratch`, which reads every token again, with the same random numbers."""
    model = small_llama(2, 32, 2, 9, 0).eval()
    questions = torch.randint(8, (20, 5), generator=torch.Generator().manual_seed(1))
    fast = reward.draw(model, questions, 4, torch.Generator().manual_seed(2))
    plain = sample_answers(lambda ids: model(input_ids=ids).logits, questions, 4, torch.Generator().manual_seed(2))
    assert torch.equal(fast, plain) and fast.shape == (20, 9)


def short(**settings: object) -> Probe:
    """A run of the study, too short to learn."""
    probe = reward_rank.probe("rank1", 0.001, 99, "validation")
    few = {"hidden": 32, "heads": 2, "start_steps": 2, "start_batch": 8, "steps": 2, "questions": 3, "group": 4}
    return probe.model_copy(update={"settings": probe.settings | few | settings})


@pytest.fixture
def few_held(monkeypatch) -> None:
    """Fewer lists to score."""
    monkeypatch.setattr(reward, "HELD", {"validation": 16, "test": 24})


def test_the_probe_reports_what_the_study_reads(few_held):
    """A record of each arm; the start and its lists are the same for all of them, and a run can be repeated."""
    starts = set()
    for arm, rank in reward_rank.RANKS.items():
        probe = short(rank=rank)
        method = reward.method_of(probe)
        assert method == Full() if rank == 0 else isinstance(method, LoRA) and method.rank == rank, arm
        found = measure(probe)
        assert len(found.per_example["exact"]) == reward.HELD["validation"]
        assert set(found.per_example["exact"]) <= {0.0, 1.0}
        assert found.measurements["episodes"] == 2 * 3 * 4 >= found.measurements["bits"] >= 0
        assert len(found.curve["reward"]) == 2 and len(found.curve["validation_accuracy"]) == 2
        assert found.curve["validation_accuracy"][-1] == found.measurements["accuracy"]
        starts.add(tuple(found.per_example["start_exact"]))
    assert len(starts) == 1 and measure(probe) == found
    assert len(measure(short(split="test")).per_example["exact"]) == reward.HELD["test"]


def test_a_run_that_blows_up_has_nothing_right(few_held):
    """A rate far too high ends in no number: that is a result, and no error."""
    found = measure(short(rank=0, rate=1e30, steps=4))
    assert found.measurements["accuracy"] == 0 and set(found.per_example["exact"]) == {0.0}


# --- the study -------------------------------------------------------------------------------------------------


def record(probe: Probe, start: float, accuracy: float) -> Record:
    """An invented record with these shares of the lists right, the same lists for equal shares."""
    count = 1000
    columns = {"start_exact": start, "exact": accuracy}
    scores = {
        name: [1.0] * round(count * share) + [0.0] * (count - round(count * share)) for name, share in columns.items()
    }
    measured = {"accuracy": accuracy, "start_accuracy": start, "parameters": 10, "episodes": 100, "bits": 50.0}
    curve = {"reward": [start, accuracy], "validation_accuracy": [start, accuracy]}
    return Record(key=probe.key, spec=probe, measurements=measured, per_example=scores, curve=curve)


def fill(folder, accuracies: dict[str, float], start: float = 0.3, noise: float = 0.0, peak: int = 1) -> Store:
    """Records of all runs, stage after stage: arms reach these accuracies at the rate at `peak` of their grid.

    noise: by how much seeds differ, in opposite directions in the arms.
    """
    store, study = Store(folder), get_study("reward_rank")
    arms = {rank: arm for arm, rank in reward_rank.RANKS.items()}
    while missing := study.missing(store):
        for probe in missing:
            arm = arms[probe.settings["rank"]]
            best = reward_rank.GRIDS[arm][0] * reward_rank.FACTOR**peak
            away = abs(np.log2(probe.settings["rate"] / best))
            wobble = noise * (probe.seed % 5 - 2) * (-1) ** probe.settings["rank"]
            store.save(record(probe, start, max(0.0, accuracies[arm] - 0.2 * away + wobble)))
    return store


@pytest.mark.parametrize(
    ("accuracies", "start", "noise", "outcome", "words"),
    [
        ({"full": 0.8, "rank1": 0.8, "rank16": 0.8}, 0.3, 0.0, "reproduced", ""),
        ({"full": 0.7, "rank1": 0.9, "rank16": 0.8}, 0.3, 0.01, "reproduced", ""),
        ({"full": 0.8, "rank1": 0.78, "rank16": 0.8}, 0.3, 0.0, "reproduced", ""),
        ({"full": 0.8, "rank1": 0.5, "rank16": 0.8}, 0.3, 0.01, "fails in this regime", ""),
        ({"full": 0.8, "rank1": 0.75, "rank16": 0.8}, 0.3, 0.03, "undecided", ""),
        ({"full": 0.32, "rank1": 0.32, "rank16": 0.32}, 0.3, 0.0, "undecided", "the control"),
    ],
)
def test_the_verdict_follows_the_accuracies(tmp_path, accuracies, start, noise, outcome, words):
    """Equal where full fine-tuning learned is reproduced; equal where nothing was learned decides nothing."""
    store, study = fill(tmp_path, accuracies, start, noise), get_study("reward_rank")
    found = study.verdict(store)
    assert found.outcome == outcome, found.sentence
    assert words in found.sentence and set(found.quantities) <= set(study.quantities(store))


@pytest.mark.parametrize("peak", [-1, 0, 3, 5])
def test_a_best_rate_at_an_end_extends_the_grid(tmp_path, peak):
    """Until it lies inside; every arm by the same rule, so that none is tuned more."""
    store = fill(tmp_path, dict.fromkeys(reward_rank.RANKS, 0.9), peak=peak)
    for arm in reward_rank.RANKS:
        tuning = reward_rank.tuning(arm)
        rates, best = tuning.rates(store.get), tuning.best(store.get)
        assert rates[0] < best < rates[-1]
        assert best == pytest.approx(reward_rank.GRIDS[arm][0] * reward_rank.FACTOR**peak, rel=0.01)


def test_too_coarse_a_grid_is_refined_and_the_choice_of_a_rate_is_in_the_interval(tmp_path):
    """Two rates of almost the same accuracy: the best of all lies between them, or between one and the rate halfway."""
    store = fill(tmp_path, dict.fromkeys(reward_rank.RANKS, 0.9), peak=1)
    tuning = reward_rank.tuning("rank1")
    rates = tuning.rates(store.get)
    assert rates == list(reward_rank.GRIDS["rank1"])
    for found in [record(probe, 0.3, 0.899) for probe in tuning.make(rates[0])]:
        (tmp_path / f"{found.key[:12]}.json").unlink()
        store.save(found)
    fresh = Store(tmp_path)
    halfway = [rate for rate in tuning.rates(fresh.get) if rate not in rates]
    assert np.allclose(halfway, [rates[1] / 2**0.5, rates[1] * 2**0.5], rtol=0.01)
    for rate, accuracy in zip(halfway, (0.899, 0.8), strict=True):
        for probe in tuning.make(rate):
            fresh.save(record(probe, 0.3, accuracy))
    assert len(tuning.rates(fresh.get)) == len(rates) + 2
    short = tuning.choice_error(fresh.get, 0.0)
    assert reward_rank.difference("rank1", "full", fresh).choice_se > 0.9 * short > 0


def test_seeds_and_grids_keep_the_protocol():
    """As many rates for every arm; no final seed chose a rate, and the pilot's is nowhere."""
    assert len({len(rates) for rates in reward_rank.GRIDS.values()}) == 1
    assert len({*reward_rank.SEEDS}) == 10 == 2 * reward_rank.FIRST_LOOK and not {*reward_rank.SEEDS} & {
        *reward_rank.SWEEP_SEEDS
    }
    assert 99 not in (*reward_rank.SEEDS, *reward_rank.SWEEP_SEEDS)
