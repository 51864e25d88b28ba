"""A memory of one matrix: its free numbers, and what it stores where that is known exactly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.scratch.capacity import fit_memory, free_numbers, overloaded_bits, stored_bits
from peftbook.training.probes import synthetic

few = settings(max_examples=15, deadline=None)


@few
@given(st.integers(2, 7), st.integers(2, 7), st.integers(1, 2))
def test_free_numbers_are_the_dimensions_that_the_factors_reach(d_out, d_in, rank):
    """The rank of the derivative of (B, A) ↦ B A is the dimension of the set of products."""
    torch.manual_seed(d_out * 100 + d_in * 10 + rank)
    b, a = torch.randn(d_out, rank).double(), torch.randn(rank, d_in).double()
    by_b = torch.einsum("ia,rj->ijar", torch.eye(d_out).double(), a).reshape(d_out * d_in, -1)
    by_a = torch.einsum("ir,ja->ijra", b, torch.eye(d_in).double()).reshape(d_out * d_in, -1)
    derivative = torch.cat([by_b, by_a], dim=1)
    assert torch.linalg.matrix_rank(derivative) == free_numbers(rank, d_out, d_in)


def test_the_full_rank_frees_everything_and_a_higher_one_does_not_exist():
    """r (d_out + d_in − r) at r = min is d_out · d_in."""
    assert free_numbers(5, 5, 9) == 45 and free_numbers(0, 5, 9) == 0
    with pytest.raises(ValueError, match="no rank 6"):
        free_numbers(6, 5, 9)


@few
@given(st.lists(st.floats(0, 3), min_size=1, max_size=20), st.integers(2, 300))
def test_stored_bits_agree_with_the_study_where_it_does_not_clip(nats, values):
    """The study's measure is the same sum, clipped at zero."""
    here = stored_bits(torch.tensor(nats, dtype=torch.double), values)
    assert max(0.0, here) == pytest.approx(synthetic.stored_bits(nats, values), abs=1e-6)


def information(joint):
    """I(T; θ) in bits, of a table of joint probabilities (tables, states)."""
    apart = joint.sum(1, keepdim=True) * joint.sum(0)
    return torch.special.xlogy(joint, joint / apart).sum().item() / math.log(2)


@few
@given(st.integers(0, 10_000))
def test_the_loss_never_counts_more_than_the_trained_numbers_know(seed):
    """E S ≤ I(T; θ) for two keys of two values, whatever training and network make of them: all tables are summed."""
    torch.manual_seed(seed)
    tables, states = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), 3
    joint = torch.rand(4, states).double().pow(4)  # of table and state: how training answers to each table
    joint /= 4 * joint.sum(1, keepdim=True)
    read = torch.rand(states, 2, 2).double().pow(2)  # p(v | k) by state, key and value
    nats = -(read / read.sum(-1, keepdim=True)).log()
    stored = [[stored_bits(nats[state, [0, 1], table], 2) for state in range(states)] for table in tables]
    assert (joint * torch.tensor(stored)).sum() <= information(joint) + 1e-9


def test_what_the_trained_numbers_know_is_meant_for_given_starting_weights():
    """A bit that the starting weights flip at random: read with them it is all there, and by itself it says nothing."""
    kept = {flip: torch.tensor([[0.5, 0.0], [0.0, 0.5]]).roll(flip, 1) for flip in (0, 1)}  # of value and trained bit
    assert all(information(joint) == pytest.approx(1) for joint in kept.values())
    assert information((kept[0] + kept[1]) / 2) == pytest.approx(0)
    assert stored_bits(torch.zeros(1), 2) == 1


def test_few_pairs_are_stored_whole_and_one_direction_cannot_name_three_values():
    """Independent keys take any labels; b_v · (a · k) is largest for two values of v only."""
    torch.manual_seed(0)
    keys, labels = torch.randn(12, 16), torch.arange(12) % 3
    for rank in (None, 3):
        assert stored_bits(fit_memory(keys, labels, 3, rank), 3) == pytest.approx(12 * math.log2(3), rel=0.02)
    assert stored_bits(fit_memory(keys, labels, 3, rank=1), 3) < 0.9 * 12 * math.log2(3)


def test_a_free_memory_is_at_the_optimum():
    """The problem is convex: at its minimum the probabilities and the labels have the same moments with the keys."""
    torch.manual_seed(1)
    keys, labels = torch.randn(400, 5), torch.randint(4, (400,))
    nats = fit_memory(keys, labels, 4)
    assert nats.mean() < math.log(4)
    assert 0 < stored_bits(nats, 4) < 60  # 15 free numbers hold about 0.72 bits each


@few
@given(st.integers(1, 6))
def test_the_overloaded_limit_grows_with_the_rank_to_half_a_nat_a_number(rank):
    """A low rank picks the leading directions: more for each free number than the whole matrix."""
    torch.manual_seed(rank)
    whole = overloaded_bits(8, 8, 12, draws=400)
    part = overloaded_bits(rank, 8, 12, draws=400)
    assert whole == pytest.approx(8 * 12 / (2 * math.log(2)), rel=0.05)
    assert part < whole
    assert part / free_numbers(rank, 8, 12) > whole / 96
