"""What an update did to a weight: laws of the counts, and of the loss that is read off a path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.scratch.forgetting import at_target, energy_rank, intruders

few = settings(max_examples=25, deadline=None)
sides = st.integers(4, 16)


def orthogonal(side: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(side, side, generator=torch.Generator().manual_seed(seed)).double()).Q


@few
@given(sides, st.integers(1, 3), st.integers(0, 99))
def test_the_effective_rank_is_at_most_the_rank_and_blind_to_scale_and_rotation(side, rank, seed):
    """It counts directions of the product, whatever A and B are and however large."""
    torch.manual_seed(seed)
    update = torch.randn(side, rank) @ torch.randn(rank, side + 3)
    effective = energy_rank(update)
    assert 1 <= effective <= rank
    assert energy_rank(1e-4 * update) == effective == energy_rank(orthogonal(side, seed).float() @ update)


def test_the_effective_rank_of_known_spectra():
    """Equal values share the energy equally; one that dominates is enough."""
    assert energy_rank(torch.eye(10)) == 9
    assert energy_rank(torch.eye(10), share=0.95) == 10
    assert energy_rank(torch.diag(torch.tensor([10.0, 1, 1, 1]))) == 1


@few
@given(sides, st.integers(0, 99), st.floats(0.1, 3))
def test_scaling_and_stretching_known_directions_bring_no_intruders(side, seed, factor):
    """New singular values on old singular vectors are nothing new."""
    left, right = orthogonal(side, seed), orthogonal(side, seed + 1)
    values = torch.arange(side, 0, -1).double()
    before = left @ torch.diag(values) @ right.T
    stretched = left @ torch.diag(factor * values**1.5) @ right.T
    assert intruders(before, stretched, top=side // 2, epsilon=0.6) == 0


def test_a_strong_update_in_a_mixed_direction_is_one_intruder():
    """u is spread evenly over all old directions, so its largest cosine is 1/√side."""
    side = 25
    before = torch.diag(torch.arange(side, 0, -1).double())
    u = torch.full((side, 1), side**-0.5).double()
    after = before + 1e4 * u @ u.T
    assert intruders(before, after, top=1, epsilon=0.21) == 1
    assert intruders(before, after, top=1, epsilon=0.19) == 0


def test_matching_reads_the_first_crossing_linearly():
    """Where the loss comes back up and down again, the first time counts; a level not reached is an error."""
    path, values = [2.0, 1.0, 1.5, 0.5], [0.0, 1.0, 5.0, 9.0]
    assert at_target(path, values, 1.25) == pytest.approx(0.75)
    assert at_target(path, values, 1.0) == 1.0
    assert at_target(path, values, 0.75) == pytest.approx(8.0)
    with pytest.raises(ValueError, match=r"lowest is 0\.5"):
        at_target(path, values, 0.4)
