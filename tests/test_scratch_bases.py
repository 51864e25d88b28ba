"""Formats of frozen weights beyond NF4, against torch's casts, exhaustive search, least squares and their own laws."""

import itertools
import math

import numpy as np
import pytest
import torch

from peftbook.scratch.awq import awq, channel_scale, search_scale
from peftbook.scratch.codebooks import codebook
from peftbook.scratch.gptq import gptq, input_moment, inverse_factor, output_error
from peftbook.scratch.groups import (
    codes_on,
    min_max_grid,
    pack_bits,
    round_to_nearest,
)
from peftbook.scratch.hqq import hqq, shrink
from peftbook.scratch.microscaling import (
    E2M1,
    E4M3,
    decode,
    encode,
    quantize_fp8,
    quantize_mxfp4,
    quantize_nvfp4,
)


@pytest.fixture(name="W")
def weights() -> torch.Tensor:
    """A matrix with rows of unequal size and one outlier a row."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(24, 128, generator=generator) * torch.rand(24, 1, generator=generator)
    W[:, 5] *= 6
    return W


@pytest.fixture
def x() -> torch.Tensor:
    """Inputs that are correlated, and of which a few are large."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(600, 128, generator=generator) @ torch.randn(128, 128, generator=generator) / 8
    return mixed * torch.where(torch.arange(128) % 16 == 3, 8.0, 1.0)


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_is_undone_and_takes_so_many_bits(bits):
    """Also where the last byte is not full."""
    codes = torch.randint(2**bits, (77,), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert len(packed) == math.ceil(77 * bits / 8)
    stream = np.unpackbits(packed.numpy(), bitorder="little")[: 77 * bits].reshape(77, bits)
    assert (np.packbits(stream, axis=1, bitorder="little")[:, 0] == codes.numpy()).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_round_to_nearest_takes_the_nearest_of_all_steps(W, bits):
    """By trying every code of every group."""
    stored = round_to_nearest(W, bits, 32)
    scale, zero = (part.float().repeat_interleave(32, dim=1)[..., None] for part in (stored.scale, stored.zero))
    distance = (scale * (torch.arange(2**bits) - zero) - W[..., None]).abs()
    torch.testing.assert_close((stored.weight - W).abs(), distance.amin(dim=-1), atol=1e-6, rtol=0)


def test_zero_is_on_every_grid(W):
    """Also in a group that is all positive, or all zero."""
    W[0], W[1] = W[0].abs() + 1, 0.0
    scale, zero = min_max_grid(W.unflatten(1, (-1, 32)), 3)
    assert torch.equal(codes_on(torch.zeros(24, 4), scale, zero, 3), zero)
    assert torch.equal(round_to_nearest(W, 3, 32).weight[1], torch.zeros(128))


def test_groups_that_do_not_fill_rows_are_refused(W):
    """No format pads in silence."""
    H = torch.eye(128)
    for quantise in (lambda: round_to_nearest(W, 4, 48), lambda: gptq(W, H, 4, 48), lambda: hqq(W, 4, 48)):
        with pytest.raises(ValueError, match="do not fill groups of 48"):
            quantise()
    with pytest.raises(ValueError, match="do not fill groups of 32"):
        quantize_mxfp4(W[:, :40])


def test_bits_are_those_of_the_stored_bytes(W):
    """Codes, scales of 16 bits, and zero points of as many bits as a code, or of 16."""

    def bits_per_weight(arrays, count):
        return 8 * sum(part.nbytes for part in arrays) / count

    for bits, group in itertools.product((2, 3, 4), (32, 64)):
        packed, free = round_to_nearest(W, bits, group), hqq(W, bits, group)
        assert bits_per_weight(packed.arrays, W.numel()) == bits + (16 + bits) / group
        assert bits_per_weight(free.arrays, W.numel()) == bits + 32 / group
    assert bits_per_weight(quantize_mxfp4(W).arrays, W.numel()) == 4 + 8 / 32
    assert bits_per_weight(quantize_nvfp4(W).arrays, W.numel()) == 4 + 8 / 16 + 32 / W.numel()
    assert bits_per_weight(quantize_fp8(W).arrays, W.numel()) == 8 + 32 / W.shape[1]


# --- GPTQ --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_is_round_to_nearest_where_inputs_are_unrelated_and_alike(W, bits):
    """With H = I nothing is gained by moving a weight."""
    ours, plain = gptq(W, torch.eye(128), bits, 32), round_to_nearest(W, bits, 32)
    assert all(torch.equal(one, two) for one, two in zip(ours, plain, strict=True) if isinstance(one, torch.Tensor))


def test_gptq_moves_the_free_weights_as_least_squares_would(x):
    """The same codes come out if after each column the rest is solved for anew, without any factor of the Hessian."""
    torch.manual_seed(2)
    W, H = torch.randn(6, 16), input_moment(x[:, :16])
    damped = (H + 0.01 * H.diagonal().mean() * torch.eye(16)).double()
    moved, rounded, scales = W.double().clone(), torch.zeros(6, 16, dtype=torch.float64), []
    for j in range(16):
        if j % 8 == 0:
            scale, zero = min_max_grid(moved[:, j : j + 8].float(), 3)
            scales.append(scale)
        code = codes_on(moved[:, j].float(), scale, zero, 3)
        rounded[:, j] = scale.double() * (code.double() - zero.double())
        fixed, free = slice(j + 1), slice(j + 1, None)
        lost = (W.double() - rounded)[:, fixed] @ damped[fixed, free]
        moved[:, free] = W.double()[:, free] + torch.linalg.solve(damped[free, free], lost.T).T
    stored = gptq(W, H, 3, 8)
    torch.testing.assert_close(stored.weight.double(), rounded, atol=1e-5, rtol=1e-5)
    assert torch.equal(stored.scale, torch.stack(scales, dim=1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_changes_outputs_less_and_weights_more_than_round_to_nearest(W, x, bits):
    """It trades the error of weights for that of outputs, of which it knows the inputs."""
    H = input_moment(x)
    ours, plain = (stored.weight - W for stored in (gptq(W, H, bits, 32), round_to_nearest(W, bits, 32)))
    assert output_error(ours, H) < 0.9 * output_error(plain, H)
    assert ours.norm() > plain.norm()


def test_output_error_is_that_of_the_outputs(W, x):
    """Mean over inputs of ‖E x‖²."""
    E = round_to_nearest(W, 3, 32).weight - W
    expected = (x @ E.T).square().sum(dim=1).mean().item()
    assert output_error(E, input_moment(x)) == pytest.approx(expected, rel=1e-4)


def test_an_input_that_is_always_zero_is_rounded_by_itself(W, x):
    """Its diagonal would be zero, and no factor could be had."""
    x = x.clone()
    x[:, 7] = 0
    U = inverse_factor(input_moment(x))
    assert torch.isfinite(U).all() and U[7, 8:].abs().max() < 1e-6
    assert torch.isfinite(gptq(W, input_moment(x), 4, 32).weight).all()


# --- AWQ ---------------------------------------------------------------------------------------------------------


def test_awq_without_scale_is_round_to_nearest(W, x):
    """α = 0 scales by 1."""
    one = channel_scale(x.abs().mean(dim=0), 0.0)
    assert torch.equal(one, torch.ones(128))
    assert torch.equal(awq(W, one, 3, 32).codes, round_to_nearest(W, 3, 32).codes)


def test_awq_finds_a_scale_that_is_no_worse_and_spares_large_inputs(W, x):
    """The grid has α = 0 in it. Where an eighth of the inputs is eight times larger, scaling helps."""
    H, magnitude = input_moment(x), x.abs().mean(dim=0)
    found = search_scale([W, W.flip(0)], H, magnitude, 3, 32)
    plain = sum(output_error(round_to_nearest(one, 3, 32).weight - one, H) for one in (W, W.flip(0)))
    assert found.error < 0.9 * plain and 0 < found.alpha < 1
    torch.testing.assert_close(found.scale, channel_scale(magnitude, found.alpha))
    assert found.scale[3::16].min() > found.scale[4::16].max()


def test_awq_computes_the_same_function_before_rounding(W, x):
    """(W diag(s)) (x / s) = W x."""
    s = channel_scale(x.abs().mean(dim=0), 0.5)
    torch.testing.assert_close((x / s) @ (W * s).T, x @ W.T, atol=1e-3, rtol=1e-4)


# --- HQQ ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_lowers_its_objective_in_every_group(W, bits):
    """Σ |w − ŵ|^0.7, from the zero point where round-to-nearest has it."""

    def objective(stored):
        return (stored.weight - W).abs().pow(0.7).unflatten(1, (-1, 32)).sum(dim=-1)

    before, after = objective(round_to_nearest(W, bits, 32)), objective(hqq(W, bits, 32))
    assert (after <= before * (1 + 1e-3)).all()
    assert after.sum() < 0.995 * before.sum()


def test_shrinking_is_the_minimum_that_it_stands_for():
    """For p = 1, of |e| + ½ β (e − x)², by trying all e of a fine grid."""
    x, e = torch.linspace(-2, 2, 41), torch.linspace(-2, 2, 8001)
    cost = e.abs() + 2.0 * (e - x[:, None]) ** 2
    torch.testing.assert_close(shrink(x, 4.0, 1.0), e[cost.argmin(dim=1)], atol=1e-3, rtol=0)
    assert (shrink(x, 4.0, 0.7).abs() <= x.abs()).all()


def test_the_zero_point_of_a_turn_is_the_least_squares_one(W):
    """With codes and large errors fixed, no other zero point fits better."""
    groups = W.unflatten(1, (-1, 32))
    scale, zero = (part.float()[..., None] for part in min_max_grid(groups, 3))
    codes = codes_on(groups, scale, zero, 3).float()
    large = shrink(groups - scale * (codes - zero), 10.0, 0.7)
    best = (codes - (groups - large) / scale).mean(dim=-1, keepdim=True)

    def rest(zero):
        return (groups - scale * (codes - zero) - large).square().sum()

    assert rest(best) <= min(rest(best + 0.01), rest(best - 0.01), rest(zero))


# --- floats ------------------------------------------------------------------------------------------------------


def test_e4m3_is_the_type_of_torch():
    """Every code, and the rounding of many numbers: ties to the even code, the largest where there is no larger."""
    codes = torch.arange(256, dtype=torch.uint8)
    known = codes.view(torch.float8_e4m3fn).float()
    finite = ~known.isnan()
    torch.testing.assert_close(decode(codes[finite], E4M3), known[finite], atol=0, rtol=0)
    middles = (E4M3[1:] + E4M3[:-1]) / 2
    numbers = torch.cat([torch.randn(4000) * 10.0 ** torch.randint(-3, 3, (4000,)), middles, -middles, E4M3])
    numbers = numbers.clamp(-448, 448)
    cast = numbers.to(torch.float8_e4m3fn).float()
    torch.testing.assert_close(decode(encode(numbers, E4M3), E4M3), cast, atol=0, rtol=0)


def test_e2m1_is_the_nearest_of_the_published_levels():
    """By trying all, and against the codebook of the chapter on quantisation; on a tie the even code."""
    x = torch.cat([torch.linspace(-8, 8, 4003), (E2M1[1:] + E2M1[:-1]) / 2])
    back = decode(encode(x, E2M1), E2M1)
    levels = torch.cat([-E2M1, E2M1]).unique()
    torch.testing.assert_close((back - x).abs(), (levels - x[:, None]).abs().amin(dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(levels / 6, codebook("e2m1"))
    assert (encode((E2M1[1:] + E2M1[:-1]) / 2, E2M1) % 2 == 0).all()


def test_mxfp4_takes_the_power_of_two_below_the_largest_weight(W):
    """Its scale is torch's E8M0 where that is a power of two, and the largest weight lies in [4, 8) scales."""
    stored = quantize_mxfp4(W)
    scale = stored.exponents.view(torch.float8_e8m0fnu).float()
    most = W.unflatten(1, (-1, 32)).abs().amax(dim=-1) / scale
    assert (most >= 4).all() and (most < 8).all()
    spread = scale.repeat_interleave(32, dim=1)
    torch.testing.assert_close(stored.weight, decode(encode(W / spread, E2M1), E2M1) * spread, atol=0, rtol=0)
    assert (stored.weight.abs() <= 6 * spread).all()
    torch.testing.assert_close(quantize_mxfp4(8 * W).weight, 8 * stored.weight, atol=0, rtol=0)


def test_nvfp4_has_the_scales_of_torch(W):
    """max / 6 of each block in float8_e4m3fn, in units of the tensor's scale, which gives the largest block 448."""
    stored = quantize_nvfp4(W)
    wanted = W.unflatten(1, (-1, 16)).abs().amax(dim=-1) / 6 / stored.tensor_scale
    torch.testing.assert_close(decode(stored.scales, E4M3), wanted.to(torch.float8_e4m3fn).float(), atol=0, rtol=0)
    assert decode(stored.scales, E4M3).max() == 448
    assert (
        (stored.weight - W).abs() <= 1.1 * W.unflatten(1, (-1, 16)).abs().amax(dim=-1).repeat_interleave(16, 1) / 6
    ).all()


def test_fp8_rounds_as_torch_does_and_keeps_zeros(W):
    """Row by row."""
    W[3] = 0
    stored = quantize_fp8(W)
    scale = W.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 448
    torch.testing.assert_close(stored.weight, (W / scale).to(torch.float8_e4m3fn).float() * scale)
    for quantised in (stored, quantize_mxfp4(W), quantize_nvfp4(W)):
        assert torch.equal(quantised.weight[3].abs(), torch.zeros(128))
