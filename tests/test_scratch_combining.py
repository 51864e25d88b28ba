"""Combining adapters: peft's `add_weighted_adapter` is the oracle, and the algebra of cross terms the law."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from tiny import randomize_adapters, tiny_llama

from peftbook.scratch import combining
from peftbook.scratch.combining import Factors
from peftbook.training.merges import lora_layers

few = settings(max_examples=20, deadline=None)
RANK, GAMMA, NAMES = 3, 2.0, ("default", "second", "third")
DENSITY, WEIGHTS = 0.5, (0.5, 0.3, 0.2)


def adapters(count: int = 3, rank: int = RANK, seed: int = 0) -> list[Factors]:
    """Adapters of one layer from 7 to 9 with random values."""
    rng = torch.Generator().manual_seed(seed)
    return [Factors(torch.randn(rank, 7, generator=rng), torch.randn(9, rank, generator=rng)) for _ in range(count)]


def updates(count: int = 3, seed: int = 0) -> list[torch.Tensor]:
    return [adapter.update for adapter in adapters(count, seed=seed)]


@pytest.fixture(scope="module")
def tuned():
    """A tiny model with three of peft's adapters."""
    config = LoraConfig(r=RANK, lora_alpha=GAMMA * RANK, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(), config)
    for name in NAMES[1:]:
        model.add_adapter(name, config)
    randomize_adapters(model)
    return model


def by_peft(tuned, weights, kind: str, **more):
    """Of every adapted layer: its adapters, gamma in B, and what peft makes of them, as factors."""
    name = f"{kind}{len(tuned.peft_config)}"
    tuned.add_weighted_adapter(list(NAMES), list(weights), name, combination_type=kind, **more)
    for layer in lora_layers(tuned).values():
        A, B = ({key: value.weight.detach() for key, value in part.items()} for part in (layer.lora_A, layer.lora_B))
        assert layer.scaling[name] == 1  # it is in the factors already
        yield [Factors(A[one], GAMMA * B[one]) for one in NAMES], Factors(A[name], B[name])


def weighted(found: list[Factors], weights) -> torch.Tensor:
    return sum(weight * one.update for weight, one in zip(weights, found, strict=True))


def test_linear_is_the_sum_of_the_factors_and_not_of_the_updates(tuned):
    """Each of peft's factors has the root of weight times gamma; ours has all of gamma in B, and the same product."""
    for found, combined in by_peft(tuned, WEIGHTS, "linear"):
        torch.testing.assert_close(combining.combine_factors(found, WEIGHTS).update, combined.update)
        assert (combined.update - weighted(found, WEIGHTS)).norm() > 0.1 * combined.update.norm()


def test_cat_is_the_weighted_sum_exactly_with_the_sum_of_the_ranks(tuned):
    for found, combined in by_peft(tuned, WEIGHTS, "cat"):
        own = combining.concatenate(found, WEIGHTS)
        torch.testing.assert_close(own.update, combined.update)
        torch.testing.assert_close(own.update, weighted(found, WEIGHTS))
        assert len(own.A) == len(combined.A) == RANK * len(NAMES)


@pytest.mark.parametrize("rank", [RANK, RANK * len(NAMES)])
def test_svd_is_the_nearest_adapter_of_its_rank(tuned, rank):
    """With the sum of the ranks nothing is lost."""
    for found, combined in by_peft(tuned, WEIGHTS, "svd", svd_rank=rank):
        whole = weighted(found, WEIGHTS)
        lost = torch.linalg.svdvals(whole)[rank:].norm()
        torch.testing.assert_close((whole - combined.update).norm(), lost, atol=1e-5, rtol=1e-3)


def test_ties_of_peft_is_that_of_the_factors_and_ties_svd_that_of_the_updates(tuned):
    """With `ties` signs are elected among the entries of A and of B, which mean nothing by themselves."""
    for found, combined in by_peft(tuned, [0.5] * 3, "ties", density=DENSITY):
        A = combining.ties([one.A for one in found], DENSITY, math.sqrt(0.5 * GAMMA))
        B = combining.ties([one.B / GAMMA for one in found], DENSITY, math.sqrt(0.5 * GAMMA))
        torch.testing.assert_close(B @ A, combined.update)
    for found, combined in by_peft(tuned, [0.5] * 3, "ties_svd", density=DENSITY, svd_rank=64):
        own = combining.ties([one.update for one in found], DENSITY, 0.5)
        torch.testing.assert_close(own, combined.update, atol=1e-5, rtol=1e-4)


@few
@given(st.integers(0, 99), st.sampled_from([0.2, 0.5, 0.9]))
def test_ties_is_that_of_peft_for_any_updates(seed, density):
    some = updates(seed=seed)
    theirs = merge_utils.ties(some, torch.full((3,), 0.7), density)
    torch.testing.assert_close(combining.ties(some, density, 0.7), theirs)


def test_a_weight_of_ties_is_its_scale_in_peft():
    """The weighted entries are divided by their number: one adapter with weight 1/k comes out k times too short."""
    some = updates()
    third = merge_utils.ties(some, torch.full((3,), 1 / 3), DENSITY)
    torch.testing.assert_close(third, combining.ties(some, DENSITY) / 3)


def test_what_dare_leaves_is_rescaled_as_peft_does_it():
    """Entries are zero or D / (1 − p) in both; on average over many draws that is D."""
    (update,), drop = updates(1), 0.75
    rng = torch.Generator().manual_seed(0)
    theirs = merge_utils.dare_linear([update], torch.ones(1), 1 - drop)
    for left in (combining.drop_and_rescale(update, drop, rng), theirs):
        torch.testing.assert_close(left, torch.where(left == 0, 0.0, update / (1 - drop)))
    draws = torch.stack([combining.drop_and_rescale(update, drop, rng) for _ in range(4000)])
    error = (draws.mean(dim=0) - update) / (update.abs() * math.sqrt(drop / (1 - drop) / len(draws)))
    assert error.abs().max() < 5  # standard errors: the variance is p / (1 − p) D²
    assert error.square().mean() == pytest.approx(1, abs=0.6)


@few
@given(st.integers(1, 5), st.integers(0, 99))
def test_averaged_factors_are_the_average_and_cross_terms(count, seed):
    """(Σ B_i)(Σ A_j) / k has k terms with i = j, the average, and k (k − 1) others; means of A and B have 1/k of it."""
    some = adapters(count, seed=seed)
    crossed = torch.zeros(9, 7)
    for one, other in itertools.permutations(some, 2):
        crossed += one.B @ other.A / count
    combined = combining.combine_factors(some, [1 / count] * count).update
    average = combining.average([one.update for one in some])
    torch.testing.assert_close(combined, average + crossed, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(combining.mean_of_factors(some).update, combined / count, atol=1e-4, rtol=1e-4)


def test_with_one_first_factor_for_all_the_means_of_the_factors_are_the_average():
    """What is frozen or has not moved has no cross terms that differ."""
    shared = adapters(1)[0].A
    some = [one._replace(A=shared) for one in adapters()]
    average = combining.average([one.update for one in some])
    torch.testing.assert_close(combining.mean_of_factors(some).update, average)


def test_the_average_does_not_know_how_an_update_is_factored_and_the_factors_do():
    """(B R⁻¹)(R A) is the same adapter for every invertible R, and another one once its factors are averaged."""
    first, second = adapters(2)
    R = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(5))
    turned = Factors(R @ first.A, first.B @ torch.linalg.inv(R))
    torch.testing.assert_close(turned.update, first.update, atol=1e-3, rtol=1e-3)
    ours, theirs = (combining.mean_of_factors([one, second]).update for one in (first, turned))
    assert (ours - theirs).norm() > 0.1 * ours.norm()


@few
@given(st.integers(0, 99), st.floats(0.05, 1.0))
def test_trimming_keeps_the_largest(seed, density):
    (update,) = updates(1, seed)
    trimmed = combining.trim(update, density)
    left = trimmed != 0
    assert left.sum() == int(density * update.numel())
    assert (trimmed[left] == update[left]).all()
    if left.any() and not left.all():
        assert update[left].abs().min() >= update[~left].abs().max()


@few
@given(st.permutations(range(3)), st.integers(0, 99))
def test_the_order_of_the_adapters_does_not_matter(order, seed):
    some = updates(seed=seed)
    for combine in (combining.average, lambda them: combining.ties(them, DENSITY)):
        torch.testing.assert_close(combine(some), combine([some[at] for at in order]))


def test_one_adapter_combined_with_none_is_itself():
    """With everything kept, every way of combining gives back what went in."""
    (one,) = adapters(1)
    ways = [
        combining.average([one.update]),
        combining.task_arithmetic([one.update], 1.0),
        combining.ties([one.update], 1.0),
        combining.dare([one.update], 0.0),
        combining.combine_factors([one], [1.0]).update,
        combining.mean_of_factors([one]).update,
        combining.concatenate([one], [1.0]).update,
    ]
    for way in ways:
        torch.testing.assert_close(way, one.update, atol=1e-5, rtol=1e-4)


def test_updates_that_agree_have_no_conflict_and_opposite_ones_half():
    (update,) = updates(1)
    assert combining.sign_conflict([update, 3 * update]) == 0
    assert combining.sign_conflict([update, -0.999 * update]) == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("count", [2, 4, 256])
def test_unrelated_updates_conflict_the_more_the_more_there_are(count):
    """What is against the elected sign is (Σ |D_i| − |Σ D_i|) / 2, and |Σ D_i| goes with √k."""
    torch.manual_seed(0)
    drawn = list(torch.randn(count, 20_000))
    assert combining.sign_conflict(drawn) == pytest.approx((1 - count**-0.5) / 2, abs=0.005)


def test_shares_that_are_none_are_refused():
    (update,) = updates(1)
    with pytest.raises(ValueError, match=r"density of 1\.2"):
        combining.trim(update, 1.2)
    with pytest.raises(ValueError, match="dropping a share of 1"):
        combining.drop_and_rescale(update, 1.0)
