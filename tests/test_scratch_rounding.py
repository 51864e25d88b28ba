"""Merging into few bits: exact where the grid allows it, nothing where the update is below it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.scratch.codebooks import half_steps, round_trip
from peftbook.scratch.rounding import merge_rounded, survival

few = settings(max_examples=10, deadline=None)


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


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@few
@given(st.integers(0, 2**31), st.sampled_from(["nf4", "nf2", "int4"]), st.booleans(), st.floats(0.01, 3))
def test_what_survives_is_its_definition(seed, quant, double_quant, size):
    """κ = ⟨Q(Q(W) + D) − Q(W), D⟩ / ‖D‖² and its kin, weight by weight in plain numbers."""
    w, update = normal(seed, 8, 64), size * normal(seed + 1, 8, 64)
    grid = round_trip(w, quant, double_quant=double_quant)
    left = round_trip(grid + update, quant, double_quant=double_quant) - grid
    found = survival(w, update, quant, double_quant)
    pairs = list(zip(update.flatten().tolist(), left.flatten().tolist(), strict=True))
    total = math.fsum(d * d for d, _ in pairs)
    steps = math.fsum(h * h for h in half_steps(w, quant, double_quant=double_quant).flatten().tolist())
    assert found.kept == pytest.approx(math.fsum(r * d for d, r in pairs) / total, abs=1e-5)
    assert found.error == pytest.approx(math.sqrt(math.fsum((r - d) ** 2 for d, r in pairs) / total), rel=1e-4)
    assert found.size == pytest.approx(math.sqrt(total / steps), rel=1e-4)


@few
@given(st.integers(0, 2**31))
def test_a_large_update_survives_and_a_tiny_one_is_gone(seed):
    """κ is 1 far above a step and 0 far below it, and between them an update of twice the size keeps more."""
    w, update = normal(seed, 64, 128), 0.1 * normal(seed + 1, 64, 128)
    small, half, double, large = (survival(w, c * update, "nf4") for c in (0.1, 0.5, 1.0, 100.0))
    assert small.size < 0.2 and abs(small.kept) < 0.05 and small.error == pytest.approx(1, abs=0.2)
    assert large.size > 30 and large.kept == pytest.approx(1, abs=0.02) and large.error < 0.15
    assert 0.1 < half.kept < double.kept < 1.1


@few
@given(st.integers(0, 2**31), st.floats(0.1, 10), st.integers(-10, 10))
def test_what_survives_has_no_unit_and_sums_over_parts(seed, size, exponent):
    """Scaling weights and update by a power of two changes nothing; two halves of a matrix add up to the whole."""
    w, update = normal(seed, 16, 64), size * normal(seed + 1, 16, 64)
    whole = survival(w, update, "nf4")
    scaled = survival(w * 2.0**exponent, update * 2.0**exponent, "nf4")
    upper, lower = (survival(w[part], update[part], "nf4") for part in (slice(0, 4), slice(4, 16)))
    for found in (scaled, upper + lower):
        values = [(each.size, each.kept, each.error) for each in (found, whole)]
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6)


@few
@given(st.integers(0, 2**31), st.sampled_from(["int4", "fp4"]))
def test_on_a_symmetric_grid_a_sign_changes_nothing(seed, quant):
    """−W and −D are rounded to what W and D are, with the other sign."""
    w, update = normal(seed, 16, 64), 0.1 * normal(seed + 1, 16, 64)
    one, two = survival(w, update, quant), survival(-w, -update, quant)
    assert (one.size, one.kept, one.error) == pytest.approx((two.size, two.kept, two.error), rel=1e-4)
