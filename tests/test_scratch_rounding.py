"""Merging into few bits: exact where the grid allows it, nothing where the update is below it."""

import pytest
import torch

from peftbook.scratch.rounding import merge_rounded


def draws(size: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    W, delta = (torch.randn(200, 300, generator=generator) for _ in range(2))
    return W, size * delta


def test_float32_keeps_an_update_of_bfloat16_weights():
    """The sum is on float32's own grid to seven digits."""
    merged = merge_rounded(*draws(1e-2), dtype=torch.float32)
    assert merged.unchanged < 1e-3 and abs(merged.kept - 1) < 1e-4 and merged.error < 1e-4


def test_an_update_on_the_grid_is_kept_exactly():
    """Powers of two that move by one spacing lose nothing."""
    W = torch.tensor([1.0, 2.0, -4.0])
    merged = merge_rounded(W, W.abs() * 2.0**-7)
    assert merged == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("part, moves", [(0.49, False), (0.51, True)])
def test_half_a_spacing_decides(part, moves):
    """Below half of the spacing nothing happens, above it the weight moves by a whole one."""
    W = torch.tensor([1.0])
    merged = merge_rounded(W, part * torch.tensor([2.0**-7]))
    assert merged.unchanged == float(not moves)
    assert merged.kept == pytest.approx(1 / part if moves else 0)


def test_smaller_updates_keep_less():
    """More weights stay as they were and the error grows, towards all of the update."""
    merges = [merge_rounded(*draws(size)) for size in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert [merged.unchanged for merged in merges] == sorted(merged.unchanged for merged in merges)
    assert [merged.error for merged in merges] == sorted(merged.error for merged in merges)
    assert merges[-1].unchanged > 0.9


def test_rounding_is_nearly_unbiased_until_the_grid_is_coarse():
    """At an update of a hundredth the errors of single weights cancel along the update, though each is large."""
    merged = merge_rounded(*draws(1e-2))
    assert abs(merged.kept - 1) < 0.02 < 0.1 < merged.error
